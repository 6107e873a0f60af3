"""Who agrees how far: people with each other, with the judge, and with the verifier.

Labels of pairs that the run no longer has in this form are left out and counted. The judge's
verdict is the one that curation read; the verifier's is known on MiniWorld alone.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from statistics import median

from selfcal.miniworld.verifier import verify
from selfcal.people.judged import Asked, Judged, Key, Pair
from selfcal.people.kappa import Agreed, Interval, Row, cohen, fleiss, measured
from selfcal.people.labels import JUDGE, MAJORITY, VERIFIER, Label, LabelFile, annotators
from selfcal.people.sentences import sentences
from selfcal.store import JSON


@dataclass(frozen=True, slots=True)
class Person:
    """What one person did."""

    name: str
    labels: int
    cannot_tell: int
    neutral: int
    marked: int
    """False sentences."""
    seconds: float | None
    """Median of a label."""


@dataclass(frozen=True, slots=True)
class Marks:
    """The sentences that people marked as false."""

    flaws: Mapping[str, int]
    """By flaw; `""`: none was named."""
    checked: int
    """Those that were not called insufficient, of which the verifier knows."""
    false: Interval
    """The share of them that the verifier calls false as well."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """How far people, judge and verifier agree."""

    pairs: int
    """Pairs with at least one label, one that says which is better or that both are equal."""
    samples: int
    people: tuple[Person, ...]
    between: tuple[Agreed, ...]
    """Every two people (Cohen's kappa)."""
    all_people: Agreed | None
    """All of them (Fleiss' kappa), on pairs that two or more judged; None for fewer than three."""
    with_judge: tuple[Agreed, ...]
    """Each person, and most people where there are several."""
    with_verifier: tuple[Agreed, ...]
    """The same; nothing where there is none."""
    judge_with_verifier: Agreed | None
    """On the pairs that people labelled."""
    marks: Marks
    left_out: Mapping[str, int]
    """By reason: `redone` (labels of pairs that the run has no longer), `tied` (pairs of which
    people say different things equally often), `unread` (pairs of which the judge's verdict could
    not be read), `torn` (an unfinished last line)."""

    def to_json(self) -> dict[str, JSON]:
        """As JSON values."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Labelled:
    """A pair with what was said of it."""

    pair: Pair
    labels: tuple[Label, ...]
    """At most one a person."""
    judge: int | None
    """Sign of the judge's verdict; None: not read."""

    @property
    def votes(self) -> dict[str, int]:
        """The sign that each person gave who could tell."""
        return {x.annotator: x.sign for x in self.labels if x.sign is not None}

    @property
    def majority(self) -> int | None:
        """The sign that most people gave (`most_said`)."""
        return most_said(self.votes.values())


def most_said(signs: Iterable[int]) -> int | None:
    """The most frequent sign; None where two are equally frequent, or there is none."""
    ranked = Counter(signs).most_common(2)
    tied = len(ranked) == 2 and ranked[0][1] == ranked[1][1]
    return None if tied or not ranked else ranked[0][0]


def labelled(judged: Judged, labels: Sequence[Label]) -> list[Labelled]:
    """The pairs that labels are about, as the run has them; other labels are passed over."""
    own: dict[Key, list[Label]] = defaultdict(list)
    for label in labels:
        own[label.key].append(label)

    def found(asked: Asked) -> Iterator[Labelled]:
        signs = asked.signs
        for pair in asked.pairs:
            fit = tuple(x for x in own.get(pair.key, ()) if x.texts == pair.texts)
            if fit:
                yield Labelled(pair, fit, signs.get((pair.one.index, pair.other.index)))

    wanted = {(key.iteration, key.sample_id) for key in own}
    return [row for asked in judged.asked(wanted) for row in found(asked)]


def agreement_of(run: Path) -> Agreement | None:
    """How far people, judge and verifier agree in a run; None where nobody labelled anything.

    Raises:
        SelfcalError: it is no run, has no judgments, or the labels cannot be read.
    """
    file = LabelFile(run).read()
    if not file.labels:
        return None
    judged = Judged(run)
    rows = labelled(judged, file.labels)
    own = [x for row in rows for x in row.labels]
    names = annotators(own)
    told = [row for row in rows if row.votes]
    truths = {row.pair.key: judged.truth(row.pair) for row in told}
    with_judge, with_verifier, both = _held(told, names, truths)
    several = len(names) > 2  # of two it would be much what Cohen's kappa is
    return Agreement(
        pairs=len(told),
        samples=len({row.pair.sample.id for row in told}),
        people=tuple(_person(name, [x for x in own if x.annotator == name]) for name in names),
        between=tuple(_between(told, one, other) for one, other in combinations(names, 2)),
        all_people=_all(told, names) if several else None,
        with_judge=with_judge,
        with_verifier=with_verifier,
        judge_with_verifier=both,
        marks=_marks(judged, rows),
        left_out={
            "redone": len(file.labels) - len(own),
            "tied": sum(row.majority is None for row in told),
            "unread": sum(row.judge is None for row in told),
            "torn": int(file.torn),
        },
    )


def _person(name: str, own: Sequence[Label]) -> Person:
    signs = [x.sign for x in own]
    looked = [x.seconds for x in own if x.seconds is not None]
    return Person(
        name, len(own), signs.count(None), signs.count(0),
        sum(x.false_sentence is not None for x in own),
        round(median(looked), 1) if looked else None,
    )  # fmt: skip


Says = Callable[[Labelled], int | None]


def _couple(rows: Sequence[Labelled], names: tuple[str, str], one: Says, other: Says) -> Agreed:
    """The agreement of two raters on the pairs of which both said something."""
    said = ((row.pair.sample.id, one(row), other(row)) for row in rows)
    return cohen(names, [(s, a, b) for s, a, b in said if a is not None and b is not None])


def _between(rows: Sequence[Labelled], one: str, other: str) -> Agreed:
    names = (one, other)
    return _couple(rows, names, _vote(one), _vote(other))


def _vote(name: str) -> Says:
    return lambda row: row.votes.get(name)


def _all(rows: Sequence[Labelled], names: Sequence[str]) -> Agreed:
    said = ((row.pair.sample.id, list(row.votes.values())) for row in rows)
    return fleiss(tuple(names), said)


def _held(
    rows: Sequence[Labelled], names: Sequence[str], truths: Mapping[Key, int | None]
) -> tuple[tuple[Agreed, ...], tuple[Agreed, ...], Agreed | None]:
    """People against the judge, people against the verifier, and the judge against the verifier."""
    people = {name: _vote(name) for name in names}
    if len(names) > 1:
        people[MAJORITY] = lambda row: row.majority

    def judge(row: Labelled) -> int | None:
        return row.judge

    def truth(row: Labelled) -> int | None:
        return truths[row.pair.key]

    with_judge = tuple(_couple(rows, (n, JUDGE), says, judge) for n, says in people.items())
    if all(t is None for t in truths.values()):
        return with_judge, (), None
    with_verifier = tuple(_couple(rows, (n, VERIFIER), says, truth) for n, says in people.items())
    return with_judge, with_verifier, _couple(rows, (JUDGE, VERIFIER), judge, truth)


# --- marked sentences -------------------------------------------------------------------------


def _marks(judged: Judged, rows: Sequence[Labelled]) -> Marks:
    marked = [(row, x) for row in rows for x in row.labels if x.false_sentence is not None]
    flaws = Counter(x.flaw or "" for _, x in marked)
    checked = [
        Row(row.pair.sample.id, false, 0, 0)
        for row, x in marked
        if x.flaw != "insufficient" and (false := _is_false(judged, row.pair, x)) is not None
    ]
    share = measured((), checked).agreement
    return Marks(dict(sorted(flaws.items())), len(checked), share)


def _is_false(judged: Judged, pair: Pair, label: Label) -> bool | None:
    """Whether the verifier calls the marked sentence false; None where it does not know.

    Of the answer that is whether it is wrong.
    """
    mark = label.false_sentence
    if mark is None or not judged.recipe.data.miniworld or pair.sample.confidence < 1:
        return None
    index = label.first if label.flaw_in == "first" else label.second
    text = (pair.one if index == pair.one.index else pair.other).text
    every = sentences(text, judged.form)
    span = next((s for s in every if s.number == mark.number), None)
    try:
        found = verify(pair.sample, text, judged.form)
    except ValueError:  # facts that leave the question open
        return None
    if span is None:
        return None
    own = {f.status for f in found.findings if f.start < span.end and f.end > span.start}
    if not own and span is every[-1]:
        return not found.correct
    if own <= {"unreadable"}:
        return None
    return bool(own & {"counterfactual", "unreasonable"})
