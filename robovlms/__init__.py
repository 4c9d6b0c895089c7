"""Turn a vision-language model into a robot policy: train, evaluate in closed loop, compare."""

__version__ = "0.1.0"
