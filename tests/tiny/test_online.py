"""Online trainings of tiny models: TRL takes the advantages it is given, and all is on record."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import trl
from peft import PeftModel
from PIL import Image
from safetensors.torch import load_file
from transformers import (
    AutoModelForImageTextToText,
    ProcessorMixin,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessorPil,
)
from trl import GRPOTrainer

from selfcal.advantage import Groups, group_advantages
from selfcal.miniworld.models import build_processor, build_tokenizer
from selfcal.policy import Policy, load_policy
from selfcal.recipe import Grpo
from selfcal.stopping import Again
from selfcal.store import StageDir
from selfcal.testing import _randomize
from selfcal.train import Graded, Group, Ledger, Run, Trained, TrainingError, common, grpo
from selfcal.types import Rollout, Sample
from tiny.conftest import talk
from tiny.families import TEXT

# --- policies that can be trained -----------------------------------------------------------


class Pictures(Qwen2_5_VLProcessor):
    """Qwen2.5-VL's processor without videos, which would want torchvision."""

    def __init__(self, image_processor: Any, tokenizer: Any, chat_template: str) -> None:
        self.image_token, self.video_token = "<image>", "<video>"
        self.image_token_id = tokenizer.convert_tokens_to_ids("<image>")
        self.video_token_id = tokenizer.convert_tokens_to_ids("<video>")
        ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=chat_template)


def pictures() -> Pictures:
    """It writes the more image tokens the larger the image is: one for 16 x 16 pixels."""
    tokenizer = build_tokenizer()
    template = build_processor(tokenizer).chat_template
    tokenizer.add_tokens(["<video>"], special_tokens=True)
    seer = Qwen2VLImageProcessorPil(
        patch_size=8, merge_size=2, min_pixels=16 * 16, max_pixels=128 * 128
    )
    return Pictures(seer, tokenizer, template)


def tiny_qwen(folder: Path) -> str:
    """Save a Qwen2.5-VL of random weights, without its processor."""
    known = pictures()
    end = known.tokenizer.eos_token_id
    rope = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 1e4}
    config = Qwen2_5_VLConfig(
        text_config=TEXT | {
            "vocab_size": len(known.tokenizer), "rope_parameters": rope, "eos_token_id": end,
            "pad_token_id": known.tokenizer.pad_token_id,
        },
        vision_config={
            "depth": 2, "hidden_size": 32, "num_heads": 2, "intermediate_size": 64,
            "out_hidden_size": 32, "patch_size": 8, "fullatt_block_indexes": [1], "window_size": 32,
        },
        image_token_id=known.image_token_id, video_token_id=known.video_token_id,
        vision_start_token_id=end, vision_end_token_id=end,
    )  # fmt: skip
    model = Qwen2_5_VLForConditionalGeneration(config)
    _randomize(model, 0)
    model.save_pretrained(folder)
    return str(folder)


def loaded(name: str, dtype: str = "float32", device: str = "cpu", *_: object) -> Policy:
    """A policy that likes to say sentences and never says an image, as random weights would."""
    if Path(name, "processor_config.json").exists():
        policy = load_policy(name, dtype, device)
    else:
        model = AutoModelForImageTextToText.from_pretrained(name, dtype=dtype)
        policy = Policy(model.eval(), pictures(), device)
    policy.model.lm_head.register_forward_hook(talk(policy))
    return policy


@pytest.fixture(scope="module", autouse=True)
def talking() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(common, "load_policy", loaded)
        yield


# --- a grading, and trainings with it -------------------------------------------------------


def noise(group: Group, batch: int) -> list[float]:
    """A reward for each response."""
    rng = random.Random(f"{batch}|{group.sample.id}")
    return [rng.gauss(0, 1) for _ in group.texts]


def upside_down(rewards: Groups) -> Groups:
    """What no normalization of these rewards would give."""
    return 2 * (rewards.mean(axis=1, keepdims=True) - rewards)


@dataclass
class Scripted:
    """A grading by functions; what it learns depends on the batches, their order, and the judge."""

    rewards: Callable[[Group, int], list[float]] = noise
    advantages: Callable[[Groups], Groups] = upside_down
    asked: int = 0
    """Responses that were shown to the judge."""
    batches: list[list[Graded]] = field(default_factory=list)
    learned: float = 1.0

    @property
    def figures(self) -> Mapping[str, float]:
        return {"learned": self.learned}

    def judge(self, groups: Sequence[Group]) -> list[list[tuple[float, ...]]]:
        self.asked += sum(len(g.texts) for g in groups)
        return [[(len(t) / 3, math.nan) for t in g.texts] for g in groups]

    def weigh(
        self, groups: Sequence[Group], judged: Sequence[Sequence[tuple[float, ...]]]
    ) -> list[list[Graded]]:
        rewards = np.array([self.rewards(g, len(self.batches)) for g in groups])
        worth = zip(groups, judged, rewards, self.advantages(rewards), strict=True)
        graded = [
            [
                Graded(float("7" in text), "3" in text, own, float(reward), float(advantage))
                for text, own, reward, advantage in zip(g.texts, *found, strict=True)
            ]
            for g, *found in worth
        ]
        self.batches.append([one for own in graded for one in own])
        self.learned = self.learned / 2 + sum(one.judged[0] for one in self.batches[-1])
        return graded


LORA = {"rank": 4, "alpha": 8}


@dataclass(frozen=True)
class Ran:
    """A training and what it left."""

    trained: Trained
    rollouts: list[Rollout]
    grading: Scripted
    ledger: Ledger

    @property
    def out(self) -> Path:
        return self.ledger.folder.path


def train(
    out: Path,
    model: str,
    samples: Sequence[Sample],
    grading: Scripted | None = None,
    limit: int | None = None,
    killed_at: int = 0,
    **settings: object,
) -> Ran:
    """Train in a stage's folder `grpo`: batches of two groups of four."""
    folder = StageDir(out / "grpo", "fingerprint")
    folder.open()
    values = {"learning_rate": 1e-3, "batch_size": 8, "group": 4, "steps": 2, "max_new_tokens": 8}
    kind = Grpo.model_validate(values | {"lora": LORA} | settings)

    def progress(done: int, total: int) -> None:
        if done == killed_at:
            raise Killed

    ledger, grading = Ledger(folder, limit), grading or Scripted()
    run = Run(folder.path, seed=7, device="cpu", progress=progress)
    trained = grpo(model, samples, kind, grading, ledger, run)
    return Ran(trained, folder.read("rollouts", Rollout), grading, ledger)


class Killed(BaseException):
    pass


def same(one: Sequence[Rollout], other: Sequence[Rollout]) -> bool:
    """Whether they are equal; NaN equals NaN."""
    return list(map(repr, one)) == list(map(repr, other))


def tokens_of(rollouts: Sequence[Rollout], *steps: int) -> int:
    return sum(r.tokens for r in rollouts if r.step in steps)


def weights(ran: Ran) -> dict[str, torch.Tensor]:
    return load_file(ran.out / "checkpoint/model.safetensors")


Batches = list[dict[str, torch.Tensor]]


def watched(patch: pytest.MonkeyPatch) -> Batches:
    """All that TRL computes a loss of from now on, micro-batch by micro-batch."""
    seen: Batches = []
    compute = GRPOTrainer._compute_loss

    def watch(self: GRPOTrainer, model: object, inputs: dict[str, Any]) -> torch.Tensor:
        seen.append({k: v.clone() for k, v in inputs.items() if isinstance(v, torch.Tensor)})
        return compute(self, model, inputs)

    patch.setattr(GRPOTrainer, "_compute_loss", watch)
    return seen


@pytest.fixture(scope="module")
def whole(
    tmp_path_factory: pytest.TempPathFactory, policy_folder: str, samples: list[Sample]
) -> Ran:
    """Four batches of all different samples, undisturbed."""
    return train(tmp_path_factory.mktemp("whole"), policy_folder, samples[:8], **LONG)


LONG: dict[str, Any] = {"steps": 4, "save_steps": 2}

# --- two steps of two families --------------------------------------------------------------


@dataclass(frozen=True)
class Taken:
    """Two steps of a family."""

    model: str
    samples: Sequence[Sample]
    ran: Ran
    seen: Batches
    """Of two responses each."""


@pytest.fixture(scope="module", params=["llava", "qwen2_5_vl"])
def taken(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    policy_folder: str,
    samples: list[Sample],
) -> Taken:
    folder = tmp_path_factory.mktemp(request.param)
    model = policy_folder if request.param == "llava" else tiny_qwen(folder / "model")
    own = []
    for sample, size in zip(samples, [(48, 48), (64, 48), (48, 80), (32, 48)], strict=False):
        own.append(replace(sample, image=str(folder / f"{sample.id}.png")))
        Image.open(sample.image).resize(size).save(own[-1].image)
    with pytest.MonkeyPatch.context() as patch:
        seen = watched(patch)
        ran = train(folder, model, own, learning_rate=1e-2, micro_batch_size=2)
    return Taken(model, own, ran, seen)


def test_every_response_is_on_record_in_its_group(taken: Taken) -> None:
    ran, rollouts = taken.ran, taken.ran.rollouts
    assert (ran.trained.steps, ran.trained.rows, ran.trained.drops) == (2, 4, ())
    assert [(r.step, r.index) for r in rollouts] == [
        (step, i) for step in (0, 1) for _ in range(2) for i in range(4)
    ]
    groups = [rollouts[at : at + 4] for at in range(0, 16, 4)]
    assert all(len({r.sample_id for r in g}) == 1 for g in groups)
    assert sorted(g[0].sample_id for g in groups) == [s.id for s in taken.samples]
    assert len({r.text for r in rollouts}) > 8
    graded = [one for batch in ran.grading.batches for one in batch]
    assert [repr((r.correct, r.compliant, r.judged, r.reward, r.advantage)) for r in rollouts] == [
        repr((g.correct, g.compliant, g.judged, g.reward, g.advantage)) for g in graded
    ]
    assert len({r.compliant for r in rollouts}) == 2
    assert ran.ledger.spent == sum(r.tokens for r in rollouts)
    assert ran.trained.curve[-1]["learned"] == pytest.approx(ran.grading.learned)


def test_trl_sees_each_response_with_its_own_prompt_image_and_advantage(taken: Taken) -> None:
    policy = loaded(taken.model)
    image = policy.tokenizer.convert_tokens_to_ids("<image>")
    alone = {s.id: policy.encode([s]) for s in taken.samples}
    found = []
    for batch in taken.seen:
        for row, pixels in enumerate(pixels_of(batch)):
            prompt = batch["prompt_ids"][row][batch["prompt_mask"][row].bool()]
            said = batch["completion_ids"][row][batch["completion_mask"][row].bool()]
            (mine,) = [n for n, b in alone.items() if torch.equal(b["input_ids"][0], prompt)]
            assert torch.equal(pixels, pixels_of(alone[mine])[0])
            assert (prompt == image).sum() >= 6 and image not in said  # the smallest has 6
            text = policy.tokenizer.decode(said, skip_special_tokens=True)
            found.append((mine, text, len(said), batch["advantages"][row].item()))
    expected = [(r.sample_id, r.text, r.tokens, r.advantage) for r in taken.ran.rollouts]
    assert len(taken.seen) == 8
    for (*one, given), (*other, advantage) in zip(sorted(found), sorted(expected), strict=True):
        assert one == other
        assert given == pytest.approx(advantage, abs=1e-6)


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_an_image_is_never_said_however_likely_it_is(
    tmp_path: Path,
    policy_folder: str,
    samples: list[Sample],
    monkeypatch: pytest.MonkeyPatch,
    family: str,
) -> None:
    """No image would belong to it."""
    model = policy_folder if family == "llava" else tiny_qwen(tmp_path / "model")

    def tempted(name: str, dtype: str = "float32", device: str = "cpu", *_: object) -> Policy:
        policy = loaded(name, dtype, device)
        image = policy.tokenizer.convert_tokens_to_ids("<image>")
        only_image = torch.arange(len(policy.tokenizer)) == image

        def prefer(module: object, args: object, out: torch.Tensor) -> torch.Tensor:
            return torch.where(only_image, out.amax(dim=-1, keepdim=True) + 2, out)

        policy.model.lm_head.register_forward_hook(prefer)
        return policy

    policy = tempted(model)
    image = policy.tokenizer.convert_tokens_to_ids("<image>")
    with torch.inference_mode():
        next_ones = policy.model(**policy.encode(samples[:2])).logits[:, -1].argmax(dim=-1)
    assert next_ones.tolist() == [image, image]
    monkeypatch.setattr(common, "load_policy", tempted)
    seen = watched(monkeypatch)
    ran = train(tmp_path, model, samples[:2], steps=1)
    assert image not in torch.cat([batch["completion_ids"] for batch in seen])
    assert len({r.text for r in ran.rollouts}) > 4  # other tokens are as likely as ever


def pixels_of(batch: Mapping[str, torch.Tensor]) -> list[torch.Tensor]:
    """The image of each row."""
    if "image_grid_thw" in batch:  # patches of all images in one row
        return list(batch["pixel_values"].split(batch["image_grid_thw"].prod(dim=1).tolist()))
    return list(batch["pixel_values"])


def test_the_merged_checkpoint_is_base_plus_adapter(taken: Taken) -> None:
    merged, base = (
        AutoModelForImageTextToText.from_pretrained(folder).eval()
        for folder in (taken.ran.out / "checkpoint", taken.model)
    )
    batch = loaded(taken.model).encode(taken.samples)
    real = batch["attention_mask"].bool()
    with torch.inference_mode():
        trained, untrained = merged(**batch).logits[real], base(**batch).logits[real]
        adapted = PeftModel.from_pretrained(base, taken.ran.out / "adapter").eval()
        assert torch.allclose(trained, adapted(**batch).logits[real], atol=1e-4)
    assert not torch.allclose(trained, untrained, atol=1e-2)


# --- settings -------------------------------------------------------------------------------


def test_what_is_set_is_what_trl_gets_and_it_can_train_all_weights(
    tmp_path: Path, policy_folder: str, samples: list[Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And `kl` is of the divergence from the policy that the training starts from."""
    made: list[trl.GRPOConfig] = []
    config = trl.GRPOConfig

    def keep(**given: Any) -> trl.GRPOConfig:
        made.append(config(**given))
        return made[-1]

    monkeypatch.setattr(trl, "GRPOConfig", keep)
    monkeypatch.setattr(common, "load_policy", load_policy)  # as TRL loads the other one
    unusual = {"kl": 0.3, "clip": 0.07, "top_p": 0.6, "temperature": 1.7, "loss": "bnpo"}
    ran = train(tmp_path, policy_folder, samples[:2], lora=None, steps=2, updates=2, **unusual)
    (args,) = made
    assert (args.beta, args.epsilon, args.top_p, args.temperature) == (0.3, 0.07, 0.6, 1.7)
    assert (args.loss_type, args.num_iterations, args.num_generations) == ("bnpo", 2, 4)
    assert (args.max_completion_length, args.scale_rewards) == (8, "none")
    first, second = (row["kl"] for row in ran.trained.curve)
    assert first == pytest.approx(0, abs=1e-6) and second > 1e-5
    assert ran.trained.steps == 2 and not (ran.out / "adapter").exists()
    start = load_file(Path(policy_folder) / "model.safetensors")
    changed = {k for k, v in weights(ran).items() if not torch.equal(v, start[k])}
    assert any("vision" in k for k in changed) and any("embed_tokens" in k for k in changed)


# --- advantages -----------------------------------------------------------------------------


def sevens(group: Group, batch: int) -> list[float]:
    """Which answers are right, as it were."""
    return [float("7" in text) for text in group.texts]


def test_correctness_gives_the_advantages_that_trl_makes_of_it(
    tmp_path: Path, policy_folder: str, samples: list[Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    """TRL is told to scale by group, and gets the rewards themselves."""
    still = {"steps": 4, "learning_rate": 1e-12}  # so that both say the same
    seen = watched(monkeypatch)
    ours = train(
        tmp_path / "ours", policy_folder, samples[:8], Scripted(sevens, group_advantages), **still
    )
    mine = seen.copy()
    seen.clear()
    config = trl.GRPOConfig
    monkeypatch.setattr(
        trl, "GRPOConfig", lambda **given: config(**given | {"scale_rewards": "group"})
    )
    theirs = train(
        tmp_path / "theirs", policy_folder, samples[:8], Scripted(sevens, lambda r: r), **still
    )
    assert [(r.text, r.reward) for r in ours.rollouts] == [
        (r.text, r.advantage) for r in theirs.rollouts
    ]
    for one, other in zip(mine, seen, strict=True):
        assert torch.equal(one["completion_ids"], other["completion_ids"])
        assert torch.allclose(one["advantages"], other["advantages"], atol=1e-5)
    values = torch.cat([batch["advantages"] for batch in mine])
    assert (values == 0).any() and (values > 0.5).any()  # groups of one kind, and mixed ones


def test_micro_batches_do_not_change_the_training(
    tmp_path: Path, policy_folder: str, samples: list[Sample], whole: Ran
) -> None:
    """3 does not divide 8, and is no whole group either."""
    parts = train(tmp_path, policy_folder, samples[:8], micro_batch_size=3, **LONG)
    assert same(parts.rollouts, whole.rollouts)
    norms = [[row["grad_norm"] for row in ran.trained.curve] for ran in (parts, whole)]
    assert norms[0] == pytest.approx(norms[1], rel=1e-3) and min(norms[0]) > 0


def test_all_updates_of_a_batch_are_on_the_same_responses(
    tmp_path: Path, policy_folder: str, samples: list[Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = watched(monkeypatch)
    ran = train(tmp_path, policy_folder, samples[:8], steps=6, updates=2)
    assert (ran.trained.steps, len(ran.grading.batches), ran.grading.asked) == (6, 3, 24)
    assert Counter(r.step for r in ran.rollouts) == {0: 8, 1: 8, 2: 8}
    assert ran.ledger.spent == sum(r.tokens for r in ran.rollouts)
    said = [batch["completion_ids"].tolist() for batch in seen]
    assert said[0::2] == said[1::2] and said[0] != said[2] != said[4]


# --- budgets --------------------------------------------------------------------------------


@pytest.mark.parametrize(("more", "batches"), [(0, 2), (1, 3)], ids=["just-spent", "one-left"])
def test_the_training_ends_with_the_batch_that_spends_the_budget(
    tmp_path: Path,
    policy_folder: str,
    samples: list[Sample],
    whole: Ran,
    more: int,
    batches: int,
) -> None:
    limit = tokens_of(whole.rollouts, 0, 1) + more
    ran = train(tmp_path, policy_folder, samples[:8], limit=limit, **LONG)
    assert same(ran.rollouts, whole.rollouts[: 8 * batches])
    assert ran.ledger.spent == sum(r.tokens for r in ran.rollouts) >= limit
    assert (ran.trained.steps, ran.ledger.over) == (batches, True)
    assert not whole.ledger.over and whole.ledger.spent == sum(r.tokens for r in whole.rollouts)
    # killed while it was saved: there is nothing left to spend
    again = train(tmp_path, policy_folder, samples[:8], limit=limit, **LONG)
    assert same(again.rollouts, ran.rollouts)
    assert (again.ledger.spent, again.grading.figures) == (ran.ledger.spent, ran.grading.figures)
    assert all(torch.allclose(v, weights(ran)[k], atol=1e-6) for k, v in weights(again).items())


def test_the_batch_that_spends_the_budget_gets_all_its_updates(
    tmp_path: Path, policy_folder: str, samples: list[Sample]
) -> None:
    ran = train(tmp_path, policy_folder, samples[:8], limit=1, steps=6, updates=3)
    assert (ran.trained.steps, {r.step for r in ran.rollouts}) == (3, {0})


# --- resuming -------------------------------------------------------------------------------


class Dying(Scripted):
    """Killed where it is asked about the first batch."""

    def judge(self, groups: Sequence[Group]) -> list[list[tuple[float, ...]]]:
        raise Killed


def shards(out: Path) -> list[str]:
    return sorted(p.name for p in (out / "grpo").glob("rollouts-*"))


def test_a_killed_training_goes_on_to_the_same(
    tmp_path: Path, policy_folder: str, samples: list[Sample], whole: Ran
) -> None:
    with pytest.raises(Killed):
        train(tmp_path, policy_folder, samples[:8], killed_at=3, **LONG)
    assert shards(tmp_path) == [f"rollouts-0000{i}.parquet" for i in range(3)]
    dying = Dying()
    with pytest.raises(Killed):
        train(tmp_path, policy_folder, samples[:8], dying, **LONG)
    # TRL's checkpoint is of step 2: what was sampled after it is gone, what came before is weighed
    assert shards(tmp_path) == [f"rollouts-0000{i}.parquet" for i in range(2)]
    assert repr(dying.batches) == repr(whole.grading.batches[:2])
    torch.manual_seed(99)
    parts = train(tmp_path, policy_folder, samples[:8], **LONG)
    assert same(parts.rollouts, whole.rollouts)
    assert repr(parts.grading.batches) == repr(whole.grading.batches)
    assert parts.grading.figures == whole.grading.figures
    assert parts.grading.asked == whole.grading.asked / 2 == 16  # the judge is not asked again
    assert parts.ledger.spent == whole.ledger.spent
    assert all(torch.allclose(v, weights(whole)[k], atol=1e-6) for k, v in weights(parts).items())


@pytest.mark.parametrize(
    "more",
    [{"micro_batch_size": 8}, {"micro_batch_size": 2}, {"updates": 2, "steps": 8, "save_steps": 6}],
    ids=["whole-batches", "micro-batches", "two-updates"],
)
def test_a_training_killed_in_its_second_epoch_goes_on_to_the_same(
    tmp_path: Path, policy_folder: str, samples: list[Sample], more: dict[str, Any]
) -> None:
    """Its order of samples is another one than the first epoch's: two batches of four samples."""
    longer = {"steps": 5, "save_steps": 3} | more
    undisturbed = train(tmp_path / "whole", policy_folder, samples[:4], **longer)
    order = [r.sample_id for r in undisturbed.rollouts if r.index == 0]
    assert sorted(order[:4]) == sorted(order[4:8]) and order[:4] != order[4:8]
    with pytest.raises(Killed):
        killed_at = longer["save_steps"] + 1
        train(tmp_path / "parts", policy_folder, samples[:4], killed_at=killed_at, **longer)
    torch.manual_seed(99)
    parts = train(tmp_path / "parts", policy_folder, samples[:4], **longer)
    assert same(parts.rollouts, undisturbed.rollouts)
    assert parts.grading.figures == undisturbed.grading.figures
    found, expected = weights(parts), weights(undisturbed)
    assert all(torch.allclose(v, expected[k], atol=1e-6) for k, v in found.items())


def test_a_training_killed_after_its_last_step_goes_on_to_the_same(
    tmp_path: Path,
    policy_folder: str,
    samples: list[Sample],
    whole: Ran,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """From a checkpoint of its last step TRL would take one more."""

    def die(self: PeftModel) -> None:
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(PeftModel, "merge_and_unload", die, raising=False)
        train(tmp_path, policy_folder, samples[:8], **LONG)
    assert len(shards(tmp_path)) == 4 and not (tmp_path / "grpo/checkpoint").exists()
    again = train(tmp_path, policy_folder, samples[:8], **LONG)
    assert again.trained.steps == whole.trained.steps == 4
    assert same(again.rollouts, whole.rollouts)
    assert again.ledger.spent == whole.ledger.spent
    assert again.grading.figures == whole.grading.figures
    assert again.grading.asked == 16  # about the batches after the checkpoint
    assert all(torch.allclose(v, weights(whole)[k], atol=1e-6) for k, v in weights(again).items())


def test_a_training_without_checkpoints_starts_over(
    tmp_path: Path, policy_folder: str, samples: list[Sample], whole: Ran
) -> None:
    bare = LONG | {"save_steps": None}
    with pytest.raises(Killed):
        train(tmp_path, policy_folder, samples[:8], killed_at=3, **bare)
    again = train(tmp_path, policy_folder, samples[:8], **bare | {"steps": 2})
    assert same(again.rollouts, whole.rollouts[:16])
    assert again.ledger.spent == tokens_of(whole.rollouts, 0, 1)
    assert again.grading.asked == 16


def test_a_training_killed_between_two_updates_counts_each_batch_once(
    tmp_path: Path, policy_folder: str, samples: list[Sample]
) -> None:
    """TRL keeps no responses: those of the batch that was cut in two are sampled anew."""
    twice = {"steps": 6, "updates": 2, "save_steps": 2}
    with pytest.raises(Killed):
        train(tmp_path, policy_folder, samples[:8], killed_at=3, **twice)
    assert len(shards(tmp_path)) == 2
    ran = train(tmp_path, policy_folder, samples[:8], **twice)
    assert Counter(r.step for r in ran.rollouts) == {0: 8, 1: 8, 2: 8}
    assert len({r.sample_id for r in ran.rollouts}) == 6  # no prompt twice
    assert (ran.trained.steps, len(ran.grading.batches), ran.grading.asked) == (6, 3, 16)
    assert ran.ledger.spent == sum(r.tokens for r in ran.rollouts)


def test_a_training_that_has_lost_responses_starts_over(
    tmp_path: Path, policy_folder: str, samples: list[Sample], whole: Ran
) -> None:
    with pytest.raises(Killed):
        train(tmp_path, policy_folder, samples[:8], killed_at=3, **LONG)
    (tmp_path / "grpo/rollouts-00001.parquet").write_bytes(b"PAR1")
    with pytest.raises(Again, match=r"00001\.parquet is missing or damaged, .* on from step 0$"):
        train(tmp_path, policy_folder, samples[:8], **LONG)
    again = train(tmp_path, policy_folder, samples[:8], **LONG)
    assert same(again.rollouts, whole.rollouts)
    assert (again.ledger.spent, again.grading.asked) == (whole.ledger.spent, 32)


# --- samples that are left out --------------------------------------------------------------


def test_overlong_prompts_are_left_out_and_named_never_cut(
    tmp_path: Path, policy_folder: str, samples: list[Sample]
) -> None:
    policy = load_policy(policy_folder, device="cpu")
    reach = {s.id: policy.encode([s])["input_ids"].shape[1] + 8 for s in samples[:4]}
    limit = sorted(set(reach.values()))[-2]  # the longest is over it, the next one just fits
    over = [name for name, n in reach.items() if n > limit]
    short = {"steps": 1, "batch_size": 4, "max_length": limit}
    ran = train(tmp_path, policy_folder, samples[:4], **short)
    assert [(d.sample_id, d.stage, d.reason, d.detail) for d in ran.trained.drops] == [
        (name, "grpo", "overlong", f"{reach[name]} tokens > {limit}") for name in over
    ]
    assert ran.trained.rows == 4 - len(over) > 0
    assert not {r.sample_id for r in ran.rollouts} & set(over)


def test_nothing_to_train_on_is_an_error(
    tmp_path: Path, policy_folder: str, samples: list[Sample]
) -> None:
    with pytest.raises(TrainingError, match="grpo: nothing to train on"):
        train(tmp_path, policy_folder, [])
    with pytest.raises(TrainingError, match="2 of 2 rows longer than max_length 10"):
        train(tmp_path, policy_folder, samples[:2], max_length=10)
    assert not (tmp_path / "grpo/checkpoint").exists()


def test_samples_that_fill_no_batch_are_an_error(
    tmp_path: Path, policy_folder: str, samples: list[Sample]
) -> None:
    """TRL leaves out what fills no batch, and would train on nothing without a word."""
    with pytest.raises(TrainingError, match=r"1 samples fill no batch of 2 .*lower grpo\.batch"):
        train(tmp_path, policy_folder, samples[:1])


# --- trainings that go wrong ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("poison", "told"),
    [
        (lambda loss: loss + math.nan, "the loss became nan by step 2"),
        # its gradient is none, and so are the weights that it leaves
        (lambda loss: loss * math.nan, "the weights became NaN or infinite"),
    ],
    ids=["loss", "weights"],
)
def test_a_loss_that_becomes_nan_is_an_error(
    tmp_path: Path,
    policy_folder: str,
    samples: list[Sample],
    monkeypatch: pytest.MonkeyPatch,
    poison: Callable[[torch.Tensor], torch.Tensor],
    told: str,
) -> None:
    compute = GRPOTrainer._compute_loss

    def poisoned(self: GRPOTrainer, model: object, inputs: dict[str, Any]) -> torch.Tensor:
        loss = compute(self, model, inputs)
        return poison(loss) if self.state.global_step == 1 else loss

    monkeypatch.setattr(GRPOTrainer, "_compute_loss", poisoned)
    with pytest.raises(TrainingError, match=f"grpo: {told}; lower the learning rate"):
        train(tmp_path, policy_folder, samples[:8], **LONG)
    assert len(shards(tmp_path)) == 2  # such weights sample nothing
    assert not list((tmp_path / "grpo").glob("trl/checkpoint-*"))
    assert not (tmp_path / "grpo/checkpoint").exists()


def test_a_learning_rate_that_is_far_too_high_is_an_error(
    tmp_path: Path, policy_folder: str, samples: list[Sample]
) -> None:
    """The loss of the first step is fine; weights that it leaves could not sample."""
    with pytest.raises(TrainingError, match=r"weights became NaN or infinite; lower the learning"):
        train(tmp_path, policy_folder, samples[:4], learning_rate=1e38)
    assert len(shards(tmp_path)) == 1
    assert not (tmp_path / "grpo/checkpoint").exists()
