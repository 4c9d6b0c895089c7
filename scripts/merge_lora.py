"""Merge a checkpoint's adapters: `python scripts/merge_lora.py checkpoint=runs/my_run output_dir=runs/merged`."""

from robovlms.cli.main import merge_lora

if __name__ == "__main__":
    merge_lora()
