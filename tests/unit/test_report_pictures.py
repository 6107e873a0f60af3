"""A run's images on a page: small, once each, under no name but their digest."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from selfcal.report.pictures import SIDE, Pictures


def test_equal_pictures_are_held_once_and_are_small(tmp_path: Path) -> None:
    Image.effect_mandelbrot((1500, 600), (-2, -1, 1, 1), 60).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes())
    Image.new("RGB", (40, 20), "red").save(tmp_path / "c.png")
    pictures = Pictures(tmp_path)
    a, b, c = (pictures.take(f"{name}.png") for name in "abc")
    assert (a.digest, a.name, b.name) == (b.digest, "a.png", "b.png")
    assert (a.width, a.height) == (SIDE, 205)  # 600 * 512 / 1500 = 204.8
    assert a.size == "1,500 × 600 pixels"  # noqa: RUF001
    assert set(pictures.urls) == {a.digest, c.digest}
    assert pictures.urls[a.digest].startswith("data:image/jpeg;base64,")
    assert pictures.urls[c.digest].startswith("data:image/png;base64,")
    assert not a.src


def test_a_page_of_many_photographs_stays_light(tmp_path: Path) -> None:
    Image.effect_noise((900, 600), 40).convert("RGB").save(tmp_path / "a.png")
    free, light = (Pictures(tmp_path, heaviest=most) for most in (None, 20_000))
    assert free.take("a.png").width == SIDE and light.take("a.png").width < SIDE
    weights = [len(*pictures.urls.values()) for pictures in (free, light)]
    assert weights[1] <= 20_000 * 4 / 3 + 30 < weights[0]


def test_a_folder_takes_pictures_by_their_digests_alone(tmp_path: Path) -> None:
    run, page = tmp_path / "run", tmp_path / "out"
    run.mkdir()
    name = "<img src=x onerror=alert(1)>.png"
    Image.new("RGB", (30, 30), "blue").save(run / name)
    pictures = Pictures(run, page / "my images", page)
    found = pictures.take(name)
    [written] = (page / "my images").iterdir()
    assert written.name == f"{found.digest}.png"
    assert found.src == f"my%20images/{written.name}"
    assert not pictures.urls


@pytest.mark.parametrize("name", ["../secret.png", "a/../../secret.png", "\0", "", "none.png"])
def test_what_cannot_be_shown_says_why(name: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    Image.new("RGB", (30, 30)).save(tmp_path / "secret.png")
    found = Pictures(run).take(name)
    assert found.error and not found.digest
    assert str(tmp_path) not in found.error + found.name


def test_a_relative_path_stays_in_the_run_and_an_absolute_one_is_the_users(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    Image.new("RGB", (30, 30)).save(tmp_path / "own.png")
    (run / "link.png").symlink_to(tmp_path / "own.png")
    (run / "circle.png").symlink_to(run / "circle.png")
    pictures = Pictures(run)
    for name in ("link.png", "circle.png"):
        assert pictures.take(name).error == "its path leads out of the run"
    own = pictures.take(str(tmp_path / "own.png"))
    assert own.digest and own.name == "own.png"


def test_a_bomb_is_refused_without_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("RGB", (200, 200)).save(tmp_path / "bomb.png")
    (tmp_path / "text.png").write_text("no picture")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000)
    bomb, text = (Pictures(tmp_path).take(n) for n in ("bomb.png", "text.png"))
    assert bomb.error.startswith("image too large (") and str(tmp_path) not in bomb.error
    assert text.error.startswith("image broken (") and str(tmp_path) not in text.error
