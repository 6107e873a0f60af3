"""What a reader sees of a report: which part, which list, which sample."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from playwright.sync_api import Page

PARTS = ("overview", "samples", "data")


def shown(page: Page) -> list[str]:
    """The parts that are to be seen."""
    return [name for name in PARTS if page.is_visible(f"section#{name}")]


def listed(page: Page) -> list[str]:
    """Ids in the list."""
    return page.locator("#inspector .rows .id").all_inner_texts()


def opened(page: Page) -> str:
    """Id of the sample that is open."""
    return page.inner_text("#inspector .detail h2")


def wait_for(page: Page, sample: str) -> None:
    """Wait till this sample is open."""
    page.wait_for_function(
        "id => document.querySelector('#inspector .detail h2')?.textContent === id", arg=sample
    )


def says(page: Page, count: str) -> None:
    """Wait till the line above the list says this."""
    page.wait_for_function(
        "text => document.querySelector('#inspector .count').textContent === text", arg=count
    )


def words(text: str) -> str:
    """A text in one line, with the minus of programs."""
    return " ".join(text.split()).replace("\N{MINUS SIGN}", "-")


def too_wide(page: Page) -> int:
    """Pixels by which the page is wider than its window."""
    return int(page.evaluate("() => document.documentElement.scrollWidth - innerWidth"))
