"""What a search made for one sample: candidates, what they count, and what came of them.

Scores are those that curation went by: out of corrected verdicts, where a stage fitted a
correction, and by the rule that the curating stage had, which need not be the recipe's own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from selfcal.curate import Scores, merge_orders
from selfcal.methods.parts.scoring import scores_of
from selfcal.recipe import Curate, Recipe
from selfcal.stage import Stage
from selfcal.story.model import Cell, Ranked, Role, Round
from selfcal.story.records import Records
from selfcal.types import (
    Candidate,
    Drop,
    GradedResponse,
    Judgment,
    LabelledPair,
    PreferencePair,
    Sample,
    SearchNode,
    WrittenRap,
)


def round_of(records: Records, sample: Sample, stage: Stage) -> Round | None:
    """What a stage of candidates found for the sample, and what others made of it.

    None: other samples were, or are to be, searched.
    """
    searched, place = records.done(stage.name), stage.name.removesuffix("/candidates")
    found = records.own(stage.name, "candidates", Candidate, sample.id)
    dropped = _dropped(records, sample, place)
    if not (found or stage.name in dropped) and (searched or settled(records, sample, stage)):
        return None
    curating = _curating(records, place)
    given = records.own(f"{place}/judgments", "judgments", Judgment, sample.id)
    fitted = _fitted(curating)
    waits = bool(fitted) and not records.done(fitted)
    judgments = records.correction(fitted)(given) if fitted and not waits else given
    scores = {} if waits else _scores(records.recipe, sample, curating, found, judgments)
    name = curating.name if curating else ""
    return Round(
        place=place,
        about=curating.about if curating else "",
        curating=name,
        searched=searched,
        candidates=_ranked(records, sample, found, scores, name),
        nodes=tuple(records.own(stage.name, "nodes", SearchNode, sample.id)),
        judgments=tuple(judgments),
        corrected="" if waits else fitted,
        uncorrected=fitted if waits else "",
        cells=_cells(judgments),
        labels=tuple(
            label
            for source in (f"{place}/labels", f"{place}/calibration")
            for label in records.own(source, "labelled", LabelledPair, sample.id)
        ),
        grades=tuple(records.own(f"{place}/grades", "graded", GradedResponse, sample.id)),
        pairs=tuple(records.own(name, "pairs", PreferencePair, sample.id)),
        dropped=dropped,
    )


def settled(records: Records, sample: Sample, stage: Stage) -> bool:
    """Whether the sample got its pair by a stage before this one, which is for the others."""
    before = [name for name in stage.inputs if name.endswith("/pairs")]
    return any(records.own(name, "pairs", PreferencePair, sample.id) for name in before)


def _dropped(records: Records, sample: Sample, place: str) -> dict[str, tuple[Drop, ...]]:
    """Why stages of a place left the sample out; only those that did."""
    kinds = ("candidates", "labels", "calibration", "grades", "pairs", "best")
    names = [f"{place}/{kind}" for kind in kinds]
    found = {name: tuple(records.own(name, "drops", Drop, sample.id)) for name in names}
    return {name: drops for name, drops in found.items() if drops}


def _curating(records: Records, place: str) -> Stage | None:
    """The stage that chose among the candidates, if one does."""
    names = (f"{place}/pairs", f"{place}/best")
    return next((records.planned[n].stage for n in names if n in records.planned), None)


# --- what candidates count ------------------------------------------------------------------


def _fitted(curating: Stage | None) -> str:
    """The stage that fits what corrects the verdicts before curation reads them, if any does."""
    inputs = curating.inputs if curating else ()
    return next((name for name in inputs if name.endswith("/calibration")), "")


def _scores(
    recipe: Recipe,
    sample: Sample,
    curating: Stage | None,
    found: Sequence[Candidate],
    judgments: Sequence[Judgment],
) -> Scores:
    """What each candidate counted; nothing where no judgments decide."""
    rule = _rule(recipe, curating.settings) if curating and judgments else None
    return scores_of(rule, found, judgments, sample.confidence) if rule else {}


def _rule(recipe: Recipe, settings: object) -> Recipe | None:
    """The recipe as a stage with these settings went by it; None if that is not of this kind."""
    own = settings if isinstance(settings, Mapping) else {}
    rule = {"aggregator": own["aggregator"]} if "aggregator" in own else own.get("curate")
    if rule is None:
        return None
    return recipe.model_copy(update={"curate": Curate.model_validate(rule)})


def _ranked(
    records: Records, sample: Sample, found: Sequence[Candidate], scores: Scores, curating: str
) -> tuple[Ranked, ...]:
    """The candidates in order of their index, each with all that is known of it."""
    pairs = records.own(curating, "pairs", PreferencePair, sample.id)
    best = {rap.text for rap in records.own(curating, "best", WrittenRap, sample.id)}
    return tuple(
        Ranked(c, scores.get(c.index), _role(c, pairs, best), records.verified(sample, c.text))
        for c in sorted(found, key=lambda c: c.index)
    )


def _role(candidate: Candidate, pairs: Sequence[PreferencePair], best: set[str]) -> Role:
    if any(p.chosen_index == candidate.index for p in pairs):
        return "chosen"
    if any(p.rejected_index == candidate.index for p in pairs):
        return "rejected"
    return "best" if candidate.text in best else ""


def _cells(judgments: Sequence[Judgment]) -> Mapping[tuple[int, int], Cell]:
    """Who beats whom: the judgments of both orders, averaged."""
    cells = {}
    for c in merge_orders(judgments):
        cells[c.i, c.j] = Cell(c.sign, c.confidence)
        cells[c.j, c.i] = Cell(-c.sign, c.confidence)
    return cells
