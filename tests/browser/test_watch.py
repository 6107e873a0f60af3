"""What the other tests lean on: a page that does what it must not is seen."""

from __future__ import annotations

from pathlib import Path

from browser.conftest import Visits

NOBODY = "http://127.0.0.1:9"
BAD = f"""
<img src="{NOBODY}/image">
<iframe src="file:///etc/hostname"></iframe>
<script>console.error("heard")</script>
<script>console.warn("heard")</script>
<script>throw "thrown"</script>
<script>Promise.reject(Error("refused"))</script>
<script>new WebSocket("ws://127.0.0.1:9/")</script>
<script>alert("shown")</script>
<script>open("about:blank")</script>
"""
AWAY = f'<meta http-equiv=refresh content="0;url={NOBODY}/away">'


def written(folder: Path, body: str) -> Path:
    file = folder / "page.html"
    file.write_text(f"<!doctype html><html lang=en><title>A page</title><h1>Hello</h1>{body}")
    return file


def seen(visit: Visits, file: Path) -> set[str]:
    visit(file).wait_for_timeout(200)
    faults = set(visit.faults)
    visit.watches.clear()
    return faults


def test_every_fault_is_seen(visit: Visits, tmp_path: Path) -> None:
    assert seen(visit, written(tmp_path, BAD)) >= {
        f"request: {NOBODY}/image",
        "request: file:///etc/hostname",
        "console error: heard",
        "console warning: heard",
        "script: thrown",
        "script: refused",
        "socket: ws://127.0.0.1:9/",
        "dialog: shown",
        "window: about:blank",
    }
    assert f"request: {NOBODY}/away" in seen(visit, written(tmp_path, AWAY))


def test_a_page_of_text_and_own_pictures_is_fine(visit: Visits, tmp_path: Path) -> None:
    (tmp_path / "own.svg").write_text("<svg xmlns='http://www.w3.org/2000/svg'/>")
    body = "<img src=own.svg><img src='data:image/gif;base64,R0lGODlhAQABAAAAACw='>"
    assert seen(visit, written(tmp_path, body)) == set()
