"""What all settings are made of."""

from __future__ import annotations

import re
from typing import Annotated, Any
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


_HARMLESS = ("api-version", "api_version", "version", "deployment", "region", "location", "model")
"""Names of what an address may say behind its `?`."""


def _open_url(value: str) -> str:
    try:
        url = urlsplit(value.strip())
    except ValueError as error:
        raise ValueError("it is no address; give http://HOST:PORT/v1") from error
    pairs = parse_qsl(url.query, keep_blank_values=True)
    known = all(name.lower() in _HARMLESS and len(value) <= 40 for name, value in pairs)
    if "@" in url.netloc or "#" in value or not known or bool(url.query) != bool(pairs):
        raise ValueError(
            "it may have a password or a key in it, and a recipe is copied into its run; put the "
            "key into an environment variable, and name that as api_key_env"
        )
    return value


BaseUrl = Annotated[str, AfterValidator(_open_url)]
"""Address of a server, without secrets."""


def _variable(value: str) -> str:
    if value and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", value):  # a key itself, perhaps
        raise ValueError("it is no name of an environment variable; give the variable's name, and "
                         "put the key into that variable")  # fmt: skip
    return value


def _whose(given: dict[str, Any]) -> str:
    """OpenAI's own variable for its own server; nothing for any other."""
    host = urlsplit(str(given.get("base_url", "")).strip()).hostname
    return "OPENAI_API_KEY" if host == "api.openai.com" else ""


KeyName = Annotated[str, AfterValidator(_variable), Field(default_factory=_whose)]
"""Environment variable that holds the key of the server at `base_url`, which stands before it; the
key itself never stands in a recipe. Empty: no key is sent."""


class Settings(BaseModel):
    """Frozen settings that refuse unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
