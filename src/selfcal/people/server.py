"""The pages on which people judge pairs, as an ASGI app; `launch` puts it on a port.

Nothing that judge or verifier said is in what is shown: pages are made of `Pair`s, which do not
have it, and how far all agree is shown to those only who are through. Images are named by the
number of their pair, never by a path. A form must carry the token that stands in this server's
pages, beside what `guard` asks of every request.
"""

from __future__ import annotations

import io
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import parse_qsl, urlencode

from pydantic import BaseModel, Field, ValidationError
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route

from selfcal import page
from selfcal.errors import SelfcalError
from selfcal.image import load_image
from selfcal.judge.asking import asked_question
from selfcal.people.agreement import Agreement, agreement_of
from selfcal.people.guard import Guard
from selfcal.people.judged import Judged, Key, Pair
from selfcal.people.labels import Flaw, Label, LabelFile, Marked, Side, annotator_name, annotators
from selfcal.people.pick import Wanted, pick, swapped
from selfcal.people.sentences import Sentence, sentences
from selfcal.rationale import RapFormat
from selfcal.store import fingerprint
from selfcal.types import Verdict

TEMPLATES = Path(__file__).parent / "templates"
_MOST_BYTES = 2**13
"""Of a request's body."""
_LONGEST_SIDE = 2048
"""Of an image, in pixels; larger ones are scaled down."""
_DAY = 24 * 3600.0
_CHOICES: Mapping[str, Verdict | None] = {
    "a": "first", "b": "second", "equal": "neutral", "cannot": None,
}  # fmt: skip
FLAWS: Mapping[Flaw, str] = {
    "counterfactual": "The image shows otherwise",
    "unreasonable": "It does not follow from what was said",
    "insufficient": "Not enough was said for it",
    "other": "Something else",
}
_ALLOW = {"img-src": "'self'", "form-action": "'self'"}


@dataclass(frozen=True)
class Audit:
    """What people are shown, and where their labels go."""

    run: Path
    pairs: list[Pair]
    form: RapFormat
    annotator: str | None = None
    """Who is asked for nothing, not even a name."""
    host: str = "127.0.0.1"
    """What the server is bound to."""
    alike: bool = False
    """Whether two flawed responses are equal to the judge, however flawed, as to its teacher."""
    token: str = field(default_factory=lambda: secrets.token_urlsafe(24))

    @property
    def file(self) -> LabelFile:
        """Where labels go."""
        return LabelFile(self.run)


class _Said(BaseModel):
    """A form that a pair's page sends."""

    annotator: str
    number: int
    pair: str
    choice: Literal["a", "b", "equal", "cannot"]
    mark: Annotated[str, Field(pattern=r"^([ab]:[0-9]{1,6})?$")] = ""
    flaw: Flaw | Literal[""] = ""
    seconds: Annotated[float, Field(ge=0, le=_DAY, allow_inf_nan=False)] | Literal[""] = ""


def audit_of(run: Path, wanted: Wanted) -> Audit:
    """What is wanted of a run.

    Raises:
        SelfcalError: the run has nothing to show, or the name cannot be used.
    """
    name = None if wanted.annotator is None else annotator_name(wanted.annotator)
    judged = Judged(run, wanted.iteration)
    alike = judged.recipe.judge.labels.kind == "verifier"
    return Audit(run, pick(judged, wanted.pairs), judged.form, name, wanted.host, alike)


def app_of(audit: Audit) -> Starlette:
    """The app."""
    pages = _Pages(audit)
    return Starlette(
        routes=[
            Route("/", pages.ask),
            Route("/pairs", pages.go_on),
            Route("/pairs/{number:int}", pages.pair),
            Route("/labels", pages.label, methods=["POST"]),
            Route("/images/{number:int}/{place:int}", pages.image),
            Route("/agreement", pages.agreement),
            Route("/favicon.ico", lambda request: Response(status_code=204)),
        ],
        middleware=[Middleware(Guard, host=audit.host)],
        exception_handlers={HTTPException: pages.refused, SelfcalError: pages.failed},
    )


# --- pages ----------------------------------------------------------------------------------------


class _Pages:
    """What is answered to each request."""

    def __init__(self, audit: Audit) -> None:
        self._audit, self._pairs = audit, audit.pairs
        self._scripts = [(TEMPLATES / "audit.js").read_text(encoding="utf-8")]
        self._styles = [(TEMPLATES / "audit.css").read_text(encoding="utf-8")]
        self._policy = f"{page.policy(self._scripts, allow=_ALLOW)}; frame-ancestors 'none'"
        self._agreed: tuple[object, Agreement | None] = None, None

    def ask(self, request: Request) -> Response:
        """Ask who is there."""
        if self._audit.annotator is not None:
            return _to("/pairs", self._audit.annotator)
        labels = self._audit.file.read().labels
        known = [(name, len(self._said_by(name))) for name in annotators(labels)]
        return self._page("ask", known=known, annotator=None, alike=self._audit.alike)

    def go_on(self, request: Request) -> Response:
        """Show the first pair that waits, or the end."""
        name = _annotator(request)
        return self._next(name, 0)

    def pair(self, request: Request) -> Response:
        """Show a pair."""
        name, number = _annotator(request), request.path_params["number"]
        pair, said = self._at(number), self._said_by(name)
        return self._page(
            "pair", annotator=name, number=number, pair=_id(pair), done=len(said),
            token=self._audit.token, question=asked_question(pair.sample),
            images=len(pair.sample.images), facts=pair.sample.facts, flaws=FLAWS,
            sides=[_side(letter, c.text, self._audit.form) for letter, c in _shown(name, pair)],
            before=_shape(said.get(pair.key)), later=self._waiting(said, number),
        )  # fmt: skip

    async def label(self, request: Request) -> Response:
        """Keep what was said, and go on."""
        given = await _form(request)
        if not secrets.compare_digest(given.pop("token", "").encode(), self._audit.token.encode()):
            raise HTTPException(
                403, "The server was started anew since this page was made: open it again."
            )
        try:
            said = _Said.model_validate(given)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            where = ".".join(map(str, first["loc"]))
            raise HTTPException(400, f"{where}: {first['msg']}") from error
        name = _named(said.annotator)
        return await run_in_threadpool(self._keep, name, said)

    def _keep(self, name: str, said: _Said) -> Response:
        pair = self._at(said.number)
        if said.pair != _id(pair):
            raise HTTPException(
                409, "Other pairs are shown by now: this one was not kept. Go on with the others."
            )
        self._audit.file.append(_label(name, said, pair, self._audit.form))
        return self._next(name, said.number)

    def image(self, request: Request) -> Response:
        """An image of a pair."""
        pair, place = self._at(request.path_params["number"]), request.path_params["place"]
        if not 1 <= place <= len(pair.sample.images):
            raise HTTPException(404, "There is no such image.")
        picture = load_image(Path(pair.sample.images[place - 1]))
        picture.thumbnail((_LONGEST_SIDE, _LONGEST_SIDE))
        buffer = io.BytesIO()
        picture.save(buffer, "png")
        return Response(buffer.getvalue(), media_type="image/png")

    def agreement(self, request: Request) -> Response:
        """How far all agree, for those who are through."""
        name = _annotator(request)
        said = self._said_by(name)
        left = len(self._pairs) - len(said)
        found = self._agreement() if not left else None
        return self._page("end", annotator=name, done=len(said), left=left, found=found)

    def refused(self, request: Request, error: Exception) -> Response:
        """Say why a request is not answered."""
        assert isinstance(error, HTTPException)
        return self._page("message", status=error.status_code, text=error.detail, annotator=None)

    def failed(self, request: Request, error: Exception) -> Response:
        """Say what failed."""
        if request.url.path.startswith("/images/"):
            return PlainTextResponse(str(error), 404)
        saving = request.method == "POST"
        text = f"{'This verdict was not kept. ' if saving else ''}{error}"
        return self._page("message", status=500, text=text, annotator=None)

    # --- what they are made of ------------------------------------------------------------------

    def _page(self, name: str, status: int = 200, **context: Any) -> Response:
        text = page.render(
            TEMPLATES, f"{name}.html.j2", scripts=self._scripts, styles=self._styles, allow=_ALLOW,
            run=self._audit.run.resolve().name, total=len(self._pairs), link=_link, **context,
        )  # fmt: skip
        return HTMLResponse(text, status, {"Content-Security-Policy": self._policy})

    def _at(self, number: int) -> Pair:
        if not 1 <= number <= len(self._pairs):
            raise HTTPException(404, f"There are pairs 1 to {len(self._pairs)}.")
        return self._pairs[number - 1]

    def _said_by(self, name: str) -> dict[Key, Label]:
        """What a person said of the pairs that are shown."""
        texts = {pair.key: pair.texts for pair in self._pairs}
        return {
            label.key: label
            for label in self._audit.file.read().labels
            if label.annotator == name and texts.get(label.key) == label.texts
        }

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
        state = self._audit.file.path.stat()
        stamp = state.st_mtime_ns, state.st_size
        if self._agreed[0] != stamp:
            self._agreed = stamp, agreement_of(self._audit.run)
        return self._agreed[1]


def _annotator(request: Request) -> str:
    return _named(request.query_params.get("annotator", ""))


def _named(given: str) -> str:
    try:
        return annotator_name(given)
    except SelfcalError as error:
        raise HTTPException(400, str(error)) from error


async def _form(request: Request) -> dict[str, str]:
    """The fields of a form that was sent."""
    data = b""
    try:
        async for part in request.stream():
            data += part
            if len(data) > _MOST_BYTES:
                raise HTTPException(413, "That is more than a page of this server sends.")
        return dict(parse_qsl(data.decode(), keep_blank_values=True, max_num_fields=20))
    except (ValueError, ClientDisconnect) as error:
        raise HTTPException(400, "That is no form of this server.") from error


def _link(path: str, annotator: str) -> str:
    return f"{path}?{urlencode({'annotator': annotator})}"


def _to(path: str, annotator: str) -> Response:
    return RedirectResponse(_link(path, annotator), 303)


def _id(pair: Pair) -> str:
    """Tells a pair from those that stood at its number before."""
    return fingerprint(list(pair.key), pair.texts)


def _shown(name: str, pair: Pair) -> list[tuple[str, Any]]:
    """The two responses as this person sees them, A and B."""
    own = (pair.other, pair.one) if swapped(name, pair.key) else (pair.one, pair.other)
    return list(zip("ab", own, strict=True))


@dataclass(frozen=True, slots=True)
class _Side:
    letter: str
    sentences: list[Sentence]
    left_out: int
    """Characters of a text that is too long for a page."""


def _side(letter: str, text: str, form: RapFormat) -> _Side:
    return _Side(letter, sentences(text, form), max(0, len(text) - page.LONGEST))


@dataclass(frozen=True, slots=True)
class _Before:
    """What was said before, as the form has it."""

    choice: str
    mark: str
    flaw: str


def _shape(label: Label | None) -> _Before:
    if label is None:
        return _Before("", "", "")
    choice = next(name for name, verdict in _CHOICES.items() if verdict == label.verdict)
    letter = "a" if label.flaw_in == "first" else "b"
    mark = f"{letter}:{label.false_sentence.number}" if label.false_sentence else ""
    return _Before(choice, mark, label.flaw or "")


def _label(name: str, said: _Said, pair: Pair, form: RapFormat) -> Label:
    """What a form says, as a label.

    Raises:
        HTTPException: it marks a sentence that there is not.
    """
    (_, first), (_, second) = _shown(name, pair)
    marked: dict[str, Any] = {}
    if said.mark:
        letter, _, number = said.mark.partition(":")
        side: Side = "first" if letter == "a" else "second"
        text = (first if letter == "a" else second).text
        own = next((s for s in sentences(text, form) if s.number == int(number)), None)
        if own is None:
            raise HTTPException(400, "There is no such sentence to mark.")
        marked = {
            "flaw_in": side, "flaw": said.flaw or None,
            "false_sentence": Marked(number=own.number, text=own.text),
        }  # fmt: skip
    return Label(
        sample_id=pair.sample.id, iteration=pair.iteration, first=first.index, second=second.index,
        texts=pair.texts, verdict=_CHOICES[said.choice], annotator=name,
        seconds=None if said.seconds == "" else round(said.seconds, 1),
        at=datetime.now(UTC).isoformat(timespec="seconds"), **marked,
    )  # fmt: skip
