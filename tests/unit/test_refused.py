"""A refused write is said plainly, whoever wrote."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from selfcal.errors import StoreError
from selfcal.executor.refused import refusal, refused_writes


@pytest.mark.parametrize(
    ("error", "number"),
    [
        (OSError(errno.EDQUOT, "Disk quota exceeded"), errno.EDQUOT),
        (OSError(errno.EROFS, "Read-only file system"), errno.EROFS),
        (ValueError("I/O error: No space left on device (os error 28) at path x"), errno.ENOSPC),
        (RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 2 vs 1"), 28),
        (FileNotFoundError(errno.ENOENT, "No such file"), None),
        (ValueError("No such file or directory (os error 2)"), None),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), None),
    ],
)
def test_what_an_error_comes_from(error: Exception, number: int | None, tmp_path: Path) -> None:
    assert refusal(error, tmp_path) == number
    assert not list(tmp_path.iterdir())


def test_the_system_is_asked_where_torch_does_not_say_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(file: int) -> None:
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    monkeypatch.setattr(os, "fsync", refuse)
    assert refusal(RuntimeError("unexpected pos 2 vs 1"), tmp_path) == errno.EDQUOT


def test_the_reason_is_found_behind_the_error_that_torch_makes_of_it(tmp_path: Path) -> None:
    try:
        try:
            raise OSError(errno.EDQUOT, "Disk quota exceeded")
        finally:
            raise RuntimeError("inline_container.cc:672: unexpected pos")
    except RuntimeError as error:
        assert refusal(error, tmp_path) == errno.EDQUOT


def test_a_refused_write_names_the_folder_the_reason_and_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(StoreError) as caught, refused_writes(tmp_path):
        raise RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed")
    said = str(caught.value)
    assert str(tmp_path) in said
    assert "No space left on device; free some space, then run the same command again" in said


def test_other_errors_are_left_as_they_are(tmp_path: Path) -> None:
    with pytest.raises(KeyError), refused_writes(tmp_path):
        raise KeyError("x")
    with pytest.raises(StoreError, match="own"), refused_writes(tmp_path):
        raise StoreError("own")
