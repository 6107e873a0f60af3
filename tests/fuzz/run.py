"""Many inputs in, the faults among them out; resumable, as input `i` follows from seed and `i`.

The inputs are read in a process of their own, so that one that kills its reader (a crash in a C
library, a hang that heeds no signal) is a fault like another, and the run goes on behind it.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import resource
import shutil
import signal
import struct
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from random import Random

from selfcal.errors import SelfcalError

from .targets import Target

CASES = Path(__file__).parent / "cases"
LIMIT_S = 2.0
"""Seconds of computing that one input may take."""
_HANGS_S = 60.0
_PIECE = 25_000
_MEMORY = 6 * 2**30
_SHM = Path("/dev/shm")


class TooSlow(Exception):
    """An input took more than its time."""


@dataclass
class Progress:
    """How far a target has come."""

    target: str
    seed: int
    inputs: int = 0
    refused: int = 0
    """Inputs that ended in a `SelfcalError`."""
    seconds: float = 0.0
    slowest_s: float = 0.0
    slowest: int = -1
    """Number of the slowest input."""
    faults: dict[str, int] = field(default_factory=dict)
    """The first input with each fault."""


def made(target: Target, seed: int, number: int) -> bytes:
    """Input `number` of a target."""
    return target.make(Random(f"{target.name} {seed} {number}"))


def attempt(target: Target, data: bytes, folder: Path) -> str | None:
    """Read an input: None, `refused`, or what is wrong with how it was read."""
    for left in list(folder.iterdir()):
        shutil.rmtree(left) if left.is_dir() else left.unlink()
    try:
        with _within(LIMIT_S):
            target.read(data, folder)
    except SelfcalError:
        return "refused"
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt | SystemExit):
            raise
        return signature(error)
    return None


def signature(error: BaseException) -> str:
    """What tells faults apart: the exception, and where selfcal was last."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if "selfcal" in Path(f.filename).parts] or frames
    at = f"{Path(own[-1].filename).name}:{own[-1].name}" if own else "?"
    return f"{type(error).__name__} at {at}"


@contextmanager
def _within(seconds: float) -> Iterator[None]:
    """Computing time, not time on the clock: other processes are no fault of an input."""

    def stop(*_: object) -> None:
        raise TooSlow(f"more than {seconds} s")

    before = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def fuzz(
    target: Target, inputs: int, seed: int, state: Path, told: Callable[[str], None]
) -> Progress:
    """Read inputs up to number `inputs`, going on where `state` says that the last run ended."""
    progress = Progress(target.name, seed)
    if state.exists():
        progress = Progress(**json.loads(state.read_text()))
    while progress.inputs < inputs:
        _in_process(target, progress, min(inputs, progress.inputs + _PIECE))
        state.parent.mkdir(parents=True, exist_ok=True)
        state.with_suffix(".new").write_text(json.dumps(asdict(progress), indent=1))
        os.replace(state.with_suffix(".new"), state)
        told(line(progress))
    return progress


def line(p: Progress) -> str:
    """How far it is, in a line."""
    rate = p.inputs / p.seconds if p.seconds else 0.0
    return (
        f"{p.target:10} {p.inputs:>9,} inputs ({p.refused:,} refused), {rate:,.0f} a second, "
        f"slowest {p.slowest_s * 1000:.1f} ms (input {p.slowest}), faults {len(p.faults)}"
    )


def _in_process(target: Target, progress: Progress, end: int) -> None:
    """Read the next inputs in a process of their own, and keep what it found."""
    where = mmap.mmap(-1, 8)
    where[:] = struct.pack("q", progress.inputs)
    out, into = os.pipe()
    begun = time.monotonic()
    if not (child := os.fork()):
        os.close(out)
        _child(target, progress, end, where, into)
    os.close(into)
    said = _wait(child, out, where)
    _, status = os.waitpid(child, 0)
    at = struct.unpack("q", where[:])[0]
    progress.seconds += time.monotonic() - begun
    if status == 0 and said:
        found = json.loads(said)
        progress.inputs, progress.refused = end, progress.refused + found["refused"]
        if found["slowest_s"] > progress.slowest_s:
            progress.slowest_s, progress.slowest = found["slowest_s"], found["slowest"]
        for what, number in found["faults"].items():
            _note(target, progress, what, number)
        return
    killed = os.WTERMSIG(status) if os.WIFSIGNALED(status) else f"exit {status}"
    _note(target, progress, f"killed by {killed}", at)
    progress.inputs = at + 1  # figures of the inputs before it are lost, faults are not


def _wait(child: int, out: int, where: mmap.mmap) -> bytes:
    """What the child says in the end; it is killed where it hangs in one input."""
    said, last, since = b"", b"", time.monotonic()
    os.set_blocking(out, False)
    while True:
        try:
            piece = os.read(out, 2**16)
            if not piece:
                break
            said += piece
            continue
        except BlockingIOError:
            time.sleep(0.02)
        if where[:] != last:
            last, since = where[:], time.monotonic()
        elif time.monotonic() - since > _HANGS_S:
            os.kill(child, signal.SIGKILL)
    os.close(out)
    return said


def _child(target: Target, progress: Progress, end: int, where: mmap.mmap, into: int) -> None:
    code = 1
    try:
        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
        base = _SHM if _SHM.is_dir() else None
        with tempfile.TemporaryDirectory(dir=base) as folder:
            found = _read_all(target, progress, end, where, Path(folder))
        data = json.dumps(found).encode()
        while data:
            data = data[os.write(into, data) :]
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def _read_all(
    target: Target, progress: Progress, end: int, where: mmap.mmap, folder: Path
) -> dict[str, object]:
    attempt(target, made(target, progress.seed, 0), folder)  # what is imported takes its time
    refused, slowest_s, slowest, faults = 0, 0.0, -1, dict[str, int]()
    for number in range(progress.inputs, end):
        where[:] = struct.pack("q", number)
        data = made(target, progress.seed, number)
        begun = time.process_time()
        what = attempt(target, data, folder)
        took = time.process_time() - begun
        if took > slowest_s:
            slowest_s, slowest = took, number
        if what == "refused":
            refused += 1
        elif what is not None and what not in progress.faults and what not in faults:
            faults[what] = number
            _save(target, data)
    return {"refused": refused, "slowest_s": slowest_s, "slowest": slowest, "faults": faults}


def _note(target: Target, progress: Progress, what: str, number: int) -> None:
    if what not in progress.faults:
        progress.faults[what] = number
        _save(target, made(target, progress.seed, number))


def _save(target: Target, data: bytes) -> None:
    """Keep an input as a case that the tests read from now on."""
    folder = CASES / target.name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / hashlib.sha256(data).hexdigest()[:12]).write_bytes(data)
