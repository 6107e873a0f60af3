"""Images of every kind: what is seen of them, and why one cannot be used."""

from __future__ import annotations

import errno
import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from selfcal.data.pictures import Checker, Rules
from selfcal.image import Picture, check_image, examine, load_image

RED = (255, 0, 0)


def noise(width: int, height: int, mode: str = "RGB") -> Image.Image:
    data = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(data).convert(mode)


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def bomb(side: int) -> bytes:
    """A PNG that says it is very large, and ends there."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("kind", "mode"),
    [
        ("PNG", "RGB"), ("PNG", "RGBA"), ("PNG", "L"), ("PNG", "LA"), ("PNG", "P"), ("PNG", "1"),
        ("PNG", "I;16"), ("JPEG", "RGB"), ("JPEG", "L"), ("JPEG", "CMYK"), ("GIF", "P"),
        ("WEBP", "RGB"), ("WEBP", "RGBA"), ("BMP", "RGB"), ("TIFF", "RGB"), ("TIFF", "F"),
        ("TIFF", "CMYK"), ("TIFF", "I"), ("PPM", "RGB"),
    ],
)  # fmt: skip
def test_every_kind_is_seen_as_rgb(tmp_path: Path, kind: str, mode: str) -> None:
    image = noise(7, 5, "L").convert("I").convert("I;16") if mode == "I;16" else noise(7, 5, mode)
    if mode == "RGBA":
        image.putalpha(99)
    path = tmp_path / "a"
    path.write_bytes(saved(image, kind))
    found = examine(path)
    assert isinstance(found, Picture)
    assert (found.width, found.height, found.format) == (7, 5, kind)
    assert found.mode == mode and not found.animated and not found.turned
    assert load_image(path).mode == "RGB" and load_image(path).size == (7, 5)


def test_colours_survive_conversion(tmp_path: Path) -> None:
    path = tmp_path / "a"
    for kind, image in [
        ("JPEG", Image.new("RGB", (8, 8), RED).convert("CMYK")),
        ("PNG", Image.new("RGB", (8, 8), RED).quantize(4)),
        ("TIFF", Image.new("RGB", (8, 8), RED).convert("CMYK")),
        ("WEBP", Image.new("RGBA", (8, 8), (*RED, 255))),
    ]:
        path.write_bytes(saved(image, kind))
        pixel = load_image(path).getpixel((4, 4))
        assert isinstance(pixel, tuple)
        assert max(abs(a - b) for a, b in zip(pixel, RED, strict=True)) < 4, kind


@pytest.mark.parametrize(
    ("values", "mode", "expected"),
    [
        ([0, 100, 255], "I", [0, 100, 255]),
        ([0, 257 * 100, 65535], "I", [0, 100, 255]),
        ([-10, 0, 245], "I", [0, 10, 255]),
        ([0.0, 0.5, 1.0], "F", [0, 127, 255]),
        ([0.0, 100.0, 255.0], "F", [0, 100, 255]),
        ([7, 7, 7], "I", [7, 7, 7]),
    ],
)
def test_wide_grey_is_scaled_by_its_range(
    tmp_path: Path, values: list[float], mode: str, expected: list[int]
) -> None:
    kind = np.int32 if mode == "I" else np.float32
    path = tmp_path / "a.tif"
    Image.fromarray(np.array([values], kind)).save(path)
    grey = load_image(path)
    for x, value in enumerate(expected):
        pixel = grey.getpixel((x, 0))
        assert isinstance(pixel, tuple) and abs(pixel[0] - value) <= 1


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_of_several_frames_the_first_is_taken(tmp_path: Path, kind: str) -> None:
    frames = [Image.new("RGB", (6, 4), c) for c in ("red", "blue", "green")]
    path = tmp_path / "a"
    path.write_bytes(saved(frames[0], kind, save_all=True, append_images=frames[1:]))
    found = examine(path)
    assert isinstance(found, Picture) and found.animated
    pixel = load_image(path).getpixel((3, 2))
    assert isinstance(pixel, tuple) and pixel[0] > 250 and max(pixel[1:]) < 5


@pytest.mark.parametrize(("orientation", "turned"), [(1, False), (3, True), (6, True), (99, False)])
def test_exif_orientation_is_noted(tmp_path: Path, orientation: int, turned: bool) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "a.jpg"
    noise(6, 4).save(path, exif=exif)
    found = examine(path)
    assert isinstance(found, Picture)
    assert found.turned is turned
    assert (found.width, found.height) == ((4, 6) if orientation == 6 else (6, 4))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "image-broken"),
        (b"no image", "image-broken"),
        (b"\x89PNG\r\n\x1a\n", "image-broken"),
        (saved(noise(64, 64), "JPEG")[:-200], "image-broken"),
        (saved(noise(64, 64), "PNG")[:4000], "image-broken"),
        (saved(noise(64, 64), "GIF")[:2000], "image-broken"),
        (bomb(60_000), "image-too-large"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", "image-broken"),
        (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "image-broken"),
    ],
)
def test_what_cannot_be_used_has_a_named_reason(
    tmp_path: Path, content: bytes, reason: str
) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(content)
    assert check_image(path) == reason
    for source in (path, content):
        found = examine(source)
        assert isinstance(found, tuple) and found[0] == reason


def refuse(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """From now on no image can be opened."""

    def fail(*args: object, **options: object) -> None:
        raise error

    monkeypatch.setattr(Image, "open", fail)


def test_a_file_that_the_system_does_not_give_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = tmp_path / "loop.png"
    loop.symlink_to(loop)
    assert check_image(loop) == "image-missing"
    assert check_image(tmp_path / f"{'a' * 300}.png") == "image-missing"  # ENAMETOOLONG
    path = tmp_path / "a.png"
    noise(9, 9).save(path)
    for number in (errno.EIO, errno.ELOOP):
        refuse(monkeypatch, OSError(number, os.strerror(number)))
        assert check_image(path) == "image-missing"
    refuse(monkeypatch, OSError("broken data stream"))  # as decoders say it
    assert check_image(path) == "image-broken"


def test_too_little_memory_is_no_fault_of_an_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    noise(9, 9).save(tmp_path / "a.png")
    refuse(monkeypatch, MemoryError())
    with pytest.raises(MemoryError):
        check_image(tmp_path / "a.png")


def test_limits_of_sides_and_pixels(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    noise(40, 20).save(path)
    assert isinstance(examine(path, 20, 800), Picture)
    small, large = examine(path, 21), examine(path, 0, 799)
    assert small == ("image-too-small", "40 x 20 pixels, at least 21")
    assert large == ("image-too-large", "40 x 20 pixels, limit 799")


def test_too_many_pixels_are_refused_before_they_are_decoded() -> None:
    large = saved(Image.new("1", (9_000, 9_000)), "PNG")  # 10 KB that would become 243 MB
    assert examine(large, 0, 1_000_000) == ("image-too-large", "9000 x 9000 pixels, limit 1000000")
    assert examine(bomb(9_000), 0, 1_000_000)[0] == "image-too-large"  # type: ignore[index]


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=300), st.sampled_from(["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP"]))
def test_damaged_bytes_never_raise(junk: bytes, kind: str) -> None:
    whole = saved(noise(9, 9), kind)
    at = len(junk) * len(whole) // 301
    for content in (junk, whole[:at] + junk + whole[at + len(junk) :]):
        found = examine(content)
        reasons = ("image-broken", "image-too-large")
        assert isinstance(found, Picture) or found[0] in reasons


def test_an_image_is_looked_at_once(tmp_path: Path) -> None:
    noise(9, 9).save(tmp_path / "a.png")
    told: list[Picture] = []
    content = (tmp_path / "a.png").read_bytes()
    with Checker(Rules(), told.append) as checker:
        looks = [checker.begin(str(tmp_path / "a.png")) for _ in range(5)]
        found = [look() for look in looks] + [checker.begin(str(tmp_path / "a.png"))()]
        inside = [checker.begin(content)() for _ in range(3)]
    assert len({f.content for f in found + inside}) == 1 and len(told) == 2  # a path and a content
    assert {f.reason for f in found} == {None} and inside[0].ending == "png"
