"""One sample's line in the index: what a reader filters and sorts by.

A page holds a thousand such lines, so what is empty is left out.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

from selfcal.page import cut
from selfcal.report.marks import difference, flaws_of, mark
from selfcal.report.reader import Reader, disagreement
from selfcal.story import Answer, Rollouts, Round, Story, TrainingDrops, Written
from selfcal.types import Drop, without_marks
from selfcal.view.text import safe

_QUESTION = 160
"""Characters of a question in the list."""
_NAME = 80
_LONGEST_ID = 500


def row_of(story: Story, reader: Reader, followed: bool = False) -> dict[str, Any]:
    """The line of a sample.

    Returns:
        `id` as it is in the data; `name`: the same, fit to be shown, if that differs; `split`;
        `category`; `question`, in short; `followed`, if it is; `steps`: what was made of it, each
        with the `place` (`iter-1`, `judge`, ...), what it was `kept` as and why it was `dropped`,
        and of a pair the flaws of `chosen` and `rejected` (where somebody can tell), its `margin`,
        the pairs of candidates on which judge and verifier both say something (`asked`), those on
        which they disagree (`against`), and whether the chosen response is truly `worse`; `last`:
        flaws of the last answer; `change`: from the first to the last answer, with its `size`.
    """
    s = story.sample
    name = safe(cut(s.id, _NAME))
    row: dict[str, Any] = {
        "id": id_of(s.id),
        "name": name if name != s.id else "",
        "split": story.split,
        "category": safe(cut(s.category, _NAME)),
        "question": safe(cut(" ".join(without_marks(s.question).split()), _QUESTION)),
        "steps": _steps(story, reader),
    }
    if followed:
        row["followed"] = True
    if story.answers:
        row["last"] = _flaws(story.answers[-1])
    if len(story.answers) > 1:
        row["change"], row["size"] = change(story.answers, reader)
    return {key: value for key, value in row.items() if value != ""}


def id_of(text: str) -> str:
    """The id, by which a sample is linked to; of a very long one its beginning and a digest."""
    if len(text) <= _LONGEST_ID:
        return text
    return f"{text[:_LONGEST_ID]}…{hashlib.sha256(text.encode()).hexdigest()[:16]}"


def _flaws(answer: Answer) -> list[str]:
    return flaws_of(answer.found or answer.response)


# --- what was made of it --------------------------------------------------------------------


def _steps(story: Story, reader: Reader) -> list[dict[str, Any]]:
    steps = []
    if taught := story.taught:
        steps.append(_step("teacher", ["rationale"] if taught.raps else [], taught.drops))
    for part in story.parts:
        if isinstance(part, Round):
            steps.append(_round(part, reader))
        elif isinstance(part, Written):
            kept = ["pair"] if part.pairs else []
            step = _step(part.stage.removesuffix("/pairs"), kept, part.drops)
            steps.append(step | _pair(part, reader))
        elif isinstance(part, Rollouts):
            steps.append(_step(part.stage, ["rollouts"] if part.rollouts else [], part.drops))
        elif isinstance(part, TrainingDrops):
            steps.append(_step(part.stage, [], part.drops))
    return steps


def _step(place: str, kept: Sequence[str], drops: Sequence[Drop]) -> dict[str, Any]:
    step: dict[str, Any] = {"place": safe(cut(place.partition("/")[0], _NAME))}
    if kept:
        step["kept"] = list(kept)
    # what a sample as a whole was left out for; a kept one may have lost single responses
    if drops:
        step["dropped"] = sorted(
            {f"{safe(cut(d.stage, _NAME))}: {safe(cut(d.reason, _NAME))}" for d in drops}
        )
    return step


def _round(told: Round, reader: Reader) -> dict[str, Any]:
    best = any(r.role == "best" for r in told.candidates)
    taught = bool(told.labels or told.grades)
    found = {"pair": bool(told.pairs), "best": best, "labels": taught}
    step = _step(told.place, [name for name, has in found.items() if has], told.drops)
    against = disagreement(told, reader.truths(told))
    if against.asked:
        step |= {"asked": against.asked, "against": against.count}
    return step | _pair(told, reader)


def _pair(part: Round | Written, reader: Reader) -> dict[str, Any]:
    """What is known of the part's (first) pair."""
    if not part.pairs:
        return {}
    pair = part.pairs[0]
    own: dict[str, Any] = {}
    sides = {"chosen": pair.chosen} if pair.rejected_image else {
        "chosen": pair.chosen, "rejected": pair.rejected
    }  # fmt: skip
    for name, text in sides.items():
        if found := reader.check(text):
            own[name] = flaws_of(found)
    compared = pair.chosen_index >= 0 and pair.rejected_index >= 0
    if compared:
        own["margin"] = round(pair.margin, 3)
    if not pair.rejected_image and reader.truth(pair.chosen, pair.rejected) == -1:
        own["worse"] = True
    return own


# --- how the answers changed ----------------------------------------------------------------


def change(answers: Sequence[Answer], reader: Reader) -> tuple[str, float]:
    """What became of the answer between the first and the last checkpoint, and how much of it.

    A right answer is one step, a sound rationale another. `mended`: it went up by that measure;
    `spoiled`: down; `reworded`: neither, in other words; `same`: word for word. The size is the
    steps, plus the share of sentences that differ.
    """
    first, last = answers[0], answers[-1]
    steps = _level(last) - _level(first)
    one, other = (mark(a.response.text, a.found, reader.form) for a in (first, last))
    same = first.response.text.split() == last.response.text.split()
    kind = "mended" if steps > 0 else "spoiled" if steps < 0 else "same" if same else "reworded"
    return kind, round(abs(steps) + difference(one, other), 3)


def _level(answer: Answer) -> int:
    found = answer.found or answer.response
    return found.correct + found.sound
