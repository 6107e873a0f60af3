"""What is fuzzed: for each target how an input is made, and how it is read.

`read` may raise a `SelfcalError`, and nothing else: any other exception is a fault, and so is a
result that breaks what the reader promises (an `AssertionError`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from selfcal.errors import SelfcalError
from selfcal.search import server  # here, as it takes longer to import than an input may take

from . import mutate, seeds


@dataclass(frozen=True)
class Target:
    """One reader under test."""

    name: str
    about: str
    make: Callable[[Random], bytes]
    """An input; the same for the same state of the `Random`."""
    read: Callable[[bytes, Path], None]
    """Read an input; the folder is scratch space of its own."""


def _text(samples: Sequence[str], words: Sequence[str]) -> Callable[[Random], bytes]:
    def make(rng: Random) -> bytes:
        return mutate.text(rng.choice(samples), rng, words, samples).encode(
            "utf-8", "surrogatepass"
        )

    return make


def _spelled(data: bytes) -> str:
    """Text as a tokenizer gives it: halves of surrogate pairs are no part of it."""
    return data.decode("utf-8", "replace")


def _rows(
    corpus: Sequence[list[dict[str, Any]]], words: Sequence[str], keys: Sequence[str]
) -> Callable[[Random], bytes]:
    def make(rng: Random) -> bytes:
        rows = mutate.tree(rng.choice(corpus), rng, words, keys)
        if not isinstance(rows, list) or rng.random() < 0.05:
            return mutate.dumped(rows, rng)
        end = rng.choice((*[b"\n"] * 20, b"\r\n", b"\n\n", b"\xe2\x80\xa8", b""))
        data = b"".join(mutate.dumped(row, rng).replace(b"\n", b" ") + end for row in rows)
        return mutate.raw(data, rng) if rng.random() < 0.1 else data

    return make


def _value(corpus: Sequence[Any], words: Sequence[str], keys: Sequence[str]) -> Any:
    return lambda rng: mutate.dumped(mutate.tree(rng.choice(corpus), rng, words, keys), rng)


def _bytes(corpus: Callable[[], Sequence[bytes]]) -> Callable[[Random], bytes]:
    return lambda rng: mutate.raw(rng.choice(corpus()), rng)


# --- text of models -------------------------------------------------------------------------


def _rap(data: bytes, _: Path) -> None:
    from selfcal.rationale import FORMATS, continued

    text = _spelled(data)
    for form in FORMATS.values():
        rap = form.parse(text)
        assert all(sentence in text for sentence in rap.sentences)
        spans = form.sentence_spans(text)
        assert tuple(text[a:b] for a, b in spans) == rap.sentences
        assert all(0 <= a <= b <= len(text) for a, b in [*spans, *form.stray_spans(text)])
        assert "".join(form.split_sentences(text)) == text
    continued("<think>", text)


def _verdict(data: bytes, _: Path) -> None:
    from selfcal.judge.labels import read_ranks, read_verdict

    text = _spelled(data)
    assert read_verdict(text) in ("first", "second", "neutral", None)
    for count in (1, 2, 4):
        ranks = read_ranks(text, count)
        assert ranks is None or len(ranks) == count


_CHOICES = ("a cat", "12 cm", "yes", "B")


def _answer(data: bytes, _: Path) -> None:
    from selfcal.evaluate.extract import kind_of, read_answer
    from selfcal.rationale import answers_agree
    from selfcal.types import Sample

    text = _spelled(data)
    choices, cut = (*_CHOICES[: len(text) % 5], text[:30]), len(text) % 3 == 0
    letter = read_answer(text, "choice", choices, cut)
    assert letter is None or 0 <= ord(letter) - 65 < len(choices), letter
    assert read_answer(text, "yesno", (), cut) in ("yes", "no", None)
    for kind in ("number", "open"):
        said = read_answer(text, kind, (), cut)  # type: ignore[arg-type]
        assert said is None or (said and len(said) < 500), said
    kind_of(Sample("a", "", "q", text))
    answers_agree(text, text[::-1], choices)


def _reply(data: bytes, _: Path) -> None:
    from selfcal.chat.reply import Reply, Usage, failure_in, read_completion, usage_of

    text = data.decode("utf-8", "replace")
    show = lambda said: said[:40]  # noqa: E731
    for kind in (server._reply, server._cards):
        with suppress(SelfcalError):
            server._read(text, lambda said, read=kind: read(said, str), "no reply", show)
    try:
        said = json.loads(data)
        failed = failure_in(said)
        assert failed is None or 400 <= failed[0] < 600
        reply = read_completion(said)
        cost = usage_of(said, reply, Usage(1, 10, 10))
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        reply = None  # the client makes an error of these
    if reply is not None:
        assert reply.texts and min(cost.prompt_tokens, cost.reply_tokens) >= 0
        for tokens in reply.first_tokens:
            assert tokens is None or not any(map(math.isnan, tokens.values()))
        assert Reply.from_json(json.loads(json.dumps(reply.to_json()))).texts == reply.texts
    with suppress(ValueError, TypeError, RecursionError):  # the cache asks anew
        Reply.from_json(json.loads(data))


# --- files ----------------------------------------------------------------------------------


def _samples(path: Path, images: bool = False) -> None:
    """Read a data file to its end; its images are looked at for one file in many."""
    from selfcal.data import open_data, read_samples
    from selfcal.data.fields import read_fields
    from selfcal.data.pictures import locate

    if images:
        read_samples(path)
        return
    file = open_data(path)
    for row in file.rows():
        fields = read_fields(row, f"{path}: {row.place}", file.answered, 8)
        for image in fields.images:
            if isinstance(image, str):
                where, unsafe = locate(image, file.root)
                assert unsafe or not where or Path(where).is_absolute()


def _file(name: str) -> Callable[[bytes, Path], None]:
    def read(data: bytes, folder: Path) -> None:
        path = folder / name
        path.write_bytes(data)
        _samples(path, images=sum(data[:64]) % 64 == 0)

    return read


def _list(rng: Random) -> bytes:
    rows = mutate.tree(rng.choice(seeds.SAMPLES), rng, seeds.CELLS, seeds.COLUMNS)
    return mutate.dumped(rows, rng)


def _table(rng: Random) -> bytes:
    made = mutate.text(rng.choice(seeds.TABLE), rng, ("\t", "\n", '"', *seeds.CELLS), seeds.TABLE)
    data = made.encode("utf-8", "surrogatepass")
    return mutate.raw(data, rng) if rng.random() < 0.1 else data


def _label_file(data: bytes, folder: Path) -> None:
    from selfcal.judge.label_file import read_label_file

    path = folder / "labels.jsonl"
    path.write_bytes(data)
    read_label_file(path, sees=len(data) % 8 == 0)


def _audit(data: bytes, folder: Path) -> None:
    from selfcal.people.labels import LabelFile

    file = LabelFile(folder)
    file.path.parent.mkdir(exist_ok=True)
    file.path.write_bytes(data)
    found = file.read()
    assert all(label.annotator for label in found.labels)


def _written(data: bytes, folder: Path) -> None:
    from selfcal.written import FileTeacher

    path = folder / "teacher.jsonl"
    path.write_bytes(data)
    FileTeacher(path)


def _predicted(data: bytes, folder: Path) -> None:
    from selfcal.evaluate.predict import known_texts

    (folder / "00000.jsonl").write_bytes(data)
    known_texts(folder)


def _ledger(data: bytes, folder: Path) -> None:
    from selfcal.chat.ledger import Ledger, spent_in

    path = folder / "teacher.jsonl"
    path.write_bytes(data)
    with suppress(SelfcalError):
        spent_in(folder, "rft/teacher")
    assert Ledger(path, "rft/teacher", requests=10).spent.tokens >= 0


def _state(data: bytes, folder: Path) -> None:
    from selfcal.planning import open_run
    from selfcal.store import StageDir, read_json

    own = StageDir(folder, "0123456789abcdef")
    for name in ("manifest.json", "stage.json", "recipe.json"):
        (folder / name).write_bytes(data)
    own.mark(0).parent.mkdir(exist_ok=True)
    own.mark(0).write_bytes(data)
    assert isinstance(own.done, bool) and isinstance(own.sealed(0), bool)
    for look in (own.verify, lambda: open_run(folder), lambda: read_json(folder / "stage.json")):
        with suppress(SelfcalError):
            look()


def _recipe_text(rng: Random) -> bytes:
    import yaml

    own = mutate.tree(rng.choice(seeds.recipes()), rng, seeds.RECIPE_WORDS, seeds.RECIPE_KEYS)
    if rng.random() < 0.4 or "\\ud83d" in repr(own):  # which YAML's writer refuses
        return mutate.dumped(own, rng)  # JSON is YAML
    dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
    written = yaml.dump(own, Dumper=dumper, default_flow_style=rng.choice((None, False)))
    if rng.random() < 0.6:
        written = mutate.text(written, rng, seeds.RECIPE_WORDS, (written,))
    return str(written).encode("utf-8", "surrogatepass")


def _recipe(data: bytes, folder: Path) -> None:
    from selfcal.recipe import load_recipe

    path = folder / "r.yaml"
    path.write_bytes(data)
    line = data.partition(b"\n")[0].decode("utf-8", "replace")
    sets = [f"{line.partition(':')[0]}={line.partition(':')[2]}"] if len(data) % 3 == 0 else []
    load_recipe(path, sets)


# --- typed tables and pictures --------------------------------------------------------------


def _parquet(data: bytes, folder: Path) -> None:
    from selfcal.judge.label_file import read_label_file
    from selfcal.written import FileTeacher

    path = folder / "t.parquet"
    path.write_bytes(data)
    for look in (_samples, read_label_file, FileTeacher):
        with suppress(SelfcalError):
            look(path)


def _arrow(data: bytes, folder: Path) -> None:
    path = folder / "t.arrow"
    path.write_bytes(data)
    _samples(path)


def _records(data: bytes, _: Path) -> None:
    from selfcal import parquet
    from selfcal.types import Drop, LabelledPair

    for kind in (LabelledPair, Drop):
        with suppress(ValueError):  # the store makes an error of it that names the file
            parquet.decode(data, kind)


def _shards() -> Sequence[bytes]:
    if not _SHARDS:
        from selfcal import parquet
        from selfcal.types import Drop, LabelledPair

        pair = LabelledPair("1", "q", "f", "a", "b", "first", ("x.png",))
        _SHARDS.append(parquet.encode([pair] * 3, LabelledPair))
        _SHARDS.append(parquet.encode([Drop("1", "read", "image-broken", "line 1")] * 9, Drop))
    return _SHARDS


_SHARDS: list[bytes] = []


def _picture(data: bytes, _: Path) -> None:
    from selfcal.image import Picture, examine

    found = examine(data, max_pixels=2**20)
    if isinstance(found, Picture):
        assert 0 < found.width * found.height <= 2**20
    else:
        assert found[0].startswith("image-")


TARGETS = {
    own.name: own
    for own in (
        Target("rap", "RAP parser, all formats", _text(seeds.RESPONSES, seeds.WORDS), _rap),
        Target("verdict", "verdicts and ranks of judges", _text(seeds.RESPONSES, seeds.WORDS),
               _verdict),
        Target("answer", "answer extractor", _text(seeds.RESPONSES, seeds.WORDS), _answer),
        Target("reply", "replies of servers",
               _value(seeds.COMPLETIONS, seeds.CELLS, ("choices", "message", "content", "error",
                      "usage", "logprobs", "top_logprobs", "token", "logprob", "index")), _reply),
        Target("jsonl", "data: JSON lines", _rows(seeds.SAMPLES, seeds.CELLS, seeds.COLUMNS),
               _file("d.jsonl")),
        Target("json", "data: JSON lists", _list, _file("d.json")),
        Target("tsv", "data: VLMEvalKit tables", _table, _file("d.tsv")),
        Target("parquet", "data, labels, rationales: Parquet",
               _bytes(lambda: seeds.typed_tables()["parquet"]), _parquet),
        Target("arrow", "data: Arrow streams and files",
               _bytes(lambda: seeds.typed_tables()["stream"] + seeds.typed_tables()["feather"]),
               _arrow),
        Target("records", "records of a run (Parquet)", _bytes(_shards), _records),
        Target("labels", "labelled pairs", _rows(seeds.LABELS, seeds.CELLS, seeds.COLUMNS),
               _label_file),
        Target("audit", "labels of people",
               _rows(seeds.AUDITED, seeds.CELLS, tuple(seeds.AUDITED[0][0])), _audit),
        Target("written", "rationales in a file",
               _rows(seeds.WRITTEN, seeds.CELLS, seeds.COLUMNS), _written),
        Target("predicted", "responses of an evaluation",
               _rows(seeds.PREDICTED, seeds.CELLS, ("id", "text", "cut")), _predicted),
        Target("ledger", "ledgers of servers",
               _rows(seeds.ACCOUNT, seeds.CELLS, ("id", "stage", "reserved", "prompt", "reply",
                     "cached")), _ledger),
        Target("state", "manifests, marks, pinned recipes",
               _value(seeds.STATES, ("0123456789abcdef", *seeds.CELLS), seeds.STATE_KEYS), _state),
        Target("recipe", "recipe loader", _recipe_text, _recipe),
        Target("picture", "images of all formats", _bytes(seeds.pictures), _picture),
    )
}  # fmt: skip
"""By name."""
