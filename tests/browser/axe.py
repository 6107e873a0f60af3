"""What axe-core finds: parts of a page that some readers cannot use."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from playwright.sync_api import Page

GRAVE = ("serious", "critical")


@cache
def _script() -> str:
    return (files("axe_playwright_python") / "axe.min.js").read_text(encoding="utf-8")


def violations(page: Page, *rules: str) -> list[str]:
    """Serious and critical findings in what the page shows now: rule, place, and why.

    `rules` names the only ones that are looked into.
    """
    if not page.evaluate("() => 'axe' in window"):
        page.evaluate(_script())
    options = {"resultTypes": ["violations"]} | ({"runOnly": list(rules)} if rules else {})
    found = page.evaluate("options => axe.run(options)", options)
    return [
        f"{rule['id']}: {' '.join(map(str, node['target']))}: {node['failureSummary']}"
        for rule in found["violations"]
        if rule["impact"] in GRAVE
        for node in rule["nodes"][:3]
    ]


def in_light_and_dark(page: Page) -> list[str]:
    """The same in light, and in dark what is another there: the contrast."""
    found = []
    for scheme, rules in (("light", ()), ("dark", ("color-contrast",))):
        page.emulate_media(color_scheme=scheme)
        found += [f"{scheme}: {finding}" for finding in violations(page, *rules)]
    return found
