"""A run in, the samples' part of its page out: which samples are shown, and all that they show.

Each sample is a line of the index, which is small and read at once, and a block with its own page,
compressed, which a reader's browser opens when it is asked for. So a page with a thousand samples
opens as fast as one with ten.
"""

from __future__ import annotations

import base64
import re
import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

from selfcal.page import as_data, environment, shortened
from selfcal.pipeline import locate, open_run
from selfcal.rationale import FORMATS
from selfcal.report.drawn import draw, examples, exchange, followed_of, ids_of, split_of
from selfcal.report.pictures import Pictures
from selfcal.report.reader import Reader
from selfcal.report.reasons import WORDS
from selfcal.report.rows import id_of, row_of
from selfcal.report.sample import view_of
from selfcal.story import Records, Rollouts, Round, Story, Written, find, tell
from selfcal.view.text import safe

TEMPLATES = Path(__file__).parent / "templates"
SCRIPT = "".join((TEMPLATES / f"samples{part}.js").read_text("utf-8") for part in ("-filters", ""))
STYLE = (TEMPLATES / "samples.css").read_text("utf-8")
_CHUNK = 200
"""Samples whose texts are searched at once."""
_WEIGHT = 8_000_000
"""Bytes that all images of a page should not exceed, encoded they are a third more."""
_HEAVIEST = 40_000
_SEARCHED = 50_000
"""Characters of one sample that are searched."""


def samples_context(
    run: Path, limit: int, assets: Path | None, page: Path | None = None
) -> dict[str, Any]:
    """What `samples.html.j2` and `samples-data.html.j2` name as `samples`.

    Args:
        run: folder of the run; its finished stages are shown.
        limit: samples that are shown at most.
        assets: folder that thumbnails are written to; None: the page holds them.
        page: folder of the page, for the thumbnails' addresses; None: the one above `assets`.

    Raises:
        StoreError: the folder is no run, or a file of it or of the page is damaged or in the way.
    """
    recipe = open_run(run)
    planned = {p.stage.name: p for p in locate(recipe, run)}
    ids, followed = ids_of(planned), followed_of(planned)
    wanted = examples(planned, ids, recipe.seed)
    drawn, exchanged = exchange(draw(ids, followed, limit, recipe.seed), followed, wanted)
    count = sum(map(len, drawn.values()))
    pictures = Pictures(run, assets, page, min(_HEAVIEST, _WEIGHT // max(1, count)))
    rows: list[dict[str, Any]] = []
    blocks: list[str] = []
    texts: list[str] = []
    for story, reader in _stories(run, drawn):
        rows.append(row_of(story, reader, (story.split, story.sample.id) in followed))
        blocks.append(_block(_page(story, reader, pictures)))
        texts.append("\n".join(_texts(story))[:_SEARCHED])
    return {
        "shown": len(rows),
        "total": sum(len(own) for own in ids.values()),
        "splits": [(s, len(drawn[s]), len(ids[s])) for s in ids if ids[s]],
        "exchanged": exchanged,
        "followed": sum("followed" in row for row in rows),
        "index": as_data(rows),
        "words": as_data(WORDS),
        "links": partial(_link, {split: set(own) for split, own in drawn.items()}),
        "blocks": blocks,
        "corpus": [_block("\0".join(texts[i : i + _CHUNK])) for i in range(0, len(texts), _CHUNK)],
        "chunk": _CHUNK,
        "pictures": pictures.urls,
        "verified": recipe.data.miniworld,
    }


def _stories(run: Path, drawn: Mapping[str, Sequence[str]]) -> Iterator[tuple[Story, Reader]]:
    records = Records(run, {sample_id for own in drawn.values() for sample_id in own})
    form = FORMATS[records.recipe.format]
    for split, own in drawn.items():
        for sample_id in own:
            sample = next(s for name, s in find(records, sample_id) if name == split)
            story = tell(records, split, sample)
            yield story, Reader(story.sample, form, partial(records.verified, story.sample))


def _link(shown: Mapping[str, Collection[str]], stage: str, sample_id: str) -> str:
    """Address of a sample that a stage left out, within the page; empty: it is not shown."""
    split = split_of(stage, sample_id, shown)
    return f"#samples?id={quote(id_of(sample_id), safe='')}&of={split}" if split else ""


# --- what is shown of them ------------------------------------------------------------------


def _page(story: Story, reader: Reader, pictures: Pictures) -> str:
    """A sample's own part of the page, without blanks at the beginning of lines."""
    made = environment(TEMPLATES).get_template("sample.html.j2")
    text = made.render(view_of(story, reader, pictures))
    return re.sub(r">\n\s+<", "><", text)


def _block(text: str) -> str:
    return base64.b64encode(zlib.compress(text.encode(), 9)).decode("ascii")


def _texts(story: Story) -> Iterator[str]:
    """What a search looks through: each text once, as it is shown."""
    seen: set[str] = set()
    for text in _all_texts(story):
        if text not in seen:
            seen.add(text)
            yield safe(shortened(" ".join(text.split()))).replace("\0", "")


def _all_texts(story: Story) -> Iterator[str]:
    s = story.sample
    yield from (s.id, s.category, s.question, *s.choices, s.answer, s.facts)
    yield from (a.response.text for a in story.answers)
    if story.taught:
        yield from (rap.text for rap in story.taught.raps)
    for part in story.parts:
        if isinstance(part, Round):
            yield from (r.candidate.text for r in part.candidates)
        if isinstance(part, Round | Written):
            for pair in part.pairs:
                yield from (pair.chosen, pair.rejected)
        if isinstance(part, Rollouts):
            yield from (r.text for r in part.rollouts)
