"""Questions of a benchmark in, a model's responses out, kept on disk as they come.

A folder of predictions belongs to one model, one data file and one prompt: what it was begun with
stands in its `eval.json`, and anything else is refused. Responses lie in small JSONL files that are
written whole, so that a killed evaluation goes on after the last of them. Only texts are kept
there: answers are read out of them anew each time.
"""

from __future__ import annotations

import dataclasses
import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from selfcal.data import Checker, DataFile, Kept, Rules, insist, read, save_embedded
from selfcal.errors import SelfcalError
from selfcal.evaluate.benchmark import Prediction
from selfcal.evaluate.extract import kind_of, read_answer
from selfcal.evaluate.score import Rule, is_right
from selfcal.rationale import HEADINGS, RapFormat
from selfcal.stopping import heed
from selfcal.store import JSON, explained, read_json, write_json, write_text
from selfcal.types import Drop, Sample, question_text

PINNED = "eval.json"
PREDICTIONS = "predictions.jsonl"
QUESTION = "{question}"
"""Where a prompt has the question, with its options."""
_SHARD = 32

Reply = Callable[[Iterator[Sample]], Iterator[tuple[str, bool]]]
"""From samples, taken as they are needed, each one's response and whether the model ended it."""


class PredictError(SelfcalError):
    """An evaluation cannot go on: the text names the folder and the way out."""


@dataclass(frozen=True, slots=True)
class Text:
    """A response as the model wrote it."""

    id: str
    text: str
    cut: bool
    """Whether it ended at the token limit."""


def read_questions(
    file: DataFile, images: Path, limit: int | None = None
) -> tuple[list[Sample], list[Drop]]:
    """The samples of a data file of any format, the first `limit` of them.

    Args:
        file: the file.
        images: folder that images go to that are embedded in it.
        limit: samples wanted; None: all.

    Raises:
        DataError: the file is missing or malformed, or has no sample that can be used.
    """
    kept, drops = dict[int, Kept](), list[Drop]()
    with Checker(Rules()) as checker:
        for found in insist(file.path, read(file, checker, images)):
            if isinstance(found, Drop):
                drops.append(found)
            elif limit is None or len(kept) < limit:
                kept[found.number] = found
    wanted = {n: k for n, k in kept.items() if any(not Path(i).exists() for i in k.sample.images)}
    save_embedded(file, wanted)
    return [k.sample for k in kept.values()], drops


def pin(out: Path, pinned: Mapping[str, JSON]) -> None:
    """Say what a folder of predictions is of, or see that it is of just this.

    Raises:
        PredictError: it was begun with something else.
        StoreError: it cannot be written.
    """
    path = out / PINNED
    if not path.exists():
        write_json(path, pinned)
        return
    before = read_json(path)
    for key, value in pinned.items():
        known = before.get(key) if isinstance(before, dict) else None
        if known != value:
            raise PredictError(
                f"{out}: was begun with {key} {_shown(known)}, this is {_shown(value)}; give "
                "another --out, or delete the folder"
            )


def _shown(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else text[:80] + "..."


def prompted(sample: Sample, prompt: str | None) -> Sample:
    """The sample as it is asked: its question inside a prompt, or before it."""
    if not prompt:
        return sample
    template = prompt if QUESTION in prompt else f"{QUESTION}\n{prompt}"
    return replace(sample, question=template.replace(QUESTION, question_text(sample)), choices=())


def respond_all(
    samples: Sequence[Sample],
    reply: Reply,
    out: Path,
    prompt: str | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Text]:
    """Responses to all samples, in their order; those that are there already are kept.

    Raises:
        StoreError: a file cannot be written or read.
        Stopped: that was asked for; all responses that are written are kept.
    """
    folder = out / "responses"
    known = known_texts(folder)
    left = [s for s in samples if s.id not in known]
    done, asked, fresh = len(samples) - len(left), deque[str](), list[Text]()
    progress(done, len(samples))

    def feed() -> Iterator[Sample]:
        for sample in left:
            asked.append(sample.id)
            yield prompted(sample, prompt)

    for text, ended in reply(feed()) if left else ():
        fresh.append(Text(asked.popleft(), text, not ended))
        done += 1
        if len(fresh) == _SHARD or done == len(samples):
            add_rows(folder, map(dataclasses.asdict, fresh))
            known |= {t.id: t for t in fresh}
            fresh = []
            heed()
        progress(done, len(samples))
    return [known[s.id] for s in samples]


def known_texts(folder: Path) -> dict[str, Text]:
    """The responses that are in a folder already, by the id of their samples.

    Raises:
        StoreError: a file is not readable.
        PredictError: a file is damaged.
    """
    known: dict[str, Text] = {}
    for row in read_rows(folder):
        try:
            text = Text(row["id"], row["text"], row["cut"])
        except (LookupError, TypeError) as error:
            raise _no_response(folder) from error
        if not (isinstance(text.id, str) and isinstance(text.text, str)):
            raise _no_response(folder)
        known[text.id] = text
    return known


def _no_response(folder: Path) -> PredictError:
    return PredictError(
        f"{folder}: holds a row that is no response; delete the folder and run the same command "
        "again"
    )


def add_rows(folder: Path, rows: Iterable[Mapping[str, object]]) -> None:
    """Write rows as the next small file of a folder, whole."""
    lines = "".join(json.dumps(row, ensure_ascii=True) + "\n" for row in rows)
    number = int(files[-1].stem) + 1 if (files := _files(folder)) else 0
    write_text(folder / f"{number:05d}.jsonl", lines)


def read_rows(folder: Path) -> Iterator[dict[str, Any]]:
    """The rows of all small files of a folder, in order.

    Raises:
        StoreError: a file is damaged.
    """
    for file in _files(folder):
        with explained("read", file):
            data = file.read_bytes()
        try:
            rows = [json.loads(line) for line in data.splitlines()]
        except (ValueError, RecursionError) as error:
            raise PredictError(
                f"{file} is damaged ({error}); delete it and run the same command again"
            ) from error
        yield from rows


def _files(folder: Path) -> list[Path]:
    return sorted(folder.glob("[0-9]*.jsonl"))


def graded(
    samples: Sequence[Sample], texts: Sequence[Text], rule: Rule, form: RapFormat = HEADINGS
) -> list[Prediction]:
    """Read and grade the responses to samples."""
    return [_graded(s, t, rule, form) for s, t in zip(samples, texts, strict=True)]


def _graded(sample: Sample, said: Text, rule: Rule, form: RapFormat) -> Prediction:
    kind, rap = kind_of(sample), form.parse(said.text)
    answer = read_answer(said.text, kind, sample.choices, said.cut)
    if answer is None and rap.compliant and not said.cut:
        answer = read_answer(rap.answer, kind, sample.choices)
    return Prediction(
        sample.id, sample.category, kind, sample.answer, said.text, answer,
        is_right(answer, sample, rule), rap.compliant, said.cut,
    )  # fmt: skip


def write_predictions(path: Path, predictions: Sequence[Prediction]) -> None:
    """Write predictions as JSON lines: raw text, the answer that was read, right or wrong."""
    write_text(
        path,
        "".join(json.dumps(dataclasses.asdict(p)) + "\n" for p in predictions),
    )
