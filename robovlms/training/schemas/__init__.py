"""Schemas of the options of training: light, without torch."""
