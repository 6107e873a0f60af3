"""Settings of who is asked: a server, a local model or a file, as teacher, labels or marker."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from selfcal.recipe.base import BaseUrl, Count, KeyName, Positive, Settings, Share


def _kind(default: str) -> Callable[[Any], Any]:
    """The kind of settings that go by kind, where a recipe does not say it."""
    return lambda given: {"kind": default, **given} if isinstance(given, dict) else given


def in_full(given: Any) -> Any:
    """Settings of kind `file` that a recipe spells as the file's path alone."""
    return {"kind": "file", "path": given} if isinstance(given, str) else given


class Spending(Settings):
    """What may be spent on a server in one run; None: no limit."""

    requests: Positive | None = None
    tokens: Positive | None = None
    """Of prompts and replies together."""


class Endpoint(Settings):
    """An OpenAI-compatible server."""

    base_url: BaseUrl = "http://127.0.0.1:8000/v1"
    model: Annotated[str, Field(min_length=1)]
    api_key_env: KeyName
    temperature: Annotated[float, Field(ge=0)] = 0.0
    max_tokens: Positive = 1024
    timeout: Annotated[float, Field(gt=0)] = 120.0
    retries: Annotated[int, Field(ge=0)] = 4
    concurrency: Positive = 16
    """Requests at the same time."""
    budget: Spending = Spending()
    """Past it the run stops; it goes on when the budget is raised."""
    cache: bool = True
    """Whether replies are kept on disk, by content, so that a question is paid for once."""
    prompts: dict[str, str] = Field(default_factory=dict)
    """Files that replace built-in prompts, by the prompt's name."""


class Local(Settings):
    """A model that transformers loads, in the place of a server."""

    model: Annotated[str, Field(min_length=1)]
    """A folder, or a name on the Hugging Face hub."""
    digest: str | None = None
    """As `policy.digest`."""
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    temperature: Annotated[float, Field(ge=0)] = 0.0
    max_tokens: Positive = 1024
    batch_size: Positive = 8
    prompts: dict[str, str] = Field(default_factory=dict)
    """As of an endpoint."""


class MiniWorldTeacher(Settings):
    """The built-in teacher of the built-in world."""

    kind: Literal["miniworld"] = "miniworld"
    error_rate: Share = 0.05
    """It errs this often, as a real one does."""


class EndpointTeacher(Endpoint):
    """A strong vision-language model behind a server."""

    kind: Literal["endpoint"] = "endpoint"


class LocalTeacher(Local):
    """A vision-language model on this machine."""

    kind: Literal["local"] = "local"


class FileTeacher(Settings):
    """Rationale-answer pairs, and facts, that are there already."""

    kind: Literal["file"] = "file"
    path: str
    """A .jsonl or .parquet file with a row a sample."""
    digest: str | None = None
    """Of the file. Filled in when a run starts; named here, it must be this one."""
    columns: dict[str, str] = Field(default_factory=dict)
    """Column of each of `id`, `rationale`, `answer`, `facts` where it is called otherwise."""


Teacher = Annotated[
    MiniWorldTeacher | EndpointTeacher | LocalTeacher | FileTeacher,
    Field(discriminator="kind"),
    BeforeValidator(_kind("miniworld")),
]
"""Who writes the rationale-answer pairs of stage 1."""


class VerifierLabels(Settings):
    """MiniWorld's verifier, which knows the truth."""

    kind: Literal["verifier"] = "verifier"


class EndpointLabels(Endpoint):
    """A strong language model behind a server."""

    kind: Literal["endpoint"] = "endpoint"


class LocalLabels(Local):
    """A language model on this machine."""

    kind: Literal["local"] = "local"


class FileLabels(Settings):
    """Verdicts on pairs of responses that are there already, such as people's."""

    kind: Literal["file"] = "file"
    path: Annotated[str, Field(min_length=1)]
    """A .jsonl or .parquet file with a row a pair (docs/judge.md)."""
    digest: str | None = None
    """Of the file. Filled in when a run starts; named here, it must be this one."""
    pairs: Count | None = None
    """Its usable pairs. Filled in when a run starts."""


Labels = Annotated[
    VerifierLabels | EndpointLabels | LocalLabels | FileLabels,
    Field(discriminator="kind"),
    BeforeValidator(_kind("verifier")),
    BeforeValidator(in_full),
]
"""Who gives the R-Scorer its training verdicts; a path alone means a file of them."""


class JudgeEndpoint(Endpoint):
    """A strong model behind a server that compares by itself, without an R-Scorer."""

    max_tokens: Positive = 16
    votes: Positive = 5
    """Answers to each question where the server gives no log-probabilities."""


class EndpointMarker(Endpoint):
    """A strong model behind a server."""

    kind: Literal["endpoint"] = "endpoint"
    sees: bool = True
    """Whether it is shown the image; else it reads the facts."""


class LocalMarker(Local):
    """A model on this machine."""

    kind: Literal["local"] = "local"
    sees: bool = True
    """Whether it is shown the image; else it reads the facts."""


Marker = Annotated[
    EndpointMarker | LocalMarker, Field(discriminator="kind"), BeforeValidator(_kind("endpoint"))
]
"""Who marks the flaws of rationales."""
