"""The command line: what it prints, what it refuses, and that untrusted text cannot harm it."""

from __future__ import annotations

import io
import json
import logging
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from selfcal import __version__, planning
from selfcal.cost.counts import Pace, guess
from selfcal.errors import SelfcalError
from selfcal.executor import base as executor
from selfcal.lock import RunLock
from selfcal.pipeline import Planned
from selfcal.quiet import _LIBRARIES as quiet_libraries
from selfcal.recipe import Recipe
from selfcal.stage import Stage, Work
from selfcal.store import write_json
from selfcal.types import (
    Candidate,
    Drop,
    Judgment,
    PreferencePair,
    Response,
    Sample,
    WrittenRap,
)
from selfcal.types import Result as Measured
from selfcal.view import doctor, quiet
from selfcal.view.progress import LiveProgress, PlainProgress, Track
from selfcal.view.text import duration, key_figures, large, safe
from unit.hand_made import BAD, DIGITS, EVIL, GOOD, YAML, RunFolder, call, flat, sample


def response(name: str, text: str, right: bool) -> Response:
    return Response(
        name, "math", text, "5", True, right, right, not right, False, False, False, 2, 2
    )


def measured(checkpoint: str, metric: str, value: float, error: float, n: int) -> list[Measured]:
    return [
        Measured(checkpoint, split, category, metric, value, error, n, 0)
        for split in ("dev", "test")
        for category in ("all", "math", "chart")
    ]


@pytest.fixture
def empty(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "run")


@pytest.fixture
def made(empty: RunFolder) -> RunFolder:
    """A run with everything up to the pairs of iteration 1, and measured at seed and rft."""
    empty.finish(
        "data",
        {
            "rft": (Sample, [sample("rft-0")]),
            "calibration": (Sample, [sample("cal-0"), sample("cal-1")]),
            "dev": (Sample, [sample("dev-0")]),
            "test": (Sample, [sample("test-0")]),
        },
        {"samples": {"rft": 1, "calibration": 2}, "drops": {}},
    )
    for checkpoint, text, right, value in (("seed", BAD, False, 0.4), ("rft", GOOD, True, 0.912)):
        rows = measured(checkpoint, "answer_accuracy", value, 0.0104, 800)
        rows += measured(checkpoint, "alignment", float("nan"), float("nan"), 0)
        empty.finish(
            f"eval/{checkpoint}",
            {
                "dev": (Response, [response("dev-0", text, right)]),
                "test": (Response, [response("test-0", text, right)]),
                "results": (Measured, rows),
            },
        )
    empty.finish(
        "teacher",
        {"raps": (WrittenRap, [WrittenRap("rft-0", GOOD)]), "drops": (Drop, [])},
        {"raps": 1, "drops": {"answer-disagrees": 3}},
    )
    empty.finish(
        "rft", {"drops": (Drop, [])}, {"steps": 1, "curve": [{"loss": 1.5}, {"loss": 0.5}]}
    )
    for stage in ("judge/candidates", "judge/labels", "judge/train", "judge/quality"):
        empty.finish(stage)
    empty.finish(
        "iter-1/candidates",
        {
            "candidates": (
                Candidate,
                [
                    Candidate("cal-0", 0, GOOD, (GOOD,), (-1.25,), (9,), True),
                    Candidate("cal-0", 1, BAD, (BAD,), (-2.5,), (9,), False),
                    Candidate("cal-1", 0, EVIL, (EVIL,), (-2.5,), (9,), True),
                ],
            ),
            "drops": (Drop, []),
        },
    )
    empty.finish(
        "iter-1/judgments",
        {
            "judgments": (
                Judgment,
                [
                    Judgment("cal-0", 0, 1, "first", 0.8, 0.1, 0.1),
                    Judgment("cal-0", 1, 0, "second", 0.2, 0.7, 0.1),
                ],
            )
        },
    )
    empty.finish(
        "iter-1/pairs",
        {
            "pairs": (PreferencePair, [PreferencePair("cal-0", GOOD, BAD, 0, 1, 1.0, -1.0)]),
            "drops": (Drop, [Drop("cal-1", "pairs", "one-candidate")]),
        },
        {"pairs": 1, "drops": {"one-candidate": 1}},
        seconds=0.2,
    )
    return empty


# --- start ----------------------------------------------------------------------------------


def test_help_starts_without_heavy_libraries() -> None:
    code = (
        "import sys\n"
        "from selfcal.cli import app\n"
        "try: app(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'transformers', 'ray', 'pyarrow', 'pydantic', 'numpy', 'matplotlib'}\n"
        "print('heavy:', sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "heavy: []" in done.stdout
    commands = ("run", "plan", "status", "results", "trace", "doctor")
    for command in (*commands, "compare", "judge", "miniworld"):
        assert command in done.stdout


def test_version() -> None:
    assert call("--version").output == f"selfcal {__version__}\n"


@pytest.mark.parametrize(
    "command",
    [
        *("run", "plan", "status", "results", "trace", "doctor", "compare", "judge audit"),
        *("miniworld build", "miniworld train"),
    ],
)
def test_every_command_has_help(command: str) -> None:
    done = call(*command.split(), "--help")
    assert done.exit_code == 0
    assert "Usage" in done.output


def test_run_tells_of_the_profile() -> None:
    assert "--profile" in re.sub(r"\x1b\[[0-9;]*m", "", call("run", "--help").output)


# --- untrusted text -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain äß 日本 ±", "plain äß 日本 ±"),
        ("\x1b[2J", r"\x1b[2J"),
        ("\x1b]8;;http://x\x1b\\y", r"\x1b]8;;http://x\x1b" + "\\y"),
        ("\x9b31m", r"\x9b31m"),
        ("a\rb\x00\x08", r"a\rb\x00\x08"),
        ("abc\u202edef\u2066", r"abc\u202edef\u2066"),
        ("\u200e\ufeff\u2028\U000e0041", r"\u200e\ufeff\u2028\U000e0041"),
        ("\udc80", r"\udc80"),
        ("forged\nline\ttab", r"forged\nline\ttab"),
        ("[bold red]x[/] \\[y]", "[bold red]x[/] \\[y]"),
        ("\u06cc\u200c\u062e", "\u06cc\u200c\u062e"),
        ("", ""),
    ],
)
def test_safe(text: str, shown: str) -> None:
    assert safe(text) == shown
    safe(text).encode()


def test_safe_keeps_lines_where_asked() -> None:
    assert safe("a\nb\x1b", lines=True) == "a\nb\\x1b"


def test_markup_is_not_read(made: RunFolder) -> None:
    done = call("trace", made.path, "cal-1")
    assert r"\x1b[31m[bold]red[/bold]\u202e\x07" in done.output
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", done.output)


# --- words ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.2, "< 1 s"),
        (41.4, "41 s"),
        (60, "1 min"),
        (260, "4 min 20 s"),
        (3599, "1 h 00 min"),
        (7500, "2 h 05 min"),
    ],
)
def test_duration(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_large() -> None:
    assert [large(n) for n in (12, 12_400, 3_140_000)] == ["12", "12,400", "3.14 M"]


def test_key_figures() -> None:
    stats = {
        "pairs": 812,
        "drops": {"no-gap": 50, "below-margin": 38, "never": 0},
        "mean_margin": 0.6123,
        "agreement": {"value": 0.871, "stderr": 0.012, "n": 300},
        "curve": [{"loss": 2.0}, {"loss": 0.25}],
    }
    assert key_figures(stats) == (
        "812 pairs · mean margin 0.612 · agreement 0.871 ±0.012 · loss 2.000 → 0.250 · "
        "88 dropped (no-gap 50, below-margin 38)"
    )
    assert key_figures({"agreement": {"value": None, "stderr": None, "n": 0}}) == ""


# --- results --------------------------------------------------------------------------------


def test_results_json_is_exact(made: RunFolder) -> None:
    rows = json.loads(call("results", made.path, "--json").output)
    assert {tuple(row) for row in rows} == {
        ("checkpoint", "split", "category", "metric", "value", "stderr", "n", "seed")
    }
    # 2 checkpoints, 3 categories, 2 metrics; the split is test unless another is asked for
    assert len(rows) == 12
    assert {row["split"] for row in rows} == {"test"}
    assert rows[0] == {
        "checkpoint": "seed",
        "split": "test",
        "category": "all",
        "metric": "answer_accuracy",
        "value": 0.4,
        "stderr": 0.0104,
        "n": 800,
        "seed": 0,
    }
    nothing = next(r for r in rows if r["metric"] == "alignment")
    assert nothing["value"] is None
    assert nothing["stderr"] is None
    assert nothing["n"] == 0
    assert len(json.loads(call("results", made.path, "--json", "--split", "all").output)) == 24


def test_results_table(made: RunFolder) -> None:
    lines = call("results", made.path).output.splitlines()
    overall = next(line for line in lines if "answer_accuracy" in line)
    assert overall.split() == ["↑", "answer_accuracy", "0.400", "±0.010", "0.912", "±0.010", "800"]
    assert lines[1].split() == ["seed", "rft", "n"]
    assert next(line for line in lines if "alignment" in line).split()[2:] == ["–", "–", "0"]  # noqa: RUF001
    assert "Results on test: chart" in lines
    assert not any("dev" in line for line in lines)
    assert max(map(len, lines)) <= 110


def test_results_of_many_checkpoints_fit(made: RunFolder) -> None:
    from selfcal.view.results import show_results

    rows = [r for i in range(9) for r in measured(f"iter-{i}", "answer_accuracy", 0.5, 0.01, 800)]
    out = io.StringIO()
    show_results(Console(file=out, width=100, markup=False), rows, ["test"])
    assert all(f"iter-{i}" in out.getvalue() for i in range(9))
    tables = [line for line in out.getvalue().splitlines() if "±0.010" in line]
    assert max(map(len, tables)) <= 100


def test_results_of_nothing(empty: RunFolder) -> None:
    assert json.loads(call("results", empty.path, "--json").output) == []
    assert "Nothing was measured yet" in call("results", empty.path).output


@pytest.mark.parametrize("command", ["status", "results"])
def test_not_a_run(command: str, tmp_path: Path) -> None:
    done = call(command, tmp_path)
    assert done.exit_code == 1
    assert done.stdout == ""
    assert done.stderr.startswith(f"error: {tmp_path} is no run of selfcal")


# --- status ---------------------------------------------------------------------------------


def test_status(made: RunFolder) -> None:
    text = flat(call("status", made.path).output)
    assert "tiny · method src · 1 iteration · seed 0" in text
    assert "✓ teacher 2 s 1 raps · 3 dropped (answer-disagrees 3)" in text.replace(
        "1 rap ", "1 raps "
    )
    assert "loss 1.500 → 0.500" in text
    assert "· iter-1/dpo 1 step to do" in text
    assert "12 of 14 stages are finished" in text
    assert "none works on it" in text
    assert f"Next: selfcal run --out {made.path}" in text


def test_status_of_a_run_that_measures_nothing(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run", "method=povid", "rft=null", "evaluate.splits=[]")
    for stage in ("data", "iter-1/pairs", "iter-1/dpo"):
        run.finish(stage)
    (run.path / "iter-1/dpo/checkpoint").mkdir()
    text = flat(call("status", run.path).output)
    assert "3 of 3 stages are finished" in text
    assert f"Nothing is measured. The checkpoint: {run.path}/iter-1/dpo/checkpoint" in text


def test_status_of_a_run_in_work(made: RunFolder) -> None:
    folder = made.planned["iter-1/dpo"].folder
    folder.open()
    (folder.path / "shards").mkdir()
    for i in range(2):
        folder.mark(i).touch()
    assert "was interrupted: 2 shards are saved" in flat(call("status", made.path).output)
    with RunLock(made.path):
        text = flat(call("status", made.path).output)
    assert f"process {os.getpid()} on" in text
    assert "in work: 2 shards are saved, of 1 step" in text
    assert "Next: wait" in text


def test_status_survives_a_stale_lock(made: RunFolder) -> None:
    (made.path / ".lock").touch()
    write_json(made.path / ".lock-holder", {"pid": 1, "host": "x"})  # as a killed process leaves it
    assert "none works on it" in call("status", made.path).output


# --- trace ----------------------------------------------------------------------------------


def test_trace_of_a_calibration_sample(made: RunFolder) -> None:
    text = flat(call("trace", made.path, "cal-0").output)
    assert "cal-0 · calibration · math" in text
    assert str(made.path / "images/cal-0.png") in text.replace(" ", "")
    # averaged over both orders: p(0 better) = (0.8 + 0.7) / 2 = 0.75, the winner's confidence
    assert "#0 · score +1.000 · log-probability -1.25 · chosen" in text
    assert "#1 · score -1.000 · log-probability -2.50 · cut at the length limit · rejected" in text
    assert "#0 +0.75 #1 -0.75" in text
    assert "pair: #0 chosen over #1, margin 2.000 (+1.000 against -1.000)" in text
    assert "✗ counterfactual The left digit is 4." in text
    assert "✓ true The right digit is 3." in text


def test_trace_names_the_reason_of_a_drop(made: RunFolder) -> None:
    assert "left out pairs, one-candidate" in flat(call("trace", made.path, "cal-1").output)


def test_trace_of_a_test_sample_shows_before_and_after(made: RunFolder) -> None:
    text = flat(call("trace", made.path, "test-0").output)
    seed, rft = text.index("seed: wrong, counterfactual"), text.index("rft: right, sound")
    assert seed < rft
    assert "not measured yet: iter-1" in text


def test_trace_of_a_taught_sample(made: RunFolder) -> None:
    text = flat(call("trace", made.path, "rft-0").output)
    assert "The teacher's rationale" in text
    assert "✓ follows 2 plus 3 is 5." in text
    assert "✓ right answer: 5" in text


def test_trace_of_an_unknown_sample(made: RunFolder) -> None:
    done = call("trace", made.path, "cal-2")
    assert done.exit_code == 1
    assert "error: sample 'cal-2': not in" in done.stderr
    assert "near: cal-1, cal-0" in done.stderr
    assert "calibration (2, such as cal-0)" in done.stderr


def test_trace_before_there_are_samples(empty: RunFolder) -> None:
    done = call("trace", empty.path, "cal-0")
    assert done.exit_code == 1
    assert f"selfcal run --out {empty.path}" in done.stderr


# --- plan -----------------------------------------------------------------------------------


def test_plan(made: RunFolder) -> None:
    text = flat(call("plan", made.recipe_file).output)
    assert re.search(r"iter-1/judgments pairwise scoring 2 samples \d+ MiB", text)
    assert "Cost of 14 stages" in text
    assert "on 2 CPU cores" in text
    assert "✓" not in text


def test_plan_with_a_run_says_what_is_finished(made: RunFolder) -> None:
    text = flat(call("plan", made.recipe_file, "--out", made.path).output)
    assert f"✓ 12 of 14 stages are finished in {made.path}: would be skipped; 2 would run." in text
    assert "Cost of 2 stages" in text


def test_a_recipe_that_has_code_run_is_named(made: RunFolder) -> None:
    said = "! policy.trust_remote_code: runs the code that comes with"
    trusting = ("--set", "policy.trust_remote_code=true")
    assert said in flat(call("plan", made.recipe_file, *trusting).output)
    assert said not in flat(call("plan", made.recipe_file).output)


def test_plan_of_unknown_keys(made: RunFolder) -> None:
    done = call("plan", made.recipe_file, "--set", "dpo.bta=1")
    assert done.exit_code == 1
    assert "unknown key `dpo.bta`; did you mean `beta`?" in done.stderr
    done = call("plan", made.recipe_file, "--set", "method=scr")
    assert done.exit_code == 1
    assert "did you mean `src`?" in done.stderr


# --- progress -------------------------------------------------------------------------------


def fake_stage(name: str = "iter-1/dpo", size: int = 100, unit: str = "steps") -> Stage:
    return Stage(name, (), {}, lambda work: {}, size, unit, "a fake")


def fake_plan(tmp_path: Path, *names: str) -> list[Planned]:
    from selfcal.store import StageDir

    return [Planned(fake_stage(n), StageDir(tmp_path / n, "x")) for n in names]


class Clock:
    def __init__(self) -> None:
        self.time = 0.0

    def __call__(self) -> float:
        return self.time


def test_rate_leaves_out_what_was_found_on_disk(tmp_path: Path) -> None:
    clock, recipe = Clock(), Recipe(name="x")
    planned = fake_plan(tmp_path, "iter-1/dpo", "iter-2/dpo")
    track = Track(recipe, planned, clock)
    track.begin(planned[0].stage, 1)
    for done in (10, 20, 30):  # three shards of an earlier session
        track.move(done, 100)
        clock.time += 0.001
    assert track.rate is None
    clock.time = 0.002 + 20
    track.move(40, 100)
    assert track.rate == pytest.approx(0.5)  # 10 items in 20 s
    clock.time += 4
    assert track.stage_left == pytest.approx(60 / 0.5 - 4)
    assert track.iteration == "iteration 1 of 3"
    track.end(planned[0].stage, 200.0)
    # the other DPO is taken to last as long
    assert track.run_left == pytest.approx(200.0)


def test_pace_tells_no_time_of_foreign_models_before_it_measured() -> None:
    recipe = Recipe.model_validate({"name": "x", "policy": {"model": "some/model"}})
    pace, dpo, other = Pace(recipe), fake_stage(), fake_stage("eval/seed", 50, "samples")
    assert pace.seconds(dpo) is None
    pace.note(dpo, 2 * guess(recipe, dpo))
    assert pace.seconds(dpo) == pytest.approx(2 * guess(recipe, dpo))
    assert pace.seconds(other) == pytest.approx(2 * guess(recipe, other))  # as far off as DPO was


def test_plain_progress_is_sparse_and_plain(tmp_path: Path) -> None:
    clock, out = Clock(), io.StringIO()
    planned = fake_plan(tmp_path, "iter-1/dpo")
    track = Track(Recipe(name="x"), planned, clock)
    screen = Console(file=out, width=100, markup=False, highlight=False)
    with PlainProgress(screen, track, clock) as tell:
        tell.begins(planned[0].stage, 1, 1)
        for done in range(1, 101):
            clock.time += 1.0
            tell.moves(done, 100)
        tell.ends(planned[0].stage, {"steps": 100}, 100.0)
    lines = out.getvalue().splitlines()
    assert lines[0] == "[1/1] iter-1/dpo: a fake, 100 steps"
    assert lines[1] == (
        "[1/1] iter-1/dpo: 15 of 100 steps, 1 steps/s, 1 min 25 s left, run: about 1 min 25 s left"
    )
    assert lines[-1] == "[1/1] iter-1/dpo: done in 1 min 40 s: 100 steps"
    assert len(lines) == 2 + 6  # at 15, 30, 45, 60, 75, 90
    assert "\x1b" not in out.getvalue()


def test_live_progress_leaves_a_line_a_stage(tmp_path: Path) -> None:
    out = io.StringIO()
    planned = fake_plan(tmp_path, "iter-1/dpo")
    screen = Console(file=out, width=100, markup=False, force_terminal=True)
    with LiveProgress(screen, Track(Recipe(name="x"), planned)) as tell:
        tell.begins(planned[0].stage, 1, 1)
        tell.moves(50, 100)
        assert tell._render() is not None
        tell.ends(planned[0].stage, {"pairs": 812}, 41.0)
    assert "812 pairs" in out.getvalue()


# --- run ------------------------------------------------------------------------------------


@pytest.fixture
def stages(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Stage]]:
    """The stages of a fake method, to be filled in; no library is seeded or silenced for good."""
    planned: list[Stage] = []

    class Method:
        @staticmethod
        def plan(recipe: Recipe) -> list[Stage]:
            return list(planned)

    monkeypatch.setattr(planning, "load_method", lambda name: Method)
    monkeypatch.setattr(executor, "_seed_libraries", lambda seed, threads: None)
    before = dict(os.environ)
    levels = {name: logging.getLogger(name).level for name in quiet_libraries}
    yield planned
    os.environ.clear()
    os.environ.update(before)
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


def stage(name: str, run: Callable[[Work], Mapping[str, Any]], *inputs: str) -> Stage:
    return Stage(name, inputs, {}, run, 3, "samples", "a fake")


def measure(work: Work) -> Mapping[str, Any]:
    work.write("results", measured("seed", "answer_accuracy", 0.5, 0.01, 800), Measured)
    return {"answer_accuracy": 0.5}


@pytest.fixture
def recipe_file(tmp_path: Path) -> Path:
    path = tmp_path / "r.yaml"
    path.write_text(YAML)
    return path


def test_run_and_go_on(stages: list[Stage], recipe_file: Path, tmp_path: Path) -> None:
    stages += [stage("one", lambda work: {"pairs": 3}), stage("eval/seed", measure)]
    out = tmp_path / "run folder"
    done = call("run", recipe_file, "--out", out)
    assert done.exit_code == 0, done.output
    assert "[1/2] one: a fake, 3 samples" in done.output
    assert "[1/2] one: done in < 1 s: 3 pairs" in done.output
    assert "answer_accuracy  0.500 ±0.010" in done.output
    assert "±" in flat(done.output)
    assert f"selfcal trace '{out}' SAMPLE_ID" in done.output
    assert "\x1b" not in done.output
    again = call("run", "--out", out)
    assert again.exit_code == 0
    assert "2 of 2 stages were finished before." in again.output
    assert "[1/2]" not in again.output
    other = call("run", recipe_file, "--out", tmp_path / "other", "--reuse", out)
    assert "2 stages taken over from another run: one, eval/seed" in other.output


COMMAND = "selfcal run {recipe} --out '{run}' --set 'data.mix={{a: 1}}'"


def test_run_that_a_library_stops(stages: list[Stage], recipe_file: Path, tmp_path: Path) -> None:
    def stop(work: Work) -> Mapping[str, Any]:
        raise KeyboardInterrupt

    stages += [stage("one", stop)]
    run, before = tmp_path / "my run", signal.getsignal(signal.SIGINT)
    done = call("run", recipe_file, "--out", run, "--set", "data.mix={a: 1}")
    assert done.exit_code == 130
    assert COMMAND.format(recipe=recipe_file, run=run) in done.stderr.splitlines()[-1]
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert signal.getsignal(signal.SIGINT) is before


def run_with_signals(
    recipe: Path, run: Path, *numbers: int, first: str = ""
) -> subprocess.CompletedProcess[str]:
    """A run of two stages, in whose first one these signals come."""
    code = (
        "import os, signal\n"
        # a job in the background is started with it ignored
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from selfcal import cli, planning\n"
        "from selfcal.executor import base as executor\n"
        "from selfcal.stage import Stage\n"
        "def stop(work):\n"
        f"    {first or 'pass'}\n"
        f"    for number in {list(map(int, numbers))}: os.kill(os.getpid(), number)\n"
        "    return {'pairs': 3}\n"
        "class Method:\n"
        "    def plan(recipe):\n"
        "        return [Stage(n, (), {}, stop, 3, 'samples', 'a fake') for n in ('one', 'two')]\n"
        "planning.load_method = lambda name: Method\n"
        "executor._seed_libraries = lambda seed, threads: None\n"
        "cli.main()"
    )
    words = ["run", str(recipe), "--out", str(run), "--set", "data.mix={a: 1}"]
    return subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_a_run_after_the_work_in_hand(
    number: int, recipe_file: Path, tmp_path: Path
) -> None:
    run = tmp_path / "my run"
    done = run_with_signals(recipe_file, run, number)
    assert done.returncode == 0, done.stderr
    assert done.stderr == (
        "\nStopping after the batch in work; again to leave at once.\n"
        "Stopped; what is finished is kept. Go on with:\n"
        f"  {COMMAND.format(recipe=recipe_file, run=run)}\n"
    )
    assert "one: done" in done.stdout and "two" not in done.stdout
    assert not (run / ".lock-holder").exists()
    shown = call("status", run)
    assert f"Next: selfcal run --out '{run}'" in flat(shown.output)


GONE = "r, w = os.pipe(); os.close(r); os.dup2(w, 2)"
"""Standard error is a pipe that nobody reads, such as to a `tee` that Ctrl-C has ended."""


@pytest.mark.parametrize("times", [1, 2])
def test_a_signal_stops_a_run_that_nobody_listens_to(
    recipe_file: Path, tmp_path: Path, times: int
) -> None:
    run = tmp_path / "run"
    done = run_with_signals(recipe_file, run, *[signal.SIGINT] * times, first=GONE)
    assert done.returncode == (0 if times == 1 else 130)
    assert ("one: done" in done.stdout) is (times == 1) and "two" not in done.stdout
    assert (run / "one" / "manifest.json").exists() is (times == 1)


def test_a_second_signal_leaves_at_once(recipe_file: Path, tmp_path: Path) -> None:
    run = tmp_path / "my run"
    done = run_with_signals(recipe_file, run, signal.SIGTERM, signal.SIGINT)
    assert done.returncode == 130
    assert done.stderr.endswith(
        "Stopped; what is finished is kept. Go on with:\n"
        f"  {COMMAND.format(recipe=recipe_file, run=run)}\n"
    )
    assert "done" not in done.stdout


def test_run_that_fails_as_foreseen(stages: list[Stage], recipe_file: Path, tmp_path: Path) -> None:
    def fail(work: Work) -> Mapping[str, Any]:
        raise SelfcalError(f"teacher, sample 7: {EVIL}")

    stages += [stage("one", fail)]
    done = call("run", recipe_file, "--out", tmp_path / "run")
    assert done.exit_code == 1
    assert done.stderr == r"error: teacher, sample 7: \x1b[31m[bold]red[/bold]\u202e\x07" + "\n"


def test_run_that_has_a_defect(stages: list[Stage], recipe_file: Path, tmp_path: Path) -> None:
    def fail(work: Work) -> Mapping[str, Any]:
        raise ZeroDivisionError("a defect")

    stages += [stage("one", fail)]
    done = call("run", recipe_file, "--out", tmp_path / "run")
    assert isinstance(done.exception, ZeroDivisionError)


def test_run_without_recipe_or_run(tmp_path: Path) -> None:
    done = call("run", "--out", tmp_path)
    assert done.exit_code == 1
    assert "give a recipe file" in done.stderr
    done = call("run", "--out", tmp_path, "--set", "seed=1")
    assert "--set changes a recipe" in done.stderr


def test_run_refuses_to_reuse_what_is_no_run(recipe_file: Path, tmp_path: Path) -> None:
    done = call("run", recipe_file, "--out", tmp_path / "a", "--reuse", tmp_path / "b")
    assert done.exit_code == 1
    assert "is no run of selfcal" in done.stderr
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(("model", "offline"), [("miniworld:mini-llava", "1"), ("some/hub", None)])
def test_offline_only_without_hub_models(
    model: str, offline: str | None, stages: list[Stage], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    recipe = Recipe.model_validate({"name": "x", "policy": {"model": model}})
    with quiet.quiet(recipe):
        assert os.environ.get("HF_HUB_OFFLINE") == offline
        assert os.environ["TQDM_DISABLE"] == "1"


# --- MiniWorld and doctor -------------------------------------------------------------------


def test_verify_prints_findings_with_spans() -> None:
    question, facts = DIGITS
    done = call("miniworld", "verify", "--question", question, "--facts", facts, "--response", BAD)
    assert done.exit_code == 0
    at = BAD.index("The left")
    end = at + len("The left digit is 4.")
    lines = [flat(line) for line in done.output.splitlines()]
    found = next(line for line in lines if "The left digit" in line and "✗" in line)
    assert re.fullmatch(rf"{at}-({end}|{end + 1}) ✗ counterfactual The left digit is 4\.", found)
    assert "✗ wrong answer: 7" in lines
    assert "wrong, counterfactual" in lines
    assert "1 of 2 statements are true of the image." in lines


def test_verify_a_sample_of_a_file_from_standard_input(tmp_path: Path) -> None:
    file = tmp_path / "test.jsonl"
    file.write_text(json.dumps({"id": "t-1", "question": DIGITS[0], "facts": DIGITS[1]}) + "\n")
    words = ("miniworld", "verify", "--data", file, "--response", "-")
    done = call(*words, "--id", "t-1", stdin=GOOD)
    assert "right, sound" in done.output
    done = call(*words, "--id", "t-2", stdin=GOOD)
    assert done.exit_code == 1
    assert "near: t-1" in done.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--question", "Why?", "--facts", "none"), "give question and facts as"),
        (("--question", "Why?"), "give either --question and --facts"),
        (("--data", "nowhere.jsonl", "--id", "x"), "cannot be read"),
    ],
)
def test_verify_says_what_is_wrong(words: tuple[str, ...], said: str) -> None:
    done = call("miniworld", "verify", "--response", "x", *words)
    assert done.exit_code == 1
    assert said in done.stderr


def test_build(tmp_path: Path) -> None:
    words = ("miniworld", "build", tmp_path, "--size", "test=2", "--size", "dev=0")
    words += ("--size", "rft=1", "--size", "calibration=1")
    done = call(*words)
    assert done.exit_code == 0, done.output
    assert f"{tmp_path / 'test.jsonl'}  2 samples" in done.output
    assert len((tmp_path / "test.jsonl").read_text().splitlines()) == 2
    assert not (tmp_path / "dev.jsonl").exists()
    assert "was there, left as it is" in call(*words).output


@pytest.mark.parametrize(
    ("size", "said"), [("tst=3", "did you mean `test`?"), ("test=x", "write SPLIT=N")]
)
def test_build_refuses_sizes(size: str, said: str, tmp_path: Path) -> None:
    done = call("miniworld", "build", tmp_path, "--size", size)
    assert done.exit_code == 1
    assert said in done.stderr


def test_doctor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_devices", lambda: doctor.Check("✓", "devices", "none"))
    done = call("doctor")
    assert done.exit_code == 0, done.output
    assert "✓  python" in done.output


def test_doctor_fails_where_no_run_can_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_devices", lambda: doctor.Check("✓", "devices", "none"))
    needs = ["no-such-package-xyz>=2", "rich>=1", "other; extra == 'dev'"]
    monkeypatch.setattr(doctor.metadata, "requires", lambda name: needs)
    done = call("doctor")
    assert done.exit_code == 1
    assert "pip install 'no-such-package-xyz>=2'" in done.output
    assert "No run can start: mend no-such-package-xyz." in done.output
    assert "other" not in done.output
