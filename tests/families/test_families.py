"""The whole loop on families of vision-language models, each by its own classes.

The models are tiny and their weights random, so nothing here says how well a family learns. What
it says: prompts, batches, losses, adapters, checkpoints and searches of a family are right, each
against what transformers' own `generate` makes of the same model, or against numbers by hand.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import LogitsProcessor, LogitsProcessorList

from families.models import FAMILIES, Family, save
from families.runs import RFT, Ran, ran, recipe
from families.table import REFUSED
from selfcal.policy import ModelError, Policy, load_policy, training_texts
from selfcal.recipe import Rft
from selfcal.search import Sampling, SearchLimits, search
from selfcal.testing import tiny_samples
from selfcal.train import Run, sft
from selfcal.train.common import language_part, merge
from selfcal.types import (
    Candidate,
    Judgment,
    PreferencePair,
    Response,
    Rollout,
    Sample,
    SearchNode,
    WrittenRap,
)

SEARCHED = [f for f in FAMILIES if f.refuses != "search"]
every = pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f.name, scope="module")
searched = pytest.mark.parametrize("family", SEARCHED, ids=lambda f: f.name, scope="module")
refusing = pytest.mark.parametrize(
    "family", [f for f in FAMILIES if f not in SEARCHED], ids=lambda f: f.name, scope="module"
)
RAPS = [
    "Rationale: The red bar is 7. So the red bar is the tallest.\nAnswer: red",
    "Answer: 2",
]


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> list[Sample]:
    """Questions of different length."""
    found = tiny_samples(tmp_path_factory.mktemp("data"), 12)
    by_length = {len(s.question): s for s in found}
    return [by_length[n] for n in sorted(by_length)][:3]


@pytest.fixture(scope="module")
def folder(family: Family, tmp_path_factory: pytest.TempPathFactory) -> str:
    return save(family, tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def policy(folder: str) -> Policy:
    return load_policy(folder, device="cpu")


@pytest.fixture(scope="module")
def src(folder: str, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """A run of SRC whose judge is of the same family, and sees."""
    return ran(recipe("src", folder), tmp_path_factory.mktemp("runs") / "src")


@pytest.fixture(scope="module")
def tuned(
    family: Family,
    folder: str,
    samples: list[Sample],
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """Where the fine-tuned model and its adapter lie."""
    if family in SEARCHED:
        found: Ran = request.getfixturevalue("src")
        return found.run / "rft"
    out = tmp_path_factory.mktemp("rft")
    rows = list(zip(samples, RAPS, strict=False))
    trained = sft(folder, rows, Rft.model_validate(RFT | {"batch_size": 2}), Run(out, 7, "cpu"))
    assert math.isfinite(trained.curve[0]["loss"])
    return out


class Forced(LogitsProcessor):
    """Makes `generate` say these tokens."""

    def __init__(self, prompt: int, said: Sequence[int]) -> None:
        self.prompt, self.said = prompt, said

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        forced = torch.full_like(scores, -math.inf)
        forced[:, self.said[input_ids.shape[1] - self.prompt]] = 0
        return forced


def nll(policy: Policy, sample: Sample, text: str) -> list[float]:
    """Negative log-probability of each token of a response, its end included, by `generate`."""
    _, (whole,) = training_texts(policy.processor, sample, [text])
    said = policy.tokenizer(whole, add_special_tokens=False)["input_ids"]
    batch = policy.encode([sample])
    force = Forced(batch["input_ids"].shape[1], said)
    with torch.inference_mode():
        out = policy.model.generate(
            **batch, logits_processor=LogitsProcessorList([force]), max_new_tokens=len(said),
            do_sample=False, output_logits=True, return_dict_in_generate=True,
        )  # fmt: skip
    assert len(out.logits) == len(said)
    spread = torch.log_softmax(torch.cat(out.logits), dim=-1)
    return (-spread[torch.arange(len(said)), said]).tolist()


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def last_logits(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    with torch.inference_mode():
        logits: torch.Tensor = model(**batch).logits[:, -1]
    return logits


# --- prompts --------------------------------------------------------------------------------


@every
@pytest.mark.stage("Prompt with image")
def test_a_batch_has_each_image_in_full_and_is_padded_on_the_left(
    family: Family, policy: Policy, samples: list[Sample]
) -> None:
    batch = policy.encode(samples)
    mark = policy.tokenizer.convert_tokens_to_ids(family.mark)
    assert (batch["input_ids"] == mark).sum(dim=1).tolist() == [family.tokens] * len(samples)
    mask = batch["attention_mask"]
    assert (mask.diff(dim=1) >= 0).all()  # once it begins, a prompt goes on to the end
    assert len(set(mask.sum(dim=1).tolist())) > 1
    alone = [last_logits(policy.model, policy.encode([s])) for s in samples]
    assert torch.allclose(last_logits(policy.model, batch), torch.cat(alone), atol=1e-4)


@every
@pytest.mark.stage("Prompt with image")
def test_the_model_sees_the_image(policy: Policy, samples: list[Sample]) -> None:
    one = samples[0]
    other = replace(one, image=samples[1].image)
    first, second = (last_logits(policy.model, policy.encode([s])) for s in (one, other))
    assert not torch.allclose(first, second, atol=1e-3)


@every
@pytest.mark.stage("Several images")
def test_a_question_about_two_images_has_both_in_order(
    policy: Policy, samples: list[Sample]
) -> None:
    two = replace(samples[0], more_images=(samples[1].image,))
    swapped = replace(two, image=two.more_images[0], more_images=(two.image,))
    there, back = (last_logits(policy.model, policy.encode([s])) for s in (two, swapped))
    assert there.isfinite().all()
    assert not torch.allclose(there, back, atol=1e-4)


# --- rationale fine-tuning ------------------------------------------------------------------


@searched
@pytest.mark.stage("Rationale SFT (LoRA)")
def test_the_first_loss_of_sft_is_that_of_what_the_model_would_say(
    policy: Policy, src: Ran
) -> None:
    """Training reads image, prompt and response just as `generate` does."""
    asked = {s.id: s for s in src.read("data", "rft", Sample)}
    raps = src.read("teacher", "raps", WrittenRap)
    said = [x for r in raps for x in nll(policy, located(asked[r.sample_id], src), r.text)]
    first, second = src.losses("rft")
    assert first == pytest.approx(mean(said), rel=1e-3)
    assert second < first
    assert src.stats("rft")["rows"] == len(raps) == 6


def located(sample: Sample, run: Ran) -> Sample:
    """A sample with the path of its image resolved against the run."""
    return replace(sample, image=str(run.run / sample.image))


@every
@pytest.mark.stage("Rationale SFT (LoRA)")
def test_the_adapter_is_on_the_language_model_alone(
    family: Family, folder: str, policy: Policy, tuned: Path
) -> None:
    part = language_part(policy.model)
    adapter = load_file(tuned / "adapter/adapter_model.safetensors")
    assert adapter and all(name.startswith(f"base_model.model.{part}.") for name in adapter)
    before, after = policy.model, load_policy(str(tuned / "checkpoint"), device="cpu").model
    changed = set()
    for (name, one), (other, two) in zip(
        before.named_parameters(), after.named_parameters(), strict=True
    ):
        assert name == other
        if not torch.equal(one, two):
            changed.add(name)
    assert changed and all(name.startswith(f"{part}.") for name in changed)
    linear = {n for n, m in before.named_modules() if isinstance(m, torch.nn.Linear)}
    inside = {f"{n}.weight" for n in linear if n.startswith(f"{part}.")}
    assert changed == inside  # every layer of it has learned
    assert linear - {n.removesuffix(".weight") for n in inside}


@every
@pytest.mark.stage("Merge, save, load")
def test_the_checkpoint_is_the_model_with_its_adapter_and_loads_again(
    folder: str, tuned: Path, samples: list[Sample], tmp_path: Path
) -> None:
    merged = load_policy(str(tuned / "checkpoint"), device="cpu")
    batch = merged.encode(samples)
    known = last_logits(merged.model, batch)
    worked_in = merge(load_policy(folder, device="cpu").model, tuned / "adapter")
    assert torch.allclose(last_logits(worked_in, batch), known, atol=1e-4)
    merged.model.save_pretrained(tmp_path)
    merged.processor.save_pretrained(tmp_path)
    again = load_policy(str(tmp_path), device="cpu")
    asked = again.encode(samples)
    assert all(torch.equal(asked[k], batch[k]) for k in batch)
    assert torch.equal(last_logits(again.model, asked), known)
    for name in ("processor_config.json", "chat_template.jinja"):
        assert (tmp_path / name).read_text() == (tuned / "checkpoint" / name).read_text()


# --- search, judge, preference tuning -------------------------------------------------------


@searched
@pytest.mark.stage("Search")
def test_the_search_finds_distinct_candidates_in_a_tree(src: Ran) -> None:
    found = src.read("iter-1/candidates", "candidates", Candidate)
    nodes = src.read("iter-1/candidates", "nodes", SearchNode)
    asked = {s.id for s in src.read("data", "calibration", Sample)}
    assert {c.sample_id for c in found} == asked
    for sample_id in asked:
        texts = [c.text for c in found if c.sample_id == sample_id]
        assert len(texts) == len(set(texts)) > 1
        own = {n.node: n for n in nodes if n.sample_id == sample_id}
        assert all(n.parent == -1 or n.parent in own for n in own.values())
        assert max(_depth(n, own) for n in own.values()) > 1
        assert all(n.logprob < 0 for n in own.values())


def _depth(node: SearchNode, own: dict[int, SearchNode]) -> int:
    return 1 if node.parent == -1 else 1 + _depth(own[node.parent], own)


@searched
@pytest.mark.stage("Judge that sees")
def test_a_judge_of_the_family_compares_all_candidates(src: Ran) -> None:
    assert src.losses("judge/train")
    counts: dict[str, int] = {}
    for c in src.read("iter-1/candidates", "candidates", Candidate):
        counts[c.sample_id] = counts.get(c.sample_id, 0) + 1
    judged = src.read("iter-1/judgments", "judgments", Judgment)
    assert len(judged) == sum(n * (n - 1) for n in counts.values())
    for j in judged:
        assert j.verdict is not None
        assert j.p_first + j.p_second + j.p_neutral == pytest.approx(1, abs=1e-5)


@searched
@pytest.mark.stage("DPO (LoRA)")
def test_the_first_loss_of_dpo_is_ln2_and_the_nll_of_the_chosen(src: Ran) -> None:
    """The policy is its own reference at first."""
    start = load_policy(str(src.run / "rft/checkpoint"), device="cpu")
    asked = {s.id: located(s, src) for s in src.read("data", "calibration", Sample)}
    pairs = src.read("iter-1/pairs", "pairs", PreferencePair)
    said = [x for p in pairs for x in nll(start, asked[p.sample_id], p.chosen)]
    first, _ = src.losses("iter-1/dpo")
    assert src.stats("iter-1/dpo")["rows"] == len(pairs) > 1
    assert first == pytest.approx(math.log(2) + 0.5 * mean(said), rel=1e-3)
    part = language_part(start.model)
    after = load_policy(str(src.run / "iter-1/dpo/checkpoint"), device="cpu").model
    new = dict(after.named_parameters())
    moved = {n for n, p in start.model.named_parameters() if not torch.equal(p, new[n])}
    assert moved and all(name.startswith(f"{part}.") for name in moved)


@searched
@pytest.mark.stage("Evaluation (greedy)")
def test_greedy_responses_are_those_of_generate(src: Ran) -> None:
    checkpoint = load_policy(str(src.run / "iter-1/dpo/checkpoint"), device="cpu")
    asked = {s.id: located(s, src) for s in src.read("data", "test", Sample)}
    said = src.read("eval/iter-1", "test", Response)
    assert len(said) == 2
    for r in said:
        batch = checkpoint.encode([asked[r.sample_id]])
        with torch.inference_mode():
            out = checkpoint.model.generate(**batch, max_new_tokens=12, do_sample=False)
        new = out[0, batch["input_ids"].shape[1] :]
        plain = checkpoint.tokenizer.decode(new, skip_special_tokens=True)
        assert r.text.strip() == plain.strip()


@searched
@pytest.mark.stage("CSR reward, search and DPO")
def test_csr_rewards_every_sentence_by_likelihood_and_image(
    folder: str, src: Ran, tmp_path: Path
) -> None:
    of_csr = recipe("csr", folder)
    kept = of_csr.search.model_copy(update={"keep": "top_bottom"})
    csr = ran(of_csr.model_copy(update={"search": kept}), tmp_path / "csr", src.run)
    found = csr.read("iter-1/candidates", "candidates", Candidate)
    assert found
    for c in found:
        assert len(c.sentence_rewards) == len(c.sentence_relevances) == len(c.sentences)
        assert all(0 <= r <= 1 for r in c.sentence_rewards)
        assert all(0 <= r <= 100 for r in c.sentence_relevances)
    assert csr.losses("iter-1/dpo")[0] > math.log(2)


@searched
@pytest.mark.stage("GRPO")
def test_a_step_of_grpo(
    family: Family, folder: str, src: Ran, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    whole = recipe("grpo", folder)
    if family.refuses == "GRPO":
        with pytest.raises(ModelError, match=r"prompt's tokens see .* a method that trains on pai"):
            ran(whole, tmp_path / "grpo", src.run)
        request.node.user_properties.append(("cell", REFUSED))
        return
    grpo = ran(whole, tmp_path / "grpo", src.run)
    rollouts = grpo.read("iter-1/grpo", "rollouts", Rollout)
    assert len(rollouts) == 4
    assert len({r.sample_id for r in rollouts}) == 2
    assert grpo.losses("iter-1/grpo")


# --- what cannot be done --------------------------------------------------------------------


@refusing
@pytest.mark.stage("Search")
def test_recurrent_layers_are_refused_with_a_reason(
    policy: Policy, samples: list[Sample], request: pytest.FixtureRequest
) -> None:
    limits = SearchLimits(2, 1, "stochastic", 2, 4, Sampling())
    with pytest.raises(ModelError, match=r"layer 0 keeps its state in .* without recurrent layers"):
        list(search(policy, samples, limits, "seed"))
    request.node.user_properties.append(("cell", REFUSED))
