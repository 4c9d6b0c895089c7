"""Checkpoints on the Hugging Face Hub: how they get there and back, and what must not get there."""
