"""One line of figures in a tracker, and how transformers' callback is brought to write it.

That callback takes the one run that a process has open, and would open a nameless one of its own.
So each line here is a run apart from whatever else is open in the process, and the callback is
handed it.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

PROJECT = "selfcal"
"""Of wandb, where WANDB_PROJECT does not name another one, and of Trackio."""
STEP = "stage"
"""What wandb draws the figures of stages over."""


@dataclass(frozen=True, slots=True)
class Title:
    """What a line is called."""

    name: str
    """`RECIPE/STAGE`."""
    id: str
    """No other line has it, of this run or another."""
    group: str
    """The run's."""
    config: Mapping[str, Any]
    folder: Path
    """Its own, for a tracker that writes files."""
    room: Path
    """The folder of all lines of the run."""
    begun_at: int
    """The step that comes next; what the line has from there on is written anew."""


class Line(Protocol):
    """A line of figures."""

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Add figures."""
        ...

    def lead(self, callback: Any) -> None:
        """Have transformers' callback for this tracker write here."""
        ...

    def close(self) -> None:
        """End it; it can be gone on with later."""
        ...


class _TensorBoard:
    def __init__(self, title: Title) -> None:
        from torch.utils.tensorboard import SummaryWriter

        writer: Any = SummaryWriter  # its parameters have no types
        self._writer = writer(str(title.folder), purge_step=title.begun_at)
        lines = json.dumps(title.config, indent=2).splitlines()
        # indented, so that Markdown leaves it as it is
        self._writer.add_text("config", "\n".join(f"    {line}" for line in lines), title.begun_at)
        self._writer.flush()

    def log(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def lead(self, callback: Any) -> None:
        callback.tb_writer = self._writer

    def close(self) -> None:
        self._writer.close()


class _Wandb:
    def __init__(self, title: Title) -> None:
        self._package, self._drawn = import_module("wandb"), False
        folder = Path(os.environ.get("WANDB_DIR") or title.room)
        folder.mkdir(parents=True, exist_ok=True)
        self._run = self._package.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            id=title.id,
            name=title.name,
            group=title.group,
            config=dict(title.config),
            dir=str(folder),
            resume="allow",
            reinit="create_new",  # whatever else is open stays as it is
            # no metadata: the command line may hold a password, and is none of a tracker's business
            settings=self._package.Settings(
                console="off",
                silent=True,
                disable_git=True,
                x_disable_meta=True,
                x_disable_machine_info=True,
            ),
        )

    def log(self, values: Mapping[str, float], step: int) -> None:
        if not self._drawn:  # not by wandb's own step, which never goes back as a redone stage does
            self._run.define_metric("*", step_metric=STEP)
            self._drawn = True
        self._run.log({**values, STEP: step})

    def lead(self, callback: Any) -> None:
        callback._wandb = _Alone(self._package, self._run)

    def close(self) -> None:
        self._run.finish()


class _Trackio:
    def __init__(self, title: Title) -> None:
        self._package = import_module("trackio")
        opened = self._package.context_vars.current_run
        before = opened.get()
        opened.set(None)  # else it would be ended
        try:
            with redirect_stdout(io.StringIO()):  # it would write into selfcal's own progress
                self._run = self._package.init(
                    project=PROJECT,
                    # it knows runs by their names: without the id, another run's would be resumed
                    name=f"{title.name} ({title.id})",
                    group=title.group,
                    config=dict(title.config),
                    resume="allow",
                    embed=False,
                    auto_log_gpu=False,
                    auto_log_cpu=False,
                )
        finally:
            opened.set(before)

    def log(self, values: Mapping[str, float], step: int) -> None:
        self._run.log(dict(values), step=step)

    def lead(self, callback: Any) -> None:
        callback._trackio = _Alone(self._package, self._run)

    def close(self) -> None:
        with redirect_stdout(io.StringIO()):
            self._run.finish()


class _Alone:
    """A tracker's package as if the line's run were the one that the process has open."""

    def __init__(self, package: Any, run: Any) -> None:
        self.run = run
        self._package = package

    def __getattr__(self, name: str) -> Any:
        return getattr(self.run if hasattr(self.run, name) else self._package, name)

    @property
    def config(self) -> Any:
        config = self.run.config
        return _Config(config) if type(config) is dict else config

    def init(self, **_: Any) -> Any:
        return self.run

    def finish(self) -> None:
        """Left to the line."""


class _Config(dict[str, Any]):
    """Trackio's configuration of a run, updated as that of its package."""

    def __init__(self, own: dict[str, Any]) -> None:
        self._own = own

    def update(self, values: Mapping[str, Any], allow_val_change: bool = True) -> None:  # type: ignore[override]
        self._own.update(values)

    def __setitem__(self, name: str, value: Any) -> None:
        self._own[name] = value


_LINES: dict[str, Callable[[Title], Line]] = {
    "tensorboard": _TensorBoard, "wandb": _Wandb, "trackio": _Trackio,
}  # fmt: skip


def open_line(kind: str, title: Title) -> Line:
    """A line of a tracker: begun, or gone on with."""
    return _LINES[kind](title)
