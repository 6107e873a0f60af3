"""A first recipe for somebody's own model and images.

Numbers that a paper gives are the paper's; sizes of splits and batches follow from how many rows
the data has; what one forward pass takes of memory follows from the machine. What comes out is
text with comments, to be read and changed, and is checked by reading it again.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib import resources
from typing import Any

import yaml

from selfcal.cost.machine import Machine
from selfcal.cost.needs import Needs
from selfcal.cost.sizes import SizeError
from selfcal.errors import SelfcalError
from selfcal.pipeline import plan
from selfcal.recipe import Recipe

METHODS = {
    "src": "a teacher writes rationales, a judge compares candidates (SRC)",
    "csr": "no teacher and no judge: likelihood and CLIP decide (CSR)",
}
_PARTS = ("rft", "judge.train", "dpo")
_ROOM = 0.9
"""Share of the memory that a training may take by the estimate."""


class DraftError(SelfcalError):
    """No recipe can be drafted: the text says what is missing."""


@dataclass(frozen=True, slots=True)
class Answers:
    """What a recipe cannot be written without."""

    name: str
    model: str
    data: str
    """A data file or dataset folder, or a folder with a file for each split."""
    rows: dict[str, int]
    """Rows of the data: `all`, or of each split that has a file of its own."""
    method: str = "src"
    form: str = "headings"
    teacher: dict[str, str] | None = None
    """Settings of the teacher, and of the label giver beside it: `kind` and what goes with it."""
    labels: dict[str, str] | None = None
    judge: str = "Qwen/Qwen2.5-1.5B-Instruct"
    clip: str = "openai/clip-vit-large-patch14-336"
    prompts: bool = False
    """Whether the data are prompts without answers: nothing can be measured then."""


def draft(answers: Answers, on: Machine) -> str:
    """The text of a recipe.

    Raises:
        DraftError: there is too little data or none with answers, or a teacher or label giver is
            missing.
        RecipeError: the answers make no recipe.
    """
    if answers.method == "src" and answers.prompts:
        raise DraftError(
            f"{answers.data}: these are prompts without answers, and src needs answers; take "
            "--method csr, or data with answers"
        )
    sizes = _sizes(answers)
    if answers.method == "src" and (answers.teacher is None or answers.labels is None):
        raise DraftError(
            "src needs a teacher and somebody who gives the judge its labels: name them by "
            "--teacher and --labels, or take --method csr, which needs neither"
        )
    fit = {part: _Fit() for part in _PARTS}
    recipe = _read(_text(answers, sizes, fit, on))
    for part in _PARTS:
        while not _fits(recipe, part, on):
            smaller = fit[part].smaller(on)
            if smaller is None:
                break  # `selfcal plan` says so, with the numbers
            fit[part] = smaller
            recipe = _read(_text(answers, sizes, fit, on))
    return _text(answers, sizes, fit, on)


@dataclass(frozen=True, slots=True)
class _Fit:
    """How a training is made to fit."""

    micro: int = 8
    checkpointing: bool = False
    four_bit: bool = False

    def smaller(self, on: Machine) -> _Fit | None:
        """The next thing to try: it costs time, so the cheapest comes first."""
        if self.micro > 4:
            return _Fit(self.micro // 2, self.checkpointing, self.four_bit)
        if not self.checkpointing:
            return _Fit(8, True, self.four_bit)
        if self.micro > 1:
            return _Fit(self.micro // 2, True, self.four_bit)
        if not self.four_bit and on.gpu:
            return _Fit(8, True, True)
        return None


def _fits(recipe: Recipe, part: str, on: Machine) -> bool:
    names = {"rft": ("rft",), "judge.train": ("judge/train",), "dpo": ("iter-1/dpo",)}[part]
    needs = Needs(recipe, on)
    try:
        found = [needs.of(s) for s in plan(recipe) if s.name in names]
    except SizeError:
        return True  # nothing is known of the model: nothing can be fitted
    return all(n.memory <= _ROOM * on.memory for n in found)


def _sizes(answers: Answers) -> dict[str, int]:
    """How many samples each split gets: shares of one file, or what each file has."""
    most = {"rft": 20_000, "calibration": 12_000, "dev": 1_000, "test": 2_000}
    teaches = answers.method == "src"
    if "all" not in answers.rows:
        sizes = {s: min(n, answers.rows.get(s, 0)) for s, n in most.items()}
        sizes["rft"] *= teaches
    else:
        shares = {"rft": 25, "calibration": 50, "dev": 10, "test": 15}
        if not teaches:
            shares |= {"rft": 0, "calibration": 75}
        if answers.prompts:
            shares |= {"rft": 0, "calibration": 100, "dev": 0, "test": 0}
        sizes = {s: min(most[s], answers.rows["all"] * n // 100) for s, n in shares.items()}
    lacking = [s for s in ("calibration", *(("rft",) if teaches else ())) if not sizes[s]]
    if lacking:
        raise DraftError(
            f"{answers.data}: too few samples for {' and '.join(lacking)}; "
            "give more data, or a file for each split"
        )
    return sizes


def _batch(rows: int, most: int) -> int:
    """A power of two, from 4, that leaves some sixteen steps an epoch where there is enough."""
    size = 4
    while size * 2 <= min(most, rows / 16):
        size *= 2
    return size


def _text(answers: Answers, sizes: dict[str, int], fit: dict[str, _Fit], on: Machine) -> str:
    from jinja2 import Environment, StrictUndefined

    source = resources.files("selfcal.draft").joinpath("recipe.yaml.jinja").read_text("utf-8")
    environment = Environment(
        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    environment.filters["yaml"] = _scalar
    batches = {
        "rft": _batch(sizes["rft"], 128),
        "judge.train": _batch(sizes["rft"] * 6, 64),
        "dpo": _batch(sizes["calibration"], 64),
    }
    split = "all" not in answers.rows
    return environment.from_string(source).render(
        a=answers, sizes=sizes, batches=batches, fit=fit, split=split, on=on,
        measured=[s for s in ("dev", "test") if sizes[s]],
        samples=min(4000, sizes["rft"]),
    )  # fmt: skip


def _scalar(value: Any) -> str:
    """A value as YAML spells it, in one line: a text that could be mistaken is quoted."""
    if not isinstance(value, str):
        return json.dumps(value)
    text = str(yaml.safe_dump(value, width=10**6, allow_unicode=True)).removesuffix("...\n").strip()
    return text if "\n" not in text else json.dumps(value)


def _read(text: str) -> Recipe:
    from pydantic import ValidationError

    from selfcal.recipe import RecipeError, explain

    try:
        return Recipe.model_validate(yaml.safe_load(text))
    except ValidationError as error:
        raise RecipeError(explain("draft", error, Recipe)) from error
