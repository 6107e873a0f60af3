"""Fake models that answer at once, for benchmarks of the pipeline around them.

What they say comes from a small world of MiniWorld's samples: for each, a tree of sentences out of
sound and faulty responses, so that candidates, trees and judgments have the sizes of a real run.
Samples are copies of these under ids of their own. `install` puts the fakes in place of policy,
judge, teacher, label giver and trainings; nothing else of the pipeline knows. The time that policy
and judge take is counted as "model" (see `selfcal.clock`), and their CPU seconds in `BUSY`.
"""

from __future__ import annotations

import json
import random
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zlib import crc32

from selfcal import clock
from selfcal.judge.scorer import Comparison, judgment, verdict_of
from selfcal.miniworld.build import build
from selfcal.miniworld.corrupt import practice_rap
from selfcal.miniworld.habits import gold_rap
from selfcal.miniworld.questions import read_question
from selfcal.miniworld.world import read_facts
from selfcal.search.jobs import Ask, Counts, Sentence
from selfcal.store import write_bytes
from selfcal.train import Run, Trained
from selfcal.types import Judgment, Sample, Verdict

WORLD = 200
"""Samples that all others are copies of."""
_RESPONSES = 8
_ID = re.compile(r"\d+")


class Busy:
    """Counts what is done in its `with` block."""

    seconds = 0.0
    """Of CPU, so far."""

    def __enter__(self) -> None:
        """Begin to count."""
        self._model = clock.spent("model")
        self._model.__enter__()
        self._since = time.thread_time()

    def __exit__(self, *error: Any) -> None:
        """Count no more."""
        self.seconds += time.thread_time() - self._since
        self._model.__exit__(None, None, None)


BUSY = Busy()


@dataclass(slots=True)
class Said:
    """A sentence of a tree, and those that may follow it; none: the response is over."""

    text: str = ""
    logprob: float = 0.0
    ids: tuple[int, ...] = ()
    after: dict[str, Said] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Answers:
    """What there is to say about one sample of the world."""

    gold: str
    tree: Said


def write_world(folder: Path, sizes: Mapping[str, int], world: int = WORLD) -> None:
    """Write a data folder with as many samples a split, copies of few; `world.jsonl` has those."""
    build(folder, {"rft": world})
    rows = [json.loads(line) for line in (folder / "rft.jsonl").read_text().splitlines()]
    (folder / "rft.jsonl").rename(folder / "world.jsonl")
    for split, n in sizes.items():
        with (folder / f"{split}.jsonl").open("w", encoding="utf-8") as file:
            for i in range(n):
                row = rows[i % world] | {"id": f"{split}-{i:07d}"}
                file.write(json.dumps(row) + "\n")


def read_world(folder: Path) -> list[Answers]:
    """What there is to say, in the order of the world's samples."""
    lines = (folder / "world.jsonl").read_text().splitlines()
    return [_answers(json.loads(line)) for line in lines]


def _answers(row: Mapping[str, Any]) -> Answers:
    query, world = read_question(row["question"]), read_facts(row["facts"])
    rng, root = random.Random(row["id"]), Said()
    gold = gold_rap(query, world)
    for text in [gold, *(practice_rap(query, world, rng) for _ in range(_RESPONSES))]:
        node = root
        for sentence in re.findall(r".+?(?:\.(?=\s)\n?|$)", text):
            own = Said(sentence, -rng.expovariate(1.0), tuple(range(2 + len(sentence) // 6)))
            node = node.after.setdefault(sentence, own)
    return Answers(gold, root)


@dataclass(frozen=True, slots=True)
class _Spot:
    """Where a response stands: what the engine's `Place` is to a real one."""

    said: Said
    key: int
    """Of the sample: its log-probabilities differ from its copies'."""


class World:
    """The fakes' common knowledge."""

    def __init__(self, answers: Sequence[Answers], wait: Callable[[], None]) -> None:
        """Take what there is to say; `wait` is called once a sample."""
        self._answers, self._wait = answers, wait

    def of(self, sample_id: str) -> Answers:
        """What there is to say about a sample."""
        self._wait()
        found = _ID.search(sample_id)
        return self._answers[int(found[0] if found else 0) % len(self._answers)]


class Engine:
    """An engine whose policy draws from the tree of a sample."""

    def __init__(self, world: World, whole: bool) -> None:
        """Answer by sentences, or by `whole` responses."""
        self.counts = Counts()
        self._world, self._whole = world, whole

    def run(self, samples: Iterable[Sample], start: Callable[[Sample, Any], Any]) -> Iterator[Any]:
        """Run a job for each sample, one after the other."""
        for sample in samples:
            with BUSY:
                own = self._world.of(sample.id)
                key = crc32(sample.id.encode())
            job = start(sample, _Spot(own.tree, key))
            found: list[list[Sentence]] | None = None
            try:
                while True:
                    asks = next(job) if found is None else job.send(found)
                    with BUSY:
                        found = [self._answer(ask, own) for ask in asks]
            except StopIteration as end:
                yield end.value

    def _answer(self, ask: Ask, own: Answers) -> list[Sentence]:
        """One sentence a draw; draws alike share one object."""
        if self._whole:
            return [Sentence(None, own.gold, -1.0, tuple(range(30)), True)]
        spot: Any = ask.place
        after, made = list(spot.said.after.values()), dict[int, Sentence]()
        draws = (ask.uniforms[:, 0] * len(after)).astype(int).tolist()
        for i in set(draws):
            said, jitter = after[i], 1 + (spot.key ^ i) / 2**32
            place: Any = _Spot(said, spot.key) if said.after else None
            logprob = said.logprob * jitter
            made[i] = Sentence(place, said.text, logprob, said.ids, place is None)
        self.counts.tokens += sum(len(s.ids) for s in made.values())
        return [made[i] for i in draws]


class Judge:
    """A judge that goes by a hash of the two texts and the sample."""

    def judge(self, comparisons: Sequence[Comparison]) -> list[Judgment]:
        """One judgment for each comparison, in order."""
        with BUSY:
            return [
                judgment(c, _odds(c.sample.id, c.first.text, c.second.text)) for c in comparisons
            ]


def _odds(*parts: str) -> tuple[float, float, float]:
    key = crc32("|".join(parts).encode())
    first, neutral = (key & 0xFFFF) / 0x10000, (key >> 16) / 0x80000
    return first * (1 - neutral), (1 - first) * (1 - neutral), neutral


class Labels:
    """A label giver of the judge's kind."""

    def compare(self, sample: Sample, first: str, second: str) -> Verdict | None:
        """Say which response is better."""
        return verdict_of(_odds(sample.id, first, second))


class Teacher:
    """A teacher that knows the sound response."""

    def __init__(self, world: World) -> None:
        """Take the world."""
        self._world = world

    def write(self, sample: Sample) -> str:
        """Write the sound response."""
        return self._world.of(sample.id).gold


def _trained(rows: Sequence[Any], run: Run) -> Trained:
    """A training that looks at its rows and writes a small checkpoint and adapter."""
    steps = max(1, len(rows) // 16)
    for name in ("checkpoint/model.safetensors", "adapter/adapter_model.safetensors"):
        write_bytes(run.out / name, bytes(2**16))
    run.progress(steps, steps)
    return Trained(steps, len(rows), (), ({"step": float(steps), "loss": 0.5},))


def install(folder: Path, wait: Callable[[], None] = lambda: None) -> None:
    """Put the fakes in place of the models, in this process.

    Args:
        folder: that `write_world` wrote.
        wait: called once a sample that a model is asked about, so that a benchmark can have it
            take its time.
    """
    import selfcal.judge.labels
    import selfcal.judge.scorer
    import selfcal.methods.parts.serving
    import selfcal.search
    import selfcal.teacher
    import selfcal.train

    world = World(read_world(folder), wait)

    class Here(Engine):
        """A class, as whoever takes an account of an engine looks at its own."""

        def __init__(self, *args: Any, whole: bool = False) -> None:
            super().__init__(world, whole or (len(args) > 4 and args[4]))

    fakes: dict[Any, dict[str, Callable[..., Any]]] = {
        selfcal.methods.parts.serving: {"policy_at": lambda *a, **k: None},
        selfcal.search: {"Engine": Here},
        selfcal.judge.scorer: {"RScorer": lambda *a, **k: Judge()},
        selfcal.judge.labels: {"VerifierLabels": lambda *a, **k: Labels()},
        selfcal.teacher: {"MiniWorldTeacher": lambda *a, **k: Teacher(world)},
        selfcal.train: {
            "sft": lambda model, rows, settings, run: _trained(rows, run),
            "dpo": lambda model, pairs, settings, run: _trained(pairs, run),
            "train_judge": lambda model, pairs, settings, prompt, run, *a: _trained(pairs, run),
        },
    }
    for module, own in fakes.items():
        for name, fake in own.items():
            setattr(module, name, fake)
