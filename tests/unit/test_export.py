"""Export: what each tool's rows say, pair by pair; what is left out; what goes to a hub."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from selfcal.errors import SelfcalError
from selfcal.export import FORMATS, Wanted, export_run
from selfcal.export.formats import Example, dataset_name
from selfcal.export.images import Stored
from selfcal.export.rows import PAIRING
from selfcal.image import load_image
from selfcal.pipeline import plan
from selfcal.policy import user_turn
from selfcal.recipe import load_recipe
from selfcal.types import IMAGE_MARK, PreferencePair, Sample, WrittenRap
from unit.hand_made import BAD, EVIL, GOOD, RunFolder, call, flat

RECIPES = Path(__file__).parents[2] / "recipes"
LINES = 'One.\u2028Two.\x85Three.\rFour. "Five" \\ {six}\nAnswer: 5'
"""What some readers of lines take for ends of lines, and quotes."""


def pair(name: str, chosen: str = GOOD, rejected: str = BAD, image: str = "") -> PreferencePair:
    return PreferencePair(name, chosen, rejected, 0, 1, 1.0, -1.0, image)


def colour(path: Path, red: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (40, 30), (red, 90, 10)).save(path)


def asked(name: str, question: str = "Add the digits.", n: int = 1, **more: Any) -> Sample:
    others = tuple(f"images/{name}-{i}.png" for i in range(1, n))
    return Sample(name, f"images/{name}.png", question, "5", more_images=others, **more)


def made(
    path: Path, samples: Sequence[Sample], pairs: Sequence[PreferencePair], *overrides: str
) -> RunFolder:
    """A run with these samples, each image of another colour, and these pairs."""
    path.mkdir(exist_ok=True)
    run = RunFolder(path / "run", *overrides)
    images = sorted({i for s in samples for i in s.images})
    for i, image in enumerate(images):
        colour(run.path / image, 7 * i)
    run.finish("data", {"calibration": (Sample, list(samples)), "rft": (Sample, samples[:1])})
    if pairs:
        run.finish("iter-1/pairs", {"pairs": (PreferencePair, list(pairs))})
    return run


def exported(run: RunFolder, tool: str, **wanted: Any) -> list[dict[str, Any]]:
    """The rows of an export as a reader of its files finds them; of TRL's the images' names."""
    out = run.path.parent / tool
    export_run(run.path, tool, out, Wanted(**wanted))
    if tool == "swift":
        lines = (out / "train.jsonl").read_bytes().splitlines()
        return [json.loads(line) for line in lines]
    if tool == "trl":
        import pyarrow.parquet as pq

        files = sorted((out / "data").iterdir())
        return [row for file in files for row in pq.read_table(file).to_pylist()]
    return json.loads((out / "train.json").read_text("utf-8"))


THREE = [
    asked("one"),
    asked("two", "Which is larger, <image> or <image>?", 2, choices=("left", "right")),
    asked("three", "Compare them.", 2),
]
PAIRS = [pair("one"), pair("two", LINES, BAD), pair("three", GOOD, LINES)]
TWO = "Which is larger, <image> or <image>?\nOptions:\nA. left\nB. right"


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return made(tmp_path, THREE, PAIRS)


def content(run: RunFolder, tool: str, name: str) -> bytes:
    return (run.path.parent / tool / name).read_bytes()


def original(run: RunFolder, name: str) -> bytes:
    return (run.path / "images" / f"{name}.png").read_bytes()


def test_llamafactory_rows_are_the_pairs(run: RunFolder) -> None:
    rows = exported(run, "llamafactory")
    texts = ["<image>Add the digits.", TWO, "<image><image>Compare them."]
    assert [r["conversations"] for r in rows] == [[{"from": "human", "value": t}] for t in texts]
    assert [r["chosen"] for r in rows] == [{"from": "gpt", "value": p.chosen} for p in PAIRS]
    assert [r["rejected"] for r in rows] == [{"from": "gpt", "value": p.rejected} for p in PAIRS]
    names = [["one"], ["two", "two-1"], ["three", "three-1"]]
    for row, own in zip(rows, names, strict=True):
        assert set(row) == {"conversations", "chosen", "rejected", "images"}
        assert row["conversations"][0]["value"].count("<image>") == len(row["images"])
        found = [content(run, "llamafactory", i) for i in row["images"]]
        assert found == [original(run, name) for name in own]
    info = json.loads((run.path.parent / "llamafactory/dataset_info.json").read_text())
    assert info == {
        "tiny-pairs": {
            "file_name": "train.json",
            "formatting": "sharegpt",
            "ranking": True,
            "columns": {
                "messages": "conversations", "chosen": "chosen", "rejected": "rejected",
                "images": "images",
            },
        }
    }  # fmt: skip


def test_swift_rows_are_the_pairs_one_a_line(run: RunFolder) -> None:
    rows = exported(run, "swift")
    texts = ["<image>Add the digits.", TWO, "<image><image>Compare them."]
    for row, text, own in zip(rows, texts, PAIRS, strict=True):
        assert row == {
            "messages": [
                {"role": "user", "content": text},
                {"role": "assistant", "content": own.chosen},
            ],
            "images": row["images"],
            "rejected_response": own.rejected,
        }
    assert content(run, "swift", rows[1]["images"][1]) == original(run, "two-1")


def test_llava_rows_are_the_pairs_with_marks_in_lines_of_their_own(run: RunFolder) -> None:
    rows = exported(run, "llava")
    texts = ["<image>\nAdd the digits.", TWO, "<image>\n<image>\nCompare them."]
    for row, text, own in zip(rows, texts, PAIRS, strict=True):
        question = {"from": "human", "value": text}
        assert row["id"] == own.sample_id
        assert row["conversations"] == [question, {"from": "gpt", "value": own.chosen}]
        assert row["rejected_conversations"] == [question, {"from": "gpt", "value": own.rejected}]
    assert content(run, "llava", rows[0]["image"]) == original(run, "one")
    assert [content(run, "llava", i) for i in rows[2]["image"]] == [
        original(run, "three"), original(run, "three-1"),
    ]  # fmt: skip


def test_llava_puts_the_mark_of_a_single_image_first(tmp_path: Path) -> None:
    run = made(tmp_path, [asked("a", "What does <image> show?")], [pair("a")])
    row = exported(run, "llava")[0]
    assert row["conversations"][0]["value"] == "<image>\nWhat does show?"


def test_trl_rows_are_the_pairs_with_the_images_in_them(run: RunFolder) -> None:
    rows = exported(run, "trl")
    image, parts = {"type": "image", "text": None}, []
    for texts in (
        [image, "Add the digits."],
        ["Which is larger,", image, "or", image, "?\nOptions:\nA. left\nB. right"],
        [image, image, "Compare them."],
    ):
        own = [t if isinstance(t, dict) else {"type": "text", "text": t} for t in texts]
        parts.append([{"role": "user", "content": own}])
    assert [r["prompt"] for r in rows] == parts
    for column in ("chosen", "rejected"):
        said = [getattr(p, column) for p in PAIRS]
        assert [r[column] for r in rows] == [
            [{"role": "assistant", "content": [{"type": "text", "text": t}]}] for t in said
        ]
    assert [i["bytes"] for i in rows[1]["images"]] == [original(run, "two"), original(run, "two-1")]
    files = [p.name for p in (run.path.parent / "trl").iterdir()]
    assert sorted(files) == ["README.md", "data"]


def test_long_exports_to_trl_go_to_several_files_in_order(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("selfcal.export.table._GROUP_ROWS", 2)
    monkeypatch.setattr("selfcal.export.table._FILE_BYTES", 1)
    rows = exported(run, "trl")
    assert [r["chosen"][0]["content"][0]["text"] for r in rows] == [p.chosen for p in PAIRS]
    assert len(list((run.path.parent / "trl/data").iterdir())) == 2


@given(
    st.lists(st.sampled_from(["<image>", "a", " ", "\n", "<", "image>"]), max_size=12),
    st.integers(1, 3),
)
def test_texts_with_marks_say_what_the_policy_was_asked(words: list[str], n: int) -> None:
    sample = asked("a", "".join(words), n)
    text = Example(sample, (Stored("x", Path("x")),) * n, GOOD, BAD).text
    parts: list[dict[str, str]] = []
    for i, piece in enumerate(text.split(IMAGE_MARK)):
        parts += [{"type": "image"}] if i else []
        parts += [{"type": "text", "text": piece.strip()}] if piece.strip() else []
    assert parts == user_turn(sample)[0]["content"]


# --- what is left out -----------------------------------------------------------------------


@pytest.mark.parametrize("tool", FORMATS)
@pytest.mark.parametrize(
    ("chosen", "rejected"),
    [
        ("I see <image> here.\nAnswer: 5", BAD),
        (GOOD, "<image>"),
        (GOOD, f"a{EVIL}<image>"),
        ("<|vision_start|><|image_pad|>", BAD),
    ],
)
def test_a_mark_that_a_model_wrote_is_no_image(
    tool: str, chosen: str, rejected: str, tmp_path: Path
) -> None:
    run = made(tmp_path, [asked("a"), asked("b")], [pair("a", chosen, rejected), pair("b")])
    done = export_run(run.path, tool, tmp_path / "out")
    assert done.contents.drops == {"image-mark-in-response": 1}
    assert done.contents.counts == {1: 1}
    assert done.contents.images == 1  # none of what is left out


@pytest.mark.parametrize("mark", FORMATS["swift"].marks)
def test_marks_of_other_media_are_left_out_where_the_tool_reads_them(
    mark: str, tmp_path: Path
) -> None:
    pairs = [pair("a", f"{GOOD} {mark}"), pair("b"), pair("c")]
    run = made(tmp_path, [asked("a"), asked("b", f"Is {mark} here?"), asked("c")], pairs)
    for tool, form in FORMATS.items():
        done = export_run(run.path, tool, tmp_path / tool)
        left = {"media-mark": 2} if mark in form.marks else {}
        assert done.contents.drops == left


def test_pairs_that_say_the_same_are_left_out(tmp_path: Path) -> None:
    run = made(tmp_path, [asked("a"), asked("b")], [pair("a", GOOD, f" {GOOD}\n"), pair("b")])
    assert len(exported(run, "swift")) == 1


def test_rejected_images_go_where_the_format_has_a_place_for_them(tmp_path: Path) -> None:
    samples = [asked("a", n=2), asked("b")]
    run = made(tmp_path, samples, [pair("a", image="images/noisy.png"), pair("b")])
    colour(run.path / "images/noisy.png", 200)
    first, second = exported(run, "swift")
    found = [content(run, "swift", i) for i in first["rejected_images"]]
    assert found == [original(run, "noisy"), original(run, "a-1")]
    assert "rejected_images" not in second
    for tool in ("trl", "llamafactory", "llava"):
        done = export_run(run.path, tool, tmp_path / tool)
        assert done.contents.drops == {"rejected-image": 1}


def test_nothing_left_says_why_and_which_format_could_hold_it(tmp_path: Path) -> None:
    run = made(tmp_path, [asked("a")], [pair("a", image="images/a.png")])
    with pytest.raises(SelfcalError, match=r"rejected-image 1; --format swift has"):
        export_run(run.path, "trl", tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run", "tiny.yaml"]


def test_examples_with_images_that_cannot_be_read_are_left_out(tmp_path: Path) -> None:
    samples = [asked("a", n=2), asked("b"), asked("c")]
    run = made(tmp_path, samples, [pair(s.id) for s in samples])
    (run.path / "images/a-1.png").unlink()
    (run.path / "images/b.png").write_bytes(b"no image")
    done = export_run(run.path, "llava", tmp_path / "out")
    assert done.contents.drops == {"image-broken": 1, "image-missing": 1}
    assert len(list((tmp_path / "out/images").iterdir())) == 1


# --- which examples -------------------------------------------------------------------------


def test_pairs_of_all_stages_of_an_iteration_are_exported(tmp_path: Path) -> None:
    samples = [asked("a"), asked("b")]
    run = made(tmp_path, samples, [pair("a")], "iterations=3", "curate.weak=teacher")
    with pytest.raises(SelfcalError, match=r"no iteration has got all its pairs yet; go on with"):
        export_run(run.path, "swift", tmp_path / "early")
    run.finish("iter-1/taught/pairs", {"pairs": (PreferencePair, [pair("b", "Taught.")])})
    run.finish("iter-2/pairs", {"pairs": (PreferencePair, [pair("a", "Second.")])})
    run.finish("iter-2/taught/pairs", {"pairs": (PreferencePair, [])})
    done = export_run(run.path, "swift", tmp_path / "all")
    assert done.contents.counts == {1: 2, 2: 1}
    assert done.source.unfinished == (3,)
    chosen = [row["messages"][1]["content"] for row in exported(run, "swift", iteration=2)]
    assert chosen == ["Second."]
    with pytest.raises(SelfcalError, match=r"iteration 3 has not got all its pairs yet"):
        export_run(run.path, "swift", tmp_path / "out", Wanted(iteration=3))
    with pytest.raises(SelfcalError, match=r"has the iterations 1, 2, 3, not 4"):
        export_run(run.path, "swift", tmp_path / "out", Wanted(iteration=4))


def test_what_the_teacher_wrote_goes_to_every_format(tmp_path: Path) -> None:
    run = made(tmp_path, THREE[:1], [])
    with pytest.raises(SelfcalError, match="the teacher is not done; go on with"):
        export_run(run.path, "trl", tmp_path / "out", Wanted("sft"))
    run.finish("teacher", {"raps": (WrittenRap, [WrittenRap("one", LINES)])})
    said = [{"type": "text", "text": LINES}]
    trl = exported(run, "trl", split="sft")[0]
    assert set(trl) == {"images", "prompt", "completion"}
    assert trl["completion"] == [{"role": "assistant", "content": said}]
    factory = exported(run, "llamafactory", split="sft")[0]
    turns = [("human", "<image>Add the digits."), ("gpt", LINES)]
    assert factory["conversations"] == [{"from": a, "value": b} for a, b in turns]
    info = json.loads((tmp_path / "llamafactory/dataset_info.json").read_text())["tiny-sft"]
    assert "ranking" not in info
    assert info["columns"] == {"messages": "conversations", "images": "images"}
    swift = exported(run, "swift", split="sft")[0]
    assert [m["content"] for m in swift["messages"]] == ["<image>Add the digits.", LINES]
    assert "rejected_response" not in swift
    llava = exported(run, "llava", split="sft")[0]
    assert "rejected_conversations" not in llava
    with pytest.raises(SelfcalError, match="--iteration is for pairs"):
        export_run(run.path, "trl", tmp_path / "out", Wanted("sft", 1))


def test_methods_without_pairs_or_teacher_say_what_there_is(tmp_path: Path) -> None:
    run = made(tmp_path, THREE[:1], [], "method=sft_only")
    with pytest.raises(
        SelfcalError, match=r"'sft_only' makes no preference pairs \(these do: .*src"
    ):
        export_run(run.path, "trl", tmp_path / "out")
    bare = made(tmp_path / "bare", THREE[:1], PAIRS[:1], "method=stic", "rft=null")
    with pytest.raises(SelfcalError, match=r"`rft` is null\); leave out `--split sft`"):
        export_run(bare.path, "trl", tmp_path / "out", Wanted("sft"))


@pytest.mark.parametrize("path", sorted(RECIPES.glob("miniworld-*.yaml")), ids=lambda p: p.stem)
def test_methods_that_make_pairs_are_those_that_are_named(path: Path) -> None:
    recipe = load_recipe(path, [])
    pairs = any(s.name == "iter-1/pairs" for s in plan(recipe))
    assert pairs == (recipe.method in PAIRING)


def test_a_pair_of_an_unknown_sample_is_refused(tmp_path: Path) -> None:
    run = made(tmp_path, THREE[:1], [pair("other")])
    with pytest.raises(SelfcalError, match="iter-1/pairs has a record of sample 'other'"):
        export_run(run.path, "trl", tmp_path / "out")


# --- images and folder ----------------------------------------------------------------------


def test_an_image_that_several_pairs_show_is_there_once(tmp_path: Path) -> None:
    samples = [asked("a"), asked("b")]
    run = made(tmp_path, samples, [pair("a"), pair("b"), pair("a", "Other.")])
    colour(run.path / "images/b.png", 0)  # as that of a
    rows = exported(run, "swift")
    assert len({row["images"][0] for row in rows}) == 1
    assert len(list((tmp_path / "swift/images").iterdir())) == 1


def test_other_tools_show_the_image_that_the_policy_saw(tmp_path: Path) -> None:
    run = made(tmp_path, [asked("a"), asked("b")], [pair("a"), pair("b")])
    turned, clear = (run.path / f"images/{name}.png" for name in "ab")
    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its side
    picture = Image.new("RGB", (40, 30), "red")
    picture.paste("blue", (0, 0, 10, 10))
    picture.save(turned, exif=exif)
    Image.new("RGBA", (8, 8), (0, 0, 0, 0)).save(clear)
    for row, path in zip(exported(run, "swift"), (turned, clear), strict=True):
        with Image.open(tmp_path / "swift" / row["images"][0]) as shown:
            assert shown.convert("RGB").tobytes() == load_image(path).tobytes()
            assert shown.size == load_image(path).size


@pytest.mark.parametrize("mode", ["I", "F"])
def test_grey_of_32_bits_is_shown_as_the_policy_saw_it(tmp_path: Path, mode: str) -> None:
    run = made(tmp_path, [asked("a")], [pair("a")])
    path = run.path / "images/a.png"
    grey = Image.new(mode, (8, 8), 40_000)
    grey.putpixel((0, 0), 0)
    grey.save(path, "tiff")
    (row,) = exported(run, "swift")
    assert row["images"][0].endswith(".png")
    with Image.open(tmp_path / "swift" / row["images"][0]) as shown:
        assert shown.mode == "RGB" and shown.tobytes() == load_image(path).tobytes()


def test_the_ending_of_an_image_is_that_of_its_content(tmp_path: Path) -> None:
    run = made(tmp_path, [asked("a")], [pair("a")])
    with io.BytesIO() as buffer:
        Image.new("RGB", (8, 8)).save(buffer, "jpeg")
        (run.path / "images/a.png").write_bytes(buffer.getvalue())
    assert exported(run, "swift")[0]["images"][0].endswith(".jpg")


def test_images_are_linked_or_left_where_they_are(run: RunFolder) -> None:
    source = run.path / "images/one.png"
    row = exported(run, "swift", keep="link")[0]
    assert (run.path.parent / "swift" / row["images"][0]).samefile(source)
    row = exported(run, "llava", keep="path")[0]
    assert row["image"] == str(source.resolve())
    assert not (run.path.parent / "llava/images").exists()
    row = exported(run, "trl", keep="path")[0]
    assert row["images"] == [{"bytes": None, "path": str(source.resolve())}]


def test_a_folder_with_files_is_left_alone(run: RunFolder, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    export_run(run.path, "swift", tmp_path / "out")  # an empty one is fine
    with pytest.raises(SelfcalError, match="exists; give another folder, or delete it"):
        export_run(run.path, "swift", tmp_path / "out")


def test_an_export_that_fails_leaves_nothing(
    run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*given: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("selfcal.export.build.write_card", stop)
    with pytest.raises(KeyboardInterrupt):
        export_run(run.path, "swift", tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run", "tiny.yaml"]


@pytest.mark.parametrize(
    ("recipe", "name"),
    [("miniworld-src", "miniworld-src-pairs"), ("../a, b\n", "a-b-pairs"), ("é", "selfcal-pairs")],
)
def test_dataset_names_are_plain(recipe: str, name: str) -> None:
    assert dataset_name(recipe, pairs=True) == name


# --- card -----------------------------------------------------------------------------------


def test_the_card_says_what_it_is_and_nothing_of_this_machine(tmp_path: Path) -> None:
    folder = tmp_path / "my models" / "llava"
    folder.mkdir(parents=True)
    overrides = (f"policy.model={folder}", f"data.source={tmp_path}/mine", "policy.digest=null")
    run = made(tmp_path, THREE, [*PAIRS, pair("one", "<image>")], *overrides)
    done = export_run(run.path, "llamafactory", tmp_path / "out", Wanted(license="cc-by-4.0"))
    card = (tmp_path / "out/README.md").read_text()
    assert str(tmp_path) not in card
    front = yaml.safe_load(card.split("---")[1])
    assert front["license"] == "cc-by-4.0"
    assert front["configs"][0]["data_files"] == [{"split": "train", "path": "train.json"}]
    assert front["size_categories"] == ["n<1K"]
    for line in (
        "| policy | llava |",
        "| samples | mine |",
        "| method | src |",
        "| iteration 1 | 3 |",
        "| image-mark-in-response | 1 |",
        "Different images: 5.",
        "llamafactory-cli train --stage dpo",
        "--dataset tiny-pairs",
        "Answer: ",
    ):
        assert line in card, line
    assert done.licensed


def test_a_card_without_a_licence_asks_for_one(run: RunFolder, tmp_path: Path) -> None:
    export_run(run.path, "trl", tmp_path / "out")
    card = (tmp_path / "out/README.md").read_text()
    assert "license: unknown" in card
    assert "**To be filled in**" in card


def test_a_recipe_s_name_is_text_in_the_card(tmp_path: Path) -> None:
    run = made(tmp_path, THREE[:1], PAIRS[:1], 'name="a: [x](y)\\n---\\n<script> | b"')
    export_run(run.path, "trl", tmp_path / "out")
    card = (tmp_path / "out/README.md").read_text()
    assert card.count("\n---\n") == 1
    assert "# a: \\[x\\](y) --- \\<script\\> | b: preference pairs" in card
    assert "| recipe | a: \\[x\\](y) --- \\<script\\> \\| b |" in card
    assert yaml.safe_load(card.split("\n---\n")[0])["license"] == "unknown"


# --- hub ------------------------------------------------------------------------------------


class FakeHub:
    """What a hub was asked."""

    def __init__(self, private: bool = True, fails: Exception | None = None) -> None:
        self.private, self.fails = private, fails
        self.created: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        self.uploaded: list[dict[str, Any]] = []
        self.files: dict[str, bytes] = {}

    def create_repo(self, *given: Any, **named: Any) -> None:
        if self.fails:
            raise self.fails
        self.created.append((given, named))

    def repo_info(self, name: str, repo_type: str) -> Any:
        return SimpleNamespace(private=self.private)

    def upload_folder(self, **named: Any) -> Any:
        self.uploaded.append(named)
        folder = Path(named["folder_path"])
        found = [p for p in folder.rglob("*") if p.is_file()]
        self.files = {p.relative_to(folder).as_posix(): p.read_bytes() for p in found}
        return SimpleNamespace(repo_url="https://hub.example/datasets/me/pairs")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    fake = FakeHub()
    monkeypatch.setattr("huggingface_hub.HfApi", lambda: fake)
    return fake


def pushed(run: RunFolder, *more: str, tool: str = "swift") -> Any:
    out = run.path.parent / "out"
    return call("export", run.path, "--format", tool, "--out", out, "--push-to-hub", *more)


def test_a_push_uploads_rows_images_and_card(run: RunFolder, hub: FakeHub) -> None:
    done = pushed(run, "me/pairs", "--private")
    assert done.exit_code == 0, done.output
    assert "Uploaded: https://hub.example/datasets/me/pairs" in done.output
    named = {"repo_type": "dataset", "private": True, "exist_ok": True}
    assert hub.created == [(("me/pairs",), named)]
    assert hub.uploaded[0]["repo_id"] == "me/pairs"
    assert hub.uploaded[0]["repo_type"] == "dataset"
    assert hub.files["README.md"].startswith(b"---\nlicense: unknown\n")
    rows = [json.loads(line) for line in hub.files["train.jsonl"].splitlines()]
    names = {i for row in rows for i in row["images"]}
    assert set(hub.files) == {"README.md", "train.jsonl"} | names
    assert not any(str(run.path.parent).encode() in data for data in hub.files.values())


def test_a_push_is_public_unless_it_is_private(run: RunFolder, hub: FakeHub) -> None:
    hub.private = False
    assert pushed(run, "me/pairs", tool="trl").exit_code == 0
    assert hub.created[0][1]["private"] is None
    assert set(hub.files) == {"README.md", "data/train-00000.parquet"}


def test_private_pairs_do_not_go_where_everybody_sees_them(run: RunFolder, hub: FakeHub) -> None:
    hub.private = False
    done = pushed(run, "me/pairs", "--private")
    assert done.exit_code == 1
    assert "me/pairs is there already, and everybody can see it" in done.output
    assert not hub.uploaded


def test_images_that_are_not_in_the_export_are_not_pushed(run: RunFolder, hub: FakeHub) -> None:
    done = pushed(run, "me/pairs", "--images", "path")
    assert done.exit_code == 1
    assert "take `--images copy`" in flat(done.output)
    assert not hub.created


def test_a_path_of_this_machine_in_an_id_is_not_pushed(hub: FakeHub, tmp_path: Path) -> None:
    name = f"{tmp_path.resolve()}/run/a"
    run = made(tmp_path, [Sample(name, "images/a.png", "Add.", "5")], [pair(name)])
    done = pushed(run, "me/pairs", tool="llava")
    assert done.exit_code == 1
    assert f"train.json has the path {tmp_path.resolve()}/run/ of this machine" in flat(done.output)
    assert not hub.created


def test_a_hub_that_refuses_says_how_to_go_on(run: RunFolder, hub: FakeHub) -> None:
    from huggingface_hub.errors import LocalTokenNotFoundError

    hub.fails = LocalTokenNotFoundError("no token\nand more")
    done = pushed(run, "me/pairs", "--private")
    assert done.exit_code == 1
    text = flat(done.output)
    assert "the hub did not take it (no token); log in by `hf auth login` or set HF_TOKEN" in text
    assert f"`hf upload me/pairs {run.path.parent / 'out'} --repo-type dataset --private`" in text
    assert (run.path.parent / "out/train.jsonl").exists()


@pytest.mark.parametrize("name", ["a/b/c", "x y", "../up", "me/--"])
def test_a_name_that_no_dataset_can_have_is_refused_at_once(
    name: str, run: RunFolder, hub: FakeHub
) -> None:
    done = pushed(run, name)
    assert done.exit_code == 1
    assert "give USER/NAME" in flat(done.output)
    assert not (run.path.parent / "out").exists()


# --- command --------------------------------------------------------------------------------


def test_the_command_says_what_was_exported_and_how_to_use_it(
    run: RunFolder, tmp_path: Path
) -> None:
    out = tmp_path / "out dir"
    done = call("export", run.path, "--format", "swift", "--out", out)
    assert done.exit_code == 0, done.output
    text = flat(done.output)
    assert "3 pairs for ms-swift pairs iteration 1 3" in text
    assert "5 images; all of it lies in" in text
    assert f"ROOT_IMAGE_DIR='{out}' swift rlhf --rlhf_type dpo --model MODEL" in text
    assert f"--dataset '{out}/train.jsonl'" in text
    assert "name a licence" in text


def test_the_command_harms_no_terminal(run: RunFolder, tmp_path: Path) -> None:
    done = call("export", run.path, "--format", "trl", "--out", tmp_path / f"x{EVIL}")
    assert "\x1b" not in done.output
    assert "\u202e" not in done.output
    assert "[bold]red" in done.output


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--iteration", "0"), "--iteration 0: give a number from 1, or `all`"),
        (("--iteration", "last"), "--iteration last: give a number from 1, or `all`"),
        (("--private",), "--private is for --push-to-hub"),
    ],
)
def test_the_command_refuses_what_it_cannot_do(
    words: tuple[str, ...], said: str, run: RunFolder, tmp_path: Path
) -> None:
    done = call("export", run.path, "--format", "trl", "--out", tmp_path / "out", *words)
    assert done.exit_code == 1
    assert said in flat(done.output)


def test_no_run_is_said_so(tmp_path: Path) -> None:
    done = call("export", tmp_path, "--format", "trl", "--out", tmp_path / "out")
    assert done.exit_code == 1
    assert "is no run of selfcal" in flat(done.output)
