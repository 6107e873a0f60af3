"""What online methods rewarded, on the runs of a comparison: does a judge hold while it is pleased?

    python benchmarks/rewards.py runs/rivals --seeds 0,1,2,3,4

Reads what `selfcal compare` left, loads no model, and asks the verifier for the truth, as `selfcal
judge audit` does for one run. Prints a Markdown table (mean over seeds, 95 % interval by Student's
t): of the responses with an advantage above 0 how many are reliable, and for each signal of the
judge how often it gives more to the better of two responses of a group, iteration by iteration.
Ends with one JSON line.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path

from miniworld import interval, table
from selfcal.view.rewards import audit_online

METHODS = "grpo,faithful-grpo,groupwise-grpo,consistency-grpo,online-src"


def main() -> None:
    """Read, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("compared", type=Path)
    parser.add_argument("--seeds", default="0,1,2,3,4")
    parser.add_argument("--methods", default=METHODS)
    parser.add_argument("--prefix", default="miniworld-")
    args = parser.parse_args()
    found: dict[tuple[str, str], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for method in args.methods.split(","):
        for seed in args.seeds.split(","):
            run = args.compared / "runs" / f"{args.prefix}{method}" / f"seed-{seed}"
            for t, own in audit_online(run)["iterations"].items():
                found[method, "reinforced, reliable"][t].append(own["reinforced"]["value"])
                for signal, figures in own["signals"].items():
                    found[method, f"order by `{signal}`"][t].append(figures["order"]["value"])
    iterations = sorted({t for own in found.values() for t in own})
    table(
        ["method", "share", *(f"iteration {t}" for t in iterations)],
        [
            [f"`{m}`", what, *("{:.3f} ± {:.3f}".format(*interval(own[t])) for t in iterations)]
            for (m, what), own in found.items()
        ],
    )
    figures = {
        f"{m}: {what}": [round(interval(own[t])[0], 4) for t in iterations]
        for (m, what), own in found.items()
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
