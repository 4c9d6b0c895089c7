"""TFDS folders."""
