"""What people said, in one file of the run: `audit/labels.jsonl`, a JSON object a line.

Lines are only ever added, each is on the disk before the page says so, and a later line of the same
person about the same pair takes the earlier one's place. Several processes may write: one at a time
has the lock. A last line that a killed process left unfinished is set aside, not lost.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, BinaryIO, Literal

from filelock import FileLock
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from selfcal.errors import SelfcalError, first_fault
from selfcal.judge.quality import SIGN
from selfcal.people.judged import Key
from selfcal.store import explained, write_bytes
from selfcal.types import Verdict
from selfcal.view.text import safe

Flaw = Literal["counterfactual", "unreasonable", "insufficient", "other"]
"""What is wrong with a sentence."""
Side = Literal["first", "second"]
JUDGE, VERIFIER, MAJORITY = "the judge", "the verifier", "most people"
"""Names in figures, which no person has."""
_WAIT = 30.0
"""Seconds that a writer waits for another one."""
_LONGEST_NAME = 60
_UNSEEN = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200c\u200d\u2800\u3164\ufe00-\ufe0f\uffa0"
    "\U000e0100-\U000e01ef]"
)
"""Joiners, fillers and selectors of variants: they stand in names, and nobody sees them."""
_BOM = b"\xef\xbb\xbf"
"""The byte order mark of Windows tools."""


class Marked(BaseModel, frozen=True, strict=True):
    """The first false sentence of a response."""

    number: Annotated[int, Field(ge=1)]
    """Of the sentence in its response, from 1; the answer is the last one."""
    text: str


class Label(BaseModel, frozen=True, strict=True):
    """What one person said of one pair."""

    model_config = ConfigDict(allow_inf_nan=False)

    sample_id: str
    iteration: Annotated[int, Field(ge=1)]
    first: Annotated[int, Field(ge=0)]
    second: Annotated[int, Field(ge=0)]
    """`Candidate.index` of the response that was shown as A, and as B."""
    texts: str
    """Digest of both texts (`Pair.texts`)."""
    verdict: Verdict | None
    """None: the person could not tell."""
    annotator: Annotated[str, Field(min_length=1)]
    flaw_in: Side | None = None
    false_sentence: Marked | None = None
    flaw: Flaw | None = None
    """None: the person did not say."""
    seconds: Annotated[float, Field(ge=0)] | None = None
    """How long the person looked."""
    at: str = ""
    """When it was said (UTC, ISO 8601)."""

    @property
    def key(self) -> Key:
        """The pair."""
        return Key(self.iteration, self.sample_id, *sorted((self.first, self.second)))

    @property
    def sign(self) -> int | None:
        """+1 the candidate with the lower number is better, -1 the other, 0 equal."""
        if self.verdict is None:
            return None
        return SIGN[self.verdict] * (1 if self.first < self.second else -1)


@dataclass(frozen=True, slots=True)
class Found:
    """What a file of labels holds."""

    labels: tuple[Label, ...]
    """The last ones of each person about each pair of texts."""
    replaced: int
    """Earlier ones that they took the place of."""
    torn: bool
    """Whether the last line is unfinished."""


class LabelFile:
    """The file of labels of a run. Threads and processes may share it."""

    def __init__(self, run: Path) -> None:
        """Name the run; nothing is read or written yet."""
        self.path = run / "audit" / "labels.jsonl"

    def read(self) -> Found:
        """All labels; none where there is no file.

        Raises:
            StoreError: the file cannot be read.
            SelfcalError: a line is no label.
        """
        with explained("read", self.path):
            data = self.path.read_bytes() if self.path.exists() else b""
        data = data.removeprefix(_BOM)
        *lines, rest = data.split(b"\n")
        found = [self._parse(line, n) for n, line in enumerate(lines, start=1) if line.strip()]
        last = _tried(rest)
        if last is not None:
            found.append(last)
        latest = {(label.annotator, label.key, label.texts): label for label in _spelled(found)}
        return Found(
            tuple(latest.values()), len(found) - len(latest), last is None and bool(rest.strip())
        )

    def append(self, label: Label) -> None:
        """Add a label; it is on the disk when this returns.

        Raises:
            StoreError: the system refused, or another process does not give the lock back.
        """
        line = label.model_dump_json().encode() + b"\n"
        with explained("write", self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(self.path.with_name(".labels.lock"), timeout=_WAIT):
                if not self.path.exists():
                    write_bytes(self.path, b"")  # syncs the folder, too
                with self.path.open("r+b") as file:
                    self._mend(file)
                    file.write(line)
                    file.flush()
                    os.fsync(file.fileno())

    def _mend(self, file: BinaryIO) -> None:
        """Go to the file's end, where a line begins."""
        data = file.read()
        whole = data.rfind(b"\n") + 1
        rest = data[whole:]
        if _tried(rest) is not None:  # an editor left out the last line's end
            file.write(b"\n")
        elif rest:
            aside = self.path.with_name("labels.torn")
            before = aside.read_bytes() if aside.exists() else b""
            write_bytes(aside, before + rest + b"\n")
            file.truncate(whole)
            file.seek(whole)

    def _parse(self, line: bytes, number: int) -> Label:
        try:
            return Label.model_validate_json(line)
        except ValidationError as error:
            raise SelfcalError(
                f"{self.path}: line {number}: {first_fault(error)}; correct the line or delete it"
            ) from error


def _tried(line: bytes) -> Label | None:
    try:
        return Label.model_validate_json(line.removeprefix(_BOM))
    except ValidationError:
        return None


def _spelled(labels: Iterable[Label]) -> Iterator[Label]:
    """Labels with each person's name as it was spelled first, and none that figures have."""
    known: dict[str, str] = {}
    for label in labels:
        plain = folded(label.annotator)
        own = f"{label.annotator} (person)" if plain in _TAKEN else label.annotator
        name = known.setdefault(plain, own)
        yield label if name == label.annotator else label.model_copy(update={"annotator": name})


def annotators(labels: Iterable[Label]) -> list[str]:
    """Who labelled, in the order of their first labels."""
    return list(dict.fromkeys(label.annotator for label in labels))


def folded(name: str) -> str:
    """What all spellings of a name share: `Ann` and `ann` are one person."""
    return unicodedata.normalize("NFKC", name).casefold()


_TAKEN = frozenset(map(folded, (JUDGE, VERIFIER, MAJORITY)))


def annotator_name(given: str) -> str:
    """A name as it is written into labels.

    Raises:
        SelfcalError: it has no letter or digit, is too long, has characters that cannot be seen
            and are none of writing, or is one that figures have.
    """
    name = " ".join(_UNSEEN.sub("", unicodedata.normalize("NFC", given)).split())
    letters = any(map(str.isalnum, name))
    if not letters or len(name) > _LONGEST_NAME or safe(name) != name:
        raise SelfcalError(
            f"the name {name[:_LONGEST_NAME]!r} cannot be used: give 1 to {_LONGEST_NAME} visible "
            "characters, one of them a letter or a digit"
        )
    if folded(name) in _TAKEN:
        raise SelfcalError(f"the name {name!r} cannot be used: the figures have it; give another")
    return name
