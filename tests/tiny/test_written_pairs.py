"""POVID, STIC and HA-DPO: pairs that are written, and what of them is dropped and counted."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest

from selfcal import search
from selfcal.corruption import CORRUPTIONS, noise
from selfcal.image import load_image
from selfcal.methods import ha_dpo, stic
from selfcal.methods.parts.writing import Made, each
from selfcal.miniworld.verifier import verify
from selfcal.pipeline import plan
from selfcal.policy import load_policy
from selfcal.recipe import Recipe, RecipeError, load_recipe
from selfcal.stage import Stage, Work
from selfcal.store import StageDir
from selfcal.teacher import MiniWorldTeacher
from selfcal.testing import ScriptedTeacher
from selfcal.types import Drop, PreferencePair, Sample, WrittenRap

RECIPES = Path(__file__).parents[2] / "recipes"
STAGE = "iter-1/pairs"


def recipe(method: str, policy_folder: str, **more: Any) -> Recipe:
    values: dict[str, Any] = {
        "name": "test",
        "method": method,
        "iterations": 1,
        "rft": None,
        "data": {"calibration": 12},
        "policy": {"model": policy_folder, "device": "cpu"},
        "teacher": {"kind": "miniworld", "error_rate": 0.0},
    }
    return Recipe.model_validate(values | more)


def work_of(made: Recipe, run: Path, samples: list[Sample]) -> Work:
    stage: Stage = next(s for s in plan(made) if s.name == STAGE)
    data = StageDir(run / "data", "data")
    data.open()
    data.write_shard("calibration", 0, samples, Sample)
    folder = StageDir(run / STAGE, "pairs")
    folder.open()
    return Work(run, stage, folder, {"data": data}, 0)


def pairs_of(work: Work) -> list[PreferencePair]:
    return work.folder.read("pairs", PreferencePair)


def drops_of(work: Work) -> list[Drop]:
    return work.folder.read("drops", Drop)


def tokens(policy_folder: str, texts: Iterable[str]) -> int:
    tokenizer = load_policy(policy_folder, device="cpu").tokenizer
    return sum(len(tokenizer(t, add_special_tokens=False)["input_ids"]) for t in texts)


# --- POVID ----------------------------------------------------------------------------------


def test_povid_spoils_text_and_image(
    tmp_path: Path, policy_folder: str, samples: list[Sample]
) -> None:
    own = recipe("povid", policy_folder, options={"noise": 4})
    work = work_of(own, tmp_path, samples)
    stats = work.stage.run(work)
    teacher = MiniWorldTeacher(0.0, 0)
    made = pairs_of(work)
    assert [p.sample_id for p in made] == [s.id for s in samples] and not drops_of(work)
    for s, p in zip(samples, made, strict=True):
        assert p.chosen == teacher.write(s) and not verify(s, p.rejected).reliable
        assert (p.chosen_index, p.rejected_index, p.margin) == (-1, -1, 1.0)
        assert p.rejected_image.startswith("iter-1/pairs/images/")  # the run can be moved
        expected = noise(load_image(Path(s.image)), 4, f"0|{STAGE}|{s.id}")
        assert load_image(tmp_path / p.rejected_image).tobytes() == expected.tobytes()
        assert (tmp_path / p.rejected_image).parent == work.folder.images(0)
    assert len({p.rejected_image for p in made}) == 12
    assert work.folder.sealed(0)
    (tmp_path / made[3].rejected_image).unlink()
    assert not work.folder.sealed(0)
    texts = [t for p in made for t in (p.chosen, p.rejected)]
    assert stats == {"pairs": 12, "drops": {}, "tokens": tokens(policy_folder, texts)}


def test_povid_drops_what_the_teacher_gets_wrong(
    tmp_path: Path, policy_folder: str, samples: list[Sample]
) -> None:
    """The last sample's reference answer is another one than the teacher's."""
    wrong = [*samples[:-1], replace(samples[-1], answer="seventeen", id="../strange id")]
    work = work_of(recipe("povid", policy_folder), tmp_path, wrong)
    stats = work.stage.run(work)
    (drop,) = drops_of(work)
    assert (drop.sample_id, drop.reason) == ("../strange id", "answer-disagrees")
    # what was written for it counts all the same
    written = work.folder.read("written", WrittenRap)
    assert len(written) == 2 * 11 + 1 and written[-1].sample_id == "../strange id"
    assert stats["tokens"] == tokens(policy_folder, (w.text for w in written))


class Killed(BaseException):
    pass


@pytest.mark.parametrize("budget", [None, 300])
def test_a_killed_stage_goes_on_to_the_same_pairs(
    tmp_path: Path,
    policy_folder: str,
    samples: list[Sample],
    budget: int | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("selfcal.methods.parts.writing.SHARD", 3)
    own = recipe("povid", policy_folder, budget=budget)
    whole = work_of(own, tmp_path / "whole", samples)
    figures = whole.stage.run(whole)

    def die(done: int, total: int) -> None:
        if done == 5:
            raise Killed

    parts = replace(work_of(own, tmp_path / "parts", samples), progress=die)
    with pytest.raises(Killed):
        parts.stage.run(parts)
    again = work_of(own, tmp_path / "parts", samples)
    assert again.stage.run(again) == figures
    assert pairs_of(again) == pairs_of(whole) and drops_of(again) == drops_of(whole)


def test_the_budget_is_spent_in_the_samples_order(
    tmp_path: Path, policy_folder: str, samples: list[Sample]
) -> None:
    free = work_of(recipe("povid", policy_folder), tmp_path / "free", samples)
    free.stage.run(free)
    cost = [tokens(policy_folder, (p.chosen, p.rejected)) for p in pairs_of(free)]
    budget = sum(cost[:4]) + 1  # the fifth is begun and done in full
    work = work_of(recipe("povid", policy_folder, budget=budget), tmp_path / "cut", samples)
    stats = work.stage.run(work)
    assert pairs_of(work) == pairs_of(free)[:5]
    assert stats["tokens"] == sum(cost[:5])
    assert [(d.sample_id, d.reason) for d in drops_of(work)] == [
        (s.id, "budget") for s in samples[5:]
    ]


# --- STIC -----------------------------------------------------------------------------------


def echo(policy: Any, asked: Iterable[Sample], limit: int, **_: Any) -> Iterator[str]:
    """Responds with the question and how much the image differs from a clean one."""
    for s in asked:
        yield f"{s.question} [{load_image(Path(s.image)).tobytes().hex()}]"


PROMPTS = {"step_by_step": "Look. {question} {x}", "misleading": "Guess: {question}"}


def test_stic_asks_well_and_badly_in_turn(
    tmp_path: Path, policy_folder: str, samples: list[Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search, "respond", echo)
    own = recipe("stic", policy_folder, options={**PROMPTS, "strength": 5})
    work = work_of(own, tmp_path, samples)
    work.stage.run(work)
    kinds = ["jitter", "low-resolution"]
    for i, (s, p) in enumerate(zip(samples, pairs_of(work), strict=True)):
        clean = load_image(Path(s.image))
        assert p.chosen == f"Look. {s.question} {{x}} [{clean.tobytes().hex()}]"
        if i % 2:
            assert p.rejected == f"Guess: {s.question} [{clean.tobytes().hex()}]"
        else:
            spoiled = CORRUPTIONS[kinds[i // 2 % 2]](clean, 5, f"0|{STAGE}|{s.id}")
            assert p.rejected == f"{s.question} [{spoiled.tobytes().hex()}]"
        assert p.rejected_image == ""
    assert not list(work.out.rglob("*.png"))


def test_stic_drops_equal_responses(
    tmp_path: Path, policy_folder: str, samples: list[Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    def deaf(policy: Any, asked: Iterable[Sample], limit: int, **_: Any) -> Iterator[str]:
        return (f"{s.id} {s.question.startswith('Guess')}" for s in asked)

    monkeypatch.setattr(search, "respond", deaf)
    work = work_of(recipe("stic", policy_folder, options=PROMPTS), tmp_path, samples)
    stats = work.stage.run(work)
    assert (stats["pairs"], stats["drops"]) == (6, {"same": 6})


def test_stic_with_a_real_policy(tmp_path: Path, policy_folder: str, samples: list[Sample]) -> None:
    own = recipe("stic", policy_folder, evaluate={"max_new_tokens": 8})
    work = work_of(own, tmp_path, samples)
    stats = work.stage.run(work)
    assert stats["pairs"] + sum(stats["drops"].values()) == 12  # type: ignore[operator, union-attr]
    assert len(work.folder.read("written", WrittenRap)) == 24


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"misleading": "Guess"}, "a prompt needs {question}"),
        ({"corruptions": []}, "one corruption at least"),
        ({"corruptions": ["fog"]}, "options.*corruptions"),
        ({"strength": 6}, "strength"),
        ({"strenth": 3}, "did you mean `strength`"),
    ],
)
def test_stic_refuses_bad_options(policy_folder: str, options: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        plan(recipe("stic", policy_folder, options=options))


def test_stic_knows_all_corruptions() -> None:
    (kinds, _) = get_args(stic.Options.model_fields["corruptions"].annotation)
    assert set(get_args(kinds)) == set(CORRUPTIONS)


# --- HA-DPO ---------------------------------------------------------------------------------


def test_ha_dpo_prefers_what_was_mended(samples: list[Sample]) -> None:
    s = samples[0]
    teacher = ScriptedTeacher(
        lambda s: "",
        mends=lambda s, text: text.replace("7", "8"),
        restyles=lambda s, text: f"Plainly, {text.strip()}",
    )
    made = ha_dpo.mended(teacher, s, "It is 7.")
    expected = PreferencePair(s.id, "Plainly, It is 8.", "Plainly, It is 7.", -1, -1, 1.0, 0.0)
    assert made.outcome == expected
    assert made.written == ("It is 7.", "It is 8.", "Plainly, It is 8.", "Plainly, It is 7.")
    nothing = ha_dpo.mended(teacher, s, "It is 9.")
    assert nothing == Made(Drop(s.id, "pairs", "nothing-to-mend"), ("It is 9.", "It is 9."))
    looks = replace(teacher, mends=lambda s, text: f"{text}\n  Yes.", restyles=lambda s, text: "9")
    assert ha_dpo.mended(looks, s, "It is 9.").outcome == nothing.outcome


def test_ha_dpo_mends_the_policys_own_responses(
    tmp_path: Path, policy_folder: str, samples: list[Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = MiniWorldTeacher(0.0, 0)
    faulty = {s.id for s in samples[::3]}

    def say(policy: Any, asked: Iterable[Sample], limit: int, **_: Any) -> Iterator[str]:
        for s in asked:
            gold = teacher.write(s)
            yield teacher.spoil(s, gold) if s.id in faulty else gold

    monkeypatch.setattr(search, "respond", say)
    work = work_of(recipe("ha_dpo", policy_folder), tmp_path, samples)
    stats = work.stage.run(work)
    assert (stats["pairs"], stats["drops"]) == (4, {"nothing-to-mend": 8})
    by_id = {s.id: s for s in samples}
    for p in pairs_of(work):
        assert p.chosen == teacher.write(by_id[p.sample_id])
        assert not verify(by_id[p.sample_id], p.rejected).reliable


# --- all of them ----------------------------------------------------------------------------


def test_an_endpoint_is_asked_side_by_side_and_in_order(policy_folder: str) -> None:
    import threading

    own = recipe("ha_dpo", policy_folder, teacher={"kind": "endpoint", "model": "m"})
    together = threading.Barrier(16, timeout=30)  # nobody goes on before 16 have come

    def ask(i: int) -> Made:
        together.wait()
        return Made(Drop(str(i), "pairs", "same"), ())

    found = [m.outcome.sample_id for m in each(own, ask, iter(range(32)))]
    assert found == [str(i) for i in range(32)]


@pytest.mark.parametrize("name", ["povid", "stic", "ha-dpo"])
def test_the_recipes_plan(name: str) -> None:
    made = load_recipe(RECIPES / f"miniworld-{name}.yaml")
    assert made.method == name.replace("-", "_") and made.data.calibration == 1800
    stages = [s.name for s in plan(made)]
    assert stages[-3:] == ["iter-3/pairs", "iter-3/dpo", "eval/iter-3"]
