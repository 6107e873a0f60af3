"""Preference pairs that are written: by the teacher, or by the policy in answer to other prompts.

There is no search and no judge here. A method says how a sample becomes a pair; the samples, the
token budget, the shards and the figures are the same for all of them. What was written is kept, and
its tokens count, whether or not a pair came of it.
"""

from __future__ import annotations

import dataclasses
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from selfcal.methods.parts.asked import asked, at_once, prompts_of, said_by
from selfcal.methods.parts.base import (
    by_workers,
    calibration_samples,
    calibration_size,
    form_of,
    formed,
    given,
    searches,
    spent,
)
from selfcal.methods.parts.budget import Budget, before_each, share
from selfcal.methods.parts.serving import backend_of, engine_for, greedily
from selfcal.rationale import HEADINGS
from selfcal.recipe import Recipe, RecipeError
from selfcal.stage import Stage, Work
from selfcal.store import JSON
from selfcal.types import Drop, PreferencePair, Sample, WrittenRap

if TYPE_CHECKING:
    from selfcal.search.jobs import Runs
    from selfcal.teacher import Teacher

Item = TypeVar("Item")
Reply = TypeVar("Reply")
SHARD = 64
"""Samples of a shard."""


@dataclass(frozen=True, slots=True)
class Made:
    """What was made of one sample."""

    outcome: PreferencePair | Drop
    written: tuple[str, ...]
    """All texts that were generated for it."""


@dataclass(frozen=True, slots=True)
class Writing:
    """What a method has written for each sample, at most: for the plan."""

    responses: int = 0
    """Responses of the policy."""
    requests: int = 0
    """Requests to the teacher."""


Make = Callable[[Iterator[Sample]], Iterator[Made]]
"""From samples, taken as they are needed, what was made of each, in order."""
Maker = Callable[[Work, ExitStack], Make]
"""Sets up who makes it, once for all samples; the stack closes what was opened."""


def written_pairs(
    recipe: Recipe,
    t: int,
    maker: Maker,
    about: str,
    settings: object,
    writing: Writing,
    inputs: Sequence[str] = (),
) -> Stage:
    """Pairs that a method has written, sample by sample, until the token budget is spent.

    Args:
        recipe: the recipe.
        t: the iteration.
        maker: how samples become pairs.
        about: one line for people.
        settings: what the outcome depends on, beside budget, tokenizer and part of the samples.
        writing: how much is written for a sample.
        inputs: stages that the maker reads.
    """

    def run(work: Work) -> Mapping[str, JSON]:
        count, limit = _counter(recipe), share(recipe)
        samples = calibration_samples(recipe, work, t)
        make = cache(lambda: maker(work, opened))

        def write(left: Iterator[Sample]) -> Iterator[Mapping[str, Sequence[Any]]]:
            before = None if limit is None else before_each(samples, _saved(work, count))
            spending = Budget(limit, before, "pairs")
            for made in make()(spending.feed(left)):
                sample, drop = spending.settle(count(made.written))
                yield {"drops": [drop]} if drop else _records(sample, made)
            yield from ({"drops": [drop]} for drop in spending.rest(left))

        kinds = {"pairs": PreferencePair, "drops": Drop, "written": WrittenRap}
        with ExitStack() as opened:
            work.stream(samples, SHARD, kinds, write)
        return {
            "pairs": work.written("pairs", PreferencePair),
            "drops": work.drop_counts(),
            "tokens": count(_written(work)),  # of all that was written, by the policy's tokenizer
            **spent(work),
        }

    return Stage(
        f"iter-{t}/pairs", ("data", *inputs), _depends(recipe, t, settings, writing), run,
        calibration_size(recipe), "samples", about, _who(recipe, writing),
    )  # fmt: skip


def _depends(recipe: Recipe, t: int, settings: object, writing: Writing) -> dict[str, object]:
    """What the pairs of iteration `t` depend on."""
    return {
        "method": [recipe.method, settings],
        "writing": dataclasses.asdict(writing),
        "budget": share(recipe),
        "part": None if recipe.data.repeat else (t, recipe.iterations),
        "tokenizer": given(recipe, None),
    }


def _who(recipe: Recipe, writing: Writing) -> Literal["here", "workers"]:
    """Who may write: this process where servers are asked, or tokens are spent in order."""
    if recipe.budget is not None or (writing.responses and not searches(recipe)):
        return "here"
    return by_workers(writing.responses > 0, *([recipe.teacher] if writing.requests else []))


def _records(sample: Sample, made: Made) -> Mapping[str, Sequence[Any]]:
    kind = "drops" if isinstance(made.outcome, Drop) else "pairs"
    return {kind: [made.outcome], "written": [WrittenRap(sample.id, x) for x in made.written]}


def _saved(work: Work, count: Callable[[Iterable[str]], int]) -> Counter[str]:
    """Tokens of the shards that an earlier process wrote, by sample."""
    saved = Counter[str]()
    for i in work.folder.numbers("written"):
        for rap in work.folder.read_shard("written", i, WrittenRap):
            saved[rap.sample_id] += count([rap.text])
    return saved


def _written(work: Work) -> Iterator[str]:
    """All texts of the shards that are there."""
    if work.folder.has("written", 0):
        yield from work.folder.column("written", WrittenRap, "text")


def _counter(recipe: Recipe) -> Callable[[Iterable[str]], int]:
    """Counts the tokens of texts with the policy's tokenizer."""
    from selfcal.policy import load_processor

    p = recipe.policy
    processor = load_processor(p.model, p.trust_remote_code, p.chat_template)

    def count(texts: Iterable[str]) -> int:
        return sum(
            len(processor.tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts
        )

    return count


def written_outcome(
    sample: Sample, chosen: str, rejected: str, same: str = "same"
) -> PreferencePair | Drop:
    """The pair of two texts, or why there is none; white space makes no difference.

    Dropped as `empty` if one says nothing, by the reason `same` if both say the same.
    """
    one, other = (" ".join(text.split()) for text in (chosen, rejected))
    if not one or not other:
        return Drop(sample.id, "pairs", "empty")
    if one == other:
        return Drop(sample.id, "pairs", same)
    return written_pair(sample, chosen, rejected)


def written_pair(sample: Sample, chosen: str, rejected: str, image: str = "") -> PreferencePair:
    """A pair of two texts that are no candidates of a search; `image` is the rejected one's."""
    return PreferencePair(sample.id, chosen, rejected, -1, -1, 1.0, 0.0, image)


# --- by the teacher -------------------------------------------------------------------------


def teacher_of(recipe: Recipe, work: Work) -> Teacher:
    """The recipe's teacher."""
    from selfcal.teacher import ChatTeacher, MiniWorldTeacher
    from selfcal.written import FileTeacher

    settings = recipe.teacher
    if settings.kind == "miniworld":
        return _speaking(recipe, MiniWorldTeacher(settings.error_rate, work.seed))
    if settings.kind == "file":
        return _speaking(recipe, FileTeacher(Path(settings.path), settings.columns))
    model = asked(settings, recipe, work, "teacher")
    return _speaking(recipe, ChatTeacher(model, prompts_of(settings, "teacher")))


def _speaking(recipe: Recipe, teacher: Teacher) -> Teacher:
    """The teacher, in the recipe's format."""
    from selfcal.teacher import Translated

    return teacher if form_of(recipe) is HEADINGS else Translated(teacher, form_of(recipe))


def teacher_settings(recipe: Recipe, *prompts: str) -> dict[str, Any]:
    """What the teacher's writing depends on that is asked for by these prompts.

    Raises:
        PromptError: a prompt that the recipe gives cannot be used.
        RecipeError: the teacher is a file, and is to rework responses.
    """
    if recipe.teacher.kind == "file" and (able := set(prompts) - {"rationale", "facts"}):
        raise RecipeError(
            f"recipe {recipe.name}: teacher.kind: method {recipe.method!r} has the teacher "
            f"{' and '.join(sorted(able))} responses, which a file cannot; take `endpoint` or "
            "`local`"
        )
    return said_by(recipe.teacher, "teacher", *prompts) | formed(recipe)


def requests(recipe: Recipe) -> int:
    """How many questions the teacher gets at the same time."""
    return at_once(recipe.teacher)


def each(recipe: Recipe, ask: Callable[[Item], Reply], items: Iterator[Item]) -> Iterator[Reply]:
    """Ask the teacher item by item; a model about several at once, the results in order."""
    most = requests(recipe)
    waiting: deque[Future[Reply]] = deque()
    with ThreadPoolExecutor(most) as pool:
        for item in items:
            waiting.append(pool.submit(ask, item))
            if len(waiting) == most:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


# --- by the policy --------------------------------------------------------------------------


def greedy(
    recipe: Recipe,
    work: Work,
    start: str | None,
    opened: ExitStack,
    asks: Callable[[Sample], Sequence[Sample]],
) -> Callable[[Iterator[Sample]], Iterator[tuple[Sample, list[str]]]]:
    """The greedy responses of the policy of stage `start` to all that each sample asks it.

    The policy is loaded once, by the first samples, and kept until the stack closes.
    """
    use = greedily(recipe, recipe.search.batch_rows)
    engine = cache(lambda: opened.enter_context(engine_for(recipe, work, start, use)))
    return lambda samples: _responses(recipe, engine(), samples, asks)


def _responses(
    recipe: Recipe,
    engine: Runs,
    samples: Iterator[Sample],
    asks: Callable[[Sample], Sequence[Sample]],
) -> Iterator[tuple[Sample, list[str]]]:
    from selfcal.search import respond

    asked: deque[tuple[Sample, int]] = deque()  # filled by the engine's reading thread

    def feed() -> Iterator[Sample]:
        for sample in samples:
            own = asks(sample)
            asked.append((sample, len(own)))
            yield from own

    said: list[str] = []
    for text in respond(None, feed(), recipe.evaluate.max_new_tokens, engine=engine):
        said.append(text)
        if len(said) == asked[0][1]:
            yield asked.popleft()[0], said
            said = []


def greedy_settings(recipe: Recipe, start: str | None) -> dict[str, Any]:
    """What greedy responses depend on, beside the stage itself."""
    limit = {"max_new_tokens": recipe.evaluate.max_new_tokens, "dtype": recipe.policy.dtype}
    return limit | given(recipe, start) | backend_of(recipe)
