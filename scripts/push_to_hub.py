"""Publish a checkpoint on the Hugging Face Hub: `python scripts/push_to_hub.py checkpoint=runs/x repo=my-lab/x`."""

from robovlms.cli.main import push_to_hub

if __name__ == "__main__":
    push_to_hub()
