"""Vision-language models behind one contract (`base.py`), one file per family."""
