"""Find a sample in a run, and put together what the run has of it, stage by stage."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from difflib import get_close_matches

from selfcal.errors import SelfcalError, StoreError
from selfcal.methods.parts.online import signals_of
from selfcal.stage import Stage
from selfcal.story.model import Answer, Part, Rollouts, Story, Taught, TrainingDrops, Written
from selfcal.story.records import Records
from selfcal.story.rounds import round_of, settled
from selfcal.train.online import ROLLOUTS
from selfcal.types import (
    Candidate,
    Drop,
    PreferencePair,
    Response,
    Rollout,
    Sample,
    WrittenRap,
)

_SPLITS = ("rft", "calibration", "dev", "test")
_EVAL = "eval/"


def find(records: Records, sample_id: str) -> list[tuple[str, Sample]]:
    """A wanted sample and its split; two splits of foreign data may share an id.

    Raises:
        SelfcalError: the run has no samples yet, or none of that name; says which are near.
    """
    if not records.done("data"):
        way_out = shlex.join(["selfcal", "run", "--out", str(records.run)])
        raise StoreError(f"{records.run} has no samples yet: {way_out}")
    found = [(s, own) for s in _SPLITS for own in records.own("data", s, Sample, sample_id)]
    if not found:
        raise _unknown(records, sample_id)
    return found


def _unknown(records: Records, sample_id: str) -> SelfcalError:
    """What to say of a sample that no split has: names like it, and what there is."""
    data = records.planned["data"].folder
    ids = {s: [own.id for own in data.records(s, Sample)] for s in _SPLITS if data.has(s, 0)}
    near = get_close_matches(sample_id, [i for own in ids.values() for i in own], n=3)
    hint = f"; near: {', '.join(near)}" if near else ""
    have = ", ".join(
        f"{split} ({len(own):,}, such as {own[0]})" for split, own in ids.items() if own
    )
    return SelfcalError(f"sample {sample_id!r}: not in {records.run}{hint}; its splits: {have}")


def tell(records: Records, split: str, sample: Sample) -> Story:
    """Everything that finished stages have of a sample, as `find` gives it with its split.

    Raises:
        StoreError: a file of the run is damaged.
        ValueError: the sample is none of the wanted ones.
    """
    facts = records.own("facts", split, Sample, sample.id)
    sample = facts[0] if facts else sample
    stages = [p.stage for p in records.planned.values() if _concerns(p.stage, split)]
    parts = (_part(records, sample, stage) for stage in stages)
    return Story(
        split=split,
        sample=sample,
        taught=_taught(records, sample) if split == "rft" else None,
        parts=tuple(part for part in parts if part),
        answers=tuple(_answers(records, split, sample)),
        missing=_missing(records, split),
    )


def _concerns(stage: Stage, split: str) -> bool:
    """Whether a stage's samples are those of a split, as far as `_part` tells of it."""
    taught = stage.name.startswith("judge/") or "teacher" in stage.inputs
    return split == ("rft" if taught else "calibration")


def _part(records: Records, sample: Sample, stage: Stage) -> Part | None:
    """What a stage, and those that stand on it, made of the sample; None: nothing to tell."""
    place, _, kind = stage.name.rpartition("/")
    if kind == "candidates":
        return round_of(records, sample, stage)
    if kind == "pairs" and f"{place}/candidates" not in records.planned:
        return _written(records, sample, stage)
    if kind == "grpo":
        return _rollouts(records, sample, stage)
    if kind in ("dpo", "sft") and (drops := records.own(stage.name, "drops", Drop, sample.id)):
        return TrainingDrops(stage.name, tuple(drops))
    return None


# --- what is not searched -------------------------------------------------------------------


def _written(records: Records, sample: Sample, stage: Stage) -> Written | None:
    """A pair that was written, or what was written in vain; None: it is other samples' turn."""
    done = records.done(stage.name)
    pairs = records.own(stage.name, "pairs", PreferencePair, sample.id)
    drops = records.own(stage.name, "drops", Drop, sample.id)
    if not (pairs or drops) and (done or settled(records, sample, stage)):
        return None
    searched = [name for name in stage.inputs if name.endswith("/candidates")]
    known = (c for name in searched for c in records.own(name, "candidates", Candidate, sample.id))
    texts = [w.text for w in records.own(stage.name, "written", WrittenRap, sample.id)]
    shown = {_words(text) for p in pairs for text in (p.chosen, p.rejected)}
    return Written(
        stage=stage.name,
        about=stage.about,
        done=done,
        pairs=tuple(pairs),
        known=frozenset(c.index for c in known),
        on_the_way=tuple(text for text in texts if _words(text) not in shown),
        drops=tuple(drops),
    )


def _words(text: str) -> str:
    """A text whatever its spaces and line breaks."""
    return " ".join(text.split())


def _rollouts(records: Records, sample: Sample, stage: Stage) -> Rollouts | None:
    """What an online method sampled; None: it asked others, or its budget was spent before."""
    done = records.done(stage.name)
    found = records.own(stage.name, ROLLOUTS, Rollout, sample.id)
    drops = records.own(stage.name, "drops", Drop, sample.id)
    if not (found or drops) and done:
        return None
    found.sort(key=lambda r: (r.step, r.index))
    return Rollouts(stage.name, done, signals_of(stage), tuple(found), tuple(drops))


def _taught(records: Records, sample: Sample) -> Taught | None:
    if "teacher" not in records.planned:
        return None
    raps = records.own("teacher", "raps", WrittenRap, sample.id)
    drops = [d for name in ("teacher", "rft") for d in records.own(name, "drops", Drop, sample.id)]
    return Taught(records.done("teacher"), tuple(raps), tuple(drops))


# --- answers --------------------------------------------------------------------------------


def _answers(records: Records, split: str, sample: Sample) -> Iterator[Answer]:
    """Responses to the sample, of any split, by all checkpoints that were asked."""
    for stage in records.planned:
        if stage.startswith(_EVAL):
            for response in records.own(stage, split, Response, sample.id):
                found = records.verified(sample, response.text)
                yield Answer(stage.removeprefix(_EVAL), response, found)


def _missing(records: Records, split: str) -> tuple[str, ...]:
    """Checkpoints that are to be measured on a split and are not yet."""
    if split not in records.recipe.evaluate.splits:
        return ()
    stages = [name for name in records.planned if name.startswith(_EVAL)]
    return tuple(name.removeprefix(_EVAL) for name in stages if not records.done(name))
