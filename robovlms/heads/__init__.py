"""Action heads behind one contract (`base.py`), one file per head."""
