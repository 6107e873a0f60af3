"""Marked-up text in, plain text out, and numbers in the one form in which they are compared.

Models write LaTeX, markdown, full-width letters and curly quotes around the same few words. What
matters to an answer is kept (fractions, powers of ten, signs, percent), all else goes. Every
pattern here has bounded repeats, so that the time is linear in the text: it is untrusted.
"""

from __future__ import annotations

import re
import unicodedata
from decimal import Decimal, InvalidOperation, localcontext

_TIMES = "\u00d7"
_QUOTES = str.maketrans({
    **dict.fromkeys("“”„‟«»‹›「」『』", '"'), **dict.fromkeys("‘’‚‛´", "'"),  # noqa: RUF001
    **dict.fromkeys("−–—‒", "-"), "\u00a0": " ", "\u202f": " ", "\u2009": " ", "\u200b": "",  # noqa: RUF001
    "⁄": "/", "∕": "/", "·": "×", "✕": "×", "≈": "=", "≃": "=",  # noqa: RUF001
    "、": ",", "。": ".", "：": ":",  # noqa: RUF001
})  # fmt: skip
_SUPERSCRIPT = re.compile("([⁰¹²³⁴⁵⁶⁷⁸⁹]{1,6})")
_VULGAR = re.compile(r"(\d?)([¼-¾⅐-⅞])")
_FRACTION = re.compile(r"\\[dtc]?frac ?\{ ?([^{}]{1,40}?) ?\} ?\{ ?([^{}]{1,40}?) ?\}")
_SHORT_FRACTION = re.compile(r"\\[dtc]?frac ?(\d)(\d)")
_WRAPPER = re.compile(
    r"\\(?:text|textbf|textit|textrm|texttt|mathrm|mathbf|mathit|mathsf|operatorname|bf|rm|emph|mbox)"
    r" ?\{([^{}]{0,400})\}"
)
_SPACING = re.compile(r"\\(?:[,;:! ]|quad|qquad|displaystyle|left|right|big|Big)(?![a-zA-Z])")
_SYMBOLS = {
    r"\times": _TIMES, r"\cdot": _TIMES, r"\approx": "=", r"\%": "%", r"\$": "$", r"\circ": "°",
    r"\degree": "°", r"\pi": "π", r"\leq": "<=", r"\geq": ">=", r"\(": "", r"\)": "", r"\[": "",
    r"\]": "", r"\{": "", r"\}": "", r"\_": "_", r"\#": "#", r"\&": "&",
}  # fmt: skip
_SYMBOL = re.compile("|".join(re.escape(s) + r"(?![a-zA-Z])" for s in _SYMBOLS))
_MATH = re.compile(r"\$\$?([^$\n]{1,400}?)\$\$?")
_MATHS = re.compile(r"[A-Za-z\\^_=+*/(){}\[\]\ue000]|^ ?-?[\d.,]{1,30}%? ?$")
_MARKDOWN = re.compile(
    r"\*{1,3}(?=\S)|(?<=\S)\*{2,3}|(?<=[\w.)!?\"':])\*(?=[\s.,;:!?)]|$)|`{1,3}|__|~~"
)
_SPACES = re.compile(r"[ \t]{2,}")
_PRODUCT = re.compile(r"(?<=\d) ?\*{1,2} ?(?=\d)")
_BRACE = re.compile(r"(?:\\(?:boxed|fbox) ?)?\{|\}")
_MOST_IN_BOX = 1000
_HEADING = re.compile(r"(?m)^[ \t]{0,8}(?:#{1,6}[ \t]{1,4}|>[ \t]{0,4}|[-+•][ \t]{1,4})")


def plain(text: str) -> str:
    """Text without markup: LaTeX, markdown and typographic characters gone, lines kept."""
    if not text.isascii():
        text = text.translate(_QUOTES)
        text = _SUPERSCRIPT.sub(lambda m: "^" + unicodedata.normalize("NFKC", m[1]), text)
        text = _VULGAR.sub(_spell_fraction, text)
        text = unicodedata.normalize("NFKC", text).translate(_QUOTES)
    text = _latex(text)
    if "*" in text:  # most texts have no markup, and a look is much cheaper than a search
        text = _PRODUCT.sub(_TIMES, text)
    text = _HEADING.sub("", text)
    if any(mark in text for mark in "*`_~"):
        text = _MARKDOWN.sub("", text)
    return _SPACES.sub(" ", text) if "  " in text or "\t" in text else text


def _spell_fraction(match: re.Match[str]) -> str:
    digits = unicodedata.normalize("NFKC", match[2]).replace("\u2044", "/")
    return f"{match[1]} {digits}" if match[1] else digits


def _latex(text: str) -> str:
    if "\\" in text:
        for _ in range(3):  # as deep as an answer ever goes
            text = _WRAPPER.sub(r"\1", text)
        text = _SYMBOL.sub(lambda m: _SYMBOLS[m[0]], text)
        text = _SPACING.sub(" ", text)
        text = _FRACTION.sub(r"(\1)/(\2)", text)
        text = _SHORT_FRACTION.sub(r"\1/\2", text)
        text = re.sub(r"\((-?[\d.]{1,20}|\w)\)/\((-?[\d.]{1,20}|\w)\)", r"\1/\2", text)
    if "$" in text:
        text = _MATH.sub(lambda m: m[1] if _MATHS.search(m[1]) else m[0], text)
    return re.sub(r"\^\{([^{}]{1,20})\}", r"^\1", text) if "^{" in text else text


def boxed(text: str) -> list[tuple[int, int, str]]:
    r"""Start, end and content of every `\boxed{...}` whose braces close; of nested ones the outer.

    One that never closes was cut off, and is none.
    """
    if "{" not in text:
        return []
    open_: list[tuple[int, int]] = []
    closed: dict[int, tuple[int, int]] = {}
    for brace in _BRACE.finditer(text):
        if brace[0] != "}":
            open_.append(brace.span())
        elif open_:
            start, inner = open_.pop()
            if inner - start > 1 and brace.start() - inner < _MOST_IN_BOX:
                closed[start] = inner, brace.start()
    found: list[tuple[int, int, str]] = []
    for start, (inner, end) in sorted(closed.items()):
        if not found or start >= found[-1][1]:
            found.append((start, end + 1, text[inner:end]))
    return found


# --- numbers ----------------------------------------------------------------------------------

_ONES = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten",
    "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen",
    "nineteen",
)  # fmt: skip
_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_WORDS = {w: i for i, w in enumerate(_ONES)} | {w: 10 * i for i, w in enumerate(_TENS, 2)}
_SCALES = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}
_WORD = "|".join(sorted(_WORDS, key=len, reverse=True))
_SPELLED = (
    rf"(?:{_WORD})(?:[- ](?:{_WORD}))?(?: hundred(?: and)?(?: (?:{_WORD})(?:[- ](?:{_WORD}))?)?)?"
)
_DIGITS = "|".join((
    r"\d{1,3}(?:[ ,]\d{3}){1,6}(?:\.\d{1,30})?(?!\d)",  # 1,234.5
    r"\d{1,3}(?:\.\d{3}){1,6},\d{1,30}(?!\d)",  # 1.234,5
    r"\d{1,40}(?:[.,]\d{1,30})?",
    r"\.\d{1,30}",
))  # fmt: skip
_SCALE = "|".join(_SCALES)
NUMBER = re.compile(
    r"(?<![\w.^])(?P<sign>(?:(?<!\d)(?<!\d )[-+]|minus |negative ) ?)?(?:[$€£¥₹] ?)?"
    rf"(?:(?P<whole>\d{{1,9}}) (?=\d{{1,9}} ?/ ?\d))?(?P<top>{_DIGITS})"
    r"(?: ?/ ?(?P<bottom>\d{1,20}(?:\.\d{1,20})?)(?![\d/]))?"
    rf"(?:(?:[eE](?P<e>[-+]?\d{{1,3}}))|(?: ?[{_TIMES}x] ?10 ?\^ ?(?P<ten>[-+]?\d{{1,3}})))?"
    rf"(?: ?(?P<percent>%|percent\b|per cent\b)| (?P<scale>{_SCALE})s?\b)?"
)
WORD = re.compile(
    rf"(?<![\w-])(?P<sign>minus |negative )?(?P<word>{_SPELLED})(?: (?P<scale>{_SCALE}))?"
    r"(?: ?(?P<percent>%|percent\b))?(?![\w-])",
    re.IGNORECASE,
)


def numbers(text: str) -> list[tuple[int, int, str]]:
    """Start, end and value of every number in plain text, in digits or in words."""
    found = [(m.start(), m.end(), v) for m in NUMBER.finditer(text) if (v := _value(m)) is not None]
    taken = {i for a, b, _ in found for i in range(a, b)}
    for m in WORD.finditer(text):
        if m.start() not in taken and (v := _word_value(m)) is not None:
            found.append((m.start(), m.end(), v))
    return sorted(found)


def _value(m: re.Match[str]) -> str | None:
    """A number in plain digits, its percent sign kept; None for a division by zero."""
    digits = m["top"]
    if digits.isdecimal() and m.end() == m.end("top") and not (m["sign"] or m["whole"]):
        return str(int(digits))  # as nearly all are: what follows takes four times as long
    if re.fullmatch(r"\d{1,3}(?:\.\d{3})+,\d+", digits):  # 1.234,5
        digits = digits.replace(".", "").replace(",", ".")
    elif re.fullmatch(r"\d{1,3}(?:[ ,]\d{3})+(?:\.\d+)?", digits):
        digits = digits.replace(",", "").replace(" ", "")
    else:  # 1,5 is a decimal comma
        digits = digits.replace(",", ".")
    try:
        with localcontext(prec=60):
            value = Decimal(digits)
            if m["bottom"]:
                value /= Decimal(m["bottom"])
            value += Decimal(m["whole"] or 0)
            value = value.scaleb(int(m["e"] or m["ten"] or 0) + _SCALES.get(m["scale"] or "", 0))
    except (InvalidOperation, ZeroDivisionError):
        return None
    negative = (m["sign"] or "").strip() in ("-", "minus", "negative")
    return canonical(-value if negative else value) + ("%" if m["percent"] else "")


def _word_value(m: re.Match[str]) -> str | None:
    total, part = 0, 0
    words = re.split(r"[- ]", m["word"].lower())
    for before, word in zip(["", *words], words, strict=False):
        if word == "hundred":
            total, part = (part or 1) * 100, 0
        elif word in _WORDS:
            if before in _WORDS and not (_WORDS[before] >= 20 and 0 < _WORDS[word] < 10):
                return None  # "one two" is no number
            part += _WORDS[word]
    value = Decimal(total + part).scaleb(_SCALES.get((m["scale"] or "").lower(), 0))
    return canonical(-value if m["sign"] else value) + ("%" if m["percent"] else "")


def canonical(value: Decimal) -> str:
    """A number in plain digits: no exponent, no trailing zeros, no negative zero."""
    if abs(value.adjusted()) > 400:
        return str(value.normalize())
    text = format(value, "f")
    text = text.rstrip("0").rstrip(".") if "." in text else text
    return "0" if text in ("-0", "") else text
