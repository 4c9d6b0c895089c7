"""CALVIN folders."""
