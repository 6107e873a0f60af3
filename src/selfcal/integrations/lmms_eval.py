"""selfcal's models in lmms-eval (0.7): `lmms_eval --model selfcal --model_args pretrained=RUN,...`.

lmms-eval finds `manifest` by the entry point of the group `lmms_eval.models`. Tasks cap the length
of a response, some at 16 tokens, and stop it at blank lines; a rationale would not survive that. So
the cap is raised to `max_new_tokens`, and stops are left to the model.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal

from selfcal.integrations.answering import (
    LOG,
    MAX_NEW_TOKENS,
    Answerer,
    Images,
    IntegrationError,
    Question,
    Returned,
    joined,
)

if TYPE_CHECKING:
    lmms: Any
else:
    from lmms_eval.api.model import lmms

_MEDIA = ("video", "audio")


def manifest() -> Any:
    """What lmms-eval needs to know of the model `selfcal`."""
    registry = import_module("lmms_eval.models.registry_v2")
    return registry.ModelManifest(
        model_id="selfcal", chat_class_path="selfcal.integrations.lmms_eval.Selfcal"
    )


class Selfcal(lmms):
    """A model of selfcal that gives lmms-eval its final answers alone."""

    is_simple = False

    def __init__(
        self,
        pretrained: str,
        dtype: str = "auto",
        device: str | None = None,
        batch_size: int | str = 16,
        max_new_tokens: int = MAX_NEW_TOKENS,
        log: str = LOG,
        returned: Returned = "final",
        trust_remote_code: bool = False,
        **unknown: Any,
    ) -> None:
        """Prepare the model; it is loaded by the first request.

        Args:
            pretrained: a run (its last checkpoint), a folder, a hub name, or `miniworld:NAME`.
            dtype: of the weights; see `Answerer`.
            device: None or `auto`: a GPU if there is one.
            batch_size: responses at once, at most.
            max_new_tokens: least cap of a response; a task's own holds where it is higher.
            log: folder for whole responses.
            returned: `final`, or `raw` for tasks that grade captions or long answers.
            trust_remote_code: run code that comes with the model.
            unknown: refused.

        Raises:
            IntegrationError: an argument is unknown, or not a number.
        """
        super().__init__()
        if unknown:
            raise IntegrationError(f"--model_args: unknown {', '.join(sorted(unknown))}")
        rows = 16 if batch_size == "auto" else int(batch_size)
        self._cap, self._images = int(max_new_tokens), Images()
        self._answerer = Answerer(
            pretrained, dtype, self._place(device or "auto"), rows, log, returned,
            str(trust_remote_code).lower() == "true",
        )  # fmt: skip

    def _place(self, device: str) -> str:
        """The device of this process; under `accelerate launch` each has its own."""
        from accelerate import Accelerator

        accelerator = Accelerator()
        if accelerator.num_processes > 1:
            self.accelerator = accelerator
            self._rank, self._world_size = accelerator.process_index, accelerator.num_processes
            return str(accelerator.device)
        return device

    @property
    def device(self) -> Any:
        """Where the model is."""
        import torch

        return torch.device(self._answerer.policy.device)

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """The final answer to each request, in order.

        Raises:
            IntegrationError: a request has a video or sound.
        """
        found: dict[int, str] = {}
        by_cap: dict[int, list[int]] = {}
        for i, request in enumerate(requests):
            asked = (request.args[2] or {}).get("max_new_tokens") or 0
            by_cap.setdefault(max(self._cap, int(asked)), []).append(i)
        for cap, own in by_cap.items():
            answers = self._answerer.answer(self._questions([requests[i] for i in own]), cap)
            for i, answer in zip(own, answers, strict=True):
                found[i] = answer
                context, _, settings, *_ = requests[i].args
                self.cache_hook.add_partial("generate_until", (context, settings), answer)
        return [found[i] for i in range(len(requests))]

    def _questions(self, requests: Sequence[Any]) -> Iterator[Question]:
        for request in requests:
            _, to_messages, _, number, task, split = request.args
            messages = to_messages(self.task_dict[task][split][number])
            name = f"{task} {split} {number}"
            text, images = joined([*self._parts(messages, name)])
            yield Question(name, text, images)

    def _parts(
        self, messages: Sequence[dict[str, Any]], name: str
    ) -> Iterator[tuple[Literal["text", "image"], str]]:
        for message in messages:
            content = message["content"]
            for part in (
                [{"type": "text", "text": content}] if isinstance(content, str) else content
            ):
                if part["type"] in _MEDIA:
                    raise IntegrationError(
                        f"{name}: has {part['type']}; selfcal's models see images alone, leave "
                        "this task out"
                    )
                if part["type"] == "text":
                    yield "text", part["text"]
                else:
                    image = part["url"]
                    yield "image", image if isinstance(image, str) else self._images.path(image)

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """Not to be had: the answer follows a rationale that is not known beforehand.

        Raises:
            IntegrationError: always.
        """
        raise IntegrationError(
            "loglikelihood: a model that reasons first has no likelihood of an answer by itself; "
            "take the generating variant of the task"
        )

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
        """Not to be had.

        Raises:
            IntegrationError: always.
        """
        raise IntegrationError("selfcal's models answer one turn; leave out tasks of many rounds")
