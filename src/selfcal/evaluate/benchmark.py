"""Predictions in, a benchmark's own figures out, each with its n and standard error.

No figure here is selfcal's invention: each follows the formula of the paper that its function
names. An unreadable answer is never right; where a formula asks what was predicted, it was neither
yes nor no.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from selfcal.errors import SelfcalError
from selfcal.evaluate.metrics import ratio
from selfcal.evaluate.payload import Kind


class BenchmarkError(SelfcalError):
    """A benchmark's figures cannot be computed: the text names why and the way out."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """A model's whole output for one question, and what was read in it."""

    id: str
    category: str
    kind: Kind
    reference: str
    text: str
    """As the model wrote it."""
    answer: str | None
    """None: unreadable."""
    correct: bool
    compliant: bool
    """Whether the text follows the RAP format."""
    cut: bool
    """Whether it ended at the token limit."""


@dataclass(frozen=True, slots=True)
class Figure:
    """A share with its standard error; n is what it is a share of."""

    name: str
    group: str
    """`all`, a category, or `kind: ...`."""
    value: float
    stderr: float
    n: int


def by_category(predictions: Sequence[Prediction]) -> dict[str, list[Prediction]]:
    """Predictions of `all` and of each category; `all*` is a category that is called `all`."""
    groups: dict[str, list[Prediction]] = {"all": list(predictions)}
    for p in predictions:
        if p.category:
            groups.setdefault("all*" if p.category == "all" else p.category, []).append(p)
    return groups


def overall(predictions: Sequence[Prediction], accuracy: str = "accuracy") -> list[Figure]:
    """Accuracy, unreadable share, compliance and cut share: of all, by category and by kind.

    `accuracy`: what that figure is called, which goes by the rule of grading.
    """
    groups = by_category(predictions)
    for p in predictions:
        groups.setdefault(f"kind: {p.kind}", []).append(p)
    shares: dict[str, Callable[[Prediction], bool]] = {
        accuracy: lambda p: p.correct,
        "unreadable": lambda p: p.answer is None,
        "format_compliance": lambda p: p.compliant,
        "cut": lambda p: p.cut,
    }
    return [
        Figure(name, group, *ratio((float(share(p)), 1.0) for p in own))
        for group, own in groups.items()
        for name, share in shares.items()
    ]


# --- POPE -------------------------------------------------------------------------------------


def pope(predictions: Sequence[Prediction]) -> list[Figure]:
    """POPE's figures, `yes` being the positive class (Li et al., 2023, arXiv 2305.10355).

    Accuracy, precision TP / (TP + FP), recall TP / (TP + FN), F1 and the share of `yes` among all
    predictions; of all and by category (random, popular, adversarial). An unreadable answer to a
    question whose reference is `yes` counts as missed.

    Raises:
        BenchmarkError: a reference answer is neither yes nor no.
    """
    if strange := next((p for p in predictions if p.reference.lower() not in ("yes", "no")), None):
        raise BenchmarkError(
            f"sample {strange.id}: POPE's answers are yes and no, this one is "
            f"{strange.reference[:40]!r}; take --metric accuracy"
        )
    return [f for group, own in by_category(predictions).items() for f in _pope_of(group, own)]


def _pope_of(group: str, own: Sequence[Prediction]) -> list[Figure]:
    said = [(p.answer == "yes", p.reference.lower() == "yes", p.correct) for p in own]
    precision = ratio((float(gold), 1.0) for yes, gold, _ in said if yes)
    recall = ratio((float(yes), 1.0) for yes, gold, _ in said if gold)
    # F1 = 2 TP / (2 TP + FP + FN): a ratio of sums over the questions
    f1 = ratio((2.0 * (yes and gold), float(yes) + float(gold)) for yes, gold, _ in said)
    return [
        Figure("pope_accuracy", group, *ratio((float(right), 1.0) for *_, right in said)),
        Figure("pope_precision", group, *precision),
        Figure("pope_recall", group, *recall),
        Figure("pope_f1", group, f1[0], f1[1], len(own)),
        Figure("pope_yes_ratio", group, *ratio((float(yes), 1.0) for yes, *_ in said)),
    ]


# --- CHAIR ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Objects:
    """Object classes with their synonyms."""

    names: Mapping[str, str]
    """Lower-case synonym, in singular or plural -> the object's name."""
    pattern: re.Pattern[str]

    def in_text(self, text: str) -> list[str]:
        """Names of the objects that a text mentions, each mention one; of nested words the longest.

        So a "hot dog" is no dog, where both are known.
        """
        return [self.names[m[0]] for m in self.pattern.finditer(" ".join(text.lower().split()))]


def read_objects(path: Path) -> Objects:
    """Read objects and synonyms: a line an object, its name first, synonyms after commas.

    Raises:
        BenchmarkError: the file cannot be read, is empty, or gives one synonym to two objects.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise BenchmarkError(
            f"{path}: cannot be read ({error}); give a text file of objects, a line each: "
            "name, synonym, synonym"
        ) from error
    names: dict[str, str] = {}
    for number, line in enumerate(lines, start=1):
        words = [" ".join(word.lower().split()) for word in line.split(",") if word.strip()]
        for word in words:
            for form in (word, *_plurals(word)):
                if names.setdefault(form, words[0]) != words[0] and form == word:
                    raise BenchmarkError(
                        f"{path}: line {number}: {word!r} is also a word for {names[form]!r}; "
                        "leave it with one of them"
                    )
    if not names:
        raise BenchmarkError(f"{path}: has no objects; give a line each: name, synonym, synonym")
    longest = sorted(names, key=lambda word: (-len(word), word))
    pattern = re.compile(rf"(?<![\w-])(?:{'|'.join(map(re.escape, longest))})(?![\w-])")
    return Objects(names, pattern)


_IRREGULAR = {
    "person": "people", "man": "men", "woman": "women", "child": "children", "mouse": "mice",
    "knife": "knives", "leaf": "leaves", "loaf": "loaves", "foot": "feet", "tooth": "teeth",
    "goose": "geese",
}  # fmt: skip


def _plurals(word: str) -> tuple[str, ...]:
    """Plural forms of an English noun, or of a compound by its last word."""
    head, _, last = word.rpartition(" ")
    before = f"{head} " if head else ""
    for one, many in _IRREGULAR.items():
        if last.endswith(one):
            return (before + last[: -len(one)] + many,)
    if last.endswith("y") and last[-2:-1] not in "aeiou":
        return (f"{before}{last[:-1]}ies",)
    if last.endswith(("s", "x", "z", "ch", "sh")):
        return (f"{before}{last}es",)
    return (
        (f"{before}{last}s", f"{before}{last}es") if last.endswith("o") else (f"{before}{last}s",)
    )


def chair(predictions: Sequence[Prediction], objects: Objects) -> list[Figure]:
    """CHAIR of captions (Rohrbach et al., 2018, arXiv 1809.02156, section 2.1); lower is better.

    CHAIR_i: hallucinated objects among all objects mentioned, every mention counted. CHAIR_s:
    captions with a hallucinated object among all captions. An object is hallucinated if the
    reference, which lists the image's objects in words of the same file, does not have it. The
    caption is the whole output.
    """
    rows: list[tuple[int, int]] = []
    for p in predictions:
        true = set(objects.in_text(p.reference))
        said = objects.in_text(p.text)
        rows.append((sum(name not in true for name in said), len(said)))
    return [
        Figure("chair_i", "all", *ratio((float(bad), float(n)) for bad, n in rows)),
        Figure("chair_s", "all", *ratio((float(bad > 0), 1.0) for bad, _ in rows)),
    ]


# --- HallusionBench ---------------------------------------------------------------------------

_PLACE = re.compile(r"([^_]*_[^_]*_[^_]*)_([^_]+)_([^_]+)_([^_]+)")


def has_figures(ids: Iterable[str]) -> bool:
    """Whether ids say figure and question, as those of HallusionBench's table do."""
    found = [_PLACE.fullmatch(one) for one in ids]
    return bool(found) and all(found)


def hallusionbench(predictions: Sequence[Prediction]) -> list[Figure]:
    """HallusionBench's accuracies (Guan et al., 2024, arXiv 2310.14566, section 4).

    aAcc: right answers; fAcc: figures all of whose questions are answered right; qAcc: questions
    answered right for all figures that they are asked about. Figure and question stand in the
    table's index: `..._<set>_<figure>_<question>`.

    Raises:
        BenchmarkError: an index is of another form.
    """
    figures: dict[tuple[str, ...], list[bool]] = defaultdict(list)
    questions: dict[tuple[str, ...], list[bool]] = defaultdict(list)
    for p in predictions:
        place = _PLACE.fullmatch(p.id)
        if not place:
            raise BenchmarkError(
                f"sample {p.id}: HallusionBench's index ends in _<set>_<figure>_<question>, this "
                "one does not; take --metric accuracy"
            )
        part, own, figure, question = place.groups()
        figures[part, own, figure].append(p.correct)
        questions[part, own, question].append(p.correct)
    return [
        Figure("aAcc", "all", *ratio((float(p.correct), 1.0) for p in predictions)),
        Figure("fAcc", "all", *ratio((float(all(own)), 1.0) for own in figures.values())),
        Figure("qAcc", "all", *ratio((float(all(own)), 1.0) for own in questions.values())),
    ]


def finite(value: float) -> float | None:
    """A number for JSON, which has no NaN."""
    return value if math.isfinite(value) else None
