"""Let a checkpoint act for robots and simulators that ask over the wire: `python scripts/serve.py checkpoint=...`."""

from robovlms.cli.main import serve

if __name__ == "__main__":
    serve()
