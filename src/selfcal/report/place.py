"""Where a report may be written: never over a file or a folder that is not a report's own.

The page and its pictures are made again each time, so what they replace must be what an earlier
report left there; and pictures lie beside the page or below, as its addresses are relative and a
page is sent around with its folder.
"""

from __future__ import annotations

import re
from pathlib import Path

from selfcal.errors import StoreError
from selfcal.report.record import Record
from selfcal.store import explained

_OPENING = 8_000
"""Bytes of a page within which its generator stands."""
_PICTURE = re.compile(r"\.?[0-9a-f]{20}\.(jpg|png)(\..*\.partial)?")
"""Names of the pictures of a report, and of what a killed one left."""


def check_places(record: Record, out: Path, assets: Path | None) -> None:
    """See that a report destroys nothing.

    Raises:
        StoreError: the page or the folder of its pictures would lie where something else does.
    """
    if out.exists() and not _is_report(out):
        raise StoreError(
            f"--out {out}: is there already, and is no report of selfcal; give a new file"
        )
    _outside_of_stages(record, "--out", out)
    if assets is None:
        return
    _outside_of_stages(record, "--assets", assets)
    if not assets.resolve().is_relative_to(out.parent.resolve()):
        raise StoreError(
            f"--assets {assets}: lies neither beside {out} nor below its folder, so a page that is "
            f"sent around would lose its images; give such as {out.parent / 'images'}"
        )
    with explained("read", assets):
        strangers = [p.name for p in _within(assets) if not _PICTURE.fullmatch(p.name)]
    if strangers:
        raise StoreError(
            f"--assets {assets}: holds other things than the images of a report, such as "
            f"{min(strangers)!r}; give a new folder"
        )


def _within(folder: Path) -> list[Path]:
    """What a folder holds; nothing, if there is none."""
    return [*folder.iterdir()] if folder.exists() else []


def _is_report(path: Path) -> bool:
    if not path.is_file():
        return False
    with explained("read", path), path.open("rb") as file:
        opening = file.read(_OPENING)
    return (
        opening.startswith(b"<!doctype html>")
        and b'<meta name="generator" content="selfcal ' in opening
    )


def _outside_of_stages(record: Record, option: str, path: Path) -> None:
    """See that a path is in no folder that a stage has, or will have."""
    run, place = record.run.resolve(), path.resolve()
    if not place.is_relative_to(run):
        return
    taken = {name.split("/")[0] for name in record.planned}
    if place.relative_to(run).parts[:1] and place.relative_to(run).parts[0] in taken:
        raise StoreError(
            f"{option} {path}: lies in a folder of the run's own stages; give a place beside them"
        )
