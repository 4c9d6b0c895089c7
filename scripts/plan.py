"""Count what a run needs before it starts: `python scripts/plan.py experiment=calvin_perform cluster=a100_4x8`."""

from robovlms.cli.main import plan

if __name__ == "__main__":
    plan()
