"""Layers that several heads are built from."""
