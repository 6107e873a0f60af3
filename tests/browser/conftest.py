"""A real browser, Debian's Chromium, which no page may get past.

Every page is watched: an error on its console, an error of a script, a dialog, a window, a
download, or a request to anything but its own folder or server fails the test, and such a request
is not sent.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from browser.runs import Runs

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Page, Request, Route

CHROMIUMS = ("chromium", "chromium-browser", "google-chrome")
NO_BROWSER = "no Chromium on PATH (`make browser` installs it, or: apt-get install chromium)"
DESKTOP, PHONE = (1280, 900), (390, 844)


# a module's own, since playwright's loop must not run on while other tests start theirs
@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium, without a window."""
    reason = "no playwright: pip install -c constraints.txt -e '.[dev]'"
    api = pytest.importorskip("playwright.sync_api", reason=reason)
    found = next(filter(None, map(shutil.which, CHROMIUMS)), None)
    if found is None:
        pytest.skip(NO_BROWSER)
    root = os.geteuid() == 0  # for whom Chromium's sandbox cannot be set up
    options = ["--no-sandbox"] if root else []
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=options)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Runs, and reports of them."""
    return Runs(tmp_path_factory.mktemp("runs"))


@dataclass
class Watch:
    """What pages did that they must not."""

    own: tuple[str, ...]
    """How the addresses begin that a page may ask for."""
    faults: list[str] = field(default_factory=list)

    def over(self, context: BrowserContext) -> None:
        """Watch all pages of a context."""
        context.route(lambda url: not self._is_own(url), self._stop)
        context.on("page", self._page)
        context.on("weberror", lambda error: self.faults.append(f"script: {error.error}"))
        context.on("console", lambda said: self._heard(said.type, said.text))
        context.on("request", lambda request: self._asked(request))

    def _is_own(self, url: str) -> bool:
        return url.startswith((*self.own, "data:", "about:blank"))

    def _stop(self, route: Route) -> None:
        self.faults.append(f"request: {route.request.url[:200]}")
        route.abort()

    def _asked(self, request: Request) -> None:
        if not self._is_own(request.url):
            self.faults.append(f"request: {request.url[:200]}")

    def _heard(self, kind: str, text: str) -> None:
        if kind in ("error", "warning"):
            self.faults.append(f"console {kind}: {text[:300]}")

    def _page(self, page: Page) -> None:
        def closed(dialog: Any) -> None:
            self.faults.append(f"dialog: {dialog.message[:200]}")
            dialog.dismiss()

        page.on("dialog", closed)
        page.on("popup", lambda new: self.faults.append(f"window: {new.url[:200]}"))
        page.on("download", lambda file: self.faults.append(f"download: {file.url[:200]}"))
        page.on("websocket", lambda socket: self.faults.append(f"socket: {socket.url[:200]}"))
        page.on("crash", lambda _: self.faults.append("the page crashed"))


@dataclass
class Visits:
    """Windows that were opened, each with nothing in common with the others."""

    browser: Browser
    contexts: list[BrowserContext] = field(default_factory=list)
    watches: list[Watch] = field(default_factory=list)
    expected: str = "nothing"
    """How faults begin that a test brings about."""

    def __call__(
        self,
        what: Path | str,
        anchor: str = "",
        size: tuple[int, int] = DESKTOP,
        dark: bool = False,
        script: str = "",
        **more: Any,
    ) -> Page:
        """Open a file, or an address.

        Args:
            what: the file or the address.
            anchor: what follows it, such as `#samples`.
            size: of the window, in pixels.
            dark: whether the reader prefers dark pages.
            script: is run before the page's own, whatever the page's policy says.
            more: goes to the browser's context.
        """
        address = what.as_uri() if isinstance(what, Path) else what
        watch = Watch((address.rsplit("/", 1)[0] + "/",))
        context = self.browser.new_context(
            viewport={"width": size[0], "height": size[1]},
            color_scheme="dark" if dark else "light",
            **more,
        )
        context.set_default_timeout(15_000)
        self.contexts.append(context)
        self.watches.append(watch)
        watch.over(context)
        if script:
            context.add_init_script(script)
        page = context.new_page()
        page.goto(address + anchor)
        return page

    @property
    def faults(self) -> list[str]:
        """What all of them did that they must not."""
        found = [fault for watch in self.watches for fault in watch.faults]
        return [fault for fault in found if not fault.startswith(self.expected)]


@pytest.fixture
def visit(browser: Browser) -> Iterator[Visits]:
    """Opens pages; at the end none of them must have done what it must not."""
    visits = Visits(browser)
    yield visits
    for context in visits.contexts:
        context.close()
    assert visits.faults == []
