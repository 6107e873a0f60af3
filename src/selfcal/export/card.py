"""The dataset card: what an export is, where it comes from, and how to train on it.

It goes with the data to whoever gets them, so nothing in it names a place on this machine: of a
local model there is the last part of its path alone, and of a server only its model's name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from selfcal import __version__
from selfcal.export.formats import Format
from selfcal.export.rows import Source
from selfcal.policy import SHIPPED
from selfcal.rationale import FORMATS as RAP_FORMATS
from selfcal.recipe import Recipe
from selfcal.store import write_text

if TYPE_CHECKING:
    from selfcal.recipe import Settings

FILL_IN = "unknown"
"""The hub's name of a licence that nobody has named yet."""
FOLDER = "FOLDER"
"""Stands for the folder in commands of the card."""
_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"))
REASONS = {
    "image-mark-in-response": "a response has a text such as `<image>`, which would be read as one",
    "media-mark": "the text has a mark that the tool or a model reads as a picture, sound or box",
    "same-response": "chosen and rejected are the same",
    "rejected-image": "the rejected response goes with another image, for which the format has no "
    "place",
    "image-missing": "an image file is not there",
    "image-broken": "an image cannot be decoded",
    "image-too-large": "an image has too many pixels",
}
"""What the reasons mean for which examples are left out."""


@dataclass(frozen=True)
class Contents:
    """What an export holds."""

    name: str
    counts: Mapping[int, int]
    """Examples by iteration; 0 is what the teacher wrote before the first."""
    drops: Mapping[str, int]
    """Examples that were left out, by reason."""
    images: int

    @property
    def examples(self) -> int:
        """How many there are."""
        return sum(self.counts.values())


def write_card(
    path: Path, source: Source, form: Format, contents: Contents, license: str | None
) -> None:
    """Write the card; `license` by the hub's name, None for a placeholder."""
    recipe, pairs = source.recipe, source.split == "pairs"
    kind = "preference pairs" if pairs else "rationale-answer pairs"
    parts = [
        _front(recipe, form, contents, pairs, license),
        f"# {_plain(recipe.name)}: {kind}",
        _about(pairs, form),
        "## Where they come from",
        _table(("", ""), _origin(source)),
        "## What there is",
        *_amounts(contents, pairs),
        "## What a row is",
        _prompt(recipe, pairs),
        "## How to train on them",
        f"`{FOLDER}` is this folder, `MODEL` the model to train, `OUT` where it goes."
        + ("" if form.embeds else f" From a hub: `hf download NAME --repo-type dataset "
           f"--local-dir {FOLDER}` first."),
        f"```{form.language}\n{form.load(FOLDER, contents.name, pairs)}\n```",
        "## Intended use",
        _USE,
        "## Licence",
        _licence(license),
    ]  # fmt: skip
    write_text(path, "\n\n".join(parts) + "\n")


_USE = (
    "To train and to study vision-language models that give their reasons. Responses were written "
    "by models: they can be wrong, and rejected ones are meant to be worse. Preference pairs suit "
    "the policy that they were made with best, and others less."
)


def _front(recipe: Recipe, form: Format, contents: Contents, pairs: bool, own: str | None) -> str:
    """What the hub reads."""
    import yaml

    n = contents.examples
    size = next((name for limit, name in _SIZES if n < limit), "100K<n<1M")
    fields = {
        "license": own or FILL_IN,
        "pretty_name": _plain(recipe.name),
        "task_categories": ["visual-question-answering"],
        "tags": ["selfcal", "dpo" if pairs else "sft", "rationale", form.name],
        "size_categories": [size],
        "configs": [
            {"config_name": "default", "data_files": [{"split": "train", "path": form.file}]}
        ],
    }
    return f"---\n{yaml.safe_dump(fields, sort_keys=False, allow_unicode=True)}---"


def _about(pairs: bool, form: Format) -> str:
    what = (
        "A question about images with a chosen and a rejected response, for direct preference "
        "optimization (DPO)"
        if pairs
        else "A question about images with a rationale and an answer that a teacher wrote, for "
        "supervised fine-tuning"
    )
    return f"{what}; in the format of {form.tool}. Made by selfcal {__version__}."


def _origin(source: Source) -> list[tuple[str, str]]:
    recipe = source.recipe
    data = recipe.data
    own = [data.source] if not data.sources else [s.path for s in data.sources]
    rows = [
        ("recipe", recipe.name),
        ("method", recipe.method),
        ("samples", ", ".join(_public(name) for name in own)),
        ("policy", _public(recipe.policy.model)),
        ("teacher, where the method asks one", _who(recipe.teacher)),
        ("judge, where the method asks one", _judge(recipe)),
        ("seed", str(recipe.seed)),
    ]
    if source.split == "pairs":
        rows.insert(2, ("iterations", ", ".join(map(str, source.iterations))))
    return rows


def _judge(recipe: Recipe) -> str:
    judge = recipe.judge
    if judge.kind == "rscorer":
        labels = "of a file" if judge.labels.kind == "file" else f"by {_who(judge.labels)}"
        return f"{_public(judge.model)}, trained on labels {labels}"
    return _who(judge.endpoint) if judge.endpoint else judge.kind


def _who(settings: Settings) -> str:
    """A model by its name, or the kind of a part that has none."""
    model = getattr(settings, "model", None)
    return _public(model) if isinstance(model, str) else str(getattr(settings, "kind", "none"))


def _public(name: str) -> str:
    """A model's or a file's name without the place on this machine where it lies."""
    path = Path(name)
    local = path.is_absolute() or path.exists() or name.startswith((".", "~"))
    return path.name if local and not name.startswith(SHIPPED) else name


def _amounts(contents: Contents, pairs: bool) -> list[str]:
    kept = [(f"iteration {t}" if t else "teacher", f"{n:,}") for t, n in contents.counts.items()]
    parts = [_table(("", "pairs" if pairs else "examples"), kept)]
    parts.append(f"Different images: {contents.images:,}.")
    if contents.drops:
        left = [(reason, f"{n:,}", REASONS.get(reason, "")) for reason, n in contents.drops.items()]
        parts += ["Left out:", _table(("reason", "examples", ""), left)]
    return parts


def _prompt(recipe: Recipe, pairs: bool) -> str:
    example = RAP_FORMATS[recipe.format].example
    who = "Responses have" if pairs else "A response has"
    return (
        "The prompt is the question, with its options by letter where it is multiple choice. "
        "Images stand where the question says so, else before it. There is no system prompt. "
        f"{who} a rationale and an answer in this form (`{recipe.format}`):\n\n"
        f"```text\n{example}\n```"
    )


def _licence(own: str | None) -> str:
    if own:
        return f"`{_plain(own)}`"
    return (
        "**To be filled in** here and as `license` at the top of this file before it is shared. "
        "The licence and the terms of the images, of the questions, of the policy, and of the "
        "teacher or judge, where there is one, all have a say."
    )


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(_cell(cell) for cell in line)} |" for line in lines)


def _cell(text: str) -> str:
    return _plain(text).replace("|", "\\|") if text not in REASONS.values() else text


def _plain(text: str) -> str:
    """Text of a recipe in one line that is no Markdown or HTML."""
    shown = "".join(c if c.isprintable() else " " for c in text)
    return "".join(f"\\{c}" if c in _MARKUP else c for c in shown)


_MARKUP = "\\`*_[]<>#!"
