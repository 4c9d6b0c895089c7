"""Export a checkpoint's control step as an ONNX file: `python scripts/export.py checkpoint=... output=policy.onnx`."""

from robovlms.cli.main import export

if __name__ == "__main__":
    export()
