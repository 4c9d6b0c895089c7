"""Errors that the user can fix."""

from __future__ import annotations


class UserError(ValueError):
    """What the user can fix: the message names the option or file and what to change; exit status 2, no traceback."""


class NotAllowedError(UserError):
    """Two options that do not go together; a sweep skips them."""


class LostProcessError(UserError):
    """Another process of the run has gone; what it says itself, if anything, comes first."""
