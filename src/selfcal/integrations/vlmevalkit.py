"""selfcal's models in VLMEvalKit: a `BaseModel` whose answers are the final ones alone.

VLMEvalKit has no entry points. Its list of models takes the class with a name of one's own, as
docs/evaluating.md shows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal

from selfcal.integrations.answering import (
    LOG,
    MAX_NEW_TOKENS,
    Answerer,
    IntegrationError,
    Question,
    Returned,
    joined,
)

if TYPE_CHECKING:
    BaseModel: Any
else:
    from vlmeval.vlm.base import BaseModel


class Selfcal(BaseModel):
    """A model of selfcal that gives VLMEvalKit its final answers alone."""

    INTERLEAVE = True

    def __init__(
        self,
        model_path: str,
        dtype: str = "auto",
        device: str = "auto",
        max_new_tokens: int = MAX_NEW_TOKENS,
        log: str = LOG,
        returned: Returned = "final",
        trust_remote_code: bool = False,
    ) -> None:
        """Prepare the model; it is loaded by the first message. See `Answerer`."""
        super().__init__()
        self._cap = max_new_tokens
        self._answerer = Answerer(model_path, dtype, device, 1, log, returned, trust_remote_code)

    def generate_inner(self, message: Sequence[dict[str, Any]], dataset: str | None = None) -> str:
        """The final answer to a message of texts and images.

        Args:
            message: parts with `type` (`text`, `image`) and `value` (a text, or an image's path).
            dataset: the benchmark's name, for the log.

        Raises:
            IntegrationError: a part is a video or sound.
        """
        text, images = joined([*_parts(message, dataset or "message")])
        question = Question(dataset or "message", text, images)
        return next(iter([*self._answerer.answer([question], self._cap)]))


def _parts(
    message: Sequence[dict[str, Any]], name: str
) -> Iterator[tuple[Literal["text", "image"], str]]:
    for part in message:
        if part["type"] not in ("text", "image"):
            raise IntegrationError(
                f"{name}: has {part['type']}; selfcal's models see images alone, leave this "
                "benchmark out"
            )
        yield part["type"], str(part["value"])
