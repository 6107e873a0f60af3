"""What a run's judge compared, sample by sample: the pairs that people can be shown.

Verdicts are read as curation read them: corrected, where a stage fitted a correction, and both
orders averaged.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

from selfcal.curate import merge_orders
from selfcal.errors import SelfcalError, StoreError
from selfcal.judge.labels import known_truth
from selfcal.judge.quality import SIGN
from selfcal.methods.parts.correcting import Correct, calibration_stage, correction
from selfcal.methods.parts.facts import told
from selfcal.pipeline import locate, open_run
from selfcal.rationale import FORMATS, RapFormat
from selfcal.store import fingerprint
from selfcal.types import Candidate, Judgment, Sample
from selfcal.view.audit import rounds_of, sample_by_sample


class Key(NamedTuple):
    """Names two candidates of a sample; the one has the lower number."""

    iteration: int
    sample_id: str
    one: int
    other: int


@dataclass(frozen=True, slots=True)
class Pair:
    """Two responses that the judge compared. Nothing in it says what it made of them."""

    iteration: int
    sample: Sample
    """Its images by their paths in the run (`images.image_path` opens one)."""
    one: Candidate
    other: Candidate

    @property
    def key(self) -> Key:
        """What names the pair in this run."""
        return Key(self.iteration, self.sample.id, self.one.index, self.other.index)

    @property
    def texts(self) -> str:
        """Digest of the two texts, which tells a label of this pair from one of a pair before."""
        return fingerprint(self.one.text, self.other.text)


@dataclass(frozen=True, slots=True)
class Asked:
    """What the judge was asked about one sample in one iteration."""

    iteration: int
    sample: Sample
    candidates: Mapping[int, Candidate]
    judgments: Sequence[Judgment]
    """Corrected."""

    @property
    def pairs(self) -> list[Pair]:
        """The pairs of different texts that it was asked about, in one order at least."""
        asked = {frozenset((g.first, g.second)) for g in self.judgments}
        own = [self.candidates[i] for i in sorted(self.candidates)]
        return [
            Pair(self.iteration, self.sample, one, other)
            for one, other in combinations(own, 2)
            if {one.index, other.index} in asked and one.text.strip() != other.text.strip()
        ]

    @property
    def signs(self) -> dict[tuple[int, int], int]:
        """Its verdicts: +1 the candidate with the lower number, -1 the other, 0 neutral.

        A pair of which no order could be read has none.
        """
        return {(c.i, c.j): c.sign for c in merge_orders(self.judgments)}


class Judged:
    """A run with what its judge compared in the first search of each iteration."""

    def __init__(self, run: Path, iteration: int | None = None) -> None:
        """Open a run; `iteration` leaves out all others.

        Raises:
            SelfcalError: it is no run, has no judgments (yet), or none of that iteration.
        """
        self.run, self.recipe = run, open_run(run)
        self._planned = {p.stage.name: p for p in locate(self.recipe, run)}
        there = [t for t in rounds_of(run, self._planned) if self._settled(t)]
        if iteration is not None and iteration not in there:
            raise SelfcalError(
                f"{run}: iteration {iteration} has no finished judgments; there are those of "
                f"{', '.join(map(str, there)) or 'none'}"
            )
        if not there:
            raise StoreError(f"{run}: its verdicts are not corrected yet; let the run go on")
        self.iterations: list[int] = there if iteration is None else [iteration]

    def asked(self, wanted: Collection[tuple[int, str]] | None = None) -> Iterator[Asked]:
        """What was asked about each sample; `wanted`: iterations and ids of samples, None: all."""
        for t in self.iterations:
            correct = self._correct(t)
            for sample_id, own, given in sample_by_sample(self._planned, t):
                if wanted is None or (t, sample_id) in wanted:
                    found = {c.index: c for c in own}
                    yield Asked(t, self._samples[sample_id], found, correct(given))

    @property
    def state(self) -> str:
        """Digest of what was judged; another one, or an error, once the run is redone.

        Raises:
            StoreError: a stage has no manifest (any longer).
        """
        names = [f"iter-{t}/{s}" for t in self.iterations for s in ("candidates", "judgments")]
        return fingerprint([self._planned[name].folder.manifest()["files"] for name in names])

    @property
    def form(self) -> RapFormat:
        """The format of the responses."""
        return FORMATS[self.recipe.format]

    def truth(self, pair: Pair) -> int | None:
        """The sign of the verifier's verdict; None where it cannot tell."""
        if not self.recipe.data.miniworld:
            return None
        verdict = known_truth(pair.sample, pair.one.text, pair.other.text, self.form)
        return None if verdict is None else SIGN[verdict]

    def _fitted(self, t: int) -> str | None:
        """The stage that corrects the verdicts of an iteration."""
        name = calibration_stage(self.recipe, t)
        return name if name in self._planned else None

    def _settled(self, t: int) -> bool:
        fitted = self._fitted(t)
        return fitted is None or self._planned[fitted].folder.done

    def _correct(self, t: int) -> Correct:
        folders = {name: p.folder for name, p in self._planned.items()}
        return correction(folders, self._fitted(t))

    @cached_property
    def _samples(self) -> dict[str, Sample]:
        """All samples that were judged, with the facts that the judge went by."""
        found = self._planned[told(self.recipe)].folder.records("calibration", Sample)
        return {s.id: s for s in found}
