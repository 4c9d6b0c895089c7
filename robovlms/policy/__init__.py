"""A policy, its memory, and how it acts."""
