"""A run in, a folder that another tool trains on out; the folder is there whole or not at all.

Examples that a format cannot hold, and images that cannot be read, are left out and counted by
reason. Nothing in the folder names a place on this machine, unless images are left where they are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from selfcal.errors import StoreError
from selfcal.export.card import Contents, write_card
from selfcal.export.formats import FORMATS, IMAGE_TOKENS, Example, Format, dataset_name
from selfcal.export.images import FOLDER, ImageStore, Keep, forget
from selfcal.export.rows import ExportError, Row, Source, Split, find_rows
from selfcal.stage import count_drops
from selfcal.store import PARTIAL, explained
from selfcal.types import IMAGE_MARK, Drop, question_text


@dataclass(frozen=True)
class Exported:
    """What was exported."""

    folder: Path
    source: Source
    format: Format
    keep: Keep
    contents: Contents
    licensed: bool
    """Whether the card names a licence."""


@dataclass(frozen=True)
class Wanted:
    """What to export, and how."""

    split: Split = "pairs"
    iteration: int | None = None
    """Whose pairs; None: those of all iterations."""
    keep: Keep = "copy"
    license: str | None = None
    """By the hub's name, such as `cc-by-4.0`; None leaves a placeholder in the card."""


def export_run(run: Path, tool: str, out: Path, wanted: Wanted | None = None) -> Exported:
    """Write a run's examples as a dataset for a tool.

    Args:
        run: the run's folder.
        tool: one of `FORMATS`.
        out: the folder to write; must not exist, or be empty.
        wanted: what to export, and how.

    Raises:
        ExportError: the run has no such examples, or none that the format can hold.
        StoreError: `out` has files, or the system refused.
    """
    wanted, form = wanted or Wanted(), FORMATS[tool]
    source = find_rows(run, wanted.split, wanted.iteration)
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise StoreError(f"{out} exists; give another folder, or delete it")
    name = dataset_name(source.recipe.name, wanted.split == "pairs")
    half = out.resolve().with_name(f".{out.resolve().name}{PARTIAL}")
    forget(half)  # of a run that was killed
    try:
        with explained("make", half):
            half.mkdir(parents=True)
        picked = _Picked(form, ImageStore(half, wanted.keep))
        form.write(half, name, (form.row(e) for e in picked.examples(source.rows())))
        contents = picked.contents(name)
        if not contents.examples:
            raise ExportError(f"{run}: nothing to export: {_why(contents, form)}")
        if form.embeds:
            forget(half / FOLDER)
        write_card(half / "README.md", source, form, contents, wanted.license)
        with explained("write", out):
            half.replace(out)
    except BaseException:  # an interrupt must not leave half an export either
        forget(half)
        raise
    return Exported(out, source, form, wanted.keep, contents, wanted.license is not None)


def _why(contents: Contents, form: Format) -> str:
    """Why nothing is left, and the way out."""
    reasons = ", ".join(f"{reason} {n}" for reason, n in contents.drops.items())
    if not reasons:
        return "there are no examples; `selfcal status` counts why"
    able = [f.name for f in FORMATS.values() if f.rejected_images]
    hint = f"; --format {' or '.join(able)} has images of rejected responses"
    return reasons + (hint if "rejected-image" in contents.drops else "")


class _Picked:
    """Rows that a format can hold, as its examples; counts what they are."""

    def __init__(self, form: Format, images: ImageStore) -> None:
        self._form, self._images = form, images
        self._counts: Counter[int] = Counter()
        self._drops: list[Drop] = []

    def examples(self, rows: Iterator[Row]) -> Iterator[Example]:
        """The examples, in order."""
        for row in rows:
            made = _unfit(row, self._form) or self._shown(row)
            if isinstance(made, str):
                self._drops.append(Drop(row.sample.id, "export", made))
            else:
                self._counts[row.iteration] += 1
                yield made

    def _shown(self, row: Row) -> Example | str:
        """The example with its images, or why one of them cannot be had."""
        spoiled = (row.rejected_image,) if row.rejected_image else ()
        for path in (*row.sample.images, *spoiled):
            if reason := self._images.reason(path):
                return reason
        images = tuple(self._images.place(path) for path in row.sample.images)
        others = tuple(self._images.place(path) for path in spoiled)
        rejected = (*others, *images[1:]) if others else ()
        return Example(row.sample, images, row.chosen, row.rejected, rejected)

    def contents(self, name: str) -> Contents:
        """What was picked; for after the last example."""
        drops = {k: int(str(n)) for k, n in count_drops(self._drops).items()}
        return Contents(name, dict(self._counts), drops, len(self._images))


def _unfit(row: Row, form: Format) -> str | None:
    """Why a format cannot hold a row: a short reason, or None."""
    said, asked = (row.chosen, row.rejected or ""), question_text(row.sample)
    if any(mark in text for text in said for mark in (IMAGE_MARK, *IMAGE_TOKENS)):
        return "image-mark-in-response"
    if any(mark in text for text in (*said, asked) for mark in (*form.marks, *IMAGE_TOKENS)):
        return "media-mark"
    if row.rejected is not None and row.rejected.strip() == row.chosen.strip():
        return "same-response"
    if row.rejected_image and not form.rejected_images:
        return "rejected-image"
    return None
