"""MiniWorld on the command line: sizes and samples read, findings of the verifier shown."""

from __future__ import annotations

import json
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path

from rich.console import Console
from rich.text import Text

from selfcal.errors import SelfcalError
from selfcal.miniworld.build import SPLITS
from selfcal.miniworld.verifier import verify
from selfcal.recipe import nearest
from selfcal.types import Sample
from selfcal.view.text import safe
from selfcal.view.verdicts import marked, outcome


def read_sizes(texts: Sequence[str]) -> dict[str, int]:
    """Read `SPLIT=N` texts.

    Raises:
        SelfcalError: an unknown split, or no number.
    """
    sizes: dict[str, int] = {}
    for text in texts:
        split, _, number = text.partition("=")
        if split not in SPLITS:
            near = nearest(split, SPLITS)
            hint = f"; did you mean `{near}`?" if near else f"; splits: {', '.join(SPLITS)}"
            raise SelfcalError(f"--size {text!r}: unknown split{hint}")
        if not number.isdecimal():
            raise SelfcalError(f"--size {text!r}: write SPLIT=N, for example --size test=200")
        sizes[split] = int(number)
    return sizes


def find_sample(path: Path, sample_id: str) -> Sample:
    """A sample of a JSON-lines file, as `selfcal miniworld build` writes it; no image is read.

    Raises:
        SelfcalError: the file cannot be read, or has no such sample.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        rows = [json.loads(line) for line in lines if line.strip()]
    except (OSError, ValueError) as error:
        raise SelfcalError(f"{path}: cannot be read ({error}); give a .jsonl file") from error
    by_id = {str(r["id"]): r for r in rows if isinstance(r, dict) and "id" in r}
    if sample_id not in by_id:
        near = get_close_matches(sample_id, list(by_id), n=3)
        hint = f"; near: {', '.join(near)}" if near else ""
        raise SelfcalError(f"sample {sample_id!r}: not in {path} ({len(by_id)} samples){hint}")
    row = by_id[sample_id]
    image, question, answer, facts = (
        str(row.get(k) or "") for k in ("image", "question", "answer", "facts")
    )
    return Sample(sample_id, image, question, answer, facts=facts)


def show_verification(out: Console, sample: Sample, response: str) -> None:
    """Print what the verifier finds in a response, with the place of every sentence.

    Raises:
        SelfcalError: the question or the facts are not MiniWorld's.
    """
    try:
        found = verify(sample, response)
    except ValueError as error:
        raise SelfcalError(
            f"{error}; give question and facts as `selfcal miniworld build` writes them"
        ) from error
    out.print(Text(safe(sample.question), "bold"))
    out.print(Text(safe(sample.facts), "dim"))
    out.print()
    out.print(marked(response, found, spans=True))
    out.print()
    out.print(outcome(found))
    share = f"{found.true_statements} of {found.statements}"
    out.print(f"{share} statements are true of the image.")
