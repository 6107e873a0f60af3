"""The models that are asked: teacher and label giver, behind a server or on this machine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from selfcal.methods.parts.base import REACHING, chat_client
from selfcal.prompts import Prompts
from selfcal.recipe import Endpoint, Local, Recipe, Settings
from selfcal.stage import Work

if TYPE_CHECKING:
    from selfcal.chat import Asked

_ELSEWHERE = REACHING | {"prompts", "batch_size", "path"}
"""Keys of a model's settings that its replies don't hang on, or that are named by their content."""


def asked(settings: Endpoint | Local, recipe: Recipe, work: Work, name: str) -> Asked:
    """The model that is asked; `name` as for `chat_client`."""
    if isinstance(settings, Endpoint):
        return chat_client(settings, work, name)
    from selfcal.local import LocalModel, Running

    s = settings
    how = Running(
        s.dtype, recipe.policy.device, s.batch_size, s.max_tokens, s.temperature, work.seed
    )
    return LocalModel(s.model, how)


def at_once(settings: Settings) -> int:
    """How many questions a teacher or label giver gets at the same time."""
    if isinstance(settings, Endpoint):
        return settings.concurrency
    return settings.batch_size if isinstance(settings, Local) else 1


def prompts_of(settings: Endpoint | Local, who: str) -> Prompts:
    """The prompts of `teacher` or `labels`.

    Raises:
        PromptError: one that the recipe gives cannot be used.
    """
    place = {"labels": "judge.labels"}.get(who, who)
    return Prompts(who, settings.prompts, f"{place}.prompts")


def said_by(settings: Settings, who: str, *prompts: str) -> dict[str, Any]:
    """What the replies of a teacher or label giver depend on, asked by these prompts.

    Raises:
        PromptError: a prompt that the recipe gives cannot be used.
    """
    own = settings.model_dump(exclude=_ELSEWHERE)
    if isinstance(settings, Endpoint | Local):
        own["prompts"] = prompts_of(settings, who).digests(*prompts)
    return own
