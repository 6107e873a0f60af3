"""`python -m tests.fuzz TARGET... --inputs 1000000 --seed 0`: read many damaged inputs.

Without a target, all of them. A run that is ended goes on where it was; its state, with the
slowest input and the first input with each fault, is under build/fuzz. Exit code 1: faults.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from pathlib import Path

from .run import fuzz, line, made
from .targets import TARGETS


def main() -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=", ".join(TARGETS))
    parser.add_argument("--inputs", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--state", type=Path, default=Path("build/fuzz"))
    parser.add_argument("--show", type=int, metavar="N", help="print input N, and end")
    given = parser.parse_args()
    if unknown := [name for name in given.targets if name not in TARGETS]:
        parser.error(f"no target {unknown[0]}; there are {', '.join(TARGETS)}")
    warnings.simplefilter("ignore")  # Pillow's, about the files
    chosen = [TARGETS[name] for name in given.targets or TARGETS]
    if given.show is not None:
        for target in chosen:
            sys.stdout.buffer.write(made(target, given.seed, given.show) + b"\n")
        return 0
    found = []
    for target in chosen:
        state = given.state / f"{target.name}-{given.seed}.json"
        found.append(
            fuzz(target, given.inputs, given.seed, state, lambda said: print(said, flush=True))
        )
    print()
    for own in found:
        print(line(own))
        for what, number in own.faults.items():
            print(f"    {what}: input {number}")
    return 1 if any(own.faults for own in found) else 0


if __name__ == "__main__":
    sys.exit(main())
