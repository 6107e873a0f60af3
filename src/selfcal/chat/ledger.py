"""What a run spends on a server, set aside before it is spent.

A request's cost is known only afterwards, and many requests are under way at once. So each sets
aside what it may cost at most before it is sent, and gives back what it did not cost. A budget is
never overrun that way, by no number of threads.

The ledger is a file of JSON lines in the run's folder: one line when something is set aside, one
when the account is settled. What was set aside and never settled, because the process was killed,
counts in full. One process writes at a time: the run is locked.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path
from threading import Condition
from typing import Any

from selfcal.chat.errors import SpentError
from selfcal.chat.reply import Usage
from selfcal.errors import StoreError
from selfcal.store import explained


class Ledger:
    """The account of one server in one run; threads may share it."""

    def __init__(
        self,
        path: Path | None = None,
        stage: str = "",
        setting: str = "",
        requests: int | None = None,
        tokens: int | None = None,
    ) -> None:
        """Open the account.

        Args:
            path: its file, made when something is spent; None keeps the account in memory.
            stage: what the spending is noted for.
            setting: where a recipe has the server's settings, such as `teacher`; for errors.
            requests: most requests of the run; None: no limit.
            tokens: most tokens of the run, of prompts and replies; None: no limit.

        Raises:
            StoreError: the file cannot be read or is damaged.
        """
        self._path, self._stage, self._setting = path, stage, setting
        self._limits = (requests, tokens)
        self._change = Condition()
        self._open: dict[str, int] = {}
        self._spent = Usage()
        self._ready = False

    @property
    def spent(self) -> Usage:
        """What the run has spent, without what is under way."""
        with self._change:
            self._prepare()
            return self._spent

    def reserve(self, tokens: int) -> str:
        """Set aside one request and so many tokens; waits while others may yet give some back.

        Returns:
            What `settle` wants.

        Raises:
            SpentError: the budget has no room for it.
            StoreError: the file cannot be written.
        """
        key = secrets.token_hex(6)
        with self._change:
            self._prepare()
            while not self._fits(tokens):
                if not self._open:
                    raise self._over(tokens)
                self._change.wait()
            self._open[key] = tokens
            try:
                self._append({"id": key, "stage": self._stage, "reserved": tokens})
            except BaseException:
                del self._open[key]
                raise
        return key

    def settle(self, key: str, usage: Usage) -> None:
        """Say what a request has cost."""
        with self._change:
            self._open.pop(key)
            self._spent += usage
            self._change.notify_all()
            said = {"prompt": usage.prompt_tokens, "reply": usage.reply_tokens}
            self._append({"id": key, "stage": self._stage, **said})

    def note_cached(self) -> None:
        """Note a reply that cost nothing."""
        with self._change:
            self._prepare()
            self._spent += Usage(cached=1)
            self._append({"stage": self._stage, "cached": 1})

    def _fits(self, tokens: int) -> bool:
        requests, most = self._limits
        within = requests is None or self._spent.requests + len(self._open) + 1 <= requests
        under_way = sum(self._open.values())
        return within and (most is None or self._spent.tokens + under_way + tokens <= most)

    def _over(self, tokens: int) -> SpentError:
        requests, most = self._limits
        by_number = requests is not None and self._spent.requests + 1 > requests
        what, limit = ("requests", requests) if by_number else ("tokens", most)
        place = f"{self._setting}.budget.{what}" if self._setting else f"its limit of {what}"
        s = self._spent
        return SpentError(
            f"{self._setting or 'server'}: the budget of {limit:,} {what} is spent: "
            f"{s.requests:,} requests took {s.tokens:,} tokens ({s.prompt_tokens:,} of prompts, "
            f"{s.reply_tokens:,} of replies), and the next one may take {tokens:,}; what is done "
            f"is kept: raise {place} and run the same command again, and it goes on"
        )

    def _prepare(self) -> None:
        """Take in what earlier processes spent; once."""
        if self._ready or self._path is None:
            return
        with explained("read", self._path):
            if self._path.exists():
                _cut_unfinished(self._path)
                for _, usage in _accounts(self._path):
                    self._spent += usage
        self._ready = True

    def _append(self, line: Mapping[str, Any]) -> None:
        if self._path is None:
            return
        with explained("write", self._path):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("ab") as file:
                file.write(json.dumps(line).encode() + b"\n")
                if any(self._limits):  # without a budget, a power cut costs figures alone
                    file.flush()
                    os.fsync(file.fileno())


def spent_in(folder: Path, stage: str) -> Usage:
    """What the ledgers in a folder say that a stage has spent, over all processes."""
    total = Usage()
    for path in sorted(folder.glob("*.jsonl")):
        with explained("read", path):
            for name, usage in _accounts(path):
                total += usage if name == stage else Usage()
    return total


def _accounts(path: Path) -> Iterator[tuple[str, Usage]]:
    """What was spent, line by line, with the stage; at the end, what was never settled."""
    open_: dict[str, tuple[str, int]] = {}
    for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
        if not line:
            continue
        try:
            row = json.loads(line)
            stage = str(row["stage"])
            if "cached" in row:
                yield stage, Usage(cached=_count(row["cached"]))
            elif "reserved" in row:
                open_[str(row["id"])] = stage, _count(row["reserved"])
            else:
                open_.pop(str(row["id"]), None)
                yield stage, Usage(1, _count(row["prompt"]), _count(row["reply"]))
        except (ValueError, LookupError, TypeError, RecursionError) as error:
            raise StoreError(
                f"{path}: line {number} is damaged ({error}); delete the line, whose request is "
                "then not counted, and run the same command again"
            ) from error
    for stage, reserved in open_.values():
        yield stage, Usage(1, reserved, 0)


def _count(value: object) -> int:
    if type(value) is not int or not 0 <= value < 2**62:
        raise ValueError(f"{value!r:.40} is no count")
    return value


def _cut_unfinished(path: Path) -> None:
    """Cut off a last line that a killed process left unfinished.

    Nothing was sent before its line was whole, and what was set aside stays so.
    """
    data = path.read_bytes()
    whole = data.rfind(b"\n") + 1
    if whole < len(data):
        os.truncate(path, whole)
