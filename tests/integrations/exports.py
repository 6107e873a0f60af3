"""A run with hostile and interleaved pairs, and the commands of an export's card."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from selfcal.export import Wanted, export_run
from selfcal.testing import tiny_policy, tiny_samples
from selfcal.types import PreferencePair, Sample, WrittenRap
from unit.hand_made import BAD, GOOD, RunFolder

ODD = 'One.\u2028Two.\x85 "Three" \\ {{four}} <|im_end|> </s>\tFive: 5'
"""Ends of lines for some, quotes, a template's braces, ends of turns."""
LEFT_OUT = "It shows <image>.\nAnswer: 5"


@dataclass(frozen=True)
class Made:
    """A run, a model to train, and what an export must hold."""

    run: RunFolder
    model: str
    samples: list[Sample]
    questions: list[str]
    """As one text each, with marks."""
    pairs: list[PreferencePair]

    def export(self, tool: str, split: str = "pairs") -> Path:
        out = self.run.path.parent / f"{tool}-{split}"
        export_run(self.run.path, tool, out, Wanted(split))  # type: ignore[arg-type]
        return out


def make(folder: Path) -> Made:
    """Questions about one image, with options, about two images, and with marks in between."""
    one, two, three, four = tiny_samples(folder / "world", 4, "calibration")
    samples = [
        Sample("a", one.image, "Add the digits.", "5"),
        Sample("b", two.image, "Which one?", "left", choices=("left", "right")),
        Sample("c", three.image, "Compare them.", "5", more_images=(one.image,)),
        Sample("d", four.image, "Is <image> as <image>?", "5", more_images=(two.image,)),
    ]
    texts = [(GOOD, BAD), (BAD, ODD), (ODD, GOOD), ("5", "7")]
    pairs = [PreferencePair(s.id, *t, 0, 1, 1.0, 0.0) for s, t in zip(samples, texts, strict=True)]
    run = RunFolder(folder / "run")
    run.finish("data", {"calibration": (Sample, samples), "rft": (Sample, samples)})
    hostile = PreferencePair("a", LEFT_OUT, BAD, 2, 3, 1.0, 0.0)
    run.finish("iter-1/pairs", {"pairs": (PreferencePair, [hostile, *pairs])})
    run.finish(
        "teacher", {"raps": (WrittenRap, [WrittenRap(p.sample_id, p.chosen) for p in pairs])}
    )
    questions = [
        "<image>Add the digits.",
        "<image>Which one?\nOptions:\nA. left\nB. right",
        "<image><image>Compare them.",
        "Is <image> as <image>?",
    ]
    return Made(run, tiny_policy(folder / "policy"), samples, questions, pairs)


def spoil(made: Made) -> None:
    """Give the pairs of the first and the last sample a rejected image."""
    folder = made.run.path / "spoiled.png"
    Image.new("RGB", (48, 48), "red").save(folder)
    spoiled = [
        PreferencePair(p.sample_id, p.chosen, p.rejected, 0, 1, 1.0, 0.0, image)
        for p, image in zip(made.pairs, ("spoiled.png", "", "", "spoiled.png"), strict=True)
    ]
    made.run.finish("iter-1/pairs", {"pairs": (PreferencePair, spoiled)})


def command(out: Path, **words: str) -> list[str]:
    """The words of the card's command, with those it leaves open filled in."""
    found = re.search(r"```bash\n(.*?)```", (out / "README.md").read_text("utf-8"), re.DOTALL)
    assert found
    text = found[1].replace("\\\n", " ").replace("FOLDER", shlex.quote(str(out)))
    for name, value in words.items():
        text = text.replace(name, shlex.quote(value))
    return shlex.split(text)
