"""What is in data files, on a terminal: what can be used, what is left out, and how to mend it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console, Group
from rich.padding import Padding
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from selfcal.data import DataError
from selfcal.data.report import DataReport, FileReport, Images, Leak, Sizes
from selfcal.policy import user_turn
from selfcal.types import Sample
from selfcal.view.text import amount, safe, table

_BAR = 24
_NAMES = 8
"""Categories that are shown by name."""
_CUT = 600
"""Characters of a question that are shown."""
WAYS_OUT = {
    "empty-question": "write a question, or map the column that has it: --columns question=NAME",
    "empty-answer": "write an answer, or map the column that has it: --columns answer=NAME",
    "answer-not-an-option": "give an option's text, its letter, or its place from 0",
    "text-too-long": "shorten it: more than a million characters are no question",
    "image-missing": "put the files there, or say where they are: --images DIR",
    "unsafe-path": "name the folder that the images truly lie in (images)",
    "image-broken": "replace the files: they are empty, cut off, or no images",
    "image-too-large": "scale the images down",
    "image-too-small": "take larger images, or lower data.min_side",
    "image-too-slim": "crop or pad the images",
    "image-polyglot": "save the pictures anew, as pictures alone",
    "too-many-images": "take fewer images, or raise data.max_images",
    "later-turn": "nothing to mend; --turns all makes a sample of every turn",
}


def read_columns(texts: Sequence[str]) -> dict[str, str]:
    """Read `FIELD=COLUMN` texts; several may stand in one, parted by commas.

    Raises:
        DataError: one is no such text.
    """
    columns: dict[str, str] = {}
    for text in (part for whole in texts for part in whole.split(",")):
        name, equals, column = text.partition("=")
        if not (name.strip() and equals and column.strip()):
            raise DataError(f"--columns {text!r}: write FIELD=COLUMN, such as answer=label")
        columns[name.strip()] = column.strip()
    return columns


def show_data_json(report: DataReport) -> None:
    """Print the report as one JSON object."""
    print(json.dumps({"usable": report.usable, **asdict(report)}))


def show_data(out: Console, report: DataReport) -> None:
    """Print the report."""
    for file in report.files:
        _show_file(out, file)
    if len(report.files) > 1:
        _show_leaks(out, report)
    out.print(_verdict(report))


def _show_file(out: Console, file: FileReport) -> None:
    title = Text(f"{safe(file.split)}  ", "bold") if file.split else Text()
    title.append(safe(file.path), "" if file.split else "bold")
    out.print(Rule(title, align="left", style="dim"))
    if file.format:
        out.print(_usable(file))
    if file.problem:
        out.print(Text(f"✗ {safe(file.problem)}", "red"), soft_wrap=True)
    out.print()
    if file.kept:
        _show_counts(out, file)
    if file.drops:
        _show_drops(out, file)
    if file.examples:
        _show_examples(out, file.examples[:1] if file.split else file.examples)


def _usable(file: FileReport) -> Text:
    share = file.kept / file.rows if file.rows else 0.0
    style = "green" if share > 0.99 else "yellow" if file.kept else "red"
    line = Text("✓ " if share > 0.99 else "! " if file.kept else "✗ ", style)
    line.append(f"{file.kept:,}", f"bold {style}")
    line.append(f" of {amount(file.rows, 'rows')} can be used")
    line.append(f" ({_percent(file.kept, file.rows)})" if file.rows else "")
    line.append(f"  ·  {safe(file.format)}", "dim")
    return line


def _show_counts(out: Console, file: FileReport) -> None:
    both = Table.grid(padding=(0, 6, 0, 0))
    categories = {k or "(none)": n for k, n in file.categories.items()}
    both.add_row(_bars("questions", file.kinds), _bars("categories", categories))
    out.print(Padding(both, (0, 0, 1, 2)))
    grid = Table.grid(padding=(0, 2, 0, 0))
    for name, text in _image_lines(file.images):
        grid.add_row(Text(name, "dim"), Text(text))
    if file.duplicates:
        verb = "asks" if file.duplicates == 1 else "ask"
        twins = f"{amount(file.duplicates, 'samples')} {verb} what an earlier one asks"
        twins += " of the same images"
        grid.add_row(Text("twins", "dim"), Text(twins, "yellow"))
    out.print(Padding(grid, (0, 0, 1, 2)))


def _bars(title: str, counts: Mapping[str, int]) -> Table:
    """Counts with bars, the largest first."""
    made = Table.grid(padding=(0, 1, 0, 0))
    made.add_row(Text(title, "bold"))
    shown = dict(list(counts.items())[:_NAMES])
    if rest := sum(counts.values()) - sum(shown.values()):
        shown[f"{len(counts) - _NAMES:,} more"] = rest
    total, most = sum(shown.values()), max(shown.values(), default=1)
    for name, n in shown.items():
        bar = Text("━" * max(1, round(_BAR / 2 * n / most)), "cyan")
        cut = safe(name) if len(name) <= _BAR else f"{safe(name[: _BAR - 1])}…"
        made.add_row(
            Text(cut), Text(f"{n:,}", justify="right"), bar, Text(_percent(n, total), "dim")
        )
    return made


def _image_lines(images: Images) -> Iterator[tuple[str, str]]:
    yield "images", f"{images.different:,} different"
    if images.width and images.height:
        yield "width", _range(images.width)
        yield "height", _range(images.height)
    yield "files", f"{_counts(images.formats)}; pixels {_counts(images.modes)}"
    if images.turned:
        yield "turned", f"{images.turned:,} turned upright by their EXIF orientation"
    if images.animated:
        yield "animated", f"{images.animated:,} of several frames: the first one is taken"
    if images.several:
        about = amount(images.several, "samples")
        yield "several", f"{about} with more than one image, up to {images.most}"


def _range(sizes: Sizes) -> str:
    return f"{sizes.least:,} to {sizes.most:,} pixels, median {sizes.median:,}"


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{safe(name)} {n:,}" for name, n in counts.items())


def _show_drops(out: Console, file: FileReport) -> None:
    made = table("left out", "rows", "first at", right=("rows",))
    for reason, found in file.drops.items():
        where = Text(safe(found.first), overflow="ellipsis", no_wrap=True)
        way_out = Text(f"→ {WAYS_OUT[reason]}" if reason in WAYS_OUT else "", "dim")
        made.add_row(Text(safe(reason), "yellow"), f"{found.rows:,}", Group(where, way_out))
    out.print(Padding(made, (0, 0, 1, 2)))


def _show_examples(out: Console, samples: Sequence[Sample]) -> None:
    out.print(Padding(Text("as the model is asked", "bold"), (0, 0, 0, 2)))
    for sample in samples:
        head = Text(safe(sample.id), "dim")
        head.append(f"  {safe(sample.category)}" if sample.category else "", "dim")
        parts: list[Text] = [head, *_turn(sample)]
        if sample.answer:
            parts.append(Text.assemble(("answer  ", "dim"), (_cut(sample.answer), "green")))
        out.print(Padding(Group(*parts), (0, 0, 1, 4)))


def _turn(sample: Sample) -> Iterator[Text]:
    """The parts of a question, images by their names."""
    images = iter(sample.images)
    for part in user_turn(sample)[0]["content"]:
        if part["type"] == "image":
            yield Text(f"▣ {safe(Path(next(images)).name)}", "magenta")
        else:
            yield Text(_cut(part["text"]))


def _cut(text: str) -> str:
    return safe(text, lines=True) if len(text) <= _CUT else f"{safe(text[:_CUT], lines=True)} …"


def _show_leaks(out: Console, report: DataReport) -> None:
    out.print(Rule(style="dim"))
    for leak in report.leaks:
        out.print(_leak(leak))
    if not report.leaks:
        out.print(Text("✓ no image is in a split for training and in one for measurement", "green"))
    out.print()


def _leak(leak: Leak) -> Text:
    one, other = leak.splits
    verb = "is" if leak.images == 1 else "are"
    text = f"! {amount(leak.images, 'images')} {verb} in {one} and in {other}, too "
    line = Text(text, "yellow")
    line.append(f"(such as that of {safe(leak.first)})", "dim")
    return line


def _verdict(report: DataReport) -> Text:
    bad = [f for f in report.files if f.problem or not f.kept]
    if bad:
        names = ", ".join(safe(f.split or f.path) for f in bad)
        return Text(f"No run can use this: mend {names}.", "red")
    if report.leaks:
        way_out = "list the files under data.sources, which splits by image, to mend that."
        return Text(f"A run can use this, but what it measures is flattered: {way_out}")
    return Text("A run can use this.")


def _percent(n: int, of: int) -> str:
    share = 100 * n / of
    if 0 < share < 0.1 or 99.9 < share < 100:
        return "< 0.1 %" if share < 0.1 else "> 99.9 %"
    return f"{share:.1f} %" if share < 100 else "100 %"
