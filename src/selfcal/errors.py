"""The errors that selfcal raises on purpose.

What they share is their message: what went wrong, where, and the way out. The command line prints
it without a traceback. An error of any other class that reaches the user is a defect.
"""

from __future__ import annotations


class SelfcalError(Exception):
    """What went wrong, where, and the way out; the CLI prints it without traceback."""


class StoreError(SelfcalError):
    """A file or folder of a run can't be written, read or trusted."""
