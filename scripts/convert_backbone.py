"""Convert an original checkpoint into a folder of ours: `python scripts/convert_backbone.py family=moondream ...`."""

from robovlms.cli.main import convert_backbone

if __name__ == "__main__":
    convert_backbone()
