"""Fakes for tests: tiny models of random weights, and a judge and a teacher that follow a script.

What takes minutes with real models takes a second with these, and they go wherever the real ones
go: a tiny model is an ordinary folder in transformers' format, a scripted judge answers like any
`Judge`. Nothing here is used by a run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from selfcal.data import read_samples
from selfcal.evaluate.marking import FLAWS
from selfcal.evaluate.marking import Said as Marks
from selfcal.judge.scorer import VERDICTS, Comparison, judgment
from selfcal.miniworld import build, models
from selfcal.types import Aspect, Judgment, Sample, Verdict

Said = Verdict | Sequence[float] | None
"""A verdict, the probabilities of (first, second, neutral), or None for an unreadable answer."""


@dataclass
class ScriptedJudge:
    """A judge whose verdicts come from a function of the comparison."""

    says: Callable[[Comparison], Said]
    confidence: float = 1.0
    """Probability of a plain verdict; the rest is shared by the other two."""
    asked: list[Comparison] = field(default_factory=list)
    """All comparisons so far."""

    def judge(self, comparisons: Sequence[Comparison]) -> list[Judgment]:
        """One judgment for each comparison, in order."""
        self.asked += comparisons
        return [judgment(c, self._probabilities(self.says(c))) for c in comparisons]

    def _probabilities(self, said: Said) -> Sequence[float] | None:
        if not isinstance(said, str):
            return said
        rest = (1 - self.confidence) / 2
        return [self.confidence if v == said else rest for v in VERDICTS]


@dataclass
class ScriptedTeacher:
    """A teacher whose responses, and facts, come from a function of the sample.

    What it makes of another's response comes from a function of sample and response.
    """

    writes: Callable[[Sample], str]
    facts: Callable[[Sample], str] = lambda sample: sample.facts
    spoils: Callable[[Sample, str], str] = lambda sample, response: f"Not so. {response}"
    mends: Callable[[Sample, str], str] = lambda sample, response: response
    restyles: Callable[[Sample, str], str] = lambda sample, response: response
    asked: list[Sample] = field(default_factory=list)
    """All samples so far that a response was asked for."""

    def write(self, sample: Sample) -> str:
        """Write a response to the sample."""
        self.asked.append(sample)
        return self.writes(sample)

    def write_facts(self, sample: Sample) -> str:
        """Write down what is to be seen."""
        return self.facts(sample)

    def spoil(self, sample: Sample, response: str) -> str:
        """Put errors into a response."""
        return self.spoils(sample, response)

    def mend(self, sample: Sample, response: str) -> str:
        """Correct a response."""
        return self.mends(sample, response)

    def restyle(self, sample: Sample, response: str) -> str:
        """Say a response in another style."""
        return self.restyles(sample, response)


@dataclass
class ScriptedLabels:
    """A label-giving judge whose verdicts come from a function of sample, first and second."""

    says: Callable[[Sample, str, str], Verdict | None]
    grades: Callable[[Sample, str, Aspect], bool | None] = lambda sample, response, aspect: None
    ranks: Callable[[Sample, Sequence[str]], tuple[int, ...] | None] = lambda sample, own: None

    def grade(self, sample: Sample, response: str, aspect: Aspect = "good") -> bool | None:
        """Grade a response; None if the answer cannot be read."""
        return self.grades(sample, response, aspect)

    def rank(self, sample: Sample, responses: Sequence[str]) -> tuple[int, ...] | None:
        """Rank responses; None if the answer cannot be read."""
        return self.ranks(sample, responses)

    def compare(self, sample: Sample, first: str, second: str) -> Verdict | None:
        """Say which response is better; None if the answer cannot be read."""
        return self.says(sample, first, second)


@dataclass
class ScriptedMarker:
    """A marker that knows the flaws of a response and errs where a function says so."""

    knows: Callable[[Sample, str], Marks]
    errs: Callable[[Sample, str, bool, str], bool] = lambda sample, response, reverse, flaw: False
    """Whether it says the contrary about a flaw."""

    def mark(self, sample: Sample, response: str, reverse: bool = False) -> Marks:
        """The truth, or at times the contrary."""
        true = self.knows(sample, response)
        own = [
            None if t is None else t != self.errs(sample, response, reverse, flaw)
            for t, flaw in zip(true, FLAWS, strict=True)
        ]
        return own[0], own[1], own[2]


def tiny_samples(folder: Path, n: int = 4, split: str = "rft") -> list[Sample]:
    """Build `n` MiniWorld samples, with their images, in a folder."""
    build.build(folder, {split: n})
    samples, _ = read_samples(folder / f"{split}.jsonl")
    return [replace(s, image=str(Path(s.image).resolve())) for s in samples]


def tiny_policy(folder: Path, seed: int = 0) -> str:
    """Save a LLaVA of 1.6M random weights, with its processor, and return the folder.

    It sees and reads its whole context, so that a wrong mask or position shows in its output, and
    says nothing sensible.
    """
    tokenizer = _tokenizer()
    model = models.build_llava(tokenizer)
    _randomize(model, seed)
    model.save_pretrained(folder)
    models.build_processor(tokenizer).save_pretrained(folder)
    return str(folder)


def tiny_judge(folder: Path, seed: int = 0) -> str:
    """Save a text model of 1M random weights, with its tokenizer, and return the folder."""
    tokenizer = _tokenizer()
    model = models.build_judge(tokenizer)
    _randomize(model, seed)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@cache
def _tokenizer() -> Any:
    return models.build_tokenizer()


def _randomize(model: Any, seed: int) -> None:
    """Draw weights that keep the variance from layer to layer.

    The usual, much smaller ones leave the output to the last token alone.
    """
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.normal_(std=weight[0].numel() ** -0.5, generator=generator)
            elif (weight != 1).any() and (weight != 0).any():  # neither a norm's nor a bias
                weight.normal_(std=weight.numel() ** -0.5, generator=generator)


__all__ = [
    "ScriptedJudge",
    "ScriptedLabels",
    "ScriptedMarker",
    "ScriptedTeacher",
    "tiny_judge",
    "tiny_policy",
    "tiny_samples",
]
