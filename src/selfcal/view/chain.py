"""One sample of a run, and the door to all records that name it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from selfcal.miniworld.verifier import Verification, verify
from selfcal.pipeline import Planned
from selfcal.rationale import FORMATS
from selfcal.recipe import Recipe
from selfcal.types import Drop, Sample
from selfcal.view.text import safe
from selfcal.view.verdicts import marked

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T", bound="DataclassInstance")


@dataclass(frozen=True)
class Chain:
    """A sample, and what finished stages have of it."""

    run: Path
    recipe: Recipe
    planned: Mapping[str, Planned]
    split: str
    sample: Sample

    def own(self, stage: str, name: str, kind: type[T]) -> list[T]:
        """The sample's records of a finished stage; none if it is not planned or not finished."""
        if not self.done(stage) or not self.planned[stage].folder.has(name, 0):
            return []
        rows = self.planned[stage].folder.records(name, kind)
        return [row for row in rows if getattr(row, "sample_id", None) == self.sample.id]

    def done(self, stage: str) -> bool:
        """Whether a stage is planned and finished."""
        return stage in self.planned and self.planned[stage].folder.done

    def verified(self, text: str) -> Verification | None:
        """What the verifier finds in a response; None where nobody can tell."""
        if not self.recipe.data.miniworld:
            return None
        try:
            return verify(self.sample, text, FORMATS[self.recipe.format])
        except ValueError:  # facts that leave the question open
            return None

    def said(self, text: str) -> Padding:
        """A response with the verifier's marks."""
        return indented(marked(text, self.verified(text)), 6)

    def image(self, path: str) -> str:
        """Where an image of the run lies, and whether it is there."""
        found = self.run / path
        return safe(str(found)) + ("" if found.exists() else "  (missing)")


def indented(what: Table | Text, by: int = 2) -> Padding:
    """Something moved to the right."""
    return Padding(what, (0, 0, 0, by), expand=False)


def reason(drop: Drop) -> Padding:
    """Why a stage left something out."""
    detail = f": {safe(drop.detail)}" if drop.detail else ""
    said = f"{safe(drop.stage)}, {safe(drop.reason)}{detail}"
    return indented(Text.assemble(("left out ", "yellow"), said))
