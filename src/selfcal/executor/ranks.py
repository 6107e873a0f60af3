"""The driver of trainings in several processes on this machine, which torchrun starts.

torchrun starts all of them again when one dies, and they go on from the last checkpoint. What
became of the stage is what the first rank says (see `rank`), not the exit code: now and then a
process aborts on its way out, when all is done.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from selfcal import stopping
from selfcal.errors import SelfcalError
from selfcal.executor.base import note, rebuilt
from selfcal.executor.rank import OUTCOME, PROGRESS, STOP
from selfcal.recipe import Recipe
from selfcal.remote import place_of
from selfcal.stage import Work
from selfcal.store import JSON, read_json

RESTARTS = 3
"""How often the ranks are started again when one dies."""
_PATIENCE = 0.1
"""Seconds between two looks at how they get on."""
_FAREWELL = 10.0
"""Seconds that they have to leave when all is done."""
_TAIL = 2000
"""Characters of their errors that are shown."""
_ELASTIC = ("RANK", "WORLD_SIZE", "LOCAL_", "GROUP_", "ROLE_", "MASTER_", "TORCHELASTIC_")
"""What the names begin with by which torchrun tells a process its place."""


class RankError(SelfcalError):
    """A training in several processes broke: the text has what they said last."""


def train_on_ranks(recipe: Recipe, work: Work) -> Mapping[str, JSON]:
    """Do a stage by several processes on this machine; gives its figures.

    Raises:
        SelfcalError: the stage failed in a foreseen way, or the processes died too often.
        Stopped: that was asked for; a checkpoint is saved.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise RankError(
            f"{work.stage.name}: selfcal itself was started several times; start it without "
            "torchrun or accelerate launch: it starts the processes of executor.ranks"
        )
    while True:
        found = _launch(recipe, work)
        if "again" not in found:
            return figures_of(found)
        note(str(found["again"]))


def figures_of(found: Mapping[str, Any]) -> Mapping[str, JSON]:
    """The figures of a stage, by what became of it.

    Raises:
        SelfcalError: as the rank raised it.
        Stopped: it was stopped.
    """
    if "stopped" in found:
        raise stopping.Stopped
    if "error" in found:
        raise rebuilt(found["error"], found["text"], RankError)
    figures: Mapping[str, JSON] = found["figures"]
    return figures


def _launch(recipe: Recipe, work: Work) -> dict[str, Any]:
    """Start the ranks and wait for them; gives what became of the stage."""
    with tempfile.TemporaryDirectory(prefix="selfcal-ranks-") as where:
        room = Path(where)
        with _started(recipe.executor.ranks, work, room) as process:
            seen = (0, 0)
            while (found := _outcome(room)) is None and process.poll() is None:
                if stopping.asked():
                    (room / STOP).touch()
                if (moved := _progress(room)) != seen:
                    work.progress(*(seen := moved))
                time.sleep(_PATIENCE)
            if found is not None and {"figures", "stopped"} & set(found):
                with suppress(subprocess.TimeoutExpired):
                    process.wait(_FAREWELL)
        found = found or _outcome(room)
        if found is None and stopping.asked():
            raise stopping.Stopped  # who asked may have ended them as well, as schedulers do
        if found is None:
            raise RankError(
                f"{work.stage.name}: {recipe.executor.ranks} processes trained together and died "
                f"(exit code {process.returncode}, after {RESTARTS} restarts at most); run the "
                "same command again to go on from the last checkpoint. They said last:\n"
                + _said(room)
            )
        return found


@contextmanager
def _started(ranks: int, work: Work, room: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The process of torchrun, for as long as the block runs; with it the ranks end."""
    place = place_of(work.run)
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}",
        f"--max-restarts={RESTARTS}", "--monitor-interval=0.1", "-m", "selfcal.executor.rank",
        place.where, work.stage.name, work.folder.fingerprint, str(room), place.token,
    ]  # fmt: skip
    environment = {k: v for k, v in os.environ.items() if not k.startswith(_ELASTIC)}
    with (room / "said").open("wb") as said:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,  # closed with this process: see `rank`
            stdout=said,
            stderr=said,
            env=environment,
            start_new_session=True,  # Ctrl-C is the driver's business
        )
        try:
            yield process
        finally:
            _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End torchrun and its ranks, each of which is in a session of its own."""
    import psutil

    with suppress(psutil.NoSuchProcess):
        own = psutil.Process(process.pid)
        family = [*own.children(recursive=True), own]
        own.kill()  # first, so that it starts none again
        for one in family:
            with suppress(psutil.NoSuchProcess):
                one.kill()
        psutil.wait_procs(family, timeout=_FAREWELL)
    process.wait()
    if process.stdin is not None:
        process.stdin.close()


def _outcome(room: Path) -> dict[str, Any] | None:
    """What became of the stage, as the first rank says it, or any other that cannot go on."""
    said = sorted(room.glob(f"*-{OUTCOME}"))
    return read_json(said[0]) if said else None


def _progress(room: Path) -> tuple[int, int]:
    try:
        done, total = (room / PROGRESS).read_text().split()
    except FileNotFoundError:
        return 0, 0
    return int(done), int(total)


def _said(room: Path) -> str:
    """The last of what the ranks said."""
    return (room / "said").read_bytes()[-_TAIL:].decode(errors="replace").strip()
