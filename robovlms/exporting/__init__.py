"""A policy as a program that needs neither this package nor torch, and what plays it."""
