"""Trainings: TRL is told to report, and the callback that it makes is led to the right line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from selfcal.tracking.place import Tracked


@contextmanager
def followed(trainer: Any, tracked: Tracked | None, out: Path, begun_at: int) -> Iterator[None]:
    """Follow a training while it runs, if it reports to a tracker.

    Args:
        trainer: made with `report_to`, as the tracker's kind.
        tracked: the run's.
        out: folder of the stage that trains; its place in the run names the line.
        begun_at: the step that it resumes at; from 0 on, it is another line than any before.
    """
    if tracked is None:
        yield
        return
    callback = _taken_out(trainer, tracked.kind)
    name = out.relative_to(tracked.run).as_posix()
    line = tracked.attempt(lambda: tracked.line(name, begun_at and begun_at + 1, not begun_at))
    if callback is None or line is None:
        yield
        return
    tracked.attempt(lambda: line.lead(callback))
    trainer.add_callback(_careful(callback, tracked))
    try:
        yield
    finally:
        tracked.attempt(line.close)


def _taken_out(trainer: Any, kind: str) -> Any:
    """The callback that the trainer made for this tracker; None: it made none."""
    from transformers.integrations import get_reporting_integration_callbacks

    (made,) = get_reporting_integration_callbacks([kind])
    return trainer.pop_callback(made)


def _careful(callback: Any, tracked: Tracked) -> Any:
    """A callback whose failure does not end the training."""
    from transformers import TrainerCallback

    class Careful(TrainerCallback):
        def on_train_begin(self, *given: Any, **more: Any) -> None:
            tracked.attempt(lambda: callback.on_train_begin(*given, **more))

        def on_log(self, *given: Any, **more: Any) -> None:
            tracked.attempt(lambda: callback.on_log(*given, **more))

        def on_save(self, *given: Any, **more: Any) -> None:
            tracked.attempt(lambda: callback.on_save(*given, **more))

        def on_train_end(self, *given: Any, **more: Any) -> None:
            tracked.attempt(lambda: callback.on_train_end(*given, **more))

    return Careful()
