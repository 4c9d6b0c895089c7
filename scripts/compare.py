"""Compare finished runs: `python scripts/compare.py folders=[runs/structure_grid]`."""

from robovlms.cli.main import compare

if __name__ == "__main__":
    compare()
