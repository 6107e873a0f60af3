"""Who watches a training: it tells how it gets on, keeps its checkpoints, and ends it early.

A training ends early because somebody asked for that (see `stopping`), or because it went wrong:
its weights or its loss are no numbers any more, or its loss has exploded. Several processes that
train together must do so at the same step, so they tell each other after every one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from selfcal.stopping import asked
from selfcal.store import JSON
from selfcal.train.checkpoints import carried_by, drop_after, drop_old, last_checkpoint, seal

if TYPE_CHECKING:
    from selfcal.train.common import Run

NOT_FINITE = "the weights became NaN or infinite"
_SUSTAINED, _TIMES, _NATS = 3, 2.0, 2.0


def finite(parameters: Iterable[Any]) -> bool:
    """Whether all weights that this process holds are numbers."""
    return all(bool(_here(p).isfinite().all()) for p in parameters)


def _here(parameter: Any) -> Any:
    """Of a weight that is spread over processes, the part that lies in this one."""
    if hasattr(parameter, "ds_tensor"):  # ZeRO-3 leaves the weight itself empty
        return parameter.ds_tensor
    return parameter.to_local() if hasattr(parameter, "to_local") else parameter


def limit_of(losses: Sequence[float]) -> float:
    """The loss beyond which a training with such a past has gone wrong.

    That is twice the worst that it has seen up to its best (and in its first three figures, as a
    first one alone says little), and 2 nats on top. The losses here are means of negative
    log-probabilities, of tokens (SFT) or of preferences (DPO, ln 2 at first). A healthy training is
    at its best near its end, so that nothing it has seen is near the limit. From 0.7 it is 3.4:
    tokens that had half of the probability have a thirtieth, or pairs are told apart the wrong way
    at 29 to 1.
    """
    best = min(range(len(losses)), key=lambda i: losses[i])
    return _TIMES * max(losses[: max(best + 1, _SUSTAINED)]) + _NATS


def exploded(losses: Sequence[float]) -> bool:
    """Whether the last three figures are all beyond `limit_of` those before.

    One alone may be a batch of odd rows. Each figure is the mean over a twentieth of the steps.
    """
    before, last = losses[:-_SUSTAINED], losses[-_SUSTAINED:]
    return len(before) >= _SUSTAINED and min(last) > limit_of(before)


def last_good(figures: Mapping[int, float]) -> int:
    """The step of the last loss within `limit_of` those before it; 0: there is none yet."""
    steps, losses = [*figures], [*figures.values()]
    good = (i for i in range(len(losses) - 1, -1, -1) if not i or losses[i] <= limit_of(losses[:i]))
    return next((steps[i] for i in good), 0)


def _figures(state: Any) -> dict[int, float]:
    """The losses that were logged, by step."""
    return {row["step"]: row["loss"] for row in state.log_history if "loss" in row}


def watch(trainer: Any, run: Run) -> Any:
    """A callback of a trainer, which must be the last one.

    GRPO's loss is no negative log-probability: it lies around 0 whatever becomes of the policy, so
    that all to be seen in it is whether it is a number.
    """
    from transformers import TrainerCallback

    updates = getattr(trainer.args, "num_iterations", None)
    """Of GRPO: optimizer steps on one batch of responses, which no checkpoint may cut in two."""

    class Watch(TrainerCallback):
        stopped = False
        """Whether the training ended because somebody asked for it."""

        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step:
                _take_up(trainer, carried_by(f"{args.output_dir}/checkpoint-{state.global_step}"))

        def on_step_end(
            self, args: Any, state: Any, control: Any, model: Any = None, **_: Any
        ) -> None:
            # before a next step could sample from such weights: on a GPU that is a crash
            broken = not finite(p for p in model.parameters() if p.requires_grad)
            wanted, wrong = _agreed(trainer, asked(), broken)
            if wrong:
                raise diverged(run, NOT_FINITE)
            over = control.should_training_stop or state.global_step >= state.max_steps
            if over:
                control.should_save = False  # from a checkpoint here a resumed run would go on
            elif wanted and state.global_step % (updates or 1) == 0:
                self.stopped = control.should_save = control.should_training_stop = True
            run.progress(state.global_step, state.max_steps)

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            loss = (logs or {}).get("loss", 0.0)
            if not math.isfinite(loss):
                raise diverged(run, f"the loss became {loss} by step {state.global_step}")
            if updates is None:
                _insist_on_no_explosion(trainer, run, state)

        def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            _keep(trainer, run, state)

    return Watch()


def _insist_on_no_explosion(trainer: Any, run: Run, state: Any) -> None:
    """Delete what was saved since the last good figure, and end the training, if need be."""
    figures = _figures(state)
    if not exploded([*figures.values()]):
        return
    if trainer.accelerator.is_main_process:
        drop_after(run.out / "trl", last_good(figures))
    loss = [*figures.values()][-1]
    raise diverged(run, f"the loss exploded to {loss:.3g} by step {state.global_step}")


def _keep(trainer: Any, run: Run, state: Any) -> None:
    """Seal the checkpoint that TRL has just written, and delete older ones."""
    trainer.accelerator.wait_for_everyone()  # each process has files of its own
    carried = _carried(trainer)
    if not trainer.accelerator.is_main_process:
        return
    folder = run.out / "trl" / f"checkpoint-{state.global_step}"
    seal(folder, carried)
    run.saved(folder)
    drop_old(folder.parent, last_good(_figures(state)))


def _agreed(trainer: Any, *own: bool) -> list[bool]:
    """Which of these is so in any of the processes that train together."""
    if trainer.accelerator.num_processes == 1:
        return list(own)
    import torch

    found = torch.tensor([float(x) for x in own], device=trainer.accelerator.device)
    return [x > 0 for x in trainer.accelerator.reduce(found, "sum").tolist()]


def _carried(trainer: Any) -> dict[str, JSON]:
    """What TRL has gathered since it last logged, and keeps in no checkpoint.

    Without it the first figures after a resumption would be those of fewer steps.
    """
    loss = float(trainer.accelerator.reduce(trainer._tr_loss.clone(), "mean"))
    if not math.isfinite(loss):
        return {}
    return {
        "loss": loss,
        "logged": trainer._globalstep_last_logged,
        "tokens": trainer._total_train_tokens,
        "metrics": {
            name: values
            for name, values in getattr(trainer, "_metrics", {}).get("train", {}).items()
            if all(isinstance(v, int | float) and math.isfinite(v) for v in values)
        },
    }


def _take_up(trainer: Any, carried: Mapping[str, Any]) -> None:
    """Go on with what a checkpoint carried."""
    if not carried:
        return
    trainer._tr_loss += carried["loss"]
    trainer._globalstep_last_logged = carried["logged"]
    trainer._total_train_tokens = carried["tokens"]
    for name, values in carried["metrics"].items():
        trainer._metrics["train"][name] = list(values)


def diverged(run: Run, what: str) -> Exception:
    """The error of a training that went wrong: what is kept, and the way out."""
    from selfcal.train.common import TrainingError

    kept = last_checkpoint(run.out / "trl")
    what_is_kept = f"Its last good checkpoint, {kept}, and all" if kept else "All"
    return TrainingError(
        f"{run.out.name}: {what}; lower the learning rate in the recipe and run it again. "
        f"{what_is_kept} stages before it are kept: only this training starts over."
    )
