"""Formats of single files."""
