"""What all settings are made of."""

from __future__ import annotations

import re
from typing import Annotated
from urllib.parse import parse_qsl, urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

Positive = Annotated[int, Field(gt=0)]
Count = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]


def _path(value: str) -> str:
    if found := re.match(r"([a-zA-Z][a-zA-Z0-9+.-]+):/", value):
        raise ValueError(
            f"data and images are read from folders, not from {found[1]}://; copy them to this "
            "machine, and give that path"
        )
    return value


LocalPath = Annotated[str, AfterValidator(_path)]
"""A path on this machine, or on storage that all machines see by it."""


_SECRET = re.compile(r"key|token|secret|passw|sig|auth|credential", re.IGNORECASE)


def _open_url(value: str) -> str:
    try:
        url = urlsplit(value.strip())
    except ValueError as error:
        raise ValueError("it is no address; give http://HOST:PORT/v1") from error
    named = [name for name, _ in parse_qsl(url.query, keep_blank_values=True)]
    if "@" in url.netloc or any(map(_SECRET.search, named)):
        raise ValueError(
            "it has a password or a key in it, and a recipe is copied into its run; put the key "
            "into an environment variable, and name that as api_key_env"
        )
    return value


BaseUrl = Annotated[str, AfterValidator(_open_url)]
"""Address of a server, without secrets."""


class Settings(BaseModel):
    """Frozen settings that refuse unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
