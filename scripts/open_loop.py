"""Show a checkpoint recorded episodes: `python scripts/open_loop.py checkpoint=...`."""

from robovlms.cli.main import open_loop

if __name__ == "__main__":
    open_loop()
