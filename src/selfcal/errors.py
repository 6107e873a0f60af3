"""The errors that selfcal raises on purpose.

What they share is their message: what went wrong, where, and the way out. The command line prints
it without a traceback. An error of any other class that reaches the user is a defect.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import ValidationError


class SelfcalError(Exception):
    """What went wrong, where, and the way out; the CLI prints it without traceback."""


class StoreError(SelfcalError):
    """A file or folder of a run can't be written, read or trusted."""


def first_fault(error: ValidationError) -> str:
    """What pydantic found first, and where in the value: `recipe.seed: Input should be ...`."""
    first = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(map(str, first["loc"]))
    return f"{where}: {first['msg']}" if where else first["msg"]
