"""A data file in; samples that can be used out, one by one, and why the other rows cannot.

A defect of the file (broken JSON, a missing column, a wrong type, two rows with one id) is an error
that names file and row, since whatever wrote the file is wrong. A defect of one row's content (no
question, an unreadable image) drops that row under a name that can be counted. A sample that comes
out has images that were decoded to their last pixel. Rows stream: beside the images (see
`pictures`), what is held is a few rows, and eight bytes for the id of each.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from selfcal.data.door import DataFile, open_data
from selfcal.data.fields import Fields, may_have_several, read_fields
from selfcal.data.pictures import Checker, Looked, Rules, content_of, locate, save_image
from selfcal.data.rows import DataError
from selfcal.data.seen import Seen
from selfcal.types import Drop, Sample

_AHEAD = 64
"""Rows whose images are looked at while the first of them is waited for."""
_AHEAD_BYTES = 2**26
_DETAIL = 200


@dataclass(frozen=True, slots=True)
class Kept:
    """A row that can be used."""

    sample: Sample
    """With absolute image paths; those of embedded images are where `save_embedded` puts them."""
    number: int
    """Of the row, from 0."""
    place: str
    contents: tuple[bytes, ...]
    """Hashes of its images' bytes, in order."""
    embedded: bool
    """Whether any image stands in the file itself."""


@dataclass(frozen=True, slots=True)
class _Waiting:
    """A row whose images are being looked at."""

    number: int
    place: str
    fields: Fields
    paths: tuple[str, ...]
    """Absolute; empty for an embedded image."""
    unsafe: str | None
    """Why it is left out as far as its text and its paths can tell."""
    at: int
    """Which of its images is at fault, if one is."""
    looks: tuple[Callable[[], Looked], ...]
    size: int
    """Bytes of embedded images."""


def read(
    file: DataFile, checker: Checker, embedded: Path | None = None, several: bool = False
) -> Iterator[Kept | Drop]:
    """Read a file row by row, in order.

    Args:
        file: see `open_data`.
        checker: looks at the images, and has the rules that rows must meet.
        embedded: folder that embedded images are to lie in, which nothing is written to yet; None:
            the file must not have any.
        several: give those rows alone that have several images, and don't look at ids.

    Raises:
        DataError: the file is malformed, or an id occurs twice.
    """
    waiting, size = deque[_Waiting](), 0
    problem: DataError | None = None
    try:
        for row in _begun(file, checker, embedded is not None, several):
            waiting.append(row)
            size += row.size
            while len(waiting) > _AHEAD or size > _AHEAD_BYTES:
                size -= waiting[0].size
                yield _end(waiting.popleft(), embedded)
    except DataError as error:
        problem = error  # what stands before it is given all the same
    while waiting:
        yield _end(waiting.popleft(), embedded)
    if problem is not None:
        raise problem


def _begun(file: DataFile, checker: Checker, embeds: bool, several: bool) -> Iterator[_Waiting]:
    """Every row, read, with its images being looked at."""
    ids = Seen()
    for number, row in enumerate(file.rows()):
        if several and not may_have_several(row):
            continue
        where = f"{file.path}: {row.place}"
        fields = read_fields(row, where, file.answered, checker.rules.max_images)
        counts = not several and not row.left_out
        if counts and not ids.add(fields.sample.id.encode()):
            _refuse_twin(file, fields.sample.id, number, where)
        if not embeds and any(isinstance(i, bytes) for i in fields.images):
            raise DataError(
                f"{where}: image is embedded in the file; save it as a file and give its path"
            )
        yield _begin(number, row.place, fields, file, checker)


def read_samples(path: Path, image_root: Path | None = None) -> tuple[list[Sample], list[Drop]]:
    """Read all samples of a file; of any format, but without embedded images.

    `image` is a path below `image_root`, or below the data file's folder without one. What lies
    elsewhere, by `..`, an absolute path or a symbolic link, is dropped as `unsafe-path`.

    Returns:
        The samples, with absolute image paths, and a drop for every row that was left out, by
        reason (docs/data.md has them all).

    Raises:
        DataError: the file is missing or malformed, an id occurs twice, or no row is left.
    """
    samples: list[Sample] = []
    drops: list[Drop] = []
    with Checker(Rules()) as checker:
        for found in insist(path, read(open_data(path, image_root), checker)):
            if isinstance(found, Drop):
                drops.append(found)
            else:
                samples.append(found.sample)
    return samples, drops


def insist(path: Path, found: Iterable[Kept | Drop]) -> Iterator[Kept | Drop]:
    """Pass on what was found, and see in the end that there was a sample.

    Raises:
        DataError: there was none; says why.
    """
    kept, reasons, first = 0, Counter[str](), ""
    for one in found:
        if isinstance(one, Drop):
            first = first or one.detail
            reasons[one.reason] += 1
        else:
            kept += 1
        yield one
    if not kept:
        raise DataError(f"{path}: {_nothing_left(reasons, first)}")


def save_embedded(file: DataFile, wanted: Mapping[int, Kept]) -> None:
    """Write the embedded images of some rows to where their samples say, reading the file anew.

    Args:
        file: that the rows were read from.
        wanted: the rows by their number.

    Raises:
        DataError: the file has changed since it was read.
    """
    left = {number for number, kept in wanted.items() if kept.embedded}
    for number, row in enumerate(file.rows() if left else ()):
        if number not in left:
            continue
        left.remove(number)
        where, kept = f"{file.path}: {row.place}", wanted[number]
        images = read_fields(row, where, False, len(kept.contents)).images
        if len(images) != len(kept.contents):
            raise _changed(where)
        for path, image, content in zip(kept.sample.images, images, kept.contents, strict=True):
            if isinstance(image, bytes):
                if content_of(image) != content:
                    raise _changed(where)
                save_image(Path(path), image)
        if not left:
            return
    if left:
        raise _changed(str(file.path))


def _changed(where: str) -> DataError:
    return DataError(f"{where}: has changed while it was read; run the same command again")


def _begin(number: int, place: str, fields: Fields, file: DataFile, checker: Checker) -> _Waiting:
    paths: list[str] = []
    reason, at = fields.reason, 0
    for i, image in enumerate(fields.images):
        path, unsafe = ("", None)
        if isinstance(image, str):
            path, unsafe = locate(image, file.root)
        paths.append(path)
        if unsafe and not reason:
            reason, at = unsafe, i
    looks = () if reason else tuple(map(checker.begin, _sources(fields.images, paths)))
    size = 0 if reason else sum(len(i) for i in fields.images if isinstance(i, bytes))
    if reason:  # contents are not needed any more
        named = tuple(i if isinstance(i, str) else "" for i in fields.images)
        fields = replace(fields, images=named)
    return _Waiting(number, place, fields, tuple(paths), reason, at, looks, size)


def _sources(images: Iterable[str | bytes], paths: Iterable[str]) -> Iterator[str | bytes]:
    for image, path in zip(images, paths, strict=True):
        yield image if isinstance(image, bytes) else path


def _end(row: _Waiting, embedded: Path | None) -> Kept | Drop:
    sample = row.fields.sample
    looked = [look() for look in row.looks]
    reason, at = row.unsafe, row.at
    for i, own in enumerate(looked):
        if reason is None and own.reason is not None:
            reason, at = own.reason, i
    if reason is not None:
        images = row.fields.images
        name = "an embedded image" if isinstance(images[at], bytes) else images[at]
        return Drop(sample.id, "read", reason, f"{row.place}: {name!s}"[:_DETAIL])
    paths = [
        path or str((embedded or Path()) / f"{own.content.hex()}.{own.ending}")
        for path, own in zip(row.paths, looked, strict=True)
    ]
    sample = replace(sample, image=paths[0], more_images=tuple(paths[1:]))
    contents = tuple(own.content for own in looked)
    return Kept(sample, row.number, row.place, contents, row.size > 0)


def _refuse_twin(file: DataFile, sample_id: str, number: int, where: str) -> None:
    """Find the row that has the same id; there is none if only the hashes were the same."""
    for earlier, row in enumerate(file.rows()):
        if earlier == number:
            return
        own = row.cells.get("id")
        if not row.left_out and (str(own) if type(own) is int else own) == sample_id:
            raise DataError(
                f"{where}: id {sample_id!r} is also the id of {row.place}; give every row its own "
                "id, or number the rows by the column mapping id=ROW"
            )


def _nothing_left(reasons: Counter[str], first: str) -> str:
    if not reasons:
        return "holds no rows; give a file with samples"
    counts = ", ".join(f"{reason} {n}" for reason, n in reasons.most_common())
    return (
        f"all {reasons.total()} rows were dropped ({counts}), the first one at {first!r}; "
        "correct the rows, or the image root if image paths are at fault"
    )
