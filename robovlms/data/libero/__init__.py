"""LIBERO and robomimic files."""
