"""Collect demonstrations by a simulator's scripted experts: `python scripts/collect_demos.py root=runs/demos`."""

from robovlms.cli.main import collect_demos

if __name__ == "__main__":
    collect_demos()
