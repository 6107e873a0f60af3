"""Long strings that make careless parsers slow, and the parsers of untrusted text to try them on."""

# ruff: noqa: E501

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from tempfile import mkdtemp

from selfcal.errors import SelfcalError

_UNITS = (
    " ", "\n", "\t", "\r\n", "a", "1", ".", ",", "-", "=", "#", "*", "_", "`", '"', "'", "(", ")",
    "[", "]", "{", "}", "<", ">", "/", "\\", "$", ":", ";", "!", "?", "|", "&", "%", "。", "”", "\0",
    "e\u0301", "\u0300", "\u200b", "½", "²", "\ue000", "\ud83d", "0 ", "a ", "A ", "A) ", "(A) ",
    "1.", "1,", "1/", "1.2", "1,000", "1 2/3 ", "1e5", "1-", "- ", "-1", "a.", "a. ", "A. ", "A.B",
    "J. ", "e.g. ", "no. 5 ", " .", ". ", ".\n", "\n\n", " \n", "\n ", "a\n", "1. a\n", "- a\n", "# ",
    "## ", "**a", "** ", "__a", "a__", "`a` ", "~~", "$a", "$$", "$x$ ", "$1 ", "\\(", "\\frac{",
    "\\frac{1}", "\\text{", "\\text{a}", "\\boxed{", "\\boxed{a}", "\\boxed", "\\boxed ", "{a",
    "<rationale>", "</rationale>", "<answer>", "</answer>", "<answer>a", "<think>", "</think>",
    "<think>a</think>", "<", "< ", "</", "<  /  ", "<rationale", "<answer", "Rationale:",
    "Rationale: a\n", "Answer:", "Answer: a\n", "\nAnswer:", " answer", "answer ", "final answer: ",
    "Answer is ", "the answer is ", "so the answer is a. ", "wait, ", ". Wait", "no, ", "no ", "not ",
    "not a ", "not a, ", "but ", "yes ", "yes, ", "option A ", "option ", "A is ", "A is not ",
    "A and ", "A, B, ", "A is correct ", "A (", 'A "', "is correct ", "so ", "so, ", "because ",
    ", so", "hundred ", "one ", "twenty-", "twenty-one ", "one hundred and ", "minus ", "one two ",
    "Question:", "\nuser", "\nquestion 1", "</s>", "<|im_end|>", "first ", "verdict: ", "1 > ", "1>",
    "verdict ", "a@", '"a" ', "'a', ", '"a", ', "['a', ", "reads \"a", 'says "', "says \"a\" ",
    "cannot be ", "unable to be ", "cannot be clearly tell ", "因此", "答案", "是", "不", "答案是",
    "de acuerdo ", "correct ", "the ", "the correct ", "the final ", "right best ", "final ",
    "therefore ", "\n#", "\n>", "\n- ", "\n1)", "\x1b[", "{{", "{%", "<image>", "<image> ", "data:image/",
)  # fmt: skip
"""Each is repeated; some stand behind or before one of `_EDGES`."""
_EDGES = (
    "Rationale: a b.\nAnswer: ", "<rationale>", "<think>", "\\boxed{", "[", '"', "the answer is ",
    "Answer: B", "not ", "(", "$", "{",
)  # fmt: skip


def families(edges: bool = True) -> dict[str, Callable[[int], str]]:
    """By name, what makes a string of about so many characters."""
    found: dict[str, Callable[[int], str]] = {}
    for unit in _UNITS:
        found[f"{unit!r} repeated"] = lambda n, u=unit: (u * (n // len(u) + 1))[:n]
    for unit in (
        (" ", "\n", "a", "1", "a ", "A. ", "(", "[", "{", "*", "$", "=", ". ") if edges else ()
    ):
        for edge in _EDGES:
            own = lambda n, u=unit: (u * (n // len(u) + 1))[:n]  # noqa: E731
            found[f"{unit!r} behind {edge!r}"] = lambda n, e=edge, o=own: e + o(n)
            found[f"{unit!r} before {edge!r}"] = lambda n, e=edge, o=own: o(n) + e
    for opening, closing in (
        ("(", ")"),
        ("[", "]"),
        ("{", "}"),
        ("\\boxed{", "}"),
        ("\\text{", "}"),
        ("<think>", "</think>"),
        ("<answer>", "</answer>"),
        ('{"a":', "}"),
    ):
        found[f"{opening} nested"] = lambda n, o=opening, c=closing: (
            o * (n // len(o + c)) + c * (n // len(o + c))
        )
    return found  # fmt: skip


def parsers() -> dict[str, Callable[[str], object]]:
    """By name, everything that reads text which somebody else wrote."""
    from selfcal.chat.connection import redacted
    from selfcal.data.fields import match_option
    from selfcal.data.rows import listed
    from selfcal.evaluate.extract import kind_of, read_answer
    from selfcal.evaluate.plain import boxed, numbers, plain
    from selfcal.judge.labels import read_ranks, read_verdict
    from selfcal.rationale import FORMATS, continued, normalize_answer
    from selfcal.recipe.yaml_file import read_yaml
    from selfcal.types import Sample, without_marks
    from selfcal.view.text import safe

    found: dict[str, Callable[[str], object]] = {}
    for name, form in FORMATS.items():
        found[f"parse {name}"] = form.parse
        found[f"spans {name}"] = lambda t, f=form: (f.sentence_spans(t), f.stray_spans(t))
        found[f"split {name}"] = form.split_sentences
        found[f"sentence_end {name}"] = form.sentence_end
    choices = ("a cat", "B", "12 cm", "yes")
    for kind in ("choice", "yesno", "number", "open"):
        found[f"read_answer {kind}"] = lambda t, k=kind: read_answer(t, k, choices)
    found |= {
        "read_answer cut": lambda t: read_answer(t, "open", (), True),
        "kind_of": lambda t: kind_of(Sample("a", "", "q", t)),
        "plain": plain, "numbers": numbers, "boxed": boxed, "normalize_answer": normalize_answer,
        "continued": lambda t: continued("<think>", t), "read_verdict": read_verdict,
        "read_ranks": lambda t: read_ranks(t, 4), "listed": listed,
        "listed, closed": lambda t: listed(f"[{t}]"), "match_option": lambda t: match_option(t, choices),
        "without_marks": without_marks, "redacted": lambda t: redacted(t, ["sk-secret"]),
        "read_yaml": lambda t: read_yaml(t), "read_yaml value": lambda t: read_yaml(f"a: {t}"),
        "safe": safe,
        "jsonl": _file("a.jsonl", ""), "jsonl row": _file("b.jsonl", "row"), "json": _file("a.json", ""),
        "json row": _file("b.json", "list"), "tsv": _file("a.tsv", "id\timage\tquestion\tanswer\n"),
        "ledger": _ledger, "audit labels": _audit,
    }  # fmt: skip
    return found


def _file(name: str, head: str) -> Callable[[str], object]:
    folder = Path(mkdtemp())

    def read(text: str) -> None:
        from .targets import _samples

        path = folder / name
        row = {"id": "a", "image": text[:5000], "question": text, "answer": text, "choices": text}
        written = text
        if head in ("row", "list"):
            written = json.dumps([row] if head == "list" else row)
        path.write_bytes(
            (written if head in ("row", "list") else head + written).encode("utf-8", "replace")
        )
        _samples(path)

    return read


def _ledger(text: str) -> None:
    from selfcal.chat.ledger import Ledger

    path = Path(mkdtemp()) / "l.jsonl"
    path.write_bytes(text.encode("utf-8", "replace") + b"\n")
    _ = Ledger(path, requests=1).spent


def _audit(text: str) -> None:
    from selfcal.people.labels import LabelFile

    file = LabelFile(Path(mkdtemp()))
    file.path.parent.mkdir()
    file.path.write_bytes(text.encode("utf-8", "replace") + b"\n")
    file.read()


def quietly(read: Callable[[str], object], text: str) -> None:
    """Read a text; that it is refused is an answer, too."""
    from selfcal.recipe.yaml_file import YamlError

    with contextlib.suppress(SelfcalError, YamlError):
        read(text)
