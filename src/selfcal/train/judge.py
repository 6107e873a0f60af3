"""Training of judges: to compare two responses (the R-Scorer), to grade one, or to rank.

A judge is a text model, or (`sees`) a vision-language model that is shown the samples' images. It
learns to answer a turn with one word, at the place where that word will be read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import takewhile
from typing import Any, NamedTuple

from selfcal.judge.asking import Chat, Turn, sample_of, verdict_ids
from selfcal.judge.grader import GRADES, GradeWriter, grading
from selfcal.judge.quality import MIRROR
from selfcal.judge.ranker import NUMBERS, RankWriter, orders, ranking
from selfcal.judge.scorer import VERDICTS, PromptWriter, comparing, loading
from selfcal.policy import model_path, pick_device
from selfcal.recipe import Training
from selfcal.train.common import (
    Run,
    Trained,
    TrainingError,
    apart,
    arguments,
    finish,
    four_bit,
    lora,
)
from selfcal.train.policy import tune
from selfcal.types import Aspect, Drop, GradedResponse, LabelledPair, RankedResponses


class Asked(NamedTuple):
    """A training row."""

    turn: Turn
    word: str
    """What answers the turn."""


def train_judge(
    model: str,
    pairs: Sequence[LabelledPair],
    settings: Training,
    prompt: str | None,
    run: Run,
    sees: bool = False,
) -> Trained:
    """Fine-tune a model to give the labelled verdicts (the R-Scorer).

    Every pair is learned in both orders, so that the judge cannot profit from the order.

    Raises:
        TrainingError: no pairs, or the loss became NaN or infinite.
        ModelError: the model cannot be loaded, or cannot be read as a judge.
    """
    writer = PromptWriter(prompt)
    rows = [
        Asked(comparing(writer, sample_of(p), p.first, p.second, sees), p.verdict)
        for own in pairs
        for p in (own, _swapped(own))
    ]
    return _train_reader(model, rows, VERDICTS, settings, run, sees)


def train_grader(
    model: str,
    graded: Sequence[GradedResponse],
    settings: Training,
    prompts: Mapping[Aspect, str | None],
    run: Run,
    sees: bool = False,
) -> Trained:
    """Fine-tune a model to grade responses one by one, for one aspect or for several.

    Raises:
        TrainingError: no responses, or the loss became NaN or infinite.
        ModelError: the model cannot be loaded, or cannot be read as a judge.
    """
    writer = GradeWriter(prompts)
    rows = [
        Asked(grading(writer, g.aspect, sample_of(g), g.response, sees), GRADES[not g.good])
        for g in graded
    ]
    return _train_reader(model, rows, GRADES, settings, run, sees)


def train_ranker(
    model: str,
    ranked: Sequence[RankedResponses],
    settings: Training,
    prompt: str | None,
    count: int,
    run: Run,
    sees: bool = False,
) -> Trained:
    """Fine-tune a model to name the best of several responses.

    Args:
        model: the model to start from.
        ranked: ranked groups of responses.
        settings: of the training.
        prompt: a Jinja2 template; None: the built-in one.
        count: rows made of each group, each some of its responses in a random order.
        run: where and how it runs.
        sees: whether the model is shown the images.

    Raises:
        TrainingError: no groups, or the loss became NaN or infinite.
        ModelError: the model cannot be loaded, or cannot be read as a judge.
    """
    writer = RankWriter(prompt)
    rows = [
        Asked(ranking(writer, sample_of(g), texts, sees), NUMBERS[best])
        for g in ranked
        for texts, best in orders(g, count, str(run.seed))
    ]
    return _train_reader(model, rows, NUMBERS, settings, run, sees)


def _train_reader(
    model: str,
    asked: Sequence[Asked],
    words: Sequence[str],
    settings: Training,
    run: Run,
    sees: bool,
) -> Trained:
    """Fine-tune a model to answer turns by one of these words."""
    train = _train_seeing if sees else _train_text
    return train(model, asked, words, settings, run)


def _train_text(
    model: str, asked: Sequence[Asked], words: Sequence[str], settings: Training, run: Run
) -> Trained:
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed
    from trl import SFTConfig, SFTTrainer

    if four_bit(settings):
        raise TrainingError(
            "judge.train.lora.four_bit: only a judge that sees is held in 4 bits; leave it out, or "
            "take a smaller judge.model"
        )
    with loading(model):
        tokenizer: Any = AutoTokenizer.from_pretrained(model_path(model), trust_remote_code=False)
        chat = Chat(model, tokenizer)
        # what cannot be read later need not be trained
        verdict_ids(tokenizer, words, chat.prompt("?"))
        load = partial(
            AutoModelForCausalLM.from_pretrained,
            model_path(model), dtype=run.dtype, trust_remote_code=False,
        )  # fmt: skip
        network: Any = load()
    network.to(pick_device(run.device))
    prompts = [chat.prompt(turn.text) for turn, _ in asked]
    before = [_ids(tokenizer, text) for text in prompts]
    kept, drops = _fitting(asked, [len(ids) for ids in before], settings.max_length)
    end = tokenizer.eos_token or ""
    rows = [_row(before[i], _ids(tokenizer, prompts[i] + asked[i].word + end)) for i in kept]
    set_seed(run.seed)
    trainer = SFTTrainer(
        model=network,
        args=SFTConfig(**arguments(settings, run, len(rows))),
        processing_class=tokenizer,
        train_dataset=Dataset.from_list(rows),
        peft_config=lora(settings, network),
    )
    return finish(trainer, tokenizer, run, len(rows), drops, load if apart(settings) else None)


def _ids(tokenizer: Any, text: str) -> list[int]:
    # the chat template has written the special tokens: a trainer would put them there twice
    found: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return found


def _row(prompt: Sequence[int], whole: Sequence[int]) -> dict[str, list[int]]:
    """Tokens of prompt and answer, with a loss on the answer alone: from where the two part."""
    alike = takewhile(lambda two: two[0] == two[1], zip(prompt, whole, strict=False))
    start = sum(1 for _ in alike)
    return {"input_ids": list(whole), "labels": [-100] * start + list(whole[start:])}


def _train_seeing(
    model: str, asked: Sequence[Asked], words: Sequence[str], settings: Training, run: Run
) -> Trained:
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    from selfcal.judge.seeing import open_judge, prompt_tokens

    policy = open_judge(model, run.dtype, run.device, four_bit(settings))
    chat = Chat(model, policy.processor, sees=True)
    verdict_ids(policy.tokenizer, words)
    lengths = prompt_tokens(policy, chat, [turn for turn, _ in asked])
    kept, drops = _fitting(asked, lengths, settings.max_length)
    end = policy.tokenizer.eos_token or ""
    rows = [
        {
            "images": list(turn.images),
            "prompt": chat.prompt(turn.text, len(turn.images)),
            "completion": word + end,
        }
        for turn, word in (asked[i] for i in kept)
    ]
    args = SFTConfig(**arguments(settings, run, len(rows)))
    return tune(SFTTrainer, policy, Dataset.from_list(rows), args, settings, run, drops)


def _fitting(
    asked: Sequence[Asked], lengths: Sequence[int], limit: int
) -> tuple[list[int], list[Drop]]:
    """Numbers of the rows whose prompts leave room for an answer; nothing is ever cut."""
    kept = [i for i, length in enumerate(lengths) if length < limit]
    drops = [
        Drop(turn.group[0], "judge", "overlong", f"{length} tokens >= {limit}")
        for (turn, _), length in zip(asked, lengths, strict=True)
        if length >= limit
    ]
    if not kept:
        raise TrainingError(
            f"judge: none of {len(asked)} labelled responses can be used; raise judge.samples or "
            "judge.train.max_length"
        )
    return kept, drops


def _swapped(pair: LabelledPair) -> LabelledPair:
    return replace(pair, first=pair.second, second=pair.first, verdict=MIRROR[pair.verdict])
