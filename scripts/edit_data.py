"""Edit a data set into a new one: `python scripts/edit_data.py root=/path output_dir=/new drop=3,7-9`."""

from robovlms.cli.main import edit_data

if __name__ == "__main__":
    edit_data()
