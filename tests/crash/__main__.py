"""The crash harness: `python -m tests.crash --points 200 --seed 0 --out build/crash`.

A small run, undisturbed, is the truth. Other runs are killed, refused room, damaged and shown false
clocks, go on until they finish, and must be the same. What is done is kept: a harness run that was
ended itself goes on where it was left, and a report of it says that it is partial.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import sys
import time
import traceback
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from crash import shim  # first: it starts the process again, with its library


def main() -> int:
    """Run the harness; gives the exit code: 1 when there are faults, 2 when it is partial."""
    args = _arguments()
    out = Path(args.out).absolute()
    out.mkdir(parents=True, exist_ok=True)
    shim.preload(out)
    os.environ["SELFCAL_CACHE"] = str(out / "cache")
    return Harness(args, out).run()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.crash", description=__doc__)
    parser.add_argument("--points", type=int, default=200, help="kills that must fire")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default="build/crash", help="folder; goes on with what it has")
    parser.add_argument("--rounds", type=int, default=3, help="of damage, full disks and clocks")
    parser.add_argument("--only", default="", help="pattern of the names of disturbed runs")
    parser.add_argument("--jobs", type=int, default=1, help="disturbed runs at once")
    parser.add_argument("--each", type=int, default=2, help="kills a stage, in one run")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE",
                        help="change the recipe, such as method=povid")  # fmt: skip
    return parser.parse_args()


class Harness:
    """One folder of disturbed runs."""

    def __init__(self, args: argparse.Namespace, out: Path) -> None:
        """Make the undisturbed run, or take it up."""
        from crash import report  # noqa: F401 - now, so that all is of one version
        from crash.plan import Asked
        from crash.space import mountable
        from crash.truth import undisturbed

        self.args, self.out, self.source = args, out, _source()
        self._refuse_other()
        self.began, self.children = time.monotonic(), dict[int, str]()
        self.asked = Asked(args.points, args.seed, args.each, args.rounds, args.only)
        self.disk = mountable(out / "disk")
        self.say("the undisturbed run")
        self.truth = undisturbed(out / f"truth-{self.source}", args.overrides)

    def _refuse_other(self) -> None:
        """A folder has the runs of one plan."""
        plan = {k: getattr(self.args, k) for k in ("seed", "overrides", "each")}
        path = self.out / "plan.json"
        if path.exists() and (other := json.loads(path.read_text())) != plan:
            sys.exit(f"error: {self.out} has the runs of {other}; give another --out")
        path.write_text(json.dumps(plan))

    def say(self, line: str) -> None:
        """Tell how it gets on."""
        print(f"{time.monotonic() - self.began:6.0f} s  {line}", flush=True)

    def run(self) -> int:
        """Do all that is not done yet, and report."""
        for name, body in self._wanted():
            if name not in self._done():
                while len(self.children) >= self.args.jobs:
                    self._wait()
                self._start(name, body)
        while self.children:
            self._wait()
        return self._report(complete=True)

    def _wanted(self) -> Iterator[tuple[str, Any]]:
        from crash.plan import kills, others

        most = self.asked.each * len(self.truth.stages)
        for name, body in kills(self.truth, self.asked):
            while self.children and self._fired() + most * len(self.children) >= self.asked.points:
                self._wait()  # perhaps that is enough
            if self._fired() < self.asked.points:
                yield name, body
        yield from others(self.truth, self.asked, self.disk).items()

    def _done(self) -> dict[str, dict[str, Any]]:
        files = sorted((self.out / "runs").glob("*.json"))
        found = [json.loads(f.read_text()) for f in files]
        return {o["name"]: o for o in found}

    def _fired(self) -> int:
        from crash.kills import KILLS

        runs = [o for o in self._done().values() if not o["control"]]
        return sum(f["kind"] in KILLS for o in runs for f in o["fired"])

    def _start(self, name: str, body: Any) -> None:
        """Begin a disturbed run in a process of its own."""
        from selfcal.store import write_json

        sys.stdout.flush()
        if child := os.fork():
            self.children[child] = name
            return
        code = 1
        try:
            work = self.out / "work" / name
            shutil.rmtree(work, ignore_errors=True)
            work.mkdir(parents=True)
            found = {**asdict(body(work, self.say)), "source": self.source}
            for fault in found["faults"]:
                self.say(f"{name}: FAULT {fault}")
            if not found["faults"]:
                shutil.rmtree(work)  # else it stays, to be looked at
            write_json(self.out / "runs" / f"{name}.json", found)
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(code)

    def _wait(self) -> None:
        child, status = os.wait()
        name = self.children.pop(child)
        if status:
            sys.exit(f"error: the harness itself failed in {name}; its files are in {self.out}")
        self._report(complete=False)

    def _report(self, complete: bool) -> int:
        from crash.report import summed, table
        from selfcal.store import write_json, write_text

        outcomes = list(self._done().values())
        settings = {**vars(self.args), "out": "", "disk": self.disk, "cores": os.cpu_count()}
        report = summed(outcomes, list(self.truth.stages), settings)
        kills = report["kills"]
        lacking = kills["stages_without"] if self.args.points else []
        enough = kills["fired"] >= self.args.points and not lacking
        report["complete"] = complete and enough
        write_json(self.out / "report.json", report)
        write_text(self.out / "report.md", table(report) + "\n")
        if complete:
            print(table(report))
        return 1 if report["faults"] else 0 if report["complete"] else 2


def _source() -> str:
    """Names this version of selfcal's code."""
    import selfcal

    folder = Path(selfcal.__file__).parent
    files = sorted(folder.rglob("*.py"))
    text = b"".join(hashlib.sha256(f.read_bytes()).digest() for f in files)
    return hashlib.sha256(text).hexdigest()[:8]


if __name__ == "__main__":
    sys.exit(main())
