"""Look at a data set: `python scripts/inspect_data.py data=calvin data.root=/path/to/task_ABCD_D`."""

from robovlms.cli.main import inspect_data

if __name__ == "__main__":
    inspect_data()
