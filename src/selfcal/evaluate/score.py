"""An answer that was read and the reference in, right or wrong out, by the benchmark's own rule."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal, InvalidOperation

from selfcal.evaluate.extract import kind_of
from selfcal.evaluate.payload import Kind, read_payload
from selfcal.evaluate.plain import numbers, plain
from selfcal.rationale import normalize_answer
from selfcal.types import Sample

Rule = Callable[[str, Sample, Kind], bool]
"""Whether an answer, as `read_answer` gives it, is right."""


def reference(sample: Sample, kind: Kind) -> str:
    """The reference answer in the form in which answers are read; as it stands if it has none."""
    if kind == "open":
        return sample.answer
    found = read_payload(plain(sample.answer), kind, sample.choices, strict=True)
    return sample.answer if found is None else found


def exactly(answer: str, sample: Sample, kind: Kind) -> bool:
    """The same letter, the same of yes and no, an equal number, or the same words.

    Of numbers, `%` does not count; of words, case, articles and punctuation around them.
    """
    own = reference(sample, kind)
    if kind == "number":
        one, other = _exact(answer), _exact(own)
        return one is not None and one == other
    if kind == "open":
        return normalize_answer(answer) == normalize_answer(own)
    return answer.lower() == own.lower()


def _exact(text: str) -> Decimal | None:
    try:
        return Decimal(text.removesuffix("%"))
    except InvalidOperation:
        return None


def relaxed(answer: str, sample: Sample, kind: Kind) -> bool:
    """ChartQA's relaxed accuracy (Masry et al., 2022, arXiv 2203.10244, section 5.1).

    A number may be 5 % off the reference; anything else must be the same text, upper or lower
    case. A number with `%` is a hundredth of it, in answer and reference alike.
    """
    target = sample.answer.strip()
    if kind == "choice":
        return exactly(answer, sample, kind)
    one, other = _as_float(answer), _as_float(target)
    if one is None or not other:
        return answer.strip().lower() == target.lower()
    return abs(one - other) / abs(other) <= 0.05


def _as_float(text: str) -> float | None:
    text = text.strip()
    number = numbers(text)
    if len(number) != 1 or number[0][:2] != (0, len(text)):
        return None
    value = number[0][2]
    return float(value.removesuffix("%")) / (100 if value.endswith("%") else 1)


def is_right(answer: str | None, sample: Sample, rule: Rule = exactly) -> bool:
    """Whether an answer is right; an unreadable one is not."""
    return answer is not None and rule(answer, sample, kind_of(sample))
