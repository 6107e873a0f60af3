"""The pages on which people judge pairs, as an ASGI app; `launch` puts it on a port.

Nothing that judge or verifier said is in what is shown: pages are made of `Pair`s, which do not
have it, and how far all agree is shown once all who began are through. Images are named by the
number of their pair, never by a path. A form must carry the token that stands in this server's
pages, beside what `guard` asks of every request.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlencode

from pydantic import ValidationError
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route

from selfcal import page
from selfcal.errors import SelfcalError, StoreError, first_fault
from selfcal.judge.asking import asked_question
from selfcal.people.agreement import Agreement, agreement_of
from selfcal.people.forms import FLAWS, Said, before, label_of, ordered, pair_id, response
from selfcal.people.guard import Guard, host_name
from selfcal.people.images import shown
from selfcal.people.judged import Judged, Key, Pair
from selfcal.people.labels import (
    Label,
    LabelFile,
    annotator_name,
    annotators,
    folded,
)
from selfcal.people.pick import Wanted, pick
from selfcal.people.show import LEFT_OUT

TEMPLATES = Path(__file__).parent / "templates"
_MOST_BYTES = 2**13
"""Of a request's body."""
_PATIENCE = 10.0
"""Seconds that a request's body may take."""
_ALLOW = {"img-src": "'self'", "form-action": "'self'"}


@dataclass(frozen=True)
class Audit:
    """What people are shown, and where their labels go."""

    judged: Judged
    state: str
    """Of the run (`Judged.state`) when the pairs were drawn."""
    pairs: list[Pair]
    wanted: Wanted
    """Its annotator, if there is one, is asked for nothing, not even a name."""
    token: str = field(default_factory=lambda: secrets.token_urlsafe(24))

    @property
    def file(self) -> LabelFile:
        """Where labels go."""
        return LabelFile(self.judged.run)


def audit_of(run: Path, wanted: Wanted) -> Audit:
    """What is wanted of a run.

    Raises:
        SelfcalError: the run has nothing to show, or a name cannot be used.
    """
    wanted = replace(wanted, names=tuple(map(host_name, wanted.names)))
    if wanted.annotator is not None:
        wanted = replace(wanted, annotator=annotator_name(wanted.annotator))
    judged = Judged(run, wanted.iteration)
    state = judged.state  # first: what is redone from here on is noticed
    return Audit(judged, state, pick(judged, wanted.pairs), wanted)


def app_of(audit: Audit) -> Starlette:
    """The app."""
    pages = _Pages(audit)
    return Starlette(
        routes=[
            Route("/", pages.ask),
            Route("/pairs", pages.go_on),
            Route("/pairs/{number}", pages.pair),
            Route("/labels", pages.label, methods=["POST"]),
            Route("/images/{number}/{place}", pages.image),
            Route("/agreement", pages.agreement),
            Route("/favicon.ico", lambda request: Response(status_code=204)),
        ],
        middleware=[Middleware(Guard, host=audit.wanted.host, names=audit.wanted.names)],
        exception_handlers={HTTPException: pages.refused, SelfcalError: pages.failed},
    )


# --- pages ----------------------------------------------------------------------------------------


class _Pages:
    """What is answered to each request."""

    def __init__(self, audit: Audit) -> None:
        self._audit, self._pairs, self._form = audit, audit.pairs, audit.judged.form
        self._texts = {pair.key: pair.texts for pair in self._pairs}
        self._scripts = [(TEMPLATES / "audit.js").read_text(encoding="utf-8")]
        self._styles = [(TEMPLATES / "audit.css").read_text(encoding="utf-8")]
        self._policy = f"{page.policy(self._scripts, allow=_ALLOW)}; frame-ancestors 'none'"
        self._known: tuple[object, tuple[Label, ...]] = None, ()
        self._agreed: tuple[object, Agreement | None] = None, None

    def ask(self, request: Request) -> Response:
        """Ask who is there."""
        if self._audit.wanted.annotator is not None:
            return _to("/pairs", self._audit.wanted.annotator)
        # two flawed responses are equal to the verifier, however flawed, and so to its pupil
        alike = self._audit.judged.recipe.judge.labels.kind == "verifier"
        return self._page("ask", known=self._done(), annotator=None, alike=alike)

    def go_on(self, request: Request) -> Response:
        """Show the first pair that waits, or the end."""
        return self._next(self._annotator(request), 0)

    def pair(self, request: Request) -> Response:
        """Show a pair."""
        name, number = self._annotator(request), _number(request, "number")
        pair, said = self._at(number), self._said_by(name)
        run, sides = self._audit.judged.run, ordered(name, pair)
        images = [shown(run, image) for image in pair.sample.images]
        return self._page(
            "pair", annotator=name, number=number, pair=pair_id(pair), done=len(said),
            token=self._audit.token, question=asked_question(pair.sample),
            images=[found if isinstance(found, str) else "" for found in images],
            facts=pair.sample.facts, flaws=FLAWS,
            sides=[response(letter, c.text, self._form) for letter, c in sides],
            before=before(said.get(pair.key), sides[0][1].index), later=self._waiting(said, number),
        )  # fmt: skip

    async def label(self, request: Request) -> Response:
        """Keep what was said, and go on."""
        given = await _form(request)
        if not secrets.compare_digest(given.pop("token", "").encode(), self._audit.token.encode()):
            raise HTTPException(
                403, "The server was started anew since this page was made: open it again."
            )
        try:
            said = Said.model_validate(given)
        except ValidationError as error:
            raise HTTPException(400, first_fault(error)) from error
        return await run_in_threadpool(self._keep, said)

    def _keep(self, said: Said) -> Response:
        name, pair = self._named(said.annotator), self._at(said.number)
        if self._redone():
            raise HTTPException(
                409, "The run was redone since, and has other pairs: this verdict was not kept. "
                "End the command (Ctrl-C) and start it again.",
            )  # fmt: skip
        if said.pair != pair_id(pair):
            raise HTTPException(
                409, "Other pairs are shown by now: this one was not kept. Go on with the others."
            )
        self._audit.file.append(label_of(name, said, pair, self._form))
        return self._next(name, said.number)

    def image(self, request: Request) -> Response:
        """An image of a pair."""
        pair, place = self._at(_number(request, "number")), _number(request, "place")
        if not 1 <= place <= len(pair.sample.images):
            raise HTTPException(404, "There is no such image.")
        found = shown(self._audit.judged.run, pair.sample.images[place - 1])
        if isinstance(found, str):
            return PlainTextResponse(f"{found}\n", 404)
        return Response(found, media_type="image/png")

    def agreement(self, request: Request) -> Response:
        """How far all agree, once all who began are through."""
        name, total, done = self._annotator(request), len(self._pairs), self._done()
        left = total - done.get(name, 0)
        others = [other for other, n in done.items() if 0 < n < total]
        found = None if left or others else self._agreement()
        counts = found.left_out if found else {}
        left_out = [f"{n:,} {LEFT_OUT[reason]}" for reason, n in counts.items() if n]
        return self._page(
            "end", annotator=name, left=left, others=others, found=found, left_out=left_out
        )

    def refused(self, request: Request, error: Exception) -> Response:
        """Say why a request is not answered."""
        assert isinstance(error, HTTPException)
        return self._page("message", status=error.status_code, text=error.detail, annotator=None)

    def failed(self, request: Request, error: Exception) -> Response:
        """Say what failed."""
        text = str(error)
        if request.method == "POST":
            cause = error.__cause__  # in words for who ran a command, which this reader did not
            reason = cause.strerror or cause if isinstance(cause, OSError) else error
            text = (
                f"This verdict was not kept: {reason}. Tell whoever runs this server; once that is "
                "mended, go back and judge this pair again."
            )
        return self._page("message", status=500, text=text, annotator=None)

    # --- what they are made of ------------------------------------------------------------------

    def _page(self, name: str, status: int = 200, **context: Any) -> Response:
        text = page.render(
            TEMPLATES, f"{name}.html.j2", scripts=self._scripts, styles=self._styles, allow=_ALLOW,
            run=self._audit.judged.run.resolve().name, total=len(self._pairs), link=_link,
            **context,
        )  # fmt: skip
        return HTMLResponse(text, status, {"Content-Security-Policy": self._policy})

    def _at(self, number: int) -> Pair:
        if not 1 <= number <= len(self._pairs):
            raise HTTPException(404, f"There are pairs 1 to {len(self._pairs)}.")
        return self._pairs[number - 1]

    def _said_by(self, name: str) -> dict[Key, Label]:
        """What a person said of the pairs that are shown."""
        return {label.key: label for label in self._fit() if label.annotator == name}

    def _done(self) -> dict[str, int]:
        """How many of the pairs each person judged."""
        done = Counter(label.annotator for label in self._fit())
        return {name: done[name] for name in annotators(self._labels())}

    def _fit(self) -> Iterator[Label]:
        """The labels of the pairs that are shown."""
        return (x for x in self._labels() if self._texts.get(x.key) == x.texts)

    def _labels(self) -> tuple[Label, ...]:
        """All labels, read anew where some have come since."""
        stamp = self._stamp()
        if stamp is None or self._known[0] != stamp:
            self._known = stamp, self._audit.file.read().labels
        return self._known[1]

    def _stamp(self) -> tuple[int, int] | None:
        try:
            state = self._audit.file.path.stat()
        except OSError:
            return None
        return state.st_mtime_ns, state.st_size

    def _annotator(self, request: Request) -> str:
        return self._named(request.query_params.get("annotator", ""))

    def _named(self, given: str) -> str:
        """A name, as it was spelled when it came first."""
        try:
            name = annotator_name(given)
        except SelfcalError as error:
            raise HTTPException(400, str(error)) from error
        known = (n for n in annotators(self._labels()) if folded(n) == folded(name))
        return next(known, name)

    def _redone(self) -> bool:
        """Whether the run has other judgments by now than those that the pairs are of."""
        try:
            return self._audit.judged.state != self._audit.state
        except StoreError:  # it is being redone
            return True

    def _waiting(self, said: Mapping[Key, Label], number: int) -> int | None:
        """The next pair after this one, round the end, of which nothing was said."""
        n = len(self._pairs)
        order = [(number + i) % n for i in range(n)]  # from the one after, as they count from 1
        return next((i + 1 for i in order if self._pairs[i].key not in said), None)

    def _next(self, name: str, number: int) -> Response:
        waiting = self._waiting(self._said_by(name), number)
        return _to(f"/pairs/{waiting}" if waiting else "/agreement", name)

    def _agreement(self) -> Agreement | None:
        """Figured out anew where labels have come since."""
        stamp = self._stamp()
        if self._agreed[0] != stamp:
            self._agreed = stamp, agreement_of(self._audit.judged.run)
        return self._agreed[1]


def _number(request: Request, name: str) -> int:
    """A number out of an address."""
    given = request.path_params[name]
    if not (given.isascii() and given.isdecimal() and len(given) < 10):
        raise HTTPException(404, "There is no such page.")
    return int(given)


async def _form(request: Request) -> dict[str, str]:
    """The fields of a form that was sent."""
    data = b""
    try:
        async with asyncio.timeout(_PATIENCE):
            async for part in request.stream():
                data += part
                if len(data) > _MOST_BYTES:
                    raise HTTPException(413, "That is more than a page of this server sends.")
        return dict(parse_qsl(data.decode(), keep_blank_values=True, max_num_fields=20))
    except TimeoutError as error:
        raise HTTPException(408, "That did not come in time: send it again.") from error
    except (ValueError, ClientDisconnect) as error:
        raise HTTPException(400, "That is no form of this server.") from error


def _link(path: str, annotator: str) -> str:
    return f"{path}?{urlencode({'annotator': annotator})}"


def _to(path: str, annotator: str) -> Response:
    return RedirectResponse(_link(path, annotator), 303)
