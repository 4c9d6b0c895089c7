"""Checkpoints that RoboVLMs (arXiv:2412.14058) released or its trainer wrote, read as checkpoints of ours."""
