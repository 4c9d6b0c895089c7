"""Pack a data set for fast reading: `python scripts/convert_data.py data=calvin data.root=/path view=side_wrist`."""

from robovlms.cli.main import convert_data

if __name__ == "__main__":
    convert_data()
