"""A matplotlib figure in, an inline SVG for a page out, which is dark where the page is.

What is left of matplotlib's file is the drawing: no header, no style of its own, no fixed size.
Text stays text, colours become the variables of `frame.css`, and ids get the drawing's key before
them, as several drawings share a page and clip paths must not be taken for each other's.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from typing import Any
from xml.etree import ElementTree as ET

from markupsafe import Markup

from selfcal.view.figures import COLORS, FAINT, GREY, drawing

_VARIABLES = {
    "#000000": "--ink",
    "#ffffff": "--paper",
    GREY: "--soft",
    FAINT: "--line",
    **{c.lower(): f"--c{i}" for i, c in enumerate(COLORS[:6], start=1)},
}
_COLOR = re.compile(r"#[0-9a-f]{6}\b")
_FONT = re.compile(r"font-family:[^;]*;? ?")
_STILL = re.compile(r"rotate\(-?0 [^)]*\)")
_NO_XML = dict.fromkeys((0xFFFE, 0xFFFF), "\ufffd")
"""Characters that no XML file may have, and that `safe` does not look at."""
_NOTHING = dict.fromkeys(("Date", "Creator", "Format", "Type"))
"""Matplotlib writes no metadata of these kinds."""
_HREF = "{http://www.w3.org/1999/xlink}href"


def inline(
    figure: Any, key: str, label: str, tips: Mapping[str, str] | None = None, tight: bool = False
) -> Markup:
    """A figure as an `<svg>` element.

    Args:
        figure: a matplotlib figure; its texts went through `safe`.
        key: of the drawing, unlike any other's on the page.
        label: what it shows, for those who do not see it.
        tips: what is told of an element while one points at it, by the element's `gid`.
        tight: whether what lies outside of the figure's own frame belongs to it.
    """
    data = io.BytesIO()
    with drawing({"svg.fonttype": "none"}):
        box = "tight" if tight else None
        figure.savefig(data, format="svg", metadata=_NOTHING, transparent=True, bbox_inches=box)
    root = ET.fromstring(data.getvalue().decode().translate(_NO_XML))  # our own, and no stranger's
    _strip(root)
    _tell(root, tips or {})
    _name(root, key)
    box_of_view = root.get("viewBox", "")
    root.attrib.clear()
    root.attrib |= {"class": "drawing", "role": "img", "aria-label": label, "viewBox": box_of_view}
    return Markup(ET.tostring(root, encoding="unicode"))  # its texts are escaped


def _strip(root: ET.Element) -> None:
    """Take away what a page has itself: namespaces, styles, fonts, spaces between elements."""
    for parent in [*root.iter()]:
        parent.tag = parent.tag.rpartition("}")[2]
        if parent.tag != "text":
            parent.text = None
        parent.tail = None
        for child in [*parent]:
            if child.tag.rpartition("}")[2] in ("style", "metadata"):
                parent.remove(child)
    for element in root.iter():
        if _HREF in element.attrib:
            element.set("href", element.attrib.pop(_HREF))
        if "d" in element.attrib:
            element.set("d", " ".join(element.attrib["d"].split()))
        if style := element.attrib.pop("style", ""):
            style = _FONT.sub("", style)
            element.set("style", _COLOR.sub(lambda m: _variable(m[0]), style))
        if _STILL.fullmatch(element.get("transform", "")):
            del element.attrib["transform"]


def _variable(color: str) -> str:
    return f"var({_VARIABLES[color]})" if color in _VARIABLES else color


def _tell(root: ET.Element, tips: Mapping[str, str]) -> None:
    for element in root.iter():
        if text := tips.get(element.get("id", "")):
            title = ET.Element("title")
            title.text = text.translate(_NO_XML)
            element.insert(0, title)


def _name(root: ET.Element, key: str) -> None:
    """Put the key before the ids that are referred to; the others are nobody's."""
    referring = ("href", "clip-path")
    said = " ".join(e.get(name, "") for e in root.iter() for name in referring)
    used = set(re.findall(r"#([\w.-]+)", said))
    for element in root.iter():
        if (own := element.attrib.pop("id", None)) in used:
            element.set("id", f"{key}-{own}")
        for name in referring:
            if name in element.attrib:
                element.set(name, element.attrib[name].replace("#", f"#{key}-"))
