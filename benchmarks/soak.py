"""An hour under load: 100,000 samples through the whole loop, again and again, with fake models.

    python benchmarks/soak.py --out runs/soak --minutes 60

One process runs the SRC recipe from data to the last evaluation, deletes the run, and starts over;
its models are fakes that answer at once (see `fakes`), so what is left is the pipeline. It is asked
to stop now and then by SIGTERM, and goes on. Another process watches it: memory, open files,
threads, child processes, files of the run. What grows from round to round is a leak: for each, a
line is fitted through the means of the rounds after the first. It is flat if the upper end of its
95 % interval is below `FLAT` of the level an hour, and grows if the lower end is above zero, too.

A tenth of the samples is run before, which says what memory a sample takes, and what plain pyarrow
needs to write the same records. Records are those that a stage writes; a training's are those that
it reads, and curation's both. Time is the CPU's (`process_time`, less that of the fakes), as the
machine may be busy; of several rounds the best counts. Writes OUT/soak.json, prints a Markdown
table, and as its last line one JSON object. Started again with the same OUT, it goes on.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import accumulate
from pathlib import Path
from typing import Any

from common import last_line
from miniworld import ROOT, T975, table
from selfcal.reporting import Silent
from watching import measured, members, peak, rest

FLAT = 0.02
"""Growth an hour, as a share of the level, that counts as none."""
SHARES = {"rft": 0.1, "calibration": 0.8, "dev": 0.02, "test": 0.08}
WATCHED = ("rss", "children_rss", "fds", "threads", "children", "files")
TARGETS = {"slowest_records_per_second": 5_000, "leaked_processes": 0}
_PLAIN = 20
"""Shards of a name that plain pyarrow writes, at most."""


def sizes_of(samples: int) -> dict[str, int]:
    """Samples by split; together about as many as wanted."""
    return {split: max(8, round(share * samples)) for split, share in SHARES.items()}


def lines(path: Path) -> list[dict[str, Any]]:
    """The rows of a log; a last one that a kill cut off is left out."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        with suppress(ValueError):
            rows.append(json.loads(line))
    return rows


def note(path: Path, row: Mapping[str, Any]) -> None:
    """Add a row to a log."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


# --- the process that works ------------------------------------------------------------------


class Tell(Silent):
    """A reporter that notes what each stage took; a stage that was stopped on its way is marked."""

    def __init__(self, out: Path, run: Path, number: int, plain: bool) -> None:
        """Note to `out`; `plain`: also what plain pyarrow takes for the same records."""
        super().__init__()
        self._out, self._run, self._round, self._plain = out, run, number, plain
        self._begun: set[str] = set()

    def begins(self, stage: Any, number: int, of: int) -> None:
        """Start anew: what an earlier stage left is given back, so that peaks are this one's."""
        import fakes

        rest()
        self._whole = stage.name not in self._begun
        self._begun.add(stage.name)
        note(self._out / "now.jsonl", {"round": self._round, "stage": stage.name})
        self._at = time.process_time(), time.monotonic(), fakes.BUSY.seconds

    def ends(self, stage: Any, stats: Mapping[str, Any], seconds: float) -> None:
        """Note it."""
        import fakes

        cpu, wall, busy = self._at
        busy = fakes.BUSY.seconds - busy
        row = {
            "round": self._round, "stage": stage.name, "whole": self._whole, "peak": peak(),
            "cpu": time.process_time() - cpu - busy, "wall": time.monotonic() - wall, "fake": busy,
            "records": records(self._run / stage.name, stats),
        }  # fmt: skip
        if self._plain:
            row["plain"] = plain_seconds(self._run / stage.name, self._out / "plain.parquet")
        note(self._out / "stages.jsonl", row)


def shards(folder: Path) -> dict[str, list[Path]]:
    """The files of a stage's records, by name."""
    found: dict[str, list[Path]] = defaultdict(list)
    for path in sorted(folder.glob("*.parquet")):
        found[path.name.rsplit("-", 1)[0]].append(path)
    return found


def records(folder: Path, stats: Mapping[str, Any]) -> int:
    """Records that a stage wrote, or read if it is a training."""
    import pyarrow.parquet as pq

    if "rows" in stats:
        return int(stats["rows"])
    own = shards(folder)
    return sum(pq.read_metadata(p).num_rows for paths in own.values() for p in paths)


def plain_seconds(folder: Path, to: Path) -> float:
    """CPU seconds in which plain pyarrow makes these records into files: no digest, no sync."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    total = 0.0
    for paths in shards(folder).values():
        seconds, some = 0.0, paths[:_PLAIN]
        for path in some:
            read = pq.read_table(path)
            rows, began = read.to_pylist(), time.process_time()
            pq.write_table(pa.Table.from_pylist(rows, read.schema), to, compression="zstd")
            seconds += time.process_time() - began
        total += seconds * len(paths) / len(some)
    to.unlink(missing_ok=True)
    return total


def work(out: Path, samples: int, iterations: int, rounds: int, until: float, plain: bool) -> None:
    """Go through the whole loop, at least `rounds` times, until that time (monotonic)."""
    import fakes
    from selfcal import pipeline, stopping
    from selfcal.recipe import load_recipe

    signal.signal(signal.SIGTERM, lambda *_: stopping.ask())
    sizes = sizes_of(samples)
    if not (out / "world" / "test.jsonl").exists():
        shutil.rmtree(out / "world", ignore_errors=True)
        fakes.write_world(out / "world", sizes, min(fakes.WORLD, samples))
    fakes.install(out / "world")
    recipe = load_recipe(
        ROOT / "recipes" / "miniworld-src.yaml",
        [f"data.source={out / 'world'}", f"iterations={iterations}", "threads=1",
         f"judge.samples={sizes['rft']}", *(f"data.{s}={n}" for s, n in sizes.items())],
    )  # fmt: skip
    done = sum("files" in row for row in lines(out / "rounds.jsonl"))
    while done < rounds or time.monotonic() < until:
        tell, stops, began = Tell(out, out / "run", done, plain), 0, time.monotonic()
        while True:
            try:
                pipeline.execute(recipe, out / "run", tell)
                break
            except stopping.Stopped:
                stops += 1
        files = sum(len(names) for _, _, names in os.walk(out / "run"))
        seconds = time.monotonic() - began
        note(
            out / "rounds.jsonl",
            {"round": done, "stops": stops, "seconds": seconds, "files": files},
        )
        shutil.rmtree(out / "run")
        done += 1
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # one more wish does no harm now


# --- the process that watches ----------------------------------------------------------------


def watch(out: Path, command: Sequence[str], every: float, stop_every: float) -> int:
    """Start the worker and look at it until it ends; how many processes it left behind."""
    log = out / "watched.jsonl"
    before = lines(log)
    start, process = (before[-1]["t"], before[-1]["process"] + 1) if before else (0.0, 0)
    began = stopped = time.monotonic()
    known = len(lines(out / "now.jsonl"))
    with (out / "worker.log").open("a", encoding="utf-8") as told:
        worker = subprocess.Popen(command, stdout=told, stderr=told, start_new_session=True)
        while worker.poll() is None:
            now = time.monotonic()
            stages = lines(out / "now.jsonl")[known:]  # of this worker
            found = measured(worker.pid, out / "run") if stages else None
            if found:
                at = {"t": start + now - began, "process": process, **stages[-1]}
                note(log, at | found)
            if found and stop_every and now - stopped > stop_every:
                stopped = now
                worker.terminate()
            with suppress(subprocess.TimeoutExpired):
                worker.wait(every)
    if worker.returncode:
        raise SystemExit(f"the worker failed ({worker.returncode}): see {out / 'worker.log'}")
    return len(members(worker.pid))


def fitted(points: Sequence[tuple[float, float]]) -> dict[str, Any]:
    """The line through (hours, value): level, slope an hour with its 95 % interval, a verdict."""
    n = len(points)
    level = sum(y for _, y in points) / max(1, n)
    if n < 3:
        return {"n": n, "level": level, "slope": None, "low": None, "high": None, "says": "unclear"}
    mean = sum(x for x, _ in points) / n
    spread = sum((x - mean) ** 2 for x, _ in points)
    slope = sum((x - mean) * (y - level) for x, y in points) / spread
    left = sum((y - level - slope * (x - mean)) ** 2 for x, y in points)
    half = T975.get(n - 2, 2.26) * math.sqrt(left / (n - 2) / spread)
    low, high = slope - half, slope + half
    says = "flat" if high <= FLAT * level else "grows" if low > 0 else "unclear"
    return {"n": n, "level": level, "slope": slope, "low": low, "high": high, "says": says}


def by_round(
    rows: Sequence[Mapping[str, Any]], done: Sequence[int], what: str
) -> list[tuple[float, float]]:
    """(hours, mean over stages) of each whole round of the longest process but its first.

    Of a stage, the mean of all looks counts, so that it makes no difference how long it took.
    """
    processes = [r["process"] for r in rows]
    longest = max(processes, key=processes.count, default=0)
    own: dict[int, dict[str, list[tuple[float, float]]]] = defaultdict(lambda: defaultdict(list))
    for r in rows:
        if r["process"] == longest and r["round"] in done:
            own[r["round"]][r["stage"]].append((r["t"] / 3600, r[what]))
    numbers = sorted(own)[1:]
    common = sorted(set.intersection(*(set(own[n]) for n in numbers))) if numbers else []

    def mean(number: int, k: int) -> float:
        return _mean([_mean([x[k] for x in own[number][s]]) for s in common])

    return [(mean(n, 0), mean(n, 1)) for n in numbers if common]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def best(rows: Sequence[Mapping[str, Any]], what: str) -> dict[str, float]:
    """By stage, the least of its rounds; those that were stopped on their way do not count."""
    found: dict[str, float] = {}
    for r in rows:
        if r["whole"]:
            found[r["stage"]] = min(found.get(r["stage"], math.inf), r[what])
    return found


def report(out: Path, samples: int, leaked: int) -> dict[str, Any]:
    """All figures."""
    small, large = lines(out / "small" / "stages.jsonl"), lines(out / "stages.jsonl")
    few, most = best(small, "peak"), best(large, "peak")
    cpu, wall, written = best(large, "cpu"), best(large, "wall"), best(large, "records")
    for name in written:
        if name.endswith("/pairs"):
            written[name] += written.get(name.replace("/pairs", "/judgments"), 0)
    plain = {r["stage"]: r["plain"] / max(1, r["records"]) for r in small}
    made = best(large, "records")
    apart = sum(sizes_of(samples).values()) - sum(sizes_of(samples // 10).values())
    stages = {
        name: {
            "records": written[name], "per_cpu_second": written[name] / cpu[name],
            "per_second": written[name] / wall[name],
            "times_plain": cpu[name] / made[name] / plain[name] if plain[name] else None,
            "peak_small": few[name], "peak": most[name],
            "bytes_a_sample": (most[name] - few[name]) / apart,
        }
        for name in cpu
        if written[name]
    }  # fmt: skip
    rounds, watched = lines(out / "rounds.jsonl"), lines(out / "watched.jsonl")
    ended = list(accumulate(r["seconds"] / 3600 for r in rounds))
    lasting_files = fitted([(t, r["files"]) for t, r in zip(ended, rounds, strict=True)])
    done = [r["round"] for r in rounds]
    lasting = {what: fitted(by_round(watched, done, what)) for what in WATCHED}
    return {
        "samples": sum(sizes_of(samples).values()), "minutes": watched[-1]["t"] / 60,
        "rounds": len(rounds), "stops": sum(r["stops"] for r in rounds),
        "slowest_records_per_second": min(s["per_cpu_second"] for s in stages.values()),
        "leaked_processes": leaked, "lasting": lasting | {"files_at_end": lasting_files},
        "stages": stages, "targets": TARGETS,
    }  # fmt: skip


def show(found: Mapping[str, Any]) -> None:
    """Print both tables."""
    mib = 2**20
    rows = [
        [name, f"{s['records']:,}", f"{s['per_cpu_second']:,.0f}", f"{s['per_second']:,.0f}",
         "" if s["times_plain"] is None else f"{s['times_plain']:.1f}",
         f"{s['peak_small'] / mib:,.0f}", f"{s['peak'] / mib:,.0f}", f"{s['bytes_a_sample']:,.0f}"]
        for name, s in found["stages"].items()
    ]  # fmt: skip
    head = ["stage", "records", "a CPU second", "a second", "times plain pyarrow",
            "peak at a tenth, MiB", "peak, MiB", "bytes a sample"]  # fmt: skip
    table(head, rows)
    print()
    unit = {"rss": mib, "children_rss": mib}
    values = []
    for name, f in found["lasting"].items():
        per = unit.get(name, 1)
        cells = [
            "" if f[k] is None else f"{f[k] / per:,.2f}" for k in ("level", "slope", "low", "high")
        ]
        title = f"{name}{', MiB' if name in unit else ''}"
        values.append([title, f"{f['n']}", *cells, f["says"]])
    table(["watched", "rounds", "level", "slope an hour", "low", "high", ""], values)


def main() -> None:
    """Soak, report, and end with one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--samples", type=int, default=100_000)
    parser.add_argument("--iterations", type=int, default=2)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--rounds", type=int, default=4, help="at least so many")
    parser.add_argument("--every", type=float, default=5.0, help="seconds between two looks")
    parser.add_argument("--stop-every", type=float, default=150.0, help="seconds; 0: never")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--plain", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    out: Path = args.out.resolve()
    if args.child:
        until = time.monotonic() + 60 * args.minutes
        work(out, args.samples, args.iterations, args.rounds, until, args.plain)
        return
    (out / "small").mkdir(parents=True, exist_ok=True)
    own = [sys.executable, __file__, "--child", "--iterations", str(args.iterations)]
    tenth = [*own, "--out", str(out / "small"), "--samples", str(args.samples // 10)]
    subprocess.run([*tenth, "--plain", "--rounds", "1", "--minutes", "0"], check=True)
    before = lines(out / "watched.jsonl")
    left = max(0.0, args.minutes - (before[-1]["t"] / 60 if before else 0.0))
    command = [
        *own,
        "--out",
        str(out),
        "--samples",
        str(args.samples),
        "--rounds",
        str(args.rounds),
    ]
    leaked = watch(out, [*command, "--minutes", str(left)], args.every, args.stop_every)
    found = report(out, args.samples, leaked)
    (out / "soak.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    show(found)
    last_line(found)


if __name__ == "__main__":
    main()
