"""What a policy computes as graphs: those of torch.compile, and those of CUDA."""
