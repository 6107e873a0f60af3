"""How memory and time of reading grow with a file: 10K, 100K and 1M rows of JSON lines.

    python benchmarks/data.py

For each size, two processes of their own: one checks the file as `selfcal data check` does, the
other mixes and splits it as `data.sources` and draws the same number of samples from each. All rows
ask something else of the same few images, so what is measured is rows, not pixels. Memory is the
greatest resident size of the process, imports included. Prints a Markdown table and, as its last
line, one JSON object.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import last_line
from miniworld import table

SIZES = (10_000, 100_000, 1_000_000)
IMAGES = 32
DRAWN = 1_000
TARGETS = {"bytes_a_row_check": 32, "bytes_a_row_draw": 32}


def write(path: Path, rows: int) -> None:
    """Write a file of rows, and its images."""
    from PIL import Image

    for i in range(IMAGES):  # each another one
        Image.new("RGB", (64, 48), (8 * i, 0, 255 - 8 * i)).save(path.parent / f"{i}.png")
    with path.open("w", encoding="utf-8") as file:
        for i in range(rows):
            row = {
                "id": f"sample-{i:07d}",
                "image": f"{i % IMAGES}.png",
                "question": f"What is written on sign number {i} beside the road?",
                "answer": f"{i % 977}",
                "category": ("perception", "chart", "perception", "math")[i % 4],
                "facts": "a road; a sign; two trees; a car behind the trees",
            }
            file.write(json.dumps(row) + "\n")


def check(path: Path) -> int:
    """As `selfcal data check`."""
    from selfcal.data.report import inspect_data

    return inspect_data(path).files[0].kept


def draw(path: Path) -> int:
    """As the stage `data` of a recipe with `data.sources`."""
    from selfcal.data.pictures import Rules
    from selfcal.data.sources import mix_sources
    from selfcal.recipe import Source

    sizes = {"rft": DRAWN // 2, "calibration": DRAWN // 2}
    weights = {"perception": 2.0, "chart": 1.0, "math": 1.0}
    found = mix_sources(
        [Source(path=str(path))], sizes, weights, "0", Rules(), path.parent / "out", lambda d: None
    )
    return sum(map(len, found.splits.values()))


def measure(what: str, path: Path) -> dict[str, float]:
    """Do it in this process."""
    began = time.perf_counter()
    found = {"check": check, "draw": draw}[what](path)
    seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"seconds": seconds, "peak": peak, "found": found}


def child(what: str, path: Path) -> dict[str, float]:
    """The same in a process of its own."""
    command = [sys.executable, __file__, "--child", what, "--file", str(path)]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    """Run, print, and end with one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", default=",".join(map(str, SIZES)))
    parser.add_argument("--child", choices=["check", "draw"], help=argparse.SUPPRESS)
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(measure(args.child, args.file)))
        return
    sizes = [int(n) for n in args.sizes.split(",")]
    found: dict[int, dict[str, dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / "data.jsonl"
        for n in sizes:
            write(path, n)
            found[n] = {what: child(what, path) for what in ("check", "draw")}
    rows = [
        [f"{n:,}", *(f"{found[n][w][k] / unit:,.1f}" for w in ("check", "draw")
                     for k, unit in (("seconds", 1), ("peak", 2**20)))]
        for n in sizes
    ]  # fmt: skip
    table(["rows", "check, s", "check, MiB", "draw, s", "draw, MiB"], rows)
    growth = {
        f"memory_growth_{w}": max(found[n][w]["peak"] / found[sizes[0]][w]["peak"] for n in sizes)
        for w in ("check", "draw")
    }
    first, last = found[sizes[0]], found[sizes[-1]]
    a_row = {
        f"bytes_a_row_{w}": (last[w]["peak"] - first[w]["peak"]) / max(1, sizes[-1] - sizes[0])
        for w in ("check", "draw")
    }
    last_line(
        {
            **growth,
            **a_row,
            "rows_a_second": sizes[-1] / last["check"]["seconds"],
            "sizes": sizes,
            "drawn": last["draw"]["found"],
            "peak_mib": {
                str(n): {w: f["peak"] / 2**20 for w, f in found[n].items()} for n in sizes
            },
            "targets": TARGETS,
        }
    )


if __name__ == "__main__":
    main()
