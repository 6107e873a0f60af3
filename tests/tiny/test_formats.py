"""Every format through the stages: what is taught, trained on, searched and graded is one text."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import trl
from transformers import AutoProcessor
from transformers.utils.chat_template_utils import render_jinja_template

from selfcal.evaluate import grade
from selfcal.methods import answer_only, self_consistency
from selfcal.miniworld.verifier import verify
from selfcal.policy import (
    ModelError,
    Policy,
    check_opening,
    load_policy,
    load_processor,
    prompt_text,
    training_texts,
    user_turn,
)
from selfcal.rationale import FORMATS, RapFormat
from selfcal.recipe import Dpo, Grpo, Training
from selfcal.search import Limits, Sampling, SearchLimits, respond, search
from selfcal.store import StageDir
from selfcal.teacher import MiniWorldTeacher, Translated, rewrite
from selfcal.train import Graded, Ledger, Run, dpo, grpo, sft
from selfcal.types import PreferencePair, Sample

THINKING = (
    "{%- for message in messages -%}"
    "{%- if message['role'] == 'user' -%}<|user|>"
    "{%- for part in message['content'] -%}"
    "{{ '<image>\n' if part['type'] == 'image' else part['text'] }}"
    "{%- endfor -%}"
    "{%- else -%}<|assistant|>"
    "{%- set said = message['content'][0]['text'] -%}"
    "{%- set parts = said.split('</think>') -%}"
    "{%- set thought = parts[0].split('<think>')[-1].strip('\n') if parts[1:] else '' -%}"
    "{{ '<think>\n' + thought + '\n</think>\n\n' + parts[-1].strip('\n') }}"
    "{%- endif -%}<|end|>"
    "{%- endfor -%}{%- if add_generation_prompt -%}{{ '<|assistant|><think>\n' }}{%- endif -%}"
)  # fmt: skip
"""As that of a thinking model: it opens the thought, and takes responses apart."""
CASES = ["headings", "xml", "think", "free", "thinking"]


@pytest.fixture(scope="module")
def thinking_folder(policy_folder: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("thinking") / "policy"
    shutil.copytree(policy_folder, folder)
    processor = AutoProcessor.from_pretrained(folder)
    processor.chat_template = THINKING
    processor.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, torch.Tensor]]:
    """What TRL's trainers hand to their losses."""
    batches: list[dict[str, torch.Tensor]] = []
    for trainer in (trl.SFTTrainer, trl.DPOTrainer, trl.GRPOTrainer):
        loss = trainer.compute_loss

        def spying(self: Any, model: Any, inputs: Any, *rest: Any, own: Any = loss, **more: Any):
            batches.append(dict(inputs))
            return own(self, model, inputs, *rest, **more)

        monkeypatch.setattr(trainer, "compute_loss", spying)
    return batches


def form_of(case: str) -> RapFormat:
    return FORMATS[case.removesuffix("ing")]


def run(out: Path) -> Run:
    return Run(out, seed=3, device="cpu")


def taught(form: RapFormat, samples: list[Sample]) -> list[str]:
    written, drops = rewrite(Translated(MiniWorldTeacher(0.0, 0), form), samples, form=form)
    assert not drops
    return [rap.text for rap in written]


def parts(policy: Policy, ids: torch.Tensor, answered: torch.Tensor) -> tuple[list[int], str]:
    """Prompt and response of one row that a loss gets."""
    begins = answered.tolist().index(True)
    return ids[:begins].tolist(), policy.tokenizer.decode(ids[answered])


def asked(policy: Policy, sample: Sample) -> list[int]:
    """The prompt that inference asks."""
    return policy.encode([sample])["input_ids"][0].tolist()


def expected(case: str, text: str) -> str:
    """The response as it must stand after the prompt."""
    return (text.removeprefix("<think>\n") if case == "thinking" else text) + "<|end|>"


@pytest.mark.parametrize("case", CASES)
def test_a_format_goes_through_the_stages(
    case: str,
    policy_folder: str,
    thinking_folder: str,
    samples: list[Sample],
    seen: list[dict[str, torch.Tensor]],
    tmp_path: Path,
) -> None:
    form, sample = form_of(case), samples[0]
    (text,) = taught(form, [sample])
    assert form.parse(text).compliant and verify(sample, text, form).reliable
    folder = thinking_folder if case == "thinking" else policy_folder
    settings = Training(learning_rate=3e-3, batch_size=1, steps=30, scheduler="constant", warmup=0)
    sft(folder, [(sample, text)], settings, run(tmp_path))

    policy = load_policy(str(tmp_path / "checkpoint"), device="cpu")
    ends = "<think>\n" if case == "thinking" else "<|assistant|>"
    assert policy.prompt(sample).text.endswith(ends)
    for batch in seen:
        row = parts(policy, batch["input_ids"][0], batch["labels"][0] != -100)
        assert row == (asked(policy, sample), expected(case, text))

    limits = SearchLimits(3, 2, "stochastic", 14, 80, Sampling(0.3), form=form)
    (found,) = search(policy, [sample], limits, "seed", Limits(6))
    best = max(found.candidates, key=lambda c: c.logprob)
    assert best.text == expected(case, text).removesuffix("<|end|>")
    rap = form.parse(best.text)
    assert rap == form.parse(text) and rap.compliant
    assert [s.strip() for s in best.sentences] == searched(form, best.text)
    assert len(best.sentences) == len(rap.sentences) + 1  # and the answer
    wrong = replace(best, index=1, text=form.render("It is.", "unknown"))
    pair = answer_only.decide(sample, [wrong, best], form)
    assert isinstance(pair, PreferencePair) and pair.chosen == best.text
    pair = self_consistency.decide(sample, [best, best, wrong], form)
    assert isinstance(pair, PreferencePair) and pair.rejected == wrong.text

    (said,) = respond(policy, [sample], 200)
    graded = grade(sample, said, form)
    assert graded.correct and graded.compliant and graded.sound


def searched(form: RapFormat, text: str) -> list[str]:
    return [s.strip() for s in form.split_sentences(text)]


@pytest.mark.parametrize("case", CASES)
def test_pairs_are_tuned_on_after_the_prompt_of_inference(
    case: str,
    policy_folder: str,
    thinking_folder: str,
    samples: list[Sample],
    seen: list[dict[str, torch.Tensor]],
    tmp_path: Path,
) -> None:
    form, sample = form_of(case), samples[0]
    chosen, cut = taught(form, [sample])[0], "One dog. And"  # cut off: no tags at all
    folder = thinking_folder if case == "thinking" else policy_folder
    settings = Dpo(learning_rate=1e-4, batch_size=1, steps=1, lora=None)
    pair = PreferencePair(sample.id, chosen, cut, -1, -1, 1.0, 0.0)
    dpo(folder, [(sample, pair)], settings, run(tmp_path))
    policy = load_policy(folder, device="cpu")
    (batch,) = seen
    rows = [
        parts(policy, ids, mask.bool())
        for ids, mask in zip(batch["input_ids"], batch["completion_mask"], strict=True)
    ]
    assert rows == [(asked(policy, sample), expected(case, t)) for t in (chosen, cut)]


class Nothing:
    """A grading that is content with everything."""

    figures: dict[str, float] = {}  # noqa: RUF012

    def judge(self, groups: Any) -> Any:
        return [[() for _ in g.texts] for g in groups]

    def weigh(self, groups: Any, judged: Any) -> Any:
        return [[Graded(1.0, True, (), 1.0, 0.0) for _ in g.texts] for g in groups]


def test_online_methods_ask_what_inference_asks(
    thinking_folder: str, samples: list[Sample], seen: list[Any], tmp_path: Path
) -> None:
    folder = StageDir(tmp_path / "stage", "fingerprint")
    folder.open()
    settings = Grpo(learning_rate=1e-4, batch_size=2, group=2, steps=1, max_new_tokens=4, lora=None)
    out = Run(folder.path, seed=3, device="cpu")
    grpo(thinking_folder, samples[:1], settings, Nothing(), Ledger(folder), out)
    policy = load_policy(thinking_folder, device="cpu")
    (batch,) = seen
    for ids, mask in zip(batch["prompt_ids"], batch["prompt_mask"], strict=True):
        assert ids[mask.bool()].tolist() == asked(policy, samples[0])


class Template:
    """A processor that is no more than a chat template of a family, as TRL has it."""

    class tokenizer:
        eos_token = "</s>"

    def __init__(self, name: str) -> None:
        self.text = (Path(trl.__file__).parent / "chat_templates" / f"{name}.jinja").read_text()

    def apply_chat_template(
        self, turns: Any, tokenize: bool, add_generation_prompt: bool = False
    ) -> str:
        given = {"bos_token": "<s>", "eos_token": "</s>"}
        rendered, _ = render_jinja_template(
            [turns], chat_template=self.text, add_generation_prompt=add_generation_prompt, **given
        )
        return str(rendered[0])


FAMILIES = ["qwen2_5_vl", "qwen3_vl", "llava_next", "smolvlm", "idefics3", "gemma3"]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", FORMATS)
def test_training_text_is_what_the_family_writes(family: str, name: str) -> None:
    processor, sample = Template(family), Sample("s", "a.png", "How many?", "1")
    text = FORMATS[name].render("One dog.", "1")
    prompt, (response,) = training_texts(processor, sample, [text])
    assert prompt == prompt_text(processor, sample)
    said = {"role": "assistant", "content": [{"type": "text", "text": text}]}
    assert prompt + response == processor.apply_chat_template([*user_turn(sample), said], False)


@pytest.mark.parametrize("opened", [True, False])
def test_training_text_of_a_thinking_family(opened: bool) -> None:
    processor, sample = Template("qwen3_5_think"), Sample("s", "a.png", "How many?", "1")
    whole = FORMATS["think"].render("One dog.", "1")
    text = whole if opened else whole.removeprefix("<think>\n")  # a candidate of its search
    prompt, (response, cut) = training_texts(processor, sample, [text, "One d"])
    assert prompt.endswith("<|im_start|>assistant\n<think>\n")
    assert response == "One dog.\n</think>\n\n1<|im_end|>\n"
    assert cut == "One d<|im_end|>\n"  # not after an empty thought, as the template would have it
    said = {"role": "assistant", "content": [{"type": "text", "text": whole}]}
    assert prompt + response == processor.apply_chat_template([*user_turn(sample), said], False)


def test_a_template_that_opens_a_thought_wants_the_format_for_it(
    thinking_folder: str, policy_folder: str
) -> None:
    for form in FORMATS.values():
        check_opening(load_processor(policy_folder), form)
        if form.name == "think":
            check_opening(load_processor(thinking_folder), form)
        else:
            with pytest.raises(ModelError, match=r"`<think>`.*format: think"):
                check_opening(load_processor(thinking_folder), form)
