"""Teachers and label givers in a run: facts where there are none, ready-made RAPs, prompts."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from selfcal.chat import Asked, SpentError
from selfcal.errors import SelfcalError
from selfcal.judge.labels import ChatLabels
from selfcal.pipeline import locate, pin, plan
from selfcal.prompts import FORMS, PromptError, Prompts
from selfcal.rationale import FORMATS
from selfcal.recipe import Recipe, RecipeError, load_recipe
from selfcal.teacher import ChatTeacher, TeacherError, Translated, rewrite
from selfcal.testing import ScriptedTeacher
from selfcal.types import Candidate, Drop, LabelledPair, Sample, WrittenRap
from selfcal.written import FileTeacher
from unit.chat_server import Reply, Serve, completion
from unit.doing import do, folders, foreign, recipe

RECIPES = Path(__file__).parents[2] / "recipes"


def teacher(url: str, **more: Any) -> dict[str, Any]:
    return {"kind": "endpoint", "base_url": url, "model": "m", "api_key_env": "", **more}


def answer(body: dict[str, Any]) -> Reply:
    """A server that answers every question with what it was asked about."""
    content = body["messages"][0]["content"]
    text = content if isinstance(content, str) else content[-1]["text"]
    if text.startswith("Write down"):
        return completion("a red star", usage=(50, 3))
    return completion("Rationale: So it is.\nAnswer: nothing", usage=(60, 9))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return foreign(tmp_path_factory.mktemp("data"), facts="my own")


# --- facts ----------------------------------------------------------------------------------


def test_the_teacher_writes_facts_where_there_are_none(
    serve: Serve, data: Path, tmp_path: Path
) -> None:
    server = serve(answer)
    own = recipe(data, teacher=teacher(server.url), judge={"samples": 3})
    stats = do(own, tmp_path, "data", "facts")
    folder = folders(own, tmp_path)
    # 3 of the training samples are judged, and all 4 of calibration; one of each file has facts
    rft = folder["data"].read("rft", Sample)[:3]
    n = 3 + sum(not s.facts for s in rft)
    assert (stats["samples"], stats["written"], stats["drops"]) == (7, n, {})
    assert (stats["requests"], stats["cached"], len(server.requests)) == (n, 0, n)
    assert (stats["prompt_tokens"], stats["reply_tokens"]) == (50 * n, 3 * n)
    for split, n in (("rft", 3), ("calibration", 4)):
        samples = folder["facts"].read(split, Sample)
        before = folder["data"].read(split, Sample)[:n]
        assert [replace(s, facts="") for s in samples] == [replace(s, facts="") for s in before]
        assert [s.facts for s in samples] == [s.facts or "a red star" for s in before]


def test_samples_without_facts_are_counted(serve: Serve, data: Path, tmp_path: Path) -> None:
    server = serve(completion(" \n"))
    stats = do(recipe(data, teacher=teacher(server.url)), tmp_path, "data", "facts")
    assert stats["written"] == 0 and stats["drops"] == {"no-facts": 8}


@pytest.mark.parametrize(
    ("change", "method", "readers"),
    [
        ({}, "src", {"judge/labels", "iter-1/judgments"}),
        ({"judge": {"sees": True, "model": "some/lvlm"}}, "src", set()),
        ({"judge": {"kind": "guess"}}, "src", set()),
        ({"judge": {"kind": "endpoint", "endpoint": {"model": "j"}}}, "src", {"iter-1/judgments"}),
        ({}, "answer_only", set()),
        ({}, "independent", {"judge/labels", "judge/grades", "iter-1/judgments"}),
        ({}, "online_src", {"judge/labels", "iter-1/grpo"}),
        ({}, "faithful_grpo", {"judge/grades", "iter-1/grpo"}),
        ({}, "consistency_grpo", set()),  # asks about logic alone
        ({}, "groupwise_grpo", {"judge/rankings", "iter-1/grpo"}),
        ({"teacher": {"kind": "miniworld"}}, "src", set()),
    ],
)
def test_who_goes_by_facts_reads_them_where_they_are_written(
    data: Path, change: Mapping[str, Any], method: str, readers: set[str]
) -> None:
    given = {"teacher": teacher("http://127.0.0.1:1/v1"), "method": method, **change}
    stages = plan(recipe(data, **given))
    found = {s.name for s in stages if "facts" in s.inputs}
    assert found == readers
    assert ("facts" in {s.name for s in stages}) == bool(readers)


BLIND: list[tuple[dict[str, Any], str, int]] = [
    ({}, "judge/labels", 6),
    ({"judge": {"kind": "endpoint"}}, "iter-1/judgments", 4),
    ({"judge": {"calibrate": "each"}}, "iter-1/calibration", 4),
    ({"curate": {"weak": "teacher"}}, "iter-1/taught/pairs", 4),
    ({"method": "independent"}, "judge/grades", 6),
    ({"method": "groupwise_grpo"}, "judge/rankings", 6),
    ({"method": "online_src", "judge": {"kind": "endpoint"}}, "iter-1/grpo", 4),
]


@pytest.mark.parametrize(("change", "stage", "n"), BLIND, ids=[b[1] for b in BLIND])
@pytest.mark.parametrize("taught", [False, True], ids=["", "file"])
def test_a_text_judge_is_not_asked_without_any_facts(
    serve: Serve, tmp_path: Path, change: dict[str, Any], stage: str, n: int, taught: bool
) -> None:
    server = serve(completion("first"))
    own = blind(foreign(tmp_path), server.url, change, taught)
    run = tmp_path / "run"
    do(own, run, *(["data", "facts"] if taught else ["data"]))
    _searched(own, run)
    said = rf"^{stage}: none of {n} samples has facts .*`facts`.*teacher\.kind.*judge\.sees"
    with pytest.raises(SelfcalError, match=said):
        do(own, run, stage)
    assert not server.requests


def blind(data: Path, url: str, change: dict[str, Any], taught: bool) -> Recipe:
    """A recipe with a text judge, or a label giver, at this address."""
    at = teacher(url)
    asked = {"endpoint": {k: v for k, v in at.items() if k != "kind"}}
    judge = {"labels": at, **change.get("judge", {})}
    judge |= asked if judge.get("kind") == "endpoint" else {}
    more: dict[str, Any] = {"rft": None, **change, "judge": judge}
    if taught:
        path = lines(data, {"id": "x", "rationale": "y"})
        more["teacher"] = {"kind": "file", "path": str(path)}
    return recipe(data, **more)


def _searched(own: Recipe, run: Path) -> None:
    """Two candidates for each sample, and what else the stages read that are asked."""
    placed = folders(own, run)
    for name, split in (("judge/candidates", "rft"), ("iter-1/candidates", "calibration")):
        if name in placed:
            found = [
                Candidate(
                    s.id, i, f"Rationale: It is.\nAnswer: {s.answer}{' ' * i}", (), (), (), True
                )
                for s in placed["data"].read(split, Sample)
                for i in range(2)
            ]
            placed[name].open()
            placed[name].write_shard("candidates", 0, found, Candidate)
    samples = placed["data"].read("rft", Sample)
    pairs = [LabelledPair(s.id, s.question, "", "a", "b", "first", s.images) for s in samples]
    weak = [Drop(s.id, "pairs", "no-gap") for s in placed["data"].read("calibration", Sample)]
    if own.method == "independent":
        placed["judge/labels"].open()
        placed["judge/labels"].write_shard("train", 0, pairs, LabelledPair)
    if "iter-1/pairs" in placed:
        placed["iter-1/pairs"].open()
        placed["iter-1/pairs"].write_shard("drops", 0, weak, Drop)


def test_facts_of_some_samples_are_enough(serve: Serve, data: Path, tmp_path: Path) -> None:
    own = blind(data, serve(completion("first")).url, {}, False)
    do(own, tmp_path, "data")
    _searched(own, tmp_path)
    assert do(own, tmp_path, "judge/labels")["requests"] > 0


def test_miniworld_needs_no_facts_written() -> None:
    stages = plan(load_recipe(RECIPES / "miniworld-src.yaml"))
    assert "facts" not in {s.name for s in stages}


# --- budget and cache in a run --------------------------------------------------------------


def test_a_spent_budget_stops_a_run_that_goes_on_when_it_is_raised(
    serve: Serve, data: Path, tmp_path: Path
) -> None:
    server = serve(answer)
    spare = recipe(data, teacher=teacher(server.url, budget={"requests": 4}, concurrency=2))
    with pytest.raises(SpentError, match=r"raise teacher\.budget\.requests"):
        do(spare, tmp_path, "data", "teacher")
    assert len(server.requests) == 4
    raised = recipe(data, teacher=teacher(server.url, budget={"requests": 6}))
    stats = do(raised, tmp_path, "data", "teacher")
    assert len(server.requests) == 6  # what was paid for came out of the cache
    assert (stats["requests"], stats["cached"]) == (6, 4)
    assert stats["drops"] == {"answer-disagrees": 6}
    # facts are the same teacher's, and so is their budget
    with pytest.raises(SpentError, match="6 requests took 414 tokens"):
        do(raised, tmp_path, "facts")


def test_a_second_run_costs_nothing(serve: Serve, data: Path, tmp_path: Path) -> None:
    server = serve(answer)
    own = recipe(data, teacher=teacher(server.url))
    do(own, tmp_path / "one", "data", "teacher")
    stats = do(own, tmp_path / "two", "data", "teacher")
    assert (len(server.requests), stats["requests"], stats["cached"]) == (6, 0, 6)
    dear = recipe(data, teacher=teacher(server.url, cache=False))
    assert do(dear, tmp_path / "three", "data", "teacher")["requests"] == 6


# --- ready-made RAPs ------------------------------------------------------------------------

ROWS = [
    {"key": "a", "why": "There are two.", "answer": "2", "seen": "two dogs", "picture": b"x"},
    {"key": "b", "why": "There are three.", "answer": "3", "seen": None, "picture": b"x"},
]
NAMES = {"id": "key", "rationale": "why", "facts": "seen"}


def lines(folder: Path, *rows: Mapping[str, Any]) -> Path:
    path = folder / "raps.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def bare(row: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in row.items() if k != "picture"}


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_a_file_teaches(tmp_path: Path, kind: str) -> None:
    if kind == "jsonl":
        path = lines(tmp_path, *map(bare, ROWS))
    else:
        path = tmp_path / "raps.parquet"
        pq.write_table(pa.Table.from_pylist(ROWS), path)
    who = FileTeacher(path, NAMES)
    samples = [Sample(i, "", "How many dogs?", "2") for i in "abc"]
    written, drops = rewrite(who, samples, workers=2)
    assert written == [WrittenRap("a", "Rationale: There are two.\nAnswer: 2")]
    assert [(d.sample_id, d.reason) for d in drops] == [
        ("b", "answer-disagrees"), ("c", "no-rationale"),
    ]  # fmt: skip
    assert [who.write_facts(s) for s in samples] == ["two dogs", "", ""]
    for ask in (who.spoil, who.mend, who.restyle):
        with pytest.raises(TeacherError, match="cannot rework a response"):
            ask(samples[0], "text")


def test_a_file_may_have_whole_responses(tmp_path: Path) -> None:
    path = lines(tmp_path, {"id": 7, "rationale": "There are two.\nAnswer: 2"})
    written, _ = rewrite(FileTeacher(path), [Sample("7", "", "How many?", "2")])
    assert written == [WrittenRap("7", "Rationale: There are two.\nAnswer: 2")]


@pytest.mark.parametrize(
    ("rows", "columns", "said"),
    [
        ([{"id": "a", "rationale": "x"}] * 2, {}, r"line 2: sample 'a' has a row already, line 1"),
        ([{"name": "a", "rationale": "x"}], {}, r"line 1: there is no column 'id'"),
        ([{"id": "a", "rationale": "x"}], {"answer": "anser"}, r"line 1: there is no column"),
        ([{"id": "a", "rational": "x"}], {"rationale": "rationals"}, "did you mean 'rational'"),
        ([{"id": "a", "answer": "x"}], {}, r"line 1: there is neither `rationale` nor `facts`"),
        ([{"id": "a", "rationale": "x"}], {"rationel": "x"}, "did you mean `rationale`"),
        ([{"id": "a", "rationale": ["x"]}], {}, r"line 1: rationale is of type list"),
        ([{"id": "a", "rationale": "x \ud83d"}], {}, r"line 1: rationale has half a character"),
        ([{"id": "\udc00", "rationale": "x"}], {}, r"line 1: id has half a character"),
        ([{"id": " ", "rationale": "x"}], {}, r"line 1: the id is empty"),
    ],
)
def test_errors_name_file_and_row(
    tmp_path: Path, rows: list[dict[str, Any]], columns: dict[str, str], said: str
) -> None:
    with pytest.raises(TeacherError, match=said):
        FileTeacher(lines(tmp_path, *rows), columns)


def test_ids_are_taken_to_the_letter_and_numbers_spelled_as_in_data(tmp_path: Path) -> None:
    rows = [
        {"id": " a", "rationale": "So.", "answer": 3.0},
        {"id": "a", "rationale": "So.", "answer": 2.5},
        {"id": "b", "rationale": "So.", "answer": True},
        {"id": "c", "rationale": "So.", "answer": math.nan},
        {"id": "d", "rationale": "So.", "answer": 10**30},
    ]
    who = FileTeacher(lines(tmp_path, *rows))
    said = {
        i: FORMATS["headings"].parse(who.write(Sample(i, "", "?", ""))).answer
        for i in (" a", *"abcd")
    }
    assert said == {" a": "3", "a": "2.5", "b": "yes", "c": "", "d": f"1{'0' * 30}"}
    path = tmp_path / "raps.parquet"
    pq.write_table(pa.Table.from_pylist(rows[:2]), path)
    assert FileTeacher(path).write(Sample(" a", "", "?", "")).endswith("Answer: 3")


def test_unreadable_files(tmp_path: Path) -> None:
    path = tmp_path / "raps.jsonl"
    for data, said in [(b"{", "line 1: not readable"), (b"[]", "line 1: no object"),
                       (b'{"id": "\xff"}', "line 1: not readable")]:  # fmt: skip
        path.write_bytes(data)
        with pytest.raises(TeacherError, match=rf"raps\.jsonl: {said}"):
            FileTeacher(path)
    (tmp_path / "raps.parquet").write_bytes(b"PAR1")
    with pytest.raises(TeacherError, match="not readable as Parquet"):
        FileTeacher(tmp_path / "raps.parquet")
    for name in ("gone.jsonl", "raps.csv"):
        with pytest.raises(TeacherError, match=r"teacher\.path: .*give a \.jsonl or \.parquet"):
            FileTeacher(tmp_path / name)


def test_a_changed_file_is_another_teacher(data: Path, tmp_path: Path) -> None:
    path = lines(tmp_path, *map(bare, ROWS))
    own = recipe(data, teacher={"kind": "file", "path": str(path), "columns": NAMES})
    before = folders(own, tmp_path)
    moved = path.rename(tmp_path / "moved.jsonl")
    same = recipe(data, teacher={"kind": "file", "path": str(moved), "columns": NAMES})
    assert folders(same, tmp_path)["teacher"].fingerprint == before["teacher"].fingerprint
    moved.write_text(moved.read_text().replace("two", "2"))
    changed = folders(same, tmp_path)
    assert changed["teacher"].fingerprint != before["teacher"].fingerprint
    assert changed["data"].fingerprint == before["data"].fingerprint


def test_methods_that_have_responses_reworked_refuse_a_file(data: Path, tmp_path: Path) -> None:
    given = {"kind": "file", "path": str(lines(tmp_path, *map(bare, ROWS)))}
    for method, said in (("povid", "spoil responses"), ("ha_dpo", "mend and restyle responses")):
        with pytest.raises(RecipeError, match=said):
            plan(recipe(data, teacher=given, method=method))


# --- prompts --------------------------------------------------------------------------------

EVERY = [(who, name) for who, forms in FORMS.items() for name in forms]


@pytest.mark.parametrize(("who", "name"), EVERY)
def test_shipped_prompts_are_such_that_a_recipe_could_give_them(who: str, name: str) -> None:
    shipped = Prompts(who)._text(name)
    assert shipped.startswith(f"{{#- {name}, version 1; over ")
    over = shipped.partition("; over ")[2].partition(" -#}")[0]
    assert over.startswith(", ".join(FORMS[who][name].over))
    again = Prompts(who, {name: shipped})  # its trial passes
    assert again.digests(name) == Prompts(who).digests(name)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("rational", "{{ question }}", "there is no such prompt; did you mean `rationale`"),
        ("rationale", "{{ qestion }}", "there is no `qestion`; did you mean `question`"),
        ("rationale", "{{ choices }}", "it leaves out `question`"),
        ("rationale", "{{ question", r"teacher\.prompts\.rationale: .*Jinja2 template over"),
        ("rationale", "{{ question.a.b }}", "has no attribute"),
        ("rationale", "no/such/file", "no/such/file cannot be read"),
        ("spoil", "{{ question }}", "it leaves out `material` or `response`"),
        ("facts", "{{ question.__class__.__mro__ }}", "unsafe"),
    ],
)
def test_a_bad_prompt_is_told_when_a_run_is_planned(
    data: Path, name: str, text: str, said: str
) -> None:
    given = teacher("http://127.0.0.1:1/v1", prompts={name: text})
    with pytest.raises(PromptError, match=said):
        plan(recipe(data, teacher=given))


def test_a_changed_prompt_redoes_what_it_was_asked_for(data: Path, tmp_path: Path) -> None:
    file = tmp_path / "mine.jinja"

    def prints(**prompts: str) -> dict[str, str]:
        given = teacher("http://127.0.0.1:1/v1", prompts=prompts)
        own = recipe(data, teacher=given)
        return {p.stage.name: p.folder.fingerprint for p in locate(pin(own), tmp_path)}

    file.write_text("{{ question }}")
    shipped, mine = prints(), prints(facts=str(file))
    assert shipped["facts"] != mine["facts"] and shipped["teacher"] == mine["teacher"]
    assert shipped["judge/labels"] != mine["judge/labels"]  # which reads the facts
    assert prints(facts="{{ question }}") == mine  # a file, or the template itself
    file.write_text("{{ question }} Be short.")
    assert prints(facts=str(file))["facts"] != mine["facts"]


def test_a_run_keeps_its_prompts(data: Path, tmp_path: Path) -> None:
    file = tmp_path / "mine.jinja"
    file.write_text("Look")  # nothing in it says that this is a template and no path
    pinned = pin(
        recipe(data, teacher=teacher("http://127.0.0.1:1/v1", prompts={"facts": str(file)}))
    )
    file.unlink()
    again = Recipe.model_validate(pinned.model_dump(mode="json"))
    assert pin(again) == pinned
    assert plan(again)[1].settings == plan(pinned)[1].settings


def test_own_prompts_are_asked(serve: Serve, data: Path, tmp_path: Path) -> None:
    server = serve(answer)
    given = teacher(server.url, prompts={"rationale": "Q: {{ question }}\n{{ example }}"})
    do(recipe(data, teacher=given), tmp_path, "data", "teacher")
    texts = {r["messages"][0]["content"][-1]["text"] for r in server.requests}
    assert all(t.startswith("Q: ") and t.endswith("\nAnswer: <answer>") for t in texts)


# --- label givers that see ------------------------------------------------------------------


def test_a_label_giver_for_a_judge_that_sees_is_shown_the_image(data: Path) -> None:
    asked: list[Any] = []

    class Model:
        def ask(self, messages: Any) -> str:
            asked.append(messages[0]["content"])
            return "first"

    model: Asked = Model()
    line = json.loads((data / "rft.jsonl").read_text().splitlines()[1])
    sample = Sample("s", line["image"], line["question"], "2")
    blind, seeing = ChatLabels(model), ChatLabels(model, sees=True)
    for who in (blind, seeing):
        assert who.compare(sample, "one", "two") == "first"
    assert "You do not see the image" in asked[0] and "(none were noted)" in asked[0]
    assert asked[1][0]["type"] == "image_url"
    text = asked[1][1]["text"]
    assert "You see the image." in text and "facts" not in text.lower().replace("factual", "")
    seeing.grade(sample, "one", "entailed")
    assert isinstance(asked[2], str)  # logic is no matter of sight


def test_questions_in_material_have_no_marks_but_names(tmp_path: Path) -> None:
    """The images stand first, and a mark would be one image too many to some servers."""
    asked: list[Any] = []

    class Model:
        def ask(self, messages: Any) -> str:
            asked.append(messages[0]["content"])
            return "first"

    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    a = str(tmp_path / "a.png")
    two = Sample("s", a, "Is <image> like <image>?", "yes", more_images=(a,))
    one = Sample("s", a, "<image>\nWhat is it?", "a cat")
    labels, teaches = ChatLabels(Model(), sees=True), ChatTeacher(Model())
    for who, sample in ((labels, two), (ChatLabels(Model()), two), (labels, one)):
        who.compare(sample, "one", "two")
        who.grade(sample, "one")
        who.rank(sample, ["one", "two"])
    for ask in (teaches.spoil, teaches.mend, teaches.restyle):
        ask(two, "one")
    texts = [c if isinstance(c, str) else c[-1]["text"] for c in asked]
    assert len(texts) == 12 and not any("<image>" in text for text in texts)
    named = ["Is [image 1] like [image 2]?" in text for text in texts]
    assert named == [True] * 6 + [False] * 3 + [True] * 3
    asked.clear()
    teaches.write(two)  # a question by itself has its images where it says so
    assert [part["type"] for part in asked[0]].count("image_url") == 2
    assert asked[0][0]["type"] == "text"


# --- other formats --------------------------------------------------------------------------


def test_a_teacher_speaks_headings_whatever_the_policy_speaks() -> None:
    form = FORMATS["think"]
    heard: list[str] = []

    def mends(_: Sample, response: str) -> str:
        heard.append(response)
        return response.replace("two", "three")

    who = Translated(ScriptedTeacher(lambda s: "", mends=mends), form)
    sample = Sample("s", "", "How many?", "3")
    said = who.mend(sample, form.render("There are two.", "3"))
    assert heard == ["Rationale: There are two.\nAnswer: 3"]
    assert said == form.render("There are three.", "3")
    sound = form.render("There are  3.", "3") + "\n"
    assert who.mend(sample, sound) == sound  # unchanged is unchanged, to the last blank
    assert who.mend(sample, "no form, two") == "no form, three"
