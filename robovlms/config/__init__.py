"""The schema of a run: what every key means, its type, its range and its default.

YAML files in `configs/` choose values, these dataclasses type them, and `robovlms.cli` turns the composed config into
one `TrainConfig`. Below the entry points nobody knows Hydra, nobody writes to a config, and nothing here imports torch.
Sequences are `list` because that is what OmegaConf gives back.
"""
