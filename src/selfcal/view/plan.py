"""A recipe in, its stages and what they take out: memory, disk, time; no weights are loaded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.text import Text

from selfcal.cost.counts import count, guess, shipped
from selfcal.cost.machine import GIB, Machine, disk_free, machine
from selfcal.cost.needs import RESPONSE_TOKENS, Need, Needs
from selfcal.cost.sizes import SizeError
from selfcal.pipeline import Planned
from selfcal.recipe import FileLabels, RayExecutor, Recipe
from selfcal.stage import Stage
from selfcal.view.text import amount, duration, heading, large, safe, table


def show_plan(
    out: Console,
    recipe: Recipe,
    planned: Sequence[Planned],
    where: str = "",
    on: Machine | None = None,
) -> bool:
    """Print the stages and what they take; whether all of them fit into the machine.

    Args:
        out: where to.
        recipe: the recipe.
        planned: its stages.
        where: the folder of a run: which of them it has.
        on: the machine; None: this one.
    """
    done = {p.stage.name for p in planned if where and p.folder.done}
    on = on or machine()
    known, needs, why = _needs(recipe, planned, on)
    out.print(heading(title(recipe)))
    for line in who(recipe, [p.stage for p in planned]):
        out.print(safe(line), soft_wrap=True)
    out.print()
    figures = ("memory", "disk", "time")
    rows = table("stage", "what", "items", "", *figures, right=["items", *figures])
    for p in planned:
        s, need = p.stage, needs.get(p.stage.name, Need(p.stage.name))
        style = "dim" if s.name in done else "red" if need.memory > on.memory else ""
        mark = "✓ " if s.name in done else "  " if done else ""
        size = amount(s.size, s.unit).split(" ", 1)
        cells = (mark + safe(s.name), safe(s.about), *size, *_figures(need))
        rows.add_row(*(Text(c, style=style) for c in cells))
    out.print(rows)
    out.print()
    if where:
        left = len(planned) - len(done)
        said = f"✓ {len(done)} of {len(planned)} stages are" if done else "No stage is"
        then = f"would be skipped; {left} would run" if done else f"all {left} would run"
        out.print(f"{said} finished in {safe(where)}: {then}.", soft_wrap=True)
    to_do = [p.stage for p in planned if p.stage.name not in done]
    for line in _cost(recipe, to_do):
        out.print(line, soft_wrap=True)
    show_warnings(out, recipe, planned)
    ahead = [needs[s.name] for s in to_do if s.name in needs]
    for line in _machine(on, known, ahead) if known else [why]:
        out.print(safe(line), soft_wrap=True)
    refused = [*_over_memory(ahead, on), *(_over_disk(ahead, where) if on.here else [])]
    for line in refused:
        out.print(Text(safe(line), "red"), soft_wrap=True)
    return not refused


def show_warnings(out: Console, recipe: Recipe, planned: Sequence[Planned]) -> None:
    """Print what can be run and will hardly come out well, or runs somebody else's code."""
    if recipe.policy.trust_remote_code:
        said = safe(f"! policy.trust_remote_code: runs the code that comes with "
                    f"{recipe.policy.model}, with all that you may do")  # fmt: skip
        out.print(Text(said, "yellow"), soft_wrap=True)
    labels = recipe.judge.labels
    asked = any(p.stage.name == "judge/labels" for p in planned)
    if not (asked and isinstance(labels, FileLabels) and Path(labels.path).is_file()):
        return
    from selfcal.judge.label_file import few_labels, read_label_file, split_labels

    path = Path(labels.path)
    pairs = read_label_file(path, recipe.judge.sees).pairs
    if warning := few_labels(*map(len, split_labels(path, pairs, recipe.judge.holdout))):
        out.print(Text(f"! {warning}", "yellow"), soft_wrap=True)


def _needs(
    recipe: Recipe, planned: Sequence[Planned], on: Machine
) -> tuple[Needs | None, dict[str, Need], str]:
    """What tells needs, and each stage's by name; or neither, and why they cannot be told."""
    made = Needs(recipe, on)
    try:
        _ = made.policy
        return made, {p.stage.name: made.of(p.stage) for p in planned}, ""
    except SizeError as error:
        return None, {}, f"Memory, disk and time cannot be told: {error}."


def _figures(need: Need) -> tuple[str, str, str]:
    memory = f"{gib(need.memory)}" if need.memory else ""
    disk = gib(need.disk) if need.disk >= GIB / 100 else ""
    return memory, disk, duration(need.seconds) if need.seconds >= 1 else ""


def gib(size: int) -> str:
    """A size in GiB, or in MiB where it is small."""
    if size < GIB:
        return f"{max(1, round(size / 2**20)):,} MiB"
    return f"{size / GIB:,.1f} GiB" if size < 100 * GIB else f"{size / GIB:,.0f} GiB"


def _machine(on: Machine, known: Needs, left: Sequence[Need]) -> list[str]:
    """What all is reckoned by, and what it adds up to."""
    most = max((n.memory for n in left), default=0)
    hours = sum(n.seconds for n in left) / 3600
    disk = sum(n.disk for n in left)
    said = f"On {on.name} ({gib(on.memory)}): at most {gib(most)} of memory, {gib(disk)} of disk"
    said += f", about {hours:,.1f} GPU-hours." if on.gpu else "."
    by = "their configurations" if known.exact else "the number in the model's name"
    row = f"{known.image_tokens:,} tokens an image and {RESPONSE_TOKENS} a response"
    doubt = "; times may be off by a factor of 2" if on.gpu else ""
    return [said, f"Reckoned from {by}, with {row}{doubt}."]


def _over_memory(left: Sequence[Need], on: Machine) -> list[str]:
    alike: dict[tuple[str, str], list[str]] = {}
    for n in left:
        if n.memory > on.memory:
            alike.setdefault((gib(n.memory), n.hint), []).append(n.stage)
    return [
        f"{' and '.join(stages)}: {memory} are too much for {on.name}, which has {gib(on.memory)}"
        + (f"; {hint}." if hint else ".")
        for (memory, hint), stages in alike.items()
    ]


def _over_disk(left: Sequence[Need], where: str) -> list[str]:
    disk, free = sum(n.disk for n in left), disk_free(Path(where))
    if disk <= free:
        return []
    return [
        f"The run does not fit: it writes about {gib(disk)}, {where or 'this disk'} has "
        f"{gib(free)} free; give a folder on a larger disk with --out."
    ]


def title(recipe: Recipe) -> str:
    """A recipe in one line."""
    return (
        f"{recipe.name} · method {recipe.method} · {amount(recipe.iterations, 'iterations')} · "
        f"seed {recipe.seed} · {recipe.policy.model}"
    )


def who(recipe: Recipe, stages: Sequence[Stage]) -> list[str]:
    """Who does the work, in a line; nothing where this process does it all."""
    e, said = recipe.executor, []
    if isinstance(e, RayExecutor):
        many = amount(e.workers, "workers")
        if e.max_workers is not None and e.max_workers > e.workers:
            many = f"{e.workers} to {amount(e.max_workers, 'workers')}"
        each = [amount(e.cpus, "CPUs")] + ([] if e.gpus is None else [f"{e.gpus:g} of a GPU"])
        n = sum(s.spread == "workers" for s in stages)
        where = "on a Ray cluster" + (f" ({e.address})" if e.address else "")
        said.append(f"{amount(n, 'stages')} by {many} with {' and '.join(each)} each, {where}")
    if e.ranks > 1:
        said.append(f"trainings in {amount(e.ranks, 'processes')}")
    return [f"Done by: {'; '.join(said)}; the rest in this process."] if said else []


def _cost(recipe: Recipe, stages: list[Stage]) -> list[str]:
    cost = count(recipe, stages)
    parts = [
        (cost.tokens, "up to {} generated token{}"),
        (cost.comparisons, "about {} comparison{} by the judge"),
        (cost.steps, "{} optimizer step{}"),
        (cost.dpo_rows, "up to {} preference pair{}"),
        (cost.requests, "up to {} request{} to a server"),
    ]
    said = ", ".join(words.format(large(n), "" if n == 1 else "s") for n, words in parts if n)
    lines = [f"Cost of {amount(len(stages), 'stages')}: {said or 'nothing to speak of'}."]
    if stages and shipped(recipe):
        minutes = max(1, round(sum(guess(recipe, s) for s in stages) / 60))
        lines.append(f"Roughly {duration(60 * minutes)} on 2 CPU cores.")
    return lines
