"""Where a stage's time goes: model, tokenizer, sampling, cache, disk, training, and the rest.

`spent("model")` counts the time of its block, without that of blocks inside it, to "model". It
costs about a microsecond, so it is always on; `selfcal run --profile` shows what it counted.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from types import TracebackType

exact = False
"""Whether to wait for the GPU at the end of a block, so that its time is not the next one's."""

_thread = threading.get_ident()
"""Whose time is counted: what other threads do beside costs no time of its own."""
_totals: defaultdict[str, float] = defaultdict(float)
_open: list[str] = []
_since = 0.0


class spent:
    """Count the time of a `with` block to a name."""

    __slots__ = ("_counts", "_name")

    def __init__(self, name: str) -> None:
        """Count to `name`."""
        self._name = name

    def __enter__(self) -> None:
        """Stop counting to the block around this one."""
        global _since
        self._counts = threading.get_ident() == _thread
        if not self._counts:
            return
        now = time.perf_counter()
        if _open:
            _totals[_open[-1]] += now - _since
        _open.append(self._name)
        _since = now

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Go on counting to the block around this one."""
        global _since
        if not self._counts:
            return
        if exact:
            _wait()
        now = time.perf_counter()
        _totals[_open.pop()] += now - _since
        _since = now


def take() -> dict[str, float]:
    """Seconds by name since the last call, and start anew."""
    counted = dict(_totals)
    _totals.clear()
    return counted


def _wait() -> None:
    import torch

    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
