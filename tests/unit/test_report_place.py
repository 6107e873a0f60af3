"""Where `selfcal report` writes: over reports and their images, and over nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from selfcal.errors import StoreError
from selfcal.pipeline import FORMAT, RECIPE_FILE, open_run
from selfcal.report import write_report
from selfcal.report.overview import _public
from selfcal.report.record import read_record
from selfcal.store import MANIFEST, read_signed, write_signed
from selfcal.types import Sample
from unit.hand_made import RunFolder, sample

DIGEST = "0123456789abcdef0123"


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    made = RunFolder(tmp_path / "run")
    made.finish("data", {"calibration": (Sample, [sample("cal-0")])}, {"samples": {}})
    return made


def refused(run: RunFolder, out: Path, assets: Path | None = None) -> str:
    before = {p: p.read_bytes() for p in run.path.parent.rglob("*") if p.is_file()}
    with pytest.raises(StoreError) as error:
        write_report(run.path, out, 1, assets)
    assert {p: p.read_bytes() for p in run.path.parent.rglob("*") if p.is_file()} == before
    return str(error.value)


def test_a_report_replaces_a_report_and_no_other_file(run: RunFolder, tmp_path: Path) -> None:
    assert "is no report of selfcal" in refused(run, run.path / RECIPE_FILE)
    (tmp_path / "own.html").write_text("<!doctype html><p>of somebody")
    assert "is no report of selfcal" in refused(run, tmp_path / "own.html")
    assert "the run's own stages" in refused(run, run.path / "data" / "r.html")
    for _ in range(2):
        write_report(run.path, run.path / "report.html", 1)


def test_images_go_to_a_folder_of_their_own_beside_the_page(run: RunFolder, tmp_path: Path) -> None:
    out = run.path / "report.html"
    assert "the run's own stages" in refused(run, out, run.path / "data" / "images")
    assert "lies neither beside" in refused(run, out, tmp_path / "images")
    assert "holds other things" in refused(run, out, run.path)
    for _ in range(2):
        write_report(run.path, out, 1, run.path / "images")
    (run.path / "images").mkdir(exist_ok=True)
    (run.path / "images" / f"{DIGEST}.png").touch()
    write_report(run.path, out, 1, run.path / "images")
    (run.path / "images" / "mine.png").touch()
    assert "'mine.png'" in refused(run, out, run.path / "images")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"seconds": None}, "seconds"),
        ({"seconds": "x"}, "seconds"),
        ({"seconds": 1e19}, "seconds"),
        ({"written": 3.5}, "written"),
        ({"written": "soon"}, "written"),
        ({"stats": {"curve": [{"step": 10**400}]}}, "stats"),
    ],
)
def test_a_damaged_manifest_is_named(run: RunFolder, change: dict[str, object], said: str) -> None:
    path = run.path / "data" / MANIFEST
    write_signed(path, read_signed(path) | change)
    with pytest.raises(StoreError, match=f"manifest.json: {said}: .*the stage is redone"):
        read_record(run.path)


def test_a_manifest_of_another_form_makes_no_finished_stage(run: RunFolder) -> None:
    """The run does that stage again: no page may tell figures of it."""
    path = run.path / "data" / MANIFEST
    folder = run.planned["data"].folder
    assert folder.done
    write_signed(path, read_signed(path) | {"stats": "many"})
    assert not folder.done
    with pytest.raises(StoreError, match=r"manifest\.json is damaged .*`selfcal run --out RUN`"):
        folder.manifest()
    read_record(run.path)  # the rest of the report does not hang on it


def test_figures_that_are_none_are_left_out(run: RunFolder, tmp_path: Path) -> None:
    path = run.path / "data" / MANIFEST
    write_signed(path, read_signed(path) | {"stats": {"samples": {"calibration": "x"}, "spent": 3}})
    figure = {"value": "x", "stderr": 0.1, "n": "many"}
    run.finish("judge/quality", {}, {"agreement": figure, "agreement_merged": {"n": None}})
    assert "Held-out check" in write_report(run.path, tmp_path / "r.html", 1).read_text()


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("https://h:80/v1?api_key=SEKRET", "https://h:80/v1?…"),
        ("https://u:p@ss@h/v1", "https://…@h/v1"),
        ("https://u:SEK/RET@h/v1", "…"),
        ("http://h/v1#SEKRET", "http://h/v1?…"),
        ("a folder/with@sign", "a folder/with@sign"),
    ],
)
def test_of_an_address_nothing_secret_is_shown(address: str, shown: str) -> None:
    assert _public(address) == shown


def test_a_run_of_another_version_says_what_it_does_not_know(run: RunFolder) -> None:
    path = run.path / RECIPE_FILE
    found = read_signed(path)
    found["recipe"]["judge"]["sharpness"] = 3
    write_signed(path, found | {"format": FORMAT})
    with pytest.raises(StoreError, match=r"judge\.sharpness: .* changed by hand, or another vers"):
        open_run(run.path)
    write_signed(path, found | {"format": FORMAT - 1})
    with pytest.raises(StoreError, match=rf"format {FORMAT - 1}; this one's is {FORMAT}\)"):
        open_run(run.path)
