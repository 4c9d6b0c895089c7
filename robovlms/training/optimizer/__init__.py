"""What changes the weights: AdamW and its moments, the float32 masters behind bfloat16, the moving average."""
