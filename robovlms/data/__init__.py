"""Robot datasets behind one contract (`base.py`), one file per on-disk format."""
