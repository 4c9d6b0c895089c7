"""Convert a checkpoint of RoboVLMs into one of ours: `python scripts/convert_checkpoint.py source=... config=...`."""

from robovlms.cli.main import convert_checkpoint

if __name__ == "__main__":
    convert_checkpoint()
