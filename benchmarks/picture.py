"""Paint the README's picture: one test sample a category, before and after calibration.

    python benchmarks/picture.py RUN docs/before-after.png

Takes the first test sample of each category whose answer was right for a wrong reason after
fine-tuning, and is right for a sound one at the end. Sentences are coloured by the verifier.
"""

from __future__ import annotations

import sys
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from selfcal.miniworld.verifier import verify
from selfcal.pipeline import locate, open_run
from selfcal.types import Response, Sample

WIDTH, ROW, MARGIN, THUMB = 1180, 210, 24, 160
INK, GREY, GOOD, BAD = "#1c1c1c", "#6b6b6b", "#1a7f37", "#c22f2f"
COLOR = {"true": GOOD, "follows": GOOD, "counterfactual": BAD, "unreasonable": BAD}


def chosen(run: Path) -> list[tuple[Sample, Response, Response]]:
    """(sample, response after fine-tuning, response at the end), one a category."""
    recipe = open_run(run)
    folders = {p.stage.name: p.folder for p in locate(recipe, run)}
    samples = {s.id: s for s in folders["data"].read("test", Sample)}
    last = f"eval/iter-{recipe.iterations}"
    before = {r.sample_id: r for r in folders["eval/rft"].read("test", Response)}
    found: dict[str, tuple[Sample, Response, Response]] = {}
    for after in folders[last].read("test", Response):
        first = before[after.sample_id]
        cured = after.sound and after.correct and not first.sound and first.correct
        if cured and after.category not in found:
            found[after.category] = (samples[after.sample_id], first, after)
    return list(found.values())


def write(
    draw: ImageDraw.ImageDraw, at: tuple[int, int], sample: Sample, response: Response
) -> None:
    """Write a response, a sentence a line, coloured by what the verifier says of it."""
    font = ImageFont.load_default(17)
    x, y = at
    verified = verify(sample, response.text)
    for finding in verified.findings:
        text = response.text[finding.start : finding.end]
        draw.text((x, y), text, fill=COLOR.get(finding.status, GREY), font=font)
        y += 25
    if verified.insufficient:
        draw.text((x, y), "(something it needs is missing)", fill=BAD, font=font)
        y += 25
    draw.text((x, y), f"Answer: {response.answer}", fill=INK, font=font)


def main() -> None:
    """Paint."""
    run, out = Path(sys.argv[1]), Path(sys.argv[2])
    rows = chosen(run)
    image = Image.new("RGB", (WIDTH, ROW * len(rows) + 44), "white")
    draw = ImageDraw.Draw(image)
    head = ImageFont.load_default(19)
    columns = (MARGIN + THUMB + 30, MARGIN + THUMB + 30 + 480)
    for x, title in zip(columns, ("before: right answer, wrong reason", "after"), strict=True):
        draw.text((x, 14), title, fill=GREY, font=head)
    for i, (sample, before, after) in enumerate(rows):
        y = 50 + i * ROW
        thumb = Image.open(run / sample.image).resize((THUMB, THUMB), Image.Resampling.NEAREST)
        image.paste(thumb, (MARGIN, y))
        for x, response in zip(columns, (before, after), strict=True):
            draw.text((x, y), sample.question, fill=INK, font=head)
            write(draw, (x, y + 32), sample, response)
    out.parent.mkdir(parents=True, exist_ok=True)
    image.save(out, optimize=True)


if __name__ == "__main__":
    main()
