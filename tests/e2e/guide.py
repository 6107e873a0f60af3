"""Follow a guide word for word: run the commands in its `console` blocks, in order, in one folder.

`python tests/e2e/guide.py docs/your-own.md` runs them and writes what they said into the page.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_BLOCK = re.compile(r"^```console\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Step:
    """A command of a guide, and what the page has it say."""

    command: str
    said: str


def steps(page: str) -> list[Step]:
    """All commands of a page."""
    found = []
    for block in _BLOCK.findall(page):
        parts = re.split(r"^\$ (.*)\n", block, flags=re.MULTILINE)[1:]
        found += [Step(c, s.strip("\n")) for c, s in zip(parts[::2], parts[1::2], strict=True)]
    return found


def follow(page: str, folder: Path) -> Iterator[Step]:
    """Run the commands; each comes with what it really said. The first that fails ends it."""
    paths = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": paths, "COLUMNS": "100", "NO_COLOR": "1"}
    environment["SELFCAL_CACHE"] = str(folder / ".cache")  # nothing that was asked before
    beside: list[subprocess.Popen[str]] = []
    try:
        for step in steps(page):
            alone = not step.command.endswith("&")
            process = subprocess.Popen(
                step.command.removesuffix("&"), shell=True, cwd=folder, env=environment, text=True,
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
            assert process.stdout is not None
            if alone:
                said = process.communicate()[0]
                assert process.returncode == 0, f"$ {step.command}\n{said}"
            else:
                beside.append(process)
                said = process.stdout.readline()  # a server says where it is, and goes on
            yield Step(step.command, "\n".join(x.rstrip() for x in said.strip("\n").splitlines()))
    finally:
        for process in beside:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()


def masked(said: str) -> list[str]:
    """Lines without what differs from run to run: numbers, times, progress, findings by numbers."""
    text = re.sub(r"< 1 s|\d+ h \d+ min|\d+ min( \d+ s)?|\d+ s\b", "TIME", said)
    lines = [" ".join(re.sub(r"[\d.,]*\d", "#", x).split()) for x in text.splitlines()]
    return [x for x in lines if x and not x.endswith(" left") and not x.startswith("! ")]


def filled(page: str, done: list[Step]) -> str:
    """The page with what the commands said."""
    left = iter(done)

    def block(match: re.Match[str]) -> str:
        own = [next(left) for _ in steps(match.group(0))]
        texts = [f"$ {s.command}\n" + (f"{s.said}\n" if s.said else "") for s in own]
        return "```console\n" + "".join(texts) + "```"

    return _BLOCK.sub(block, page)


def main(path: Path) -> None:
    """Run a page's commands in a new folder, and write what they said into it."""
    page, done = path.read_text(encoding="utf-8"), []
    with tempfile.TemporaryDirectory() as folder:
        for step in follow(page, Path(folder)):
            print(f"$ {step.command}\n{step.said}", flush=True)
            done.append(step)
    path.write_text(filled(page, done), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
