"""The README's pictures of a report: its overview, and a sample with pair, matrix and tree.

    python benchmarks/screenshots.py --run runs/demo --out docs

Writes the report of a finished run with 1,000 samples, opens it in Chromium, and takes
`report-overview.png` and `report-sample.png`, 1280 pixels wide, each cut where something ends. The
sample, unless one is named, is the one with the smallest tree of those whose chosen response is
reliable, whose rejected one says something false, and of whose sentences one at least was pruned;
one that the checkpoints answered as well, if there is any.

Needs playwright (a dependency for development) and a Chromium.
"""

from __future__ import annotations

import argparse
import io
import tempfile
from pathlib import Path
from typing import Any

from report import chromium, drawn

WIDE, SAMPLES = 1280, 1_000
LARGEST = 300_000
"""Bytes of a picture."""
TWIGS = 15
"""Sentences of the tree that are in the picture."""


def telling(run: Path) -> str:
    """Id of a sample that shows what a run does.

    Raises:
        SystemExit: there is none; name one.
    """
    from selfcal.miniworld.verifier import verify
    from selfcal.pipeline import locate, open_run
    from selfcal.types import PreferencePair, Response, SearchNode

    recipe = open_run(run)
    folders = {p.stage.name: p.folder for p in locate(recipe, run)}
    samples = {s.id: s for s in drawn(run, SAMPLES)["calibration"]}
    followed = {r.sample_id for r in folders["eval/seed"].records("calibration", Response)}
    fits: dict[str, tuple[bool, int]] = {}
    for t in range(1, recipe.iterations + 1):
        nodes: dict[str, list[SearchNode]] = {}
        for node in folders[f"iter-{t}/candidates"].records("nodes", SearchNode):
            nodes.setdefault(node.sample_id, []).append(node)
        for pair in folders[f"iter-{t}/pairs"].records("pairs", PreferencePair):
            own, tree = samples.get(pair.sample_id), nodes[pair.sample_id]
            if own is None:
                continue
            chosen, rejected = (verify(own, text) for text in (pair.chosen, pair.rejected))
            if chosen.reliable and rejected.counterfactual and not all(n.kept for n in tree):
                fits[own.id] = own.id not in followed, len(tree)
    if fits:
        return min(fits, key=lambda name: fits[name])
    raise SystemExit(f"{run}: no sample is like that; name one with --sample")


def edge(page: Any, what: str, name: str) -> int:
    """Where an element's `top` or `bottom` is, in pixels from the top of the page."""
    code = f"own => own.getBoundingClientRect().{name} + scrollY"
    return int(page.locator(what).evaluate(code))


def take(page: Any, out: Path, top: int, end: int) -> None:
    """Write a part of a page as a PNG with few colours, which is a third of the size."""
    from PIL import Image

    page.evaluate("() => { document.activeElement.blur(); scrollTo(0, 0); }")
    page.set_viewport_size({"width": WIDE, "height": end})
    area = {"x": 0, "y": top, "width": WIDE, "height": end - top}
    image = Image.open(io.BytesIO(page.screenshot(clip=area))).convert("RGB")
    image.quantize(256, method=Image.Quantize.MEDIANCUT).save(out, optimize=True)
    size = out.stat().st_size
    print(f"{out}: {image.width} x {image.height}, {size / 1000:.0f} KB")
    if size > LARGEST:
        raise SystemExit(f"{out}: is larger than {LARGEST / 1000:.0f} KB; cut it shorter")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, default=Path("runs/demo"))
    parser.add_argument("--out", type=Path, default=Path("docs"))
    parser.add_argument("--sample", help="id of the sample to show")
    args = parser.parse_args()
    from selfcal.report import write_report

    sample = args.sample or telling(args.run)
    with tempfile.TemporaryDirectory() as folder, chromium() as browser:
        file = write_report(args.run, Path(folder, "report.html"), SAMPLES)
        page = browser.new_page(viewport={"width": WIDE, "height": 900})
        page.goto(f"{file.as_uri()}#overview")
        chart = "#overview figure.chart >> nth=2"
        take(page, args.out / "report-overview.png", 0, edge(page, chart, "bottom") + 16)
        page.goto(f"{file.as_uri()}#samples?id={sample}")
        page.wait_for_selector(".detail ul.tree")
        twigs = page.locator(".detail ul.tree .twig").count()
        last = f".detail ul.tree .twig >> nth={min(twigs, TWIGS) - 1}"
        top, end = edge(page, ".panes", "top"), edge(page, last, "bottom")
        page.add_style_tag(content=f".panes ol {{ max-height: {end - top - 120}px !important }}")
        take(page, args.out / "report-sample.png", top - 12, end + 4)


if __name__ == "__main__":
    main()
