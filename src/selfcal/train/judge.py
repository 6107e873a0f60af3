"""Training of text judges: to compare two responses (the R-Scorer), to grade one, or to rank."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from selfcal.judge.grader import GRADES, GradeWriter
from selfcal.judge.quality import MIRROR
from selfcal.judge.ranker import NUMBERS, RankWriter, orders
from selfcal.judge.scorer import VERDICTS, PromptWriter, verdict_ids
from selfcal.policy import model_path, pick_device
from selfcal.recipe import Training
from selfcal.train.common import Run, Trained, TrainingError, arguments, finish, lora
from selfcal.types import Aspect, Drop, GradedResponse, LabelledPair, RankedResponses


def train_judge(
    model: str,
    pairs: Sequence[LabelledPair],
    settings: Training,
    prompt: str | None,
    run: Run,
) -> Trained:
    """Fine-tune a text model to give the labelled verdicts (the R-Scorer).

    Every pair is learned in both orders, so that the judge cannot profit from the order.

    Raises:
        TrainingError: no pairs, or the loss became NaN or infinite.
    """
    writer = PromptWriter(prompt)
    rows = [
        (p.sample_id, writer.write(p.question, p.facts, p.first, p.second), p.verdict)
        for own in pairs
        for p in (own, _swapped(own))
    ]
    return _train_reader(model, rows, VERDICTS, settings, run)


def train_grader(
    model: str,
    graded: Sequence[GradedResponse],
    settings: Training,
    prompts: Mapping[Aspect, str | None],
    run: Run,
) -> Trained:
    """Fine-tune a text model to grade responses one by one, for one aspect or for several.

    Raises:
        TrainingError: no responses, or the loss became NaN or infinite.
    """
    writer = GradeWriter(prompts)
    rows = [
        (g.sample_id, writer.write(g.aspect, g.question, g.facts, g.response), GRADES[not g.good])
        for g in graded
    ]
    return _train_reader(model, rows, GRADES, settings, run)


def train_ranker(
    model: str,
    ranked: Sequence[RankedResponses],
    settings: Training,
    prompt: str | None,
    count: int,
    run: Run,
) -> Trained:
    """Fine-tune a text model to name the best of several responses.

    Args:
        model: the model to start from.
        ranked: ranked groups of responses.
        settings: of the training.
        prompt: a Jinja2 template; None: the built-in one.
        count: rows made of each group, each some of its responses in a random order.
        run: where and how it runs.

    Raises:
        TrainingError: no groups, or the loss became NaN or infinite.
    """
    writer = RankWriter(prompt)
    rows = [
        (g.sample_id, writer.write(g.question, g.facts, texts), NUMBERS[best])
        for g in ranked
        for texts, best in orders(g, count, str(run.seed))
    ]
    return _train_reader(model, rows, NUMBERS, settings, run)


def _train_reader(
    model: str,
    asked: Sequence[tuple[str, str, str]],
    words: Sequence[str],
    settings: Training,
    run: Run,
) -> Trained:
    """Fine-tune a text model to answer user turns by one of these words.

    `asked` has sample id, turn and answer.
    """
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed
    from trl import SFTConfig, SFTTrainer

    tokenizer: Any = AutoTokenizer.from_pretrained(model_path(model), trust_remote_code=False)
    verdict_ids(tokenizer, words)  # what cannot be read later need not be trained
    network = AutoModelForCausalLM.from_pretrained(
        model_path(model), dtype=run.dtype, trust_remote_code=False
    )
    network.to(pick_device(run.device))
    rows, drops = [], []
    for sample_id, text, answer in asked:
        turn = [{"role": "user", "content": text}]
        full = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
        if len(tokenizer(full, add_special_tokens=False)["input_ids"]) >= settings.max_length:
            drops.append(Drop(sample_id, "judge", "overlong"))
        else:
            rows.append({"prompt": full, "completion": answer})
    if not rows:
        raise TrainingError(
            f"judge: none of {len(asked)} labelled responses can be used; raise judge.samples or "
            "judge.train.max_length"
        )
    set_seed(run.seed)
    trainer = SFTTrainer(
        model=network,
        args=SFTConfig(**arguments(settings, run, len(rows))),
        processing_class=tokenizer,
        train_dataset=Dataset.from_list(rows),
        peft_config=lora(settings, sees=False),
    )
    return finish(trainer, tokenizer, run, len(rows), drops)


def _swapped(pair: LabelledPair) -> LabelledPair:
    return LabelledPair(
        pair.sample_id, pair.question, pair.facts, pair.second, pair.first, MIRROR[pair.verdict]
    )
