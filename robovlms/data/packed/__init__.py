"""Packed copies."""
