"""A run whose every text, name and picture means harm, and what each of them would do.

A script that ran would set `window.pwned`; an element that came to life would ask 127.0.0.1:9. The
same run with `PLAIN` in place of the attacks is harmless.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from PIL import Image

from browser.made import Item, finished, item

HOME = "http://127.0.0.1:9/"
"""Nobody answers there."""
ATTACKS = (
    '<script>window.pwned="script"</script>',
    '</script><script>window.pwned="end of data"</script>',
    '</title></style></textarea></template></noscript><script>window.pwned="end"</script>',
    '<!--<script>window.pwned="comment"',
    '--><script>window.pwned="after a comment"</script><!--',
    ']]><script>window.pwned="cdata"</script><![CDATA[',
    "<img src=x onerror=\"window.pwned='img'\">",
    f'"><img src="{HOME}img" onerror=window.pwned=1 x="',
    "' onmouseover='window.pwned=1' autofocus onfocus='window.pwned=1' tabindex=1 x='",
    f"<svg onload=window.pwned=1><image href={HOME}svg></image><script>pwned=1</script></svg>",
    "<svg><animate onbegin=window.pwned=1 attributeName=x dur=1s></svg>",
    '<a href="javascript:window.pwned=1">a link</a>',
    "[a link](javascript:window.pwned=1) javascript:window.pwned=1",
    '<iframe srcdoc="<script>parent.pwned=1</script>"></iframe>',
    f'<iframe src="{HOME}frame"></iframe><object data={HOME}object></object>',
    f'<style>@import "{HOME}style"; main {{ display: none !important }}</style>',
    f'<meta http-equiv=refresh content="0;url={HOME}refresh"><base href={HOME}>',
    f"<form action={HOME}form><button autofocus>Go</button></form>",
    "<details open ontoggle=window.pwned=1><div popover id=x>x</div></details>",
    "<h1 style='position:fixed;inset:0;z-index:9;background:red'>All is lost</h1>",
    "{{ 7 * 7 }}{% raw %}{{ cycler.__init__.__globals__ }} ${window.pwned=1} `${window.pwned=1}`",
    "\\u003cscript\\u003ewindow.pwned=1\\u003c/script\\u003e &lt;script&gt; &#60;script&#62;",
    "\x1b[31mred\x1b[0m\x1b]0;title\x07\x00\x08\x7f\x9b31m",
    "\u202egnp.exe\u202c \u2066isolated \u2067right to left\u2069",
    "zero\u200bwidth\u200e\u2060joined\ufeff \u2028line\u2029paragraph\u0085next",
    "Z\u0351\u036b\u0343\u036a" + "\u0329" * 200 + "algo",
    "\U000e0041\U000e0042 tags, \ufdfd\U0001f468\u200d\U0001f469\u200d\U0001f467, \ufffe",
)
NAMES = ("__proto__", "constructor", "toString", "all", "<b>bold</b>", "", " ", "A" * 300)
"""As ids and categories, where a script keeps things by name."""
WORD = "x" * 100_000
SENTENCES = "The left digit is 2. " * 5_000
MANY = " ".join(f"Digit {k} is {k % 10}." for k in range(10_000))
TALL = " ".join(f"Step {k} follows." for k in range(1_500))
"""A tree of as many levels as sentences, each with one child: deeper than Python's stack."""


def hostile(path: Path) -> Path:
    """The run."""
    calibration = [_attacked(k, text) for k, text in enumerate(ATTACKS)]
    calibration += [_named(len(ATTACKS) + k, name) for k, name in enumerate(NAMES)]
    calibration += _large(900)
    calibration += _pictured(path, 950)
    test = [_attacked(k, text, "test") for k, text in enumerate(ATTACKS)]
    test += [item(77, "test"), *_large(970, "test")[:2]]
    return finished(path, calibration, test, f"<img src={HOME}name onerror=window.pwned=1>")


def plain(path: Path) -> Path:
    """A run of the same kind without anything hostile: 22 samples.

    Of 12 calibration samples 0, 5 and 10 are dropped, and the judge is wrong about 4; of 8 test
    samples 103 was answered rightly at first and wrongly at last, the others the other way round.
    """
    ordinary = [item(k, swapped=k == 4, kept=k % 5 > 0) for k in range(12)]
    return finished(path, ordinary, [item(k, "test", k == 103) for k in range(100, 108)])


def many(path: Path, n: int = 1_200) -> Path:
    """A plain run of many samples."""
    ordinary = [item(k, kept=k % 5 > 0) for k in range(n)]
    return finished(path, ordinary, [item(k, "test") for k in range(3_000, 3_020)])


def _attacked(number: int, attack: str, split: str = "calibration") -> Item:
    """Everything that can hold the attack holds it; every second keeps facts for the verifier."""
    own = item(number, split)
    facts = f"{own.sample.facts}; {attack}" if number % 2 else attack
    sample = replace(
        own.sample,
        id=f"{split}-{number}-{attack}",
        question=own.sample.question if number % 2 else f"What is {attack}?",
        answer=own.sample.answer if number % 2 else attack,
        choices=() if number % 2 else (attack, "no", f"{attack}{attack}"),
        category=attack,
        facts=facts,
        rationale=attack,
    )
    good = own.good.replace("Rationale: ", f"Rationale: {attack}. ") + attack
    bad = f"{attack}\n{own.bad}\n{attack}"
    return Item(sample, good, bad, kept=number % 3 > 0, detail=attack)


def _named(number: int, name: str) -> Item:
    own = item(number)
    return replace(own, sample=replace(own.sample, id=name or own.sample.id, category=name))


def _large(number: int, split: str = "calibration") -> list[Item]:
    """Texts that are long in every way."""
    made = []
    for k, text in enumerate((WORD, SENTENCES, MANY, TALL)):
        own = item(number + k, split)
        sample = replace(own.sample, id=f"{split}-large-{k}", facts=f"{own.sample.facts}; {text}")
        if k < 2:  # else the question keeps its form, and the verifier reads thousands of sentences
            sample = replace(sample, question=text, choices=(text, "no"), category=text[:5_000])
        made.append(Item(sample, f"Rationale: {text}\nAnswer: 5", own.bad, k != 1, text))
    return made


# --- pictures --------------------------------------------------------------------------------


def _pictured(path: Path, number: int) -> list[Item]:
    """Samples whose pictures are broken, huge, elsewhere, or named to do harm."""
    folder = path / "images"
    folder.mkdir(parents=True)
    made = []
    for k, (name, make) in enumerate(_PICTURES.items()):
        own = item(number + k)
        if make is not None:
            make(folder / name)
        sample = replace(own.sample, id=f"picture-{k}", image=f"images/{name}")
        made.append(replace(own, sample=sample))
    for k, name in enumerate(ELSEWHERE):
        own = item(number + 20 + k)
        sample = replace(own.sample, id=f"elsewhere-{k}", image=name, more_images=(name, name))
        made.append(replace(own, sample=sample))
    return made


def _small(path: Path) -> None:
    Image.new("RGB", (32, 32), (200, 60, 60)).save(path, format="PNG")


def _bomb(path: Path) -> None:
    """A PNG that says it has 60,000 x 60,000 pixels: 10 GB, once decoded."""
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    body = zlib.compress(b"\0" * 1_000_000)
    chunks = [(b"IHDR", header), (b"IDAT", body), (b"IEND", b"")]
    data = b"".join(
        struct.pack(">I", len(c)) + kind + c + struct.pack(">I", zlib.crc32(kind + c))
        for kind, c in chunks
    )
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + data)


def _large_jpeg(path: Path) -> None:
    Image.new("RGB", (8_000, 6_000), (60, 120, 60)).save(path, format="JPEG", quality=30)


def _truncated(path: Path) -> None:
    _small(path)
    path.write_bytes(path.read_bytes()[:60])


def _document(path: Path) -> None:
    path.write_text(f"<svg xmlns='http://www.w3.org/2000/svg' onload='window.pwned=1'>"
                    f"<script>window.pwned=1</script><image href='{HOME}file'/></svg>")  # fmt: skip


def _page(path: Path) -> None:
    path.write_text("<script>parent.pwned = window.pwned = 1</script>")


_PICTURES: dict[str, Callable[[Path], object] | None] = {
    '"><img src=x onerror=window.pwned=1>.png': _small,
    "' onerror='window.pwned=1.png": _small,
    "javascript:window.pwned=1": _small,
    "a b?c=d#e%2f%00&amp;.png": _small,
    "\u202egnp.exe\u202c\x1b[31m\n.png": _small,
    "bomb.png.jpg": _bomb,
    "large.jpeg": _large_jpeg,
    "truncated.PNG": _truncated,
    "empty.PNG": Path.touch,
    "document.svg": _document,
    "page.html": _page,
    "folder.PNG": Path.mkdir,
    "pipe.PNG": os.mkfifo,
    "missing.PNG": None,
}
ELSEWHERE = (
    "../../../../../../etc/passwd",
    "/etc/passwd",
    "",
    f"{HOME}image.png",
    "file:///etc/passwd",
    "data:text/html,<script>window.pwned=1</script>",
    "/dev/zero",
    "images/\x00.png",
)
"""What `image` says of samples whose picture is not the run's own."""
