"""What is wrong with a run, one finding after the other, each with its place and the way out."""

from __future__ import annotations

from dataclasses import dataclass, field

MOST = 200
"""Findings of a stage that are kept; more are counted."""


@dataclass(frozen=True)
class Finding:
    """Something that is not as it should be."""

    stage: str
    file: str
    """Relative to the run."""
    row: int | None
    """Of the file, from 0; None: the file as a whole."""
    what: str
    way_out: str


@dataclass
class Findings:
    """Those of one stage."""

    stage: str
    way_out: str
    """Where nothing better is known."""
    kept: list[Finding] = field(default_factory=list)
    count: int = 0

    def add(self, file: str, what: str, row: int | None = None, way_out: str = "") -> None:
        """Note one."""
        self.count += 1
        if self.count <= MOST:
            self.kept.append(Finding(self.stage, file, row, what, way_out or self.way_out))
