"""Images that mean harm: each is refused by a name, or does none."""

from __future__ import annotations

import io
import json
import os
import struct
import zipfile
import zlib
from pathlib import Path

import pytest
from PIL import Image, PngImagePlugin

from selfcal.data import read_samples
from selfcal.image import ImageError, check_image, examine, load_image

ROW = {"id": "a", "image": "a.png", "question": "How many?", "answer": "2"}


def saved(kind: str = "PNG", size: tuple[int, int] = (8, 6), **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, "red").save(buffer, kind, **options)
    return buffer.getvalue()


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width: int, height: int, pixels: bytes = b"") -> bytes:
    """A PNG that says such a size, whatever its pixels are."""
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(pixels)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def zipped() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("evil.py", "print()")
    return buffer.getvalue()


def reason(data: bytes, **rules: int) -> str | None:
    found = examine(data, **rules)
    return found[0] if isinstance(found, tuple) else None


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "PPM"])
def test_a_truncated_image_is_broken(kind: str) -> None:
    whole = saved(kind, (64, 64))
    assert reason(whole) is None
    assert reason(whole[: len(whole) // 2]) == "image-broken"
    assert reason(whole[:10]) == "image-broken"


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP"])
@pytest.mark.parametrize(
    "behind",
    [
        b"<html><script>alert(1)</script></html>",
        b"<!DOCTYPE  HTML>",
        b"<?php ?>",
        zipped(),
        b"<svg ",
    ],
    ids=["page", "doctype", "php", "zip", "svg"],
)
def test_a_polyglot_is_refused(kind: str, behind: bytes) -> None:
    assert reason(saved(kind) + behind) == "image-polyglot"


def test_a_picture_that_is_a_script_is_refused() -> None:
    gif = bytearray(saved("GIF"))
    gif[6:8] = b"/*"  # its width: the header is `GIF89a/*`, and a script may close that
    assert reason(bytes(gif) + b"*/=1;alert(1)") in ("image-polyglot", "image-too-slim")
    hidden = PngImagePlugin.PngInfo()
    hidden.add_text("Comment", "<script>alert(1)</script>")
    assert reason(saved(pnginfo=hidden)) == "image-polyglot"


def test_what_cameras_write_behind_a_picture_is_no_polyglot() -> None:
    film = b"\0\0\0\x18ftypmp42" + bytes(range(256)) * 20
    assert reason(saved("JPEG") + film) is None
    assert reason(saved() + b"PK\5\6 by chance, with no archive") is None


def test_bombs_are_refused_before_they_are_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> None:
        raise AssertionError("decoded")

    big = [
        png(65_535, 65_535),
        b"BM" + struct.pack("<IHHIIiiHHIIIIII", 54, 0, 0, 54, 40, 60_000, 60_000, 1, 24, *[0] * 6),
        b"P6 50000 50000 255\n",
        b"GIF89a" + struct.pack("<HH", 65_535, 65_535) + b"\0\0\0,\0\0\0\0"
        + struct.pack("<HH", 65_535, 65_535) + b"\0\x02\x02L\x01\0;",
    ]  # fmt: skip
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", never)
    assert [reason(data) for data in big] == ["image-too-large"] * 4
    assert reason(saved("TIFF"), max_pixels=47) == "image-too-large"


def test_frames_of_a_gif_are_not_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    frames = [Image.new("RGB", (40, 40), (i, 255 - i, 0)) for i in range(200)]
    buffer = io.BytesIO()
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:])
    loads = []
    monkeypatch.setattr("PIL.GifImagePlugin.GifImageFile.load_end", lambda *_: loads.append(1))
    found = examine(buffer.getvalue())
    assert not isinstance(found, tuple) and found.animated
    assert len(loads) <= 2


def test_sizes_of_nothing_and_of_too_much_are_refused() -> None:
    for size in ((0, 0), (0, 9), (9, 0)):
        assert reason(png(*size)) == "image-broken"
        assert reason(b"P6 %d %d 255\n" % size) == "image-broken"
    for size in ((65_535, 1_000), (1_000, 65_535), (30_001, 200)):
        assert reason(png(*size)) == "image-too-large"
    for size in ((65, 13_001), (1, 201), (12_000, 2)):
        assert reason(png(*size)) == "image-too-slim"
    assert reason(saved(size=(400, 2))) is None


def test_large_text_and_profiles_are_refused_or_ignored() -> None:
    text = chunk(b"zTXt", b"a\0\0" + zlib.compress(b"x" * 2**24))
    profile = chunk(b"iCCP", b"a\0\0" + zlib.compress(b"x" * 2**24))
    whole = saved()
    for extra in (text, profile):
        assert reason(whole[:33] + extra + whole[33:]) in (None, "image-broken")
    exif = b"Exif\0\0MM\0*" + b"\xff" * 60_000
    assert reason(saved("JPEG", exif=exif)) in (None, "image-broken")


def test_an_image_is_what_it_holds_and_not_what_it_is_called(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(saved("JPEG"))
    assert check_image(path) is None
    for content in (
        b"<html></html>",
        zipped(),
        b"%!PS-Adobe-3.0 EPSF-3.0\n",
        b"<svg/>",
        b"\x7fELF",
    ):
        path.write_bytes(content)
        assert check_image(path) == "image-broken"


def test_what_is_no_regular_file_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")  # to open it would wait for ever
    for path in (tmp_path / "pipe.png", Path("/dev/zero"), tmp_path):
        assert check_image(path) == "image-missing"
    with pytest.raises(ImageError, match=r"pipe\.png: image-missing .*put the file there"):
        load_image(tmp_path / "pipe.png")


def test_only_what_truly_lies_below_the_root_is_read(tmp_path: Path) -> None:
    root, other = tmp_path / "root", tmp_path / "other"
    root.mkdir(), other.mkdir()
    for folder in (root, other):
        (folder / "a.png").write_bytes(saved())
    (root / "link.png").symlink_to(other / "a.png")
    (root / "folder").symlink_to(other)
    (root / "own.png").symlink_to(root / "a.png")
    (root / "loop.png").symlink_to(root / "loop.png")
    names = {
        "a.png": None, "own.png": None, "link.png": "unsafe-path", "folder/a.png": "unsafe-path",
        "../other/a.png": "unsafe-path", "x/../../other/a.png": "unsafe-path",
        str(other / "a.png"): "unsafe-path", "/dev/zero": "unsafe-path",
        "/proc/self/environ": "unsafe-path", "a.png\0.txt": "unsafe-path",
        "loop.png": "image-missing",
    }  # fmt: skip
    rows = [{**ROW, "id": str(i), "image": name} for i, name in enumerate(names)]
    (root / "d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    samples, drops = read_samples(root / "d.jsonl")
    assert [s.id for s in samples] == ["0", "1"]
    assert [d.reason for d in drops] == [reason for reason in names.values() if reason]
    (tmp_path / "named").symlink_to(root)  # a root that is a link is whoever named it's
    samples, _ = read_samples(root / "d.jsonl", tmp_path / "named")
    assert [s.id for s in samples] == ["0", "1"]
    samples, _ = read_samples(root / "d.jsonl", tmp_path)  # all of it lies below this one
    assert [s.id for s in samples] == [
        str(i) for i, n in enumerate(names) if n == str(other / "a.png")
    ]


def test_a_folder_of_shards_has_no_pipes(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(saved())
    (tmp_path / "a.jsonl").write_text(json.dumps(ROW))
    os.mkfifo(tmp_path / "b.jsonl")
    samples, _ = read_samples(tmp_path)
    assert [s.id for s in samples] == ["a"]


def test_pixels_spelled_out_in_text_are_not_read() -> None:
    for kind in (b"P1", b"P2", b"P3"):
        assert reason(kind + b"\n1 1\n255\n1 1 1\n") == "image-broken"
    for before in (b"P6\n" + b"#\n" * 1000, b"P6 1 1" + b" " * 1000, b"P6 1 #" + b"x" * 1000):
        assert reason(before + b"\n1 1\n255\nabc") == "image-broken"
    assert reason(b"P6\n# made by hand\n1 1\n255\nabc") is None
    assert reason(b"P4 8 1\nx") is None
    assert reason(b"Pf 1 1 -1.0\n\0\0\0\0") is None


def test_a_jpeg_of_many_scans_is_broken() -> None:
    whole = saved("JPEG", (64, 64), progressive=True)
    start = whole.index(b"\xff\xda")
    assert reason(whole) is None
    # a scan's header and what follows up to the next marker, over and over
    end = whole.index(b"\xff", start + 2)
    assert reason(whole[:end] + whole[start:end] * 101 + whole[end:]) == "image-broken"
    assert reason(whole + b"\xff\xda" * 200) is None  # behind its end: a film, perhaps
    thumbnails = b"\xff\xec\0\x06abcd" * 10_001
    assert reason(whole[:2] + thumbnails + whole[2:]) == "image-broken"
