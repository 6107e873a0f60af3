"""Runs for the browser, each made once a session, and reports of them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from browser import hostile
from e2e.runs import Kept, small
from selfcal.pipeline import execute
from selfcal.report import write_report

SIZES = ("data.rft=16", "data.calibration=16", "data.dev=4", "data.test=6", "judge.samples=16")
"""Of a real run, which takes some 12 seconds."""


def real(path: Path) -> Path:
    """A run with models, two iterations of eight calibration samples each."""
    execute(small(*SIZES), path)
    return path


MAKERS: dict[str, Callable[[Path], Path]] = {
    "real": real,
    "plain": hostile.plain,
    "hostile": hostile.hostile,
    "many": hostile.many,
}


@dataclass
class Runs:
    """Runs by name, and reports of them, each made when it is first asked for."""

    folder: Path
    _reports: dict[tuple[str, bool], Path] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Path:
        """The folder of a run. Do not write into it."""
        path = self.folder / name / "run"
        if not path.exists():
            path.parent.mkdir()
            MAKERS[name](path)
        return path

    def kept(self, name: str) -> Kept:
        """The records of a run."""
        from selfcal.pipeline import open_run

        return Kept(open_run(self[name]), self[name])

    def copy(self, name: str, to: Path) -> Path:
        """A copy to write into."""
        shutil.copytree(self[name], to, ignore=shutil.ignore_patterns("pipe.PNG"))
        return to

    def report(self, name: str, assets: bool = False) -> Path:
        """The report of a run, alone in a folder."""
        if (name, assets) not in self._reports:
            here = self.folder / name / ("beside" if assets else "alone")
            out = here / "report.html"
            write_report(self[name], out, 5_000, here / "images" if assets else None)
            self._reports[name, assets] = out
        return self._reports[name, assets]
