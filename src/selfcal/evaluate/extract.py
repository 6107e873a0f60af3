"""A model's whole output in, its final answer out, whatever the style; None if it cannot be read.

Outputs put the answer after a rationale, before an explanation, in a box, in tags or into a
sentence. The rules look for *claims*, the places where an answer is due, from the most explicit
kind (a final answer, a box, a tag) over `Answer:` to a sentence such as "the answer is ..."; only
without any claim do they go by a bare first or last line and by the last conclusion. Claims of the
most explicit kind must agree; what follows a self-correction replaces what was said before it.
Everything else is unreadable: reported apart, never right or wrong by luck.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

from selfcal.evaluate import phrases
from selfcal.evaluate.payload import Kind, read_payload
from selfcal.evaluate.plain import boxed, numbers, plain
from selfcal.types import Sample

_FINAL, _ANSWER, _SENTENCE = 3, 2, 1
_LONGEST = 16_000
"""Characters of an answering part that are read, its last ones: long outputs answer at their end,
and every claim among them costs time."""
_LONG_ANSWER = 1_000
"""Characters above which a reference answer is neither a number nor yes or no."""
_SHORT = 15
"""Words of a whole output that is itself an answer."""
_CONCLUSIONS = 5
"""Of one sentence, at most, that are looked at."""
_OPEN, _CLOSE = "\ue000", "\ue001"  # private characters
_MARKED = re.compile(f"{_OPEN}([^{_CLOSE}]{{0,2000}}){_CLOSE}")
_THOUGHT = re.compile(rf"<(/?){phrases.THOUGHTS}>|<answer>", re.IGNORECASE)
_TAG = re.compile(
    r"<(?:final_)?answer>(.{0,2000}?)(?:</(?:final_)?answer>|$)", re.IGNORECASE | re.DOTALL
)


@lru_cache(maxsize=16)  # asked more than once about one sample after the other
def kind_of(sample: Sample) -> Kind:
    """The kind of a sample's question, by its options and its reference answer."""
    if sample.choices:
        return "choice"
    if len(sample.answer) > _LONG_ANSWER:
        return "open"
    answer = plain(sample.answer).strip().lower().rstrip(".")
    if answer in ("yes", "no"):
        return "yesno"
    found = numbers(answer)
    whole = len(found) == 1 and found[0][0] == 0 and not answer[found[0][1] :].strip()
    return "number" if whole else "open"


def read_answer(
    text: str, kind: Kind, choices: Sequence[str] = (), cut: bool = False
) -> str | None:
    """Read the final answer out of a model's output.

    Args:
        text: the whole output.
        kind: of the question, which says what an answer looks like.
        choices: options of a multiple-choice question.
        cut: whether the output ended at a token limit: its last word may be half a word.

    Returns:
        A letter; `yes` or `no`; a number in plain digits, with `%` if it was said; or a short text.
        None if no answer can be read: none was given, it was refused, taken back or cut off, or two
        different ones were given.
    """
    text = _answering_part(_without_last_word(text) if cut else text)[-_LONGEST:]
    clean = plain(_bracketed(text))
    claims = sorted([*_marked(clean), *_headings(clean), *_said(clean, kind)], key=lambda c: c.at)
    turn = _last_correction(clean)
    if turn is not None and (claims or kind != "open"):
        later = [c for c in claims if c.at >= turn]
        if not later:
            return _corrected(clean[turn:], kind, choices)
        claims = later
    return _agreed(claims, kind, choices) if claims else _unmarked(clean, kind, choices)


@dataclass(frozen=True, slots=True)
class _Claim:
    at: int
    tier: int
    text: str


# --- which part answers -----------------------------------------------------------------------


def _without_last_word(text: str) -> str:
    whole = not text or text[-1].isspace()
    return text if whole else text.removesuffix(text.rsplit(maxsplit=1)[-1])


def _answering_part(text: str) -> str:
    """The output without thoughts, and without further turns that the model made up."""
    text = _without_thoughts(text)
    invented = next((m for m in phrases.INVENTED.finditer(text) if text[: m.start()].strip()), None)
    return text[: invented.start()] if invented else text


def _without_thoughts(text: str) -> str:
    """What stands outside of thoughts' tags; an answer's tag ends thoughts that were left open."""
    if "<" not in text:
        return text
    parts, at, inside = list[str](), 0, False
    for m in _THOUGHT.finditer(text):
        if m[1] and not inside:  # the opening tag was part of the prompt
            parts = []
        elif not inside:
            parts.append(text[at : m.start()])
        opens = not m[1] and m[0].lower() != "<answer>"
        at, inside = (m.start() if m[0].lower() == "<answer>" else m.end()), opens
    return "\n".join([*parts, "" if inside else text[at:]])


def _bracketed(text: str) -> str:
    """The text with boxes and answer tags as marks that outlast the removal of markup."""
    text = text.replace(_OPEN, "").replace(_CLOSE, "")
    parts, at = [], 0
    for start, end, content in boxed(text):
        parts += [text[at:start], _OPEN, content, _CLOSE]
        at = end
    text = "".join([*parts, text[at:]])
    return _TAG.sub(rf"{_OPEN}\1{_CLOSE}", text) if "<" in text else text


# --- claims -----------------------------------------------------------------------------------


def _marked(text: str) -> Iterator[_Claim]:
    for m in _MARKED.finditer(text):
        if m[1].strip():
            yield _Claim(m.start(), _FINAL, m[1].strip())


def _headings(text: str) -> Iterator[_Claim]:
    for m in phrases.HEADING.finditer(text):
        said = _line_after(text, m.end())
        if said and not _MARKED.search(said):
            yield _Claim(m.start(), _FINAL if "final" in m[0].lower() else _ANSWER, said)


def _line_after(text: str, at: int) -> str:
    """The rest of a line, or the next line that says something; up to the next heading."""
    rest = text[at : at + 2000].lstrip().partition("\n")[0]
    other = phrases.HEADING.search(rest)
    return rest[: other.start()].strip() if other else rest.strip()


def _said(text: str, kind: Kind) -> Iterator[_Claim]:
    for m in phrases.CLAIM.finditer(text):
        said = phrases.SENTENCES.split(text[m.end() : m.end() + 400], maxsplit=1)[0].strip()
        if len(said) == 2 and said[1] == "." and kind == "choice":  # `B. 12 cm`
            said = text[m.end() : m.end() + 400].partition("\n")[0].strip()
        if said and not _MARKED.search(said) and not phrases.NO_CLAIM.match(said):
            yield _Claim(m.start(), _FINAL if m["final"] else _SENTENCE, said)
    if kind == "choice":
        for m in phrases.IS_RIGHT.finditer(text):
            yield _Claim(m.start(), _SENTENCE, m[1])


def _last_correction(text: str) -> int | None:
    return max((m.start() for m in phrases.CORRECTION.finditer(text)), default=None)


def _agreed(claims: Sequence[_Claim], kind: Kind, choices: Sequence[str]) -> str | None:
    """What the claims of the most explicit kind say; None if they differ or the last is unclear."""
    top = max(c.tier for c in claims)
    said = [read_payload(c.text, kind, choices) for c in claims if c.tier == top]
    different = {s.lower() for s in said if s is not None}
    return said[-1] if len(different) == 1 else None


def _corrected(text: str, kind: Kind, choices: Sequence[str]) -> str | None:
    """What a self-correction says that has no claim of its own."""
    said = phrases.CORRECTION.sub("", text.strip(), count=1).lstrip(" ,.:-")
    found: list[str] = []
    for sentence in phrases.SENTENCES.split(said):
        rest = phrases.CORRECTION.sub("", sentence, count=1).lstrip(" ,.:-")
        one = read_payload(rest, kind, choices, strict=kind in ("open", "number"))
        one = one or _concluded(rest, kind, choices)
        found += [one] if one is not None else []
    return found[-1] if len({f.lower() for f in found}) == 1 else None


# --- without a claim --------------------------------------------------------------------------


def _unmarked(text: str, kind: Kind, choices: Sequence[str]) -> str | None:
    """The answer of an output that marks none: a bare first or last line, or the conclusion."""
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    if not lines:
        return None
    if kind == "open":
        return _open(lines)
    if kind == "choice" and _is_list(text):
        return None
    sentences = [s for line in lines for s in phrases.SENTENCES.split(line) if s and s.strip()]
    if len(lines) == 1 and len(sentences) > 1 and kind == "choice":
        sentences = _letter_kept(sentences)
    first = read_payload(lines[0], kind, choices, strict=True)
    if first is None:
        first = read_payload(sentences[0], kind, choices, strict=True)
    last = read_payload(lines[-1], kind, choices, strict=True)
    if last is None:
        last = read_payload(sentences[-1], kind, choices, strict=True) or _concluded(
            sentences[-1], kind, choices
        )
    if first is not None or last is not None:
        return (first or last) if None in (first, last) or first == last else None
    if len(sentences) == 1:
        return read_payload(sentences[0], kind, choices)
    return None


def _is_list(text: str) -> bool:
    """Whether the output goes through the options, each by its letter, and names none of them."""
    letters = [m[1] for m in phrases.LISTED.finditer(text)]
    return len(letters) > 1 and letters == sorted(set(letters))


def _letter_kept(sentences: list[str]) -> list[str]:
    """Sentences of which `B.` and what it stands for are one again."""
    if len(sentences[0].strip("() ")) <= 2:
        return [f"{sentences[0]} {sentences[1]}", *sentences[2:]]
    return sentences


def _concluded(sentence: str, kind: Kind, choices: Sequence[str]) -> str | None:
    ends = [m.end() for m in phrases.CONCLUSION.finditer(sentence)]
    for end in reversed(ends[-_CONCLUSIONS:] if kind == "yesno" else ends[-1:]):
        if (said := read_payload(sentence[end : end + 400], kind, choices)) is not None:
            return said
    return None


def _open(lines: Sequence[str]) -> str | None:
    """A short output is its own answer; after a rationale it is a short last line."""
    whole = lines[0] if len(lines) == 1 else lines[-1]
    if phrases.REFUSAL.search(lines[0]) or len(phrases.SENTENCES.split(whole)) > 1:
        return None
    limit = _SHORT if len(lines) == 1 else _SHORT // 2
    return read_payload(whole, "open", ()) if len(whole.split()) <= limit else None
