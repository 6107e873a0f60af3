"""Trainings that are compared: run by one process, or as ranks by torchrun.

`python together.py FOLDER POLICY JUDGE IMAGES NAME...` does the trainings of these names, each in a
folder of its own.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from selfcal.recipe import Dpo, Lora, Training
from selfcal.train import Run, Trained, dpo, sft, train_judge
from selfcal.types import LabelledPair, PreferencePair, Sample

ADAPTER = Lora(rank=4, alpha=8)
ROWS = [
    ("How many?", "Rationale: The red bar is 7. So the red bar is the tallest.\nAnswer: red"),
    ("Which bar is the tallest?", "Answer: 2"),
    ("What is at the top?", "Rationale: There is a circle at the top.\nAnswer: circle"),
    ("Add the digits.", "Rationale: The left digit is 4. 4 plus 3 is 7.\nAnswer: 7"),
]
WORSE = ["Answer: blue", "Rationale: 3 is 3.\nAnswer: 3", "Answer: star", "7"]


def rows(images: str) -> list[tuple[Sample, str]]:
    """Eight rows of different lengths."""
    files = sorted(Path(images).glob("*.png"))[:8]
    return [
        (Sample(f"s{i}", str(f), ROWS[i % 4][0], ""), ROWS[(i + i // 4) % 4][1])
        for i, f in enumerate(files)
    ]


def pairs(images: str) -> list[tuple[Sample, PreferencePair]]:
    return [
        (s, PreferencePair(s.id, text, WORSE[i % 4], 0, 1, 1.0, 0.0))
        for i, (s, text) in enumerate(rows(images))
    ]


def labelled() -> list[LabelledPair]:
    kinds = [("true", "wrong", "first"), ("wrong", "true", "second"), ("wrong", "wrong", "neutral")]
    return [
        LabelledPair(f"s{i}", "What is 7 minus 3?", "red " * i, first, second, verdict)  # type: ignore[arg-type]
        for i in range(6)
        for first, second, verdict in [kinds[i % 3]]
    ]


def settings(**more: object) -> Training:
    own = {"learning_rate": 1e-2, "batch_size": 4, "epochs": 2, "lora": ADAPTER}
    return Training.model_validate(own | more)


def trainings(policy: str, judge: str, images: str) -> dict[str, Callable[[Run], Trained]]:
    prompt = "{{ facts }} First: {{ first }} Second: {{ second }} Better:"
    eager = Dpo(learning_rate=1e-2, batch_size=4, epochs=2, lora=ADAPTER, micro_batch_size=2)
    # Adam's first steps are as long for a tiny gradient as for a large one: what is rounding in it
    # moves a weight by up to the learning rate
    gentle = settings(lora=None, learning_rate=1e-4)
    spread = Path(__file__).with_name("fsdp.json")
    return {
        "sft": lambda run: sft(policy, rows(images), settings(), run),
        "all-weights": lambda run: sft(policy, rows(images), gentle, run),
        "frugal": lambda run: sft(
            policy, rows(images), settings(gradient_checkpointing=True, micro_batch_size=1), run
        ),
        "dpo": lambda run: dpo(policy, pairs(images), eager, run),
        "judge": lambda run: train_judge(judge, labelled(), gentle, prompt, run),
        "fsdp": lambda run: sft(policy, rows(images), settings(fsdp=str(spread)), run),
        "fsdp-dpo": lambda run: dpo(
            policy, pairs(images), eager.model_copy(update={"fsdp": str(spread)}), run
        ),
    }


def fsdp_on_cpus() -> None:
    """Accelerate spreads weights over GPUs alone; torch does so over CPUs, too."""
    from accelerate import state
    from accelerate.utils import DistributedType

    begin = state.AcceleratorState.__init__

    def init(self: object, *given: object, fsdp_plugin: object = None, **more: object) -> None:
        begin(self, *given, fsdp_plugin=fsdp_plugin, **more)  # type: ignore[arg-type]
        if fsdp_plugin is not None:
            self.distributed_type = DistributedType.FSDP  # type: ignore[attr-defined]
            self.fsdp_plugin = fsdp_plugin  # type: ignore[attr-defined]
            state.PartialState._shared_state["distributed_type"] = DistributedType.FSDP

    state.AcceleratorState.__init__ = init


def main(folder: str, policy: str, judge: str, images: str, *names: str) -> None:
    ranks, rank = (int(os.environ.get(key, 1)) for key in ("WORLD_SIZE", "RANK"))
    known = trainings(policy, judge, images)
    for name in names:
        if name.startswith("fsdp"):
            fsdp_on_cpus()
        out = Path(folder) / name
        trained = known[name](Run(out, seed=7, device="cpu", ranks=ranks))
        if rank == 0 or ranks == 1:
            (out / "trained.json").write_text(json.dumps(asdict(trained)))
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
