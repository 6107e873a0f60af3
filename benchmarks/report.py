"""What a report weighs, and how long a reader waits for it: 200 and 1,000 samples, in Chromium.

    python benchmarks/report.py --run runs/demo

The report of a finished run is written as `selfcal report` writes it, once with the run's own
images and once with stand-ins for photographs: noise of 1024 x 768 pixels whose energy falls with
the frequency as that of photographs does, some 220 KB each as JPEG. As thumbnails of a page they
weigh 49 KB; the two real photographs that scikit-learn ships weigh 24 and 47 at that size. Each
page is opened from disk in Chromium without a window, in turn with an empty one; what is told is
the median of first contentful paints, and then how long the page takes to open a sample and to
filter, each till the next frame is drawn. Prints a Markdown table and, as its last line, one JSON
object.

Needs playwright (a dependency for development) and a Chromium.
"""

from __future__ import annotations

import argparse
import io
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import last_line
from miniworld import table

WIDE, HIGH = 1024, 768
CHROMIUMS = ("chromium", "chromium-browser", "google-chrome")
TARGETS = {"megabytes_200": 15, "megabytes_200_photographs": 15, "first_paint_ms_200": 2_000}
EMPTY = "<!doctype html><html lang=en><meta charset=utf-8><title>Empty</title><p>Empty</p></html>"
PAINT = """() => new Promise(done => new PerformanceObserver(list => {
  for (const entry of list.getEntries())
    if (entry.name === "first-contentful-paint") done(entry.startTime);
}).observe({type: "paint", buffered: true}))"""
FRAME = "await new Promise(requestAnimationFrame);"
OPEN = f"""async (i) => {{
  const link = document.querySelectorAll(".rows a")[i + 1];
  const name = link.querySelector(".id").textContent;
  const is = () => document.querySelector(".detail h2")?.textContent === name;
  const drawn = () => [...document.querySelectorAll(".detail img")].every((own) => own.complete);
  const began = performance.now();
  link.click();
  do {{ {FRAME} }} while (!is() || !drawn());
  {FRAME}
  return performance.now() - began;
}}"""
FILTER = f"""async (i) => {{
  const select = document.querySelector("select[name=category]");
  const first = document.querySelector(".rows").firstChild;
  const began = performance.now();
  select.selectedIndex = 1 + i % (select.options.length - 1);
  select.dispatchEvent(new Event("input", {{ bubbles: true }}));
  do {{ {FRAME} }} while (first.isConnected);
  {FRAME}
  return performance.now() - began;
}}"""


@dataclass(frozen=True)
class Case:
    """One page."""

    images: str
    """`own` or `photographs`."""
    samples: int
    beside: bool = False
    """Whether the images lie in files beside the page."""

    @property
    def name(self) -> str:
        """For the table."""
        kind = "photographs" if self.images == "photographs" else "the run's own"
        return f"{kind}, in files beside it" if self.beside else kind


CASES = (
    Case("own", 200), Case("own", 1_000), Case("photographs", 200), Case("photographs", 1_000),
    Case("photographs", 1_000, beside=True),
)  # fmt: skip


class Photographs:
    """Stand-ins for photographs, each another one."""

    def __init__(self) -> None:
        """Draw what all of them are mixed from."""
        import numpy as np

        self._rng = np.random.default_rng(0)
        self._planes = [self._plane() for _ in range(12)]

    def _plane(self) -> Any:
        """Noise of 1 / f ** 1.3 in amplitude, float (HIGH, WIDE) of mean 0 and deviation 1."""
        import numpy as np

        frequency = np.hypot(np.fft.fftfreq(HIGH)[:, None], np.fft.rfftfreq(WIDE)[None, :])
        frequency[0, 0] = np.inf
        shape = frequency.shape
        spectrum = self._rng.normal(size=shape) + 1j * self._rng.normal(size=shape)
        plane = np.fft.irfft2(spectrum / frequency**1.3, (HIGH, WIDE))
        return plane / plane.std()

    def draw(self) -> bytes:
        """The next one, as JPEG: one plane is its brightness, others colour it a little."""
        import numpy as np
        from PIL import Image

        chosen = self._rng.integers(len(self._planes), size=4)
        moved = [np.roll(self._planes[k], self._rng.integers(WIDE, size=2), (0, 1)) for k in chosen]
        light = np.linspace(-1, 1, HIGH)[:, None] * self._rng.normal()
        colours = [128 + 45 * (moved[0] + 0.35 * own + light) for own in moved[1:]]
        pixels = np.clip(np.stack(colours, -1), 0, 255).astype(np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "JPEG", quality=85)
        return buffer.getvalue()


def drawn(run: Path, samples: int) -> dict[str, list[Any]]:
    """The samples that a report of this size shows, by split."""
    from selfcal.pipeline import locate, open_run
    from selfcal.report.samples import draw
    from selfcal.types import Sample

    recipe = open_run(run)
    data = next(p.folder for p in locate(recipe, run) if p.stage.name == "data")
    splits = [s for s in ("calibration", "test", "dev", "rft") if data.has(s, 0)]
    own = {s: {x.id: x for x in data.records(s, Sample)} for s in splits}
    shown = draw({s: list(found) for s, found in own.items()}, (), samples, recipe.seed)
    return {split: [own[split][name] for name in names] for split, names in shown.items()}


def with_photographs(run: Path, out: Path, samples: int) -> Path:
    """The same run with other images for the samples that a report of this size shows."""
    shutil.copytree(run, out, ignore=shutil.ignore_patterns("images", "checkpoint", "adapter"))
    photographs = Photographs()
    for sample in (s for own in drawn(run, samples).values() for s in own):
        for image in sample.images:
            path = out / image
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(photographs.draw())
    return out


def write(case: Case, run: Path, folder: Path) -> tuple[Path, float]:
    """Write a report as a user does; the page, and the seconds that the command took."""
    page = folder / "report.html"
    command = [sys.executable, "-m", "selfcal", "report", run, "--out", page]
    command += [
        "--samples",
        case.samples,
        *(["--assets", folder / "images"] if case.beside else []),
    ]
    began = time.perf_counter()
    subprocess.run([str(c) for c in command], check=True, stdout=subprocess.DEVNULL)
    return page, time.perf_counter() - began


@contextmanager
def chromium() -> Iterator[Any]:
    """A browser without a window."""
    from playwright.sync_api import sync_playwright

    path = next(filter(None, map(shutil.which, CHROMIUMS)), None)
    if path is None:
        raise SystemExit("no Chromium on PATH: `make browser`, or apt-get install chromium")
    options = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=options)
        yield browser
        browser.close()


def first_paint(browser: Any, page: Path) -> float:
    """Milliseconds to the first contentful paint, in a context without anything cached."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    window = context.new_page()
    window.goto(page.as_uri())
    found: float = window.evaluate(PAINT)
    context.close()
    return found


def reading(browser: Any, page: Path, times: int) -> tuple[float, float]:
    """Milliseconds to open a sample with its image, and to filter; medians."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    window = context.new_page()
    window.goto(page.as_uri() + "#samples")
    window.wait_for_selector(".detail h2")
    opened = [window.evaluate(OPEN, i) for i in range(times)]
    filtered = [window.evaluate(FILTER, i) for i in range(times)]
    context.close()
    return statistics.median(opened), statistics.median(filtered)


def measure(case: Case, run: Path, folder: Path, browser: Any, times: int) -> dict[str, float]:
    """Write a page, and read it."""
    folder.mkdir()
    page, seconds = write(case, run, folder)
    empty = folder / "empty.html"
    empty.write_text(EMPTY)
    paints = [(first_paint(browser, page), first_paint(browser, empty)) for _ in range(times)]
    own, nothing = (statistics.median(p[i] for p in paints) for i in (0, 1))
    opened, filtered = reading(browser, page, times)
    beside = sum(p.stat().st_size for p in folder.glob("images/*"))
    return {
        "megabytes": page.stat().st_size / 1e6, "megabytes_beside": beside / 1e6,
        "seconds": seconds, "first_paint_ms": own, "empty_ms": nothing, "open_ms": opened,
        "filter_ms": filtered,
    }  # fmt: skip


def row(case: Case, found: dict[str, float]) -> list[str]:
    """A line of the table."""
    weight = f"{found['megabytes']:.1f}"
    if case.beside:
        weight += f" + {found['megabytes_beside']:.1f}"
    return [
        f"{case.samples:,}", case.name, weight, f"{found['seconds']:.1f}",
        f"{found['first_paint_ms']:.0f}", f"{found['first_paint_ms'] / found['empty_ms']:.1f}",
        f"{found['open_ms']:.0f}", f"{found['filter_ms']:.0f}",
    ]  # fmt: skip


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, default=Path("runs/demo"))
    parser.add_argument("--times", type=int, default=5, help="how often each time is taken")
    parser.add_argument("--quick", action="store_true", help="the run's own images, 20 samples")
    args = parser.parse_args()
    cases = (Case("own", 20),) if args.quick else CASES
    found: dict[Case, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder, chromium() as browser:
        runs = {"own": args.run}
        if not args.quick:
            runs["photographs"] = with_photographs(args.run, Path(folder, "run"), 1_000)
        for i, case in enumerate(cases):
            here = Path(folder, str(i))
            found[case] = measure(case, runs[case.images], here, browser, args.times)
            shutil.rmtree(here)
    head = ["samples", "images", "page, MB", "written, s", "first paint, ms", "x an empty page",
            "open a sample, ms", "filter, ms"]  # fmt: skip
    table(head, [row(c, f) for c, f in found.items()])
    last_line(figures(found) | {"targets": TARGETS})


def figures(found: dict[Case, dict[str, float]]) -> dict[str, Any]:
    """All figures, by page."""
    names = {c: f"{c.samples}{'' if c.images == 'own' else '_photographs'}{'_beside' * c.beside}"
             for c in found}  # fmt: skip
    return {f"{key}_{names[c]}": v for c, own in found.items() for key, v in own.items()}


if __name__ == "__main__":
    main()
