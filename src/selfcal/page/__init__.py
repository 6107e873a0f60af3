"""Pages for a browser: one frame, one style, and untrusted text that stays text.

`render` fills a Jinja2 template (autoescape is always on, an unknown name is an error) that extends
`frame.html.j2`. The page is one file: style, scripts and drawings are inside of it, and its Content
Security Policy lets it run these scripts, by their digests, and nothing else, and load nothing from
anywhere. So even a text that would get past the escaping could run no script and load no picture;
it could still be a link, or send the browser to another page (`<meta http-equiv="refresh">`).
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from selfcal import __version__
from selfcal.view.text import amount, duration, large, safe

HERE = Path(__file__).parent / "templates"
LONGEST = 20_000
"""Characters of one text that a page shows; of a longer one it says how many are left out."""


def render(
    templates: Path,
    name: str,
    *,
    scripts: Sequence[str] = (),
    styles: Sequence[str] = (),
    beside: bool = False,
    allow: Mapping[str, str] | None = None,
    **context: Any,
) -> str:
    """A whole page.

    Args:
        templates: folder of the template; the frame's own are found beside it.
        name: the template.
        scripts: texts of scripts, run in this order at the end of the page after the frame's own.
        styles: texts of further style sheets.
        beside: whether images lie in files beside the page.
        allow: what a page that a server gives may do beyond that, as for `policy`.
        context: what the template names. Text is escaped, and its control characters are shown.
    """
    own = [(HERE / "frame.js").read_text("utf-8"), *scripts]
    sheets = [(HERE / "frame.css").read_text("utf-8"), *styles]
    template = environment(templates).get_template(name)
    return template.render(
        policy=policy(scripts, beside, allow),
        styles=[Markup(s) for s in sheets],  # the package's own files
        scripts=[Markup(s) for s in own],
        version=__version__,
        **context,
    )


def policy(
    scripts: Sequence[str] = (), beside: bool = False, allow: Mapping[str, str] | None = None
) -> str:
    """The Content Security Policy of a page: its scripts by their digests, its style, no network.

    Args:
        scripts: those given to `render`.
        beside: whether images lie in files beside the page.
        allow: sources by directive that take the place of what is said here, such as
            `{"img-src": "'self'"}`.
    """
    own = [(HERE / "frame.js").read_text("utf-8"), *scripts]
    digests = [base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in own]
    directives = {
        "default-src": "'none'",
        "script-src": " ".join(f"'sha256-{digest}'" for digest in digests),
        "style-src": "'unsafe-inline'",
        "img-src": "data: 'self' file:" if beside else "data:",
        "base-uri": "'none'",
        "form-action": "'none'",
        **(allow or {}),
    }
    return "; ".join(f"{name} {sources}" for name, sources in directives.items())


@cache
def environment(templates: Path) -> jinja2.Environment:
    """Where templates are found, with the filters that all pages share.

    Filters: `safe_text` (one line, control characters visible), `safe_lines` (line breaks kept, at
    most `LONGEST` characters), `cut(n)` (one line of at most n characters), `words`
    (`answer_accuracy` as words), `duration`, `large`, `share` (0.1234 as 12.3 %),
    `figure` (three digits, a dash for None and NaN), `amount(n, unit)`.
    """
    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader([templates, HERE]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {
        "safe_text": lambda text: safe(shortened(str(text))),
        "safe_lines": lambda text: safe(shortened(str(text)), lines=True),
        "cut": lambda text, most: safe(cut(str(text), most)),
        "words": lambda name: safe(str(name)).replace("_", " "),
        "duration": duration,
        "large": large,
        "share": lambda number: _number(number, lambda x: f"{x:.1%}".replace("%", " %")),
        "figure": lambda number: _number(number, lambda x: f"{x:.3f}"),
        "amount": amount,
    }
    return made


def shortened(text: str, most: int = LONGEST) -> str:
    """A text that a page can hold, which says how much of it is left out."""
    if len(text) <= most:
        return text
    return f"{text[:most]} … ({len(text) - most:,} more characters are left out here)"


def cut(text: str, most: int) -> str:
    """A name in a list, of at most so many characters; it ends in … where some are left out."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def as_data(value: Any) -> Markup:
    """JSON for a `<script type="application/json">`: no text in it can end the element."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    for char in "<>&":
        text = text.replace(char, f"\\u{ord(char):04x}")
    return Markup(text)  # nothing that HTML knows is left in it


def _number(number: float | None, say: Any) -> str:
    return "–" if number is None or math.isnan(number) else str(say(number))  # noqa: RUF001
