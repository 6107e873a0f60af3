"""What teacher, label giver and marker are asked: Jinja2 templates, shipped, replaced by name.

A template's first line is a comment with its version. A recipe may give another one for any of
them; it is tried out when the run is planned, so that a mistake in it is told before anything is
paid for. The digest of a prompt's text is part of the fingerprint of the stages that use it.

Templates run in a sandbox. What they are filled with was written by others, models under test among
them: `material` has it between two marks that no text can contain.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfcal.errors import SelfcalError

if TYPE_CHECKING:
    from jinja2 import Environment, Template

Part = str | Sequence[str] | bool

_MARKED = ("mark", "material", "question")


class PromptError(SelfcalError):
    """A prompt cannot be used: the text names the setting and the way out."""


@dataclass(frozen=True, slots=True)
class Form:
    """What a prompt may be over, and what it must have in it."""

    over: tuple[str, ...]
    needs: tuple[frozenset[str], ...] = (frozenset(),)
    """One of these sets, in full."""


def _about(*responses: str, facts: bool = True) -> Form:
    """The form of a prompt about responses: they stand in the material, or by themselves."""
    over = (*_MARKED, *(["facts", "sees"] if facts else []), *responses)
    return Form(over, (frozenset({"material"}), frozenset(responses)))


FORMS: Mapping[str, Mapping[str, Form]] = {
    "teacher": {
        "rationale": Form(("question", "choices", "example"), (frozenset({"question"}),)),
        "facts": Form(("question", "choices")),
        "spoil": _about("response", facts=False),
        "mend": _about("response", facts=False),
        "restyle": Form(
            (*_MARKED, "response", "example"), (frozenset({"material"}), frozenset({"response"}))
        ),
    },
    "labels": {
        "compare": _about("first", "second"),
        "grade-good": _about("response"),
        "grade-entailed": _about("response", facts=False),
        "grade-grounded": _about("response"),
        "rank": _about("responses"),
    },
    "marker": {
        "flaws": Form(
            (*_MARKED, "facts", "response", "flaws", "sees"),
            (frozenset({"material", "flaws"}), frozenset({"response", "flaws"})),
        ),
    },
}
"""All prompts, by who is asked."""

_TRIAL: Mapping[str, Part] = {
    "choices": ("red", "blue"),
    "responses": ("one", "other"),
    "flaws": ("counterfactual", "insufficient", "unreasonable"),
}


class Prompts:
    """The prompts of a teacher, a label giver or a marker."""

    def __init__(self, who: str, given: Mapping[str, str] | None = None, setting: str = "") -> None:
        """Take the shipped prompts, and others for some of them.

        Args:
            who: one of `FORMS`.
            given: by the prompt's name, a file or the template itself (`text_of`).
            setting: where a recipe has them, for errors; by default `WHO.prompts`.

        Raises:
            PromptError: an unknown name, an unreadable file, a template that is no Jinja2, is over
                something unknown, or leaves out what it is about.
        """
        self._forms, self._who = FORMS[who], who
        self._setting = setting or f"{who}.prompts"
        self._texts = texts(who, given or {}, self._setting)
        self._templates = {name: self._compiled(name, t) for name, t in self._texts.items()}

    def render(self, name: str, **parts: Part) -> str:
        """A prompt with everything filled in; `parts` has all that its form is over.

        Raises:
            PromptError: the template fails.
        """
        try:
            template = self._template(name)
            return template.render({k: parts[k] for k in self._forms[name].over}).strip()
        except Exception as error:  # a template can fail in any way that an expression can
            raise self._unfit(name, str(error)) from error

    def digests(self, *names: str) -> dict[str, str]:
        """What changes when a prompt's text does."""
        return {n: hashlib.sha256(self._text(n).encode()).hexdigest()[:16] for n in names}

    def _text(self, name: str) -> str:
        return self._texts.get(name) or _shipped(self._who, name)

    def _template(self, name: str) -> Template:
        if name not in self._templates:
            self._templates[name] = self._environment.from_string(_shipped(self._who, name))
        return self._templates[name]

    @cached_property
    def _environment(self) -> Environment:
        from jinja2 import StrictUndefined
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        return ImmutableSandboxedEnvironment(undefined=StrictUndefined)

    def _compiled(self, name: str, text: str) -> Template:
        """A template that a recipe gave, tried out."""
        from jinja2 import TemplateError, meta

        form = self._forms[name]
        try:
            used = meta.find_undeclared_variables(self._environment.parse(text))
        except TemplateError as error:
            raise self._unfit(name, str(error)) from error
        if strange := sorted(used - set(form.over)):
            near = get_close_matches(strange[0], form.over, n=1, cutoff=0.4)
            hint = f"; did you mean `{near[0]}`?" if near else ""
            raise self._unfit(name, f"there is no `{strange[0]}`{hint}")
        if not any(needed <= used for needed in form.needs):
            ways = " or ".join(" and ".join(f"`{n}`" for n in sorted(s)) for s in form.needs)
            raise self._unfit(name, f"it leaves out {ways}")
        try:
            template = self._environment.from_string(text)
            template.render({n: _TRIAL.get(n, "a text") for n in form.over})
        except Exception as error:  # as above
            raise self._unfit(name, str(error)) from error
        return template

    def _unfit(self, name: str, why: str) -> PromptError:
        over = ", ".join(self._forms[name].over)
        return PromptError(
            f"{self._setting}.{name}: {why}; write a Jinja2 template over {over}, such as the "
            f"shipped one (selfcal/prompts/{self._who}/{name}.jinja)"
        )


def texts(who: str, given: Mapping[str, str], setting: str) -> dict[str, str]:
    """The templates that a recipe gives in the place of shipped ones.

    A value with a line break or `{{` in it is the template itself, all else is a file's path. So a
    run keeps the templates that it was started with.

    Raises:
        PromptError: an unknown name, or a file that cannot be read.
    """
    found = {}
    for name, value in given.items():
        if name not in FORMS[who]:
            near = get_close_matches(name, list(FORMS[who]), n=1, cutoff=0.4)
            hint = f"did you mean `{near[0]}`?" if near else f"there are {', '.join(FORMS[who])}"
            raise PromptError(f"{setting}.{name}: there is no such prompt; {hint}")
        found[name] = value if "\n" in value or "{{" in value else _read(value, setting, name)
    return found


def _read(path: str, setting: str, name: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise PromptError(
            f"{setting}.{name}: {path} cannot be read ({error}); give the path of a Jinja2 template"
        ) from error


def _shipped(who: str, name: str) -> str:
    found: Any = resources.files(__package__) / who / f"{name}.jinja"
    return str(found.read_text(encoding="utf-8"))


__all__ = ["FORMS", "Form", "Part", "PromptError", "Prompts", "texts"]
