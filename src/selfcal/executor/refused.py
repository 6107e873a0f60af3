"""What libraries make of a disk that is full, or of a folder that is read-only, said plainly.

Records are written by `store`, which says so itself. Trainings write weights by libraries, whose
errors are tracebacks, some without the reason: torch finds that a file is not as long as it should
be, safetensors has the system's number in its text alone.
"""

from __future__ import annotations

import errno
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from selfcal.errors import SelfcalError
from selfcal.store import explained

_REFUSALS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EIO)
_TORCH = re.compile(r"inline_container|PytorchStreamWriter|unexpected pos")


@contextmanager
def refused_writes(folder: Path) -> Iterator[None]:
    """Turn a refused write of any library into an error that names the reason and the way out.

    Raises:
        StoreError: the system refused a write; `folder` is where the work writes.
    """
    try:
        yield
    except SelfcalError:
        raise
    except Exception as error:
        number = refusal(error, folder)
        if number is None:
            raise
        with explained("write in", folder):
            raise OSError(number, os.strerror(number)) from error


def refusal(error: BaseException, folder: Path) -> int | None:
    """The errno of a refused write in a folder that an error comes from; None: something else."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno in _REFUSALS:
            return seen.errno
        if found := re.search(r"\(os error (\d{1,4})\)", str(seen)):  # as Rust's libraries put it
            return number if (number := int(found[1])) in _REFUSALS else None
        seen = seen.__cause__ or seen.__context__
    short = isinstance(error, RuntimeError) and _TORCH.search(str(error))
    return _tried(folder) if short else None


def _tried(folder: Path) -> int:
    """What the system says to a write; torch does not say why a file is shorter than it should be.

    Where it says nothing, there was too little room, and by now there is some.
    """
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(2**20))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return error.errno or errno.ENOSPC
    return errno.ENOSPC
