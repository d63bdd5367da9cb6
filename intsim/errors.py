"""Errors that a user can cause.  Each message is one sentence that names the file, the operator, the value and
what is allowed; the command line prints it and exits with status 2."""

from __future__ import annotations


class UserError(Exception):
    """Unusable input: the command ends with exit status 2 and this message, without a traceback."""


class ProgramError(UserError, ValueError):
    """A Program (or its file) is not valid: wrong wiring, value, width or digest."""
