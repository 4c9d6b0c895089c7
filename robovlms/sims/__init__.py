"""Simulators behind one contract (`base.py`), one file per benchmark."""
