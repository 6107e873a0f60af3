"""Trainings of tiny models: the losses are those derived by hand, and nothing else is touched."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    LlavaNextImageProcessorPil,
    LlavaNextProcessor,
)
from trl import DPOTrainer, SFTTrainer
from trl.trainer.dpo_trainer import DataCollatorForVisionPreference

from selfcal import stopping
from selfcal.corruption import corrupt_file
from selfcal.image import load_image
from selfcal.judge.scorer import Comparison, RScorer
from selfcal.miniworld.models import build_processor, build_tokenizer
from selfcal.policy import Policy, load_policy, prompt_text, user_turn
from selfcal.recipe import Dpo, Lora, Training
from selfcal.store import tree_digest
from selfcal.train import Run, Trained, TrainingError, dpo, sft, train_judge
from selfcal.train.checkpoints import checkpoints
from selfcal.train.policy import _RejectedImages
from selfcal.types import Candidate, LabelledPair, PreferencePair, Sample

LORA = Lora(rank=4, alpha=8)
RESPONSES = [
    "Rationale: The red bar is 7. So the red bar is the tallest.\nAnswer: red",
    "Answer: 2",
    "Rationale: There is a circle at the top.\nAnswer: circle",
    "Rationale: The left digit is 4. The right digit is 3. 4 plus 3 is 7.\nAnswer: 7",
]
WORSE = ["Answer: blue", "Rationale: 3 is 3.\nAnswer: 3", "Answer: star", "7"]


def settings(**more: object) -> Training:
    values: dict[str, object] = {"learning_rate": 1e-2, "batch_size": 4, "steps": 1, "lora": LORA}
    return Training.model_validate(values | more)


def here(out: Path, **more: object) -> Run:
    return Run(out, seed=7, device="cpu", **more)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def rows(samples: list[Sample]) -> list[tuple[Sample, str]]:
    return list(zip(samples[:4], RESPONSES, strict=True))


@pytest.fixture(scope="module")
def pairs(samples: list[Sample]) -> list[tuple[Sample, PreferencePair]]:
    return [
        (s, PreferencePair(s.id, good, bad, 0, 1, 1.0, 0.0))
        for s, good, bad in zip(samples[:4], RESPONSES, WORSE, strict=True)
    ]


def nll(folder: str, rows: list[tuple[Sample, str]]) -> list[float]:
    """Negative log-probability of every response token, end included, row after row."""
    policy = load_policy(folder, device="cpu")
    found: list[float] = []
    for sample, text in rows:
        batch = policy.encode([sample])
        assert prompt_text(policy.processor, sample).endswith("<|assistant|>")
        own = policy.tokenizer(text + "<|end|>", add_special_tokens=False)["input_ids"]
        batch["input_ids"] = torch.cat([batch["input_ids"], torch.tensor([own])], dim=1)
        batch["attention_mask"] = torch.ones_like(batch["input_ids"])
        with torch.inference_mode():
            logits = policy.model(**batch).logits[0, -len(own) - 1 : -1]
        logprobs = torch.log_softmax(logits, dim=-1)
        found += (-logprobs[torch.arange(len(own)), own]).tolist()
    return found


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


# --- losses ---------------------------------------------------------------------------------


def test_the_loss_of_sft_is_on_the_tokens_of_the_response(
    tmp_path: Path, policy_folder: str, rows: list[tuple[Sample, str]]
) -> None:
    trained = sft(policy_folder, rows, settings(), here(tmp_path))
    (logged,) = trained.curve
    assert logged["loss"] == pytest.approx(mean(nll(policy_folder, rows)), rel=1e-4)
    assert (trained.steps, trained.rows, trained.drops) == (1, 4, ())


@pytest.mark.parametrize("mode", ["RGBA", "I;16"])
def test_training_sees_the_picture_that_inference_sees(
    tmp_path: Path, policy_folder: str, rows: list[tuple[Sample, str]], mode: str
) -> None:
    (sample, text), odd, plain = rows[0], tmp_path / "odd.png", tmp_path / "plain.png"
    if mode == "RGBA":
        picture = Image.new("RGBA", (48, 48), (0, 0, 0, 0))  # black, if transparency is left out
        picture.paste((200, 0, 0, 255), (0, 0, 48, 24))
    else:
        picture = Image.new("I;16", (48, 48), 20_000)  # white, if it is cut at 255
        picture.paste(60_000, (0, 0, 48, 24))
    picture.save(odd)
    load_image(odd).save(plain)
    losses = [
        sft(
            policy_folder,
            [(replace(sample, image=str(path)), text)],
            settings(batch_size=1),
            here(tmp_path / path.stem),
        ).curve[0]["loss"]
        for path in (odd, plain)
    ]
    assert losses[0] == losses[1]


def test_a_training_of_several_processes_is_refused(
    tmp_path: Path,
    policy_folder: str,
    rows: list[tuple[Sample, str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(TrainingError, match=r"2 processes .* without torchrun .* executor\.ranks"):
        sft(policy_folder, rows, settings(), here(tmp_path))


@pytest.mark.parametrize("lora", [LORA, None], ids=["lora", "all-weights"])
def test_the_first_loss_of_dpo_is_ln2_plus_the_weighted_nll_of_the_chosen(
    tmp_path: Path,
    policy_folder: str,
    pairs: list[tuple[Sample, PreferencePair]],
    lora: Lora | None,
) -> None:
    """The policy is its own reference, so every log-ratio is 0 at first."""
    trained = dpo(
        policy_folder,
        pairs,
        Dpo(learning_rate=1e-3, batch_size=4, steps=1, lora=lora),
        here(tmp_path),
    )
    (logged,) = trained.curve
    chosen = nll(policy_folder, [(s, p.chosen) for s, p in pairs])
    assert logged["loss"] == pytest.approx(math.log(2) + 0.02 * mean(chosen), rel=1e-4)


def test_dpo_without_an_sft_term_starts_at_ln2(
    tmp_path: Path, policy_folder: str, pairs: list[tuple[Sample, PreferencePair]]
) -> None:
    plain = Dpo(learning_rate=1e-3, batch_size=4, steps=1, lora=LORA, sft_weight=0)
    (logged,) = dpo(policy_folder, pairs, plain, here(tmp_path)).curve
    assert logged["loss"] == pytest.approx(math.log(2), abs=1e-4)


def test_dpo_moves_towards_the_chosen(
    tmp_path: Path, policy_folder: str, pairs: list[tuple[Sample, PreferencePair]]
) -> None:
    eager = Dpo(learning_rate=3e-3, batch_size=4, steps=8, lora=LORA, scheduler="constant")
    trained = dpo(policy_folder, pairs, eager, here(tmp_path))
    after = str(tmp_path / "checkpoint")

    def gap(folder: str) -> float:
        good = sum(nll(folder, [(s, p.chosen) for s, p in pairs]))
        return sum(nll(folder, [(s, p.rejected) for s, p in pairs])) - good

    assert gap(after) > gap(policy_folder) + 1
    assert trained.curve[-1]["loss"] < trained.curve[0]["loss"]


def test_micro_batches_do_not_change_the_training(
    tmp_path: Path, policy_folder: str, rows: list[tuple[Sample, str]]
) -> None:
    """3 does not divide 4, and a step must take 4 rows all the same."""
    whole = sft(policy_folder, rows, settings(), here(tmp_path / "whole"))
    parts = sft(policy_folder, rows, settings(micro_batch_size=3), here(tmp_path / "parts"))
    assert parts.curve[0]["loss"] == pytest.approx(whole.curve[0]["loss"], rel=1e-4)
    one, other = (load_file(tmp_path / n / "checkpoint/model.safetensors") for n in NAMES)
    assert all(torch.allclose(one[k], other[k], atol=1e-4) for k in one)


NAMES = ("whole", "parts")

# --- rejected images ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def spoiled(
    tmp_path_factory: pytest.TempPathFactory, samples: list[Sample]
) -> list[tuple[Sample, PreferencePair]]:
    """The same text twice; all that tells chosen and rejected apart is the image."""
    folder = tmp_path_factory.mktemp("spoiled")
    found = []
    for s, text in zip(samples[:4], RESPONSES, strict=True):
        image = folder / f"{len(found)}.png"
        corrupt_file(Path(s.image), image, "noise", 5, s.id)
        found.append((s, PreferencePair(s.id, text, text, 0, 0, 1.0, 0.0, str(image))))
    return found


def shown(pairs: list[tuple[Sample, PreferencePair]]) -> list[tuple[Sample, str]]:
    """What is shown with the rejected responses."""
    return [(replace(s, image=p.rejected_image or s.image), p.rejected) for s, p in pairs]


def test_a_pair_of_one_text_is_told_apart_by_the_rejected_image(
    tmp_path: Path, policy_folder: str, spoiled: list[tuple[Sample, PreferencePair]]
) -> None:
    eager = Dpo(learning_rate=3e-3, batch_size=4, steps=6, lora=LORA, scheduler="constant")
    trained = dpo(policy_folder, spoiled, eager, here(tmp_path))
    own = [(s, p.chosen) for s, p in spoiled]
    start = math.log(2) + 0.02 * mean(nll(policy_folder, own))
    assert trained.curve[0]["loss"] == pytest.approx(start, rel=1e-4)
    assert trained.curve[0]["rewards/margins"] == pytest.approx(0, abs=1e-5)
    assert trained.curve[-1]["rewards/margins"] > 0.1
    after = str(tmp_path / "checkpoint")

    def gap(folder: str) -> float:
        return sum(nll(folder, shown(spoiled))) - sum(nll(folder, own))

    # before the last step the implicit reward's margin, in the mean of 4 pairs, was the curve's
    assert 0.1 * (gap(after) - gap(policy_folder)) / 4 > trained.curve[-1]["rewards/margins"]


def test_the_model_sees_each_image_with_its_own_response(
    tmp_path: Path,
    policy_folder: str,
    spoiled: list[tuple[Sample, PreferencePair]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also where one pair of a batch has no image of its own for the rejected response."""
    bare = replace(spoiled[1][1], rejected_image="")
    mixed = [spoiled[0], (spoiled[1][0], bare), *spoiled[2:]]
    seen: list[dict[str, torch.Tensor]] = []
    compute = DPOTrainer._compute_loss

    def watch(self: DPOTrainer, model: object, inputs: dict[str, torch.Tensor], outputs: bool):
        seen.append({k: v.clone() for k, v in inputs.items()})
        return compute(self, model, inputs, outputs)

    monkeypatch.setattr(DPOTrainer, "_compute_loss", watch)
    dpo(policy_folder, mixed, Dpo(learning_rate=1e-3, batch_size=4, steps=1), here(tmp_path))
    policy = load_policy(policy_folder, device="cpu")
    own = policy.encode([s for s, _ in mixed])["pixel_values"]
    others = policy.encode([s for s, _ in shown(mixed)])["pixel_values"]
    (batch,) = seen
    chosen, rejected = batch["pixel_values"].chunk(2)
    order = [next(i for i in range(4) if torch.equal(own[i], row)) for row in chosen]
    assert sorted(order) == [0, 1, 2, 3]
    assert torch.equal(rejected, others[order])
    same = [torch.equal(a, b) for a, b in zip(chosen, rejected, strict=True)]
    assert same == [i == 1 for i in order]
    first, second = batch["input_ids"].chunk(2)
    assert torch.equal(first, second)  # prompts and responses are those of one and the same text


def test_the_own_image_as_rejected_image_changes_nothing(
    tmp_path: Path, policy_folder: str, pairs: list[tuple[Sample, PreferencePair]]
) -> None:
    kind = Dpo(learning_rate=1e-2, batch_size=2, steps=3, lora=LORA)
    plain = dpo(policy_folder, pairs, kind, here(tmp_path / "whole"))
    named = [(s, replace(p, rejected_image=s.image)) for s, p in pairs]
    same = dpo(policy_folder, named, kind, here(tmp_path / "parts"))
    assert (plain.rows, plain.steps) == (same.rows, same.steps)
    one, other = (tree_digest(tmp_path / n / "checkpoint") for n in NAMES)
    assert one == other


def test_the_image_tokens_are_those_of_the_image_that_is_shown() -> None:
    """LLaVA-NeXT writes the more image tokens the larger the image is."""
    processor = LlavaNextProcessor(
        LlavaNextImageProcessorPil(
            size={"shortest_edge": 48},
            crop_size={"height": 48, "width": 48},
            image_grid_pinpoints=[[48, 96], [96, 96]],
        ),
        build_tokenizer(),
        patch_size=16,
        vision_feature_select_strategy="default",
        image_token="<image>",
        num_additional_image_tokens=1,
        chat_template=build_processor(build_tokenizer()).chat_template,
    )
    wide, square = Image.new("RGB", (96, 48), "red"), Image.new("RGB", (96, 96), "blue")

    def alone(image: Image.Image) -> int:
        text = prompt_text(processor, Sample("s", "", "How many?", ""))
        ids = processor(images=[image], text=[text], return_tensors="pt")["input_ids"]
        return int((ids == processor.image_token_id).sum())

    def turn(text: str) -> list[dict[str, object]]:
        return [{"role": "assistant", "content": [{"type": "text", "text": text}]}]

    examples = [
        {
            "images": [wide],
            "rejected_images": [other],
            "prompt": user_turn(Sample("s", "", "How many?", "")),
            "chosen": turn("Answer: 3"),
            "rejected": turn("Answer: 4"),
        }
        for other in (square, wide)
    ]
    batch = _RejectedImages(DataCollatorForVisionPreference(processor))(examples)
    counts = (batch["input_ids"] == processor.image_token_id).sum(dim=1).tolist()
    assert alone(wide) < alone(square)
    assert counts == [alone(wide), alone(wide), alone(square), alone(wide)]
    assert batch["image_sizes"].tolist() == [[48, 96], [48, 96], [96, 96], [48, 96]]


def test_a_rejected_image_that_makes_the_prompt_too_long_counts(
    tmp_path: Path,
    policy_folder: str,
    spoiled: list[tuple[Sample, PreferencePair]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As if the first pair's rejected image were of more tokens than the others'."""
    larger = spoiled[0][1].rejected_image
    encode = Policy.encode

    def more(self: Policy, samples: list[Sample]) -> dict[str, torch.Tensor]:
        batch = encode(self, samples)
        extra = torch.tensor([[1000 if s.image == larger else 0] for s in samples])
        return batch | {"attention_mask": torch.cat([batch["attention_mask"], extra], dim=1)}

    monkeypatch.setattr(Policy, "encode", more)
    limit = max(lengths(policy_folder, [(s, p.chosen) for s, p in spoiled]))
    kind = Dpo(learning_rate=1e-3, batch_size=3, steps=1, lora=LORA, max_length=limit)
    trained = dpo(policy_folder, spoiled, kind, here(tmp_path))
    assert trained.rows == 3
    assert [(d.sample_id, d.reason) for d in trained.drops] == [(spoiled[0][0].id, "overlong")]


# --- rows that are left out -----------------------------------------------------------------


def lengths(folder: str, rows: list[tuple[Sample, str]]) -> list[int]:
    policy = load_policy(folder, device="cpu")
    return [
        int(policy.encode([s])["input_ids"].shape[1])
        + len(policy.tokenizer(text, add_special_tokens=False)["input_ids"])
        + 1  # the end of the response
        for s, text in rows
    ]


def test_a_response_that_spells_an_image_is_left_out_and_named(
    policy_folder: str, rows: list[tuple[Sample, str]], tmp_path: Path
) -> None:
    """The model would look for one more image, and the whole training would end."""
    marked = [(rows[0][0], "Rationale: An <image> is here.\nAnswer: yes"), *rows[1:4]]
    trained = sft(policy_folder, marked, settings(), here(tmp_path))
    assert [(d.sample_id, d.reason) for d in trained.drops] == [
        (rows[0][0].id, "image-mark-in-response")
    ]
    assert trained.rows == 3


def test_overlong_rows_are_left_out_and_named_never_cut(
    tmp_path: Path, policy_folder: str, rows: list[tuple[Sample, str]]
) -> None:
    long = lengths(policy_folder, rows)
    limit = sorted(set(long))[-2]  # the longest is over it, the next one just fits
    trained = sft(policy_folder, rows, settings(max_length=limit), here(tmp_path))
    kept = [row for row, n in zip(rows, long, strict=True) if n <= limit]
    over = [s.id for (s, _), n in zip(rows, long, strict=True) if n > limit]
    assert [(d.sample_id, d.reason) for d in trained.drops] == [(i, "overlong") for i in over]
    assert trained.rows == len(kept) == 4 - len(over) > 0
    # all tokens of the others, the longest included, are in the loss
    assert trained.curve[0]["loss"] == pytest.approx(mean(nll(policy_folder, kept)), rel=1e-4)


def test_the_longer_response_of_a_pair_decides(
    tmp_path: Path, policy_folder: str, pairs: list[tuple[Sample, PreferencePair]]
) -> None:
    sample, pair = pairs[0]
    limit = max(lengths(policy_folder, [(sample, pair.chosen), (sample, pair.rejected)]))
    turned = replace(pair, chosen=pair.rejected, rejected=pair.chosen)
    kind = Dpo(learning_rate=1e-3, batch_size=4, steps=1, lora=LORA, max_length=limit)
    fits = dpo(policy_folder, [(sample, pair), (sample, turned)], kind, here(tmp_path / "fits"))
    assert (fits.rows, fits.drops) == (2, ())
    short = kind.model_copy(update={"max_length": limit - 1})
    with pytest.raises(TrainingError, match="2 of 2 rows longer"):
        dpo(policy_folder, [(sample, pair), (sample, turned)], short, here(tmp_path / "short"))


def test_nothing_to_train_on_is_an_error(
    tmp_path: Path,
    policy_folder: str,
    judge_folder: str,
    rows: list[tuple[Sample, str]],
    pairs: list[tuple[Sample, PreferencePair]],
) -> None:
    with pytest.raises(TrainingError, match="4 of 4 rows longer than max_length 3"):
        sft(policy_folder, rows, settings(max_length=3), here(tmp_path))
    with pytest.raises(TrainingError, match="nothing to train on"):
        sft(policy_folder, [], settings(), here(tmp_path))
    with pytest.raises(TrainingError, match="nothing to train on"):
        dpo(policy_folder, [], Dpo(learning_rate=1e-3), here(tmp_path))
    with pytest.raises(TrainingError, match="none of 0 labelled"):
        train_judge(judge_folder, [], settings(), None, here(tmp_path))
    assert not (tmp_path / "checkpoint").exists()


# --- trainings that go wrong ----------------------------------------------------------------


def test_a_loss_that_is_nan_is_an_error(
    tmp_path: Path, policy_folder: str, rows: list[tuple[Sample, str]]
) -> None:
    poisoned = tmp_path / "poisoned"
    policy = load_policy(policy_folder, device="cpu")
    policy.model.save_pretrained(poisoned)
    policy.processor.save_pretrained(poisoned)
    weights = load_file(poisoned / "model.safetensors")
    name = next(n for n in weights if "language_model" in n and "q_proj" in n)
    weights[name][0, 0] = math.nan
    save_file(weights, poisoned / "model.safetensors", metadata={"format": "pt"})
    before, steps = tree_digest(poisoned), list[int]()
    to = here(tmp_path / "out", progress=lambda done, total: steps.append(done))
    with pytest.raises(TrainingError, match="out: the weights became NaN or infinite; lower the"):
        sft(str(poisoned), rows, settings(steps=2), to)
    assert steps == []  # told at the end of the first step
    assert not (tmp_path / "out" / "checkpoint").exists()
    assert tree_digest(poisoned) == before


def test_a_learning_rate_that_is_far_too_high_is_an_error(
    tmp_path: Path, policy_folder: str, rows: list[tuple[Sample, str]]
) -> None:
    """The loss of the only step is fine; what it does to the weights is not."""
    before = tree_digest(Path(policy_folder))
    wild = settings(learning_rate=1e38, scheduler="constant", warmup=0)
    with pytest.raises(TrainingError, match="weights became NaN or infinite"):
        sft(policy_folder, rows, wild, here(tmp_path))
    assert not (tmp_path / "checkpoint").exists()
    assert tree_digest(Path(policy_folder)) == before


# --- the merged checkpoint ------------------------------------------------------------------


def test_the_merged_checkpoint_is_base_plus_adapter(
    tmp_path: Path, policy_folder: str, rows: list[tuple[Sample, str]]
) -> None:
    before = tree_digest(Path(policy_folder))
    sft(policy_folder, rows, settings(steps=3), here(tmp_path))
    assert tree_digest(Path(policy_folder)) == before
    merged = AutoModelForImageTextToText.from_pretrained(tmp_path / "checkpoint").eval()
    processor = AutoProcessor.from_pretrained(tmp_path / "checkpoint")
    base = AutoModelForImageTextToText.from_pretrained(policy_folder)
    start = {k: v.clone() for k, v in base.state_dict().items()}
    adapted = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()

    policy = load_policy(policy_folder, device="cpu")
    batch = policy.encode([s for s, _ in rows])
    question = prompt_text(processor, rows[0][0])
    assert question == prompt_text(policy.processor, rows[0][0])
    with torch.inference_mode():
        one, other = merged(**batch).logits, adapted(**batch).logits
        untrained = policy.model(**batch).logits
    real = batch["attention_mask"].bool()
    assert torch.allclose(one[real], other[real], atol=1e-4)
    assert not torch.allclose(one[real], untrained[real], atol=1e-2)

    end = merged.state_dict()
    changed = {k for k, v in start.items() if not torch.equal(v, end[k])}
    assert changed
    assert all("language_model" in k for k in changed), changed  # neither eyes nor projector
    assert not any("embed" in k or "lm_head" in k or "norm" in k for k in changed)


def test_a_training_is_the_same_for_the_same_seed(
    tmp_path: Path,
    policy_folder: str,
    rows: list[tuple[Sample, str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    offline = "transformers.tokenization_utils_base.is_offline_mode"
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        torch.manual_seed(hash(name) % 1000)  # what was drawn before does not matter
        monkeypatch.setattr(offline, lambda name=name: name == "b")
        sft(policy_folder, rows, settings(steps=2, batch_size=2), Run(tmp_path / name, seed, "cpu"))
    a, b, c = (load_file(tmp_path / n / "checkpoint/model.safetensors") for n in "abc")
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert any(not torch.equal(a[k], c[k]) for k in a)
    files = [p.name for p in (tmp_path / "a/checkpoint").iterdir()]
    assert "tokenizer_config.json" in files
    for file in files:
        one, other = (tmp_path / name / "checkpoint" / file for name in "ab")
        assert one.read_bytes() == other.read_bytes(), file


# --- resuming -------------------------------------------------------------------------------


class Killed(BaseException):
    pass


def kill_after(step: int) -> Callable[[int, int], None]:
    def progress(done: int, total: int) -> None:
        if done == step:
            raise Killed

    return progress


@pytest.mark.parametrize("killed_at", [3, 5], ids=["mid-epoch", "after-an-epoch"])
def test_a_killed_training_resumes_to_the_same_weights(
    tmp_path: Path, policy_folder: str, rows: list[tuple[Sample, str]], killed_at: int
) -> None:
    """With dropout, and two epochs of two steps: the random state and the order of rows matter."""
    kind = settings(steps=6, batch_size=1, save_steps=2, lora=Lora(rank=4, alpha=8, dropout=0.3))
    whole = sft(policy_folder, rows, kind, here(tmp_path / "whole"))
    with pytest.raises(Killed):
        sft(policy_folder, rows, kind, here(tmp_path / "parts", progress=kill_after(killed_at)))
    # a checkpoint that was being written when the process died
    (tmp_path / "parts/trl/checkpoint-5").mkdir(exist_ok=True)
    torch.manual_seed(99)
    steps: list[int] = []
    again = here(tmp_path / "parts", progress=lambda done, total: steps.append(done))
    parts = sft(policy_folder, rows, kind, again)
    assert steps == list(range(killed_at, 7))
    assert parts.steps == whole.steps == 6
    one, other = (load_file(tmp_path / n / "checkpoint/model.safetensors") for n in NAMES)
    assert all(torch.allclose(one[k], other[k], atol=1e-6) for k in one)


def test_a_training_killed_after_its_last_step_takes_no_more_steps(
    tmp_path: Path,
    policy_folder: str,
    rows: list[tuple[Sample, str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """From a checkpoint of its last step TRL would go on."""

    def die(self: PeftModel) -> None:
        raise Killed

    kind = settings(steps=2, save_steps=1)
    whole = sft(policy_folder, rows, kind, here(tmp_path / "whole"))
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(PeftModel, "merge_and_unload", die, raising=False)
        sft(policy_folder, rows, kind, here(tmp_path / "parts"))
    assert [p.name for p in (tmp_path / "parts/trl").glob("checkpoint-*")] == ["checkpoint-1"]
    steps: list[int] = []
    to = here(tmp_path / "parts", progress=lambda done, total: steps.append(done))
    again = sft(policy_folder, rows, kind, to)
    assert (steps, again.steps, whole.steps) == ([2], 2, 2)
    one, other = (load_file(tmp_path / n / "checkpoint/model.safetensors") for n in NAMES)
    assert all(torch.allclose(one[k], other[k], atol=1e-6) for k in one)


# --- the judge ------------------------------------------------------------------------------


def labelled(n: int) -> list[LabelledPair]:
    """The response that says `true` is better; if neither does, it is neutral."""
    kinds = [("true", "wrong", "first"), ("wrong", "true", "second"), ("wrong", "wrong", "neutral")]
    return [
        LabelledPair(f"s{i}", "What is 7 minus 3?", "", first, second, verdict)  # type: ignore[arg-type]
        for i in range(n)
        for first, second, verdict in [kinds[i % 3]]
    ]


def test_the_judge_learns_a_simple_rule(tmp_path: Path, judge_folder: str) -> None:
    prompt = "{{ question }} First: {{ first }} Second: {{ second }} Better:"
    kind = settings(lora=None, learning_rate=1e-3, steps=25, batch_size=12)
    trained = train_judge(judge_folder, labelled(12), kind, prompt, here(tmp_path))
    assert (trained.rows, trained.steps) == (24, 25)  # both orders
    assert trained.curve[-1]["loss"] < trained.curve[0]["loss"] / 2
    judge = RScorer(str(tmp_path / "checkpoint"), prompt, device="cpu")
    sample = Sample("s", "", "What is 7 minus 3?", "")
    for pair in labelled(3):
        first, second = (
            Candidate("s", i, t, (), (), (), True) for i, t in enumerate((pair.first, pair.second))
        )
        (ahead, back) = judge.judge(
            [Comparison(sample, first, second), Comparison(sample, second, first)]
        )
        swapped = {"first": "second", "second": "first", "neutral": "neutral"}
        assert ahead.verdict == pair.verdict
        assert back.verdict == swapped[pair.verdict]


def test_overlong_prompts_of_the_judge_are_left_out_and_named(
    tmp_path: Path, judge_folder: str
) -> None:
    pairs = labelled(3)
    long = LabelledPair("long", "What is 7?", "red " * 100, "true", "wrong", "first")
    prompt = "{{ facts }} First: {{ first }} Second: {{ second }} Better:"
    trained = train_judge(
        judge_folder, [*pairs, long], settings(max_length=60), prompt, here(tmp_path)
    )
    assert trained.rows == 6
    assert [(d.sample_id, d.reason) for d in trained.drops] == [("long", "overlong")] * 2


# --- stopping, memory, explosions, damaged checkpoints --------------------------------------


def weights(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "checkpoint/model.safetensors")


def same(one: Path, other: Path) -> bool:
    a, b = weights(one), weights(other)
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_a_training_that_is_stopped_goes_on_as_if_it_had_not_been(
    tmp_path: Path, policy_folder: str, pairs: list[tuple[Sample, PreferencePair]]
) -> None:
    """In mid-epoch, between two figures of the curve, with dropout; `save_steps` is not set."""
    lora = Lora(rank=4, alpha=8, dropout=0.3)
    kind = Dpo(learning_rate=1e-2, batch_size=1, micro_batch_size=1, steps=42, lora=lora)

    def train(to: Run) -> Trained:
        return dpo(policy_folder, pairs, kind, to)

    def ask(done: int, total: int) -> None:
        if done == 10:
            stopping.ask()  # heeded at the end of step 11, of which none is a multiple of 2

    whole = train(here(tmp_path / "whole"))
    saved: list[str] = []
    to = here(tmp_path / "parts", progress=ask, saved=lambda folder: saved.append(folder.name))
    try:
        with pytest.raises(stopping.Stopped):
            train(to)
    finally:
        stopping.forget()
    assert saved == ["checkpoint-11"]
    assert not (tmp_path / "parts/checkpoint").exists()
    torch.manual_seed(99)
    parts = train(here(tmp_path / "parts"))
    assert same(tmp_path / "whole", tmp_path / "parts")
    assert len(whole.curve) == 21  # a figure every second step
    assert [row["step"] for row in parts.curve] == [row["step"] for row in whole.curve]
    for one, other in zip(whole.curve, parts.curve, strict=True):
        assert other == pytest.approx(one, rel=1e-6), one["step"]


def test_a_wish_to_stop_at_the_last_step_lets_the_training_end(
    tmp_path: Path, policy_folder: str, rows: list[tuple[Sample, str]]
) -> None:
    stopping.ask()
    try:
        assert sft(policy_folder, rows, settings(), here(tmp_path)).steps == 1
    finally:
        stopping.forget()


@pytest.mark.parametrize("damage", ["flipped", "cut"])
def test_a_damaged_checkpoint_is_never_loaded(
    tmp_path: Path, policy_folder: str, rows: list[tuple[Sample, str]], damage: str
) -> None:
    kind = settings(steps=6, batch_size=2, save_steps=2)
    sft(policy_folder, rows, kind, here(tmp_path / "whole"))
    with pytest.raises(Killed):
        sft(policy_folder, rows, kind, here(tmp_path / "parts", progress=kill_after(5)))
    adapter = tmp_path / "parts/trl/checkpoint-4/adapter_model.safetensors"
    data = bytearray(adapter.read_bytes())
    data[-5] ^= 64  # in the weights: it would load, and train on
    adapter.write_bytes(data if damage == "flipped" else data[:-5])
    steps: list[int] = []
    to = here(tmp_path / "parts", progress=lambda done, total: steps.append(done))
    sft(policy_folder, rows, kind, to)
    assert steps == [3, 4, 5, 6]  # from the one before
    assert same(tmp_path / "whole", tmp_path / "parts")


def starve(monkeypatch: pytest.MonkeyPatch, most: int) -> list[int]:
    """A machine whose memory holds so many rows a forward pass; gives the sizes that were tried."""
    step, tried = SFTTrainer.training_step, list[int]()

    def training_step(self: SFTTrainer, model: object, inputs: Any, *more: Any) -> torch.Tensor:
        tried.append(len(inputs["input_ids"]))
        if tried[-1] > most and self.state.global_step >= 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return step(self, model, inputs, *more)

    monkeypatch.setattr(SFTTrainer, "training_step", training_step)
    return tried


def test_memory_that_runs_out_halves_the_forward_pass_and_not_the_batch(
    tmp_path: Path,
    policy_folder: str,
    rows: list[tuple[Sample, str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kind = settings(steps=6, save_steps=2, learning_rate=1e-3)
    with monkeypatch.context() as patch:
        tried = starve(patch, most=1)
        for micro in (4, 2):
            with pytest.raises(stopping.Again, match=f"{micro} samples .* from step 2 with "):
                sft(policy_folder, rows, kind, here(tmp_path / "parts"))
        trained = sft(policy_folder, rows, kind, here(tmp_path / "parts"))
    # 3 steps and the one that failed; from step 2 on 1 step of 2 passes, and again; then 4 steps
    assert tried == [4] * 4 + [2] * 3 + [1] * 16
    assert (trained.steps, trained.lowered) == (6, 1)
    assert sft(policy_folder, rows, kind, here(tmp_path / "whole")).lowered is None
    one, other = (load_file(tmp_path / n / "checkpoint/model.safetensors") for n in NAMES)
    assert all(torch.allclose(one[k], other[k], atol=1e-5) for k in one)


def test_memory_for_no_sample_at_all_is_an_error(
    tmp_path: Path,
    policy_folder: str,
    rows: list[tuple[Sample, str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    starve(monkeypatch, most=0)
    kind = settings(steps=6, micro_batch_size=1)
    with pytest.raises(TrainingError, match=r"out of memory with one sample .*max_length"):
        sft(policy_folder, rows, kind, here(tmp_path))


def test_a_loss_that_explodes_ends_the_training_and_keeps_what_was_good(
    tmp_path: Path,
    policy_folder: str,
    rows: list[tuple[Sample, str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Step 5 ruins the weights: from step 6 on the loss is far beyond all before, and finite."""
    kind = settings(steps=12, save_steps=1, learning_rate=1e-3, lora=None)
    losses: list[float] = []
    log = SFTTrainer.log

    def ruin(done: int, total: int) -> None:
        if done == 5:
            model.append(True)

    model: list[bool] = []

    def watched(self: SFTTrainer, logs: dict[str, float], *more: Any) -> None:
        losses.extend([logs["loss"]] if "loss" in logs else [])
        if len(model) == 1:
            model.append(True)
            with torch.no_grad():
                self.model.lm_head.weight.mul_(50)
        log(self, logs, *more)

    monkeypatch.setattr(SFTTrainer, "log", watched)
    with pytest.raises(TrainingError, match=r"the loss exploded to .* by step 8; lower") as told:
        sft(policy_folder, rows, kind, here(tmp_path, progress=ruin))
    assert min(losses[5:]) > 2 * max(losses[:5]) + 2
    assert [p.name for p in checkpoints(tmp_path / "trl")] == ["checkpoint-5"]
    assert "trl/checkpoint-5" in str(told.value)
    assert not (tmp_path / "checkpoint").exists()
