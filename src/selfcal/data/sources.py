"""Several sources in; samples of every split out, mixed, without twins, no image in two splits.

Every image belongs to a split by a hash of (seed, its content), in the proportion of the splits'
sizes. So a source can grow, or another can be added, and no image ever moves. Samples with several
images tie these together: all images that are connected by samples go where the least of their
hashes goes. Within a split, samples are drawn by a hash of (seed, images, question), by category
and source in the proportion of their weights.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from selfcal.data.door import DataFile, open_data
from selfcal.data.draw import Draw
from selfcal.data.pictures import Checker, Rules
from selfcal.data.read import Kept, insist, read, save_embedded
from selfcal.data.rows import DataError
from selfcal.data.seen import Seen
from selfcal.recipe import Source
from selfcal.types import Drop, Sample

_ORDER = ("test", "dev", "calibration", "rft")
"""Splits along the line of hashes: a larger `rft` moves least of `test`."""
_PROMPTS = "calibration"
"""The split that takes samples without an answer."""


@dataclass(frozen=True, slots=True)
class Mixed:
    """The samples of all splits."""

    splits: dict[str, list[Sample]]
    kept: dict[str, int]
    """Rows that could be used, by source."""


@dataclass(frozen=True, slots=True)
class _Mine:
    """A row that can be used, and its source's place."""

    source: int
    kept: Kept
    twin: bytes
    """See `twin_key`."""


def mix_sources(
    sources: Sequence[Source],
    sizes: Mapping[str, int],
    weights: Mapping[str, float] | None,
    seed: str,
    rules: Rules,
    embedded: Path,
    dropped: Callable[[Drop], None],
) -> Mixed:
    """Mix sources and split them by image.

    Args:
        sources: files or folders with their weights.
        sizes: wanted samples of each split.
        weights: of the categories; None: categories play no part.
        seed: what split and draw are derived from.
        rules: that the rows must meet.
        embedded: folder that embedded images are written to.
        dropped: is told of every row that is left out; twins are `duplicate`.

    Raises:
        DataError: a source is malformed or has no sample that can be used, or a split got none.
    """
    files = [_opened(source) for source in sources]
    shares = [source.weight for source in sources]
    draws = {split: Draw[_Mine](n, weights, shares) for split, n in sizes.items() if n}
    kept: Counter[str] = Counter()
    names = source_names(sources)
    with Checker(rules) as checker:
        ties = Ties()
        for file in files:
            ties.collect(read(file, checker, embedded, several=True))
        for found in _usable(sources, files, checker, embedded):
            if isinstance(found, Drop):
                dropped(found)
                continue
            sample = found.kept.sample
            split = split_of(ties.of(found.kept.contents[0]), sizes, seed)
            if split != _PROMPTS and not sample.answer.strip():
                dropped(Drop(sample.id, "read", "empty-answer", found.kept.place))
                continue
            key = hashlib.sha256(f"{seed} ".encode() + found.twin).digest(), ""
            draws[split].add(found, key, sample.category, found.source)
            kept[names[found.source]] += 1
    drawn = {split: draw.take() for split, draw in draws.items()}
    _check_none_empty(drawn, sizes)
    for i, file in enumerate(files):
        own = (m.kept for mine in drawn.values() for m in mine if m.source == i)
        save_embedded(file, {one.number: one for one in own})
    return Mixed({s: [m.kept.sample for m in mine] for s, mine in drawn.items()}, dict(kept))


def source_names(sources: Sequence[Source]) -> list[str]:
    """A short name for each source: that of its file, with the folder's where two are alike."""
    paths = [Path(s.path).absolute() for s in sources]
    names = [p.stem for p in paths]
    if len(set(names)) < len(names):
        names = [f"{p.parent.name}-{p.stem}" for p in paths]
    counts: Counter[str] = Counter()
    for i, name in enumerate(names):
        counts[name] += 1
        names[i] = f"{name}-{counts[name]}" if counts[name] > 1 else name
    return names


def split_of(image: bytes, sizes: Mapping[str, int], seed: str) -> str:
    """The split that an image belongs to, by its content's hash."""
    digest = hashlib.sha256(f"{seed}|split|".encode() + image).digest()
    point = int.from_bytes(digest[:8], "big") / 2**64 * sum(sizes.values())
    for split in _ORDER:
        if point < sizes.get(split, 0):
            return split
        point -= sizes.get(split, 0)
    return max(sizes, key=lambda split: sizes[split])  # what rounding left


class Ties:
    """Images that samples tie together (union-find); holds those of several-image samples alone."""

    def __init__(self) -> None:
        """No ties yet."""
        self._parent: dict[bytes, bytes] = {}

    def collect(self, rows: Iterator[Kept | Drop]) -> None:
        """Tie the images of every row together."""
        for row in rows:
            if isinstance(row, Kept):
                for other in row.contents[1:]:
                    self.tie(row.contents[0], other)

    def tie(self, one: bytes, other: bytes) -> None:
        """Tie two images together."""
        least, most = sorted((self.of(one), self.of(other)))
        self._parent[most] = least

    def of(self, image: bytes) -> bytes:
        """The least of all images that are tied to this one."""
        root = image
        while (above := self._parent.get(root, root)) != root:
            root = above
        while (above := self._parent.get(image, image)) != image:  # shorten the way for the next
            self._parent[image], image = root, above
        return root


def _opened(source: Source) -> DataFile:
    images = Path(source.images) if source.images is not None else None
    return open_data(Path(source.path), images, source.columns, source.turns)


def _usable(
    sources: Sequence[Source], files: Sequence[DataFile], checker: Checker, embedded: Path
) -> Iterator[_Mine | Drop]:
    """The rows of all sources, without twins, and with ids that are unique among all of them."""
    names, twins, ids = source_names(sources), Seen(), Seen()
    for i, (source, file) in enumerate(zip(sources, files, strict=True)):
        for found in insist(file.path, read(file, checker, embedded)):
            if isinstance(found, Drop):
                yield replace(found, detail=f"{names[i]}: {found.detail}")
                continue
            sample, place = found.sample, f"{names[i]}: {found.place}"
            twin = twin_key(sample, found.contents)
            if not twins.add(twin):
                yield Drop(sample.id, "read", "duplicate", place)
                continue
            own_id = sample.id
            while len(files) > 1 and not ids.add(own_id.encode()):  # an earlier source has it
                own_id = f"{names[i]}/{own_id}"
            category = sample.category if source.category is None else source.category
            if (own_id, category) != (sample.id, sample.category):
                sample = replace(sample, id=own_id, category=category)
            yield _Mine(i, replace(found, sample=sample, place=place), twin)


def twin_key(sample: Sample, contents: Sequence[bytes]) -> bytes:
    """What twins share: the images' content, the question but for its spelling, and the options.

    Case, white space and the mark that closes it are spelling in a question; in an option they may
    be what it is about.
    """
    asked = " ".join(sample.question.casefold().split()).rstrip(" .?!")
    said = "\0".join([asked, *sample.choices])
    return hashlib.sha256(b"".join(contents) + said.encode()).digest()


def _check_none_empty(drawn: Mapping[str, Sequence[object]], sizes: Mapping[str, int]) -> None:
    for split, found in drawn.items():
        if not found:
            raise DataError(
                f"data.sources: no sample is left for {split} (data.{split} is {sizes[split]}); "
                "give more data, or a larger share of it to this split"
            )
