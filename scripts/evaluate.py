"""Evaluate a checkpoint in closed loop: `python scripts/evaluate.py checkpoint=runs/quickstart_nano sim=metaworld`."""

from robovlms.cli.main import evaluate

if __name__ == "__main__":
    evaluate()
