"""What a server honours, found out by asking it before a search begins.

Servers that call themselves OpenAI-compatible pass over what they do not know, so a search would
get one draw instead of many, or a new turn instead of a continued one, without a word. Here a few
tiny requests are sent whose replies show it, and all that is missing is said in one error, with the
flag of vLLM that gives it.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from selfcal.policy import ModelError, model_path
from selfcal.search.server import Card, Connection, Draw, Reply, ServerError
from selfcal.search.stacked import RANKS

QUESTION = "Describe a red circle in one short sentence."
CONTINUED = "The picture shows a red circle"
_TOKENS = 12
_DRAWS = 4
_VLLM = "a vLLM server honours it"
_CLOSE = 0.02
"""Nats by which two passes over the same tokens may differ in half precision, a token."""


@dataclass(frozen=True, slots=True)
class Served:
    """A model behind a server, and what must be known to ask it."""

    name: str
    """What requests call it."""
    processor: Any
    context: int | None = None
    """Tokens of prompt and response together, at most; None if the server does not say."""
    trims: bool = False
    """Whether the model's chat template drops white space at the end of a continued turn."""
    opening: str = ""
    """What its prompt ends with and its turns do not begin with, such as `<think>`."""
    space: str = ""
    """White space that its turns begin with and its prompt does not end with."""

    def continued(self, text: str) -> str:
        """What to say of a response so far, so that it stands where it stood when it was drawn."""
        return self.opening + text.removeprefix(self.space)


@dataclass(frozen=True, slots=True)
class Wants:
    """What a search will ask of the server."""

    draws: bool = True
    """Several draws a request; else greedy responses only."""
    images: int = 1
    """Images in one prompt, at most."""
    tokens: int = 0
    """Tokens of a response, at most."""
    rank: int | None = None
    """Rank of an adapter that will be loaded; None: none will be."""


def find_model(cards: Sequence[Card], name: str | None, model: str, address: str) -> Card:
    """The server's card of a model.

    Args:
        cards: what the server has.
        name: what the server calls it; None: as the recipe does.
        model: the recipe's name of it.
        address: of the server.

    Raises:
        ModelError: the server does not have it.
    """
    for card in cards:
        if card.id == name or (name is None and _is(card, model)):
            return card
    have = ", ".join(c.id for c in cards if c.parent is None) or "nothing"
    raise ModelError(
        f"{address}: serves {have}, but no {name or model}; start it with `vllm serve "
        f"{model_path(model)}`, or set policy.server.model to the name under which it serves it"
    )


def _is(card: Card, model: str) -> bool:
    path = model_path(model)
    return bool({card.id, card.root} & {model, path}) or serves(card, Path(path))


def serves(card: Card, folder: Path) -> bool:
    """Whether a card is of the model in a folder."""
    return (
        bool(card.root) and folder.is_dir() and Path(str(card.root)).resolve() == (folder.resolve())
    )


def check_server(server: Connection, card: Card, processor: Any, wants: Wants) -> Served:
    """Find out whether a server does what a search needs.

    Args:
        server: the server.
        card: the model on it.
        processor: the model's, as it is trained with.
        wants: what will be asked.

    Raises:
        ModelError: it names all that the server lacks, each with the way out.
        ServerError: the server gives no reply at all.
    """
    served = _taken_up(Served(card.id, processor, card.context))
    probe = _Probe(server, served, wants)
    probe.run()
    if probe.missing:
        raise ModelError(
            f"{server.address}: the server cannot run this search. It lacks:\n"
            + "\n".join(f"- {what}" for what in probe.missing)
        )
    return probe.served


def rendered(processor: Any, response: str | None = None) -> str:
    """The probe's prompt by the model's own chat template, with a response that goes on, if any."""
    turns: list[dict[str, Any]] = [_turn("user", QUESTION)]
    if response is None:
        return str(processor.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))
    turns.append(_turn("assistant", response))
    return str(
        processor.apply_chat_template(
            turns, tokenize=False, add_generation_prompt=False, continue_final_message=True
        )
    )


def _turn(role: str, text: str) -> dict[str, Any]:
    return {"role": role, "content": [{"type": "text", "text": text}]}


def _taken_up(served: Served) -> Served:
    """With how the model's chat template takes up a response that goes on.

    It must stand where it stood when it was drawn: after the prompt, and nothing between.
    """
    prompt, processor = rendered(served.processor), served.processor
    try:
        head = rendered(processor, CONTINUED).removesuffix(CONTINUED)
        opening = prompt.removeprefix(head) if prompt.startswith(head) else ""
        space = head.removeprefix(prompt) if head.startswith(prompt) else ""
        whole = rendered(processor, opening + CONTINUED)
        trims = not rendered(processor, opening + CONTINUED + "\n").endswith("\n")
    except ValueError as error:
        raise ModelError(_NOT_TAKEN_UP.format(error)) from error
    if space.strip() or whole != prompt + space + CONTINUED:
        raise ModelError(
            _NOT_TAKEN_UP.format(
                f"its prompts end in {prompt[-_END:]!r}, and what it continues stands after "
                f"{head[-_END:]!r}"
            )
        )
    return replace(served, trims=trims, opening=opening, space=space)


_END = 24
_NOT_TAKEN_UP = (
    "the policy's chat template cannot continue a response ({}), which a search on a server needs; "
    "give another one in policy.chat_template (and to the server by --chat-template), or search "
    "with backend `transformers`"
)


@dataclass
class _Probe:
    server: Connection
    served: Served
    wants: Wants
    missing: list[str] = field(default_factory=list)

    def run(self) -> None:
        context = self.served.context
        if context is not None and self.wants.tokens >= context:
            self._lacks(
                f"context for {self.wants.tokens} tokens of response (it has {context} in all): "
                "--max-model-len"
            )
        plain = self._asked("a greedy request with `logprobs` and `return_tokens_as_token_ids`",
                            temperature=0.0)  # fmt: skip
        if plain is not None and self._tokens(plain):
            self._prompt(plain)
            self._stop(plain.draws[0])
            self._raw(plain.draws[0])
        checks: list[Callable[[], None]] = [self._images]
        if self.wants.draws:
            checks += [self._draws, self._continued]
        if self.wants.rank is not None:
            checks.append(self._adapters)
        for check in checks:
            check()

    def _lacks(self, what: str) -> None:
        self.missing.append(what)

    def _asked(self, doing: str, messages: Any = None, **more: Any) -> Reply | None:
        """The reply to a request; None, and a note, if the server refuses it."""
        body = {
            "model": self.served.name,
            "messages": messages or [_turn("user", QUESTION)],
            "max_tokens": _TOKENS,
            "ignore_eos": True,
            **BASICS,
            **more,
        }
        try:
            return self.server.ask(body).result()
        except ServerError as error:
            if error.status is None or error.status in (401, 403, 404, 429):
                raise
            self._lacks(f"{doing}: it said {error}")
            return None

    def _tokens(self, reply: Reply) -> bool:
        """Whether the reply has tokens and log-probabilities, and our tokenizer knows them."""
        draw = reply.draws[0]
        if not draw.logprobs:
            self._lacks("log-probabilities (`logprobs`): a vLLM server gives them")
        elif draw.ids is None:
            self._lacks("token ids (`return_tokens_as_token_ids`): vLLM 0.6.3 or later")
        elif max(draw.logprobs) > 1e-3:
            self._lacks("log-probabilities, not scores: --logprobs-mode raw_logprobs")
        elif not self._same_text(draw):
            self._lacks(
                f"the policy's own tokenizer (its tokens mean {self._decoded(draw)!r}, but it says "
                f"{draw.text!r}): serve the model that policy.model names"
            )
        else:
            return True
        return False

    def _decoded(self, draw: Draw) -> str:
        return str(
            self.served.processor.tokenizer.decode(list(draw.ids or ()), skip_special_tokens=True)
        )

    def _same_text(self, draw: Draw) -> bool:
        """Up to how an unfinished character at the end is shown."""
        broken = "\ufffd "
        return self._decoded(draw).strip(broken) == draw.text.strip(broken)

    def _prompt(self, reply: Reply) -> None:
        expected = self._length(rendered(self.served.processor))
        if reply.prompt_tokens != expected:
            self._lacks(
                f"the policy's own chat template (its prompt has {reply.prompt_tokens} tokens "
                f"instead of {expected}): --chat-template FILE, --chat-template-content-format "
                "openai"
            )

    def _length(self, text: str) -> int:
        tokenizer = self.served.processor.tokenizer
        return len(tokenizer(text, add_special_tokens=False)["input_ids"])

    def _stop(self, plain: Draw) -> None:
        said = self._decoded(plain)
        stop = said[len(said) // 3 : len(said) // 3 + 3].strip() or said.strip()[:1]
        if not stop or "\ufffd" in stop:
            return
        reply = self._asked("`stop` with `include_stop_str_in_output`", temperature=0.0,
                            stop=[stop], include_stop_str_in_output=True)  # fmt: skip
        if reply is None:
            return
        draw = reply.draws[0]
        if draw.finish != "stop" or draw.stop != stop:
            self._lacks(f"`stop` with `stop_reason`: {_VLLM}")
        elif not draw.text.endswith(stop):
            self._lacks(f"`include_stop_str_in_output`: {_VLLM}")

    def _raw(self, plain: Draw) -> None:
        """Whether log-probabilities are the model's own, whatever the draws are filtered by."""
        reply = self._asked("`top_k` and `temperature`", temperature=2.0, top_k=1, seed=0)
        if reply is None or plain.ids is None:
            return
        draw = reply.draws[0]
        alike = 0
        for one, other in zip(plain.ids, draw.ids or (), strict=False):
            if one != other:
                break
            alike += 1
        if not alike:
            self._lacks(f"`top_k`: {_VLLM}")
        elif abs(sum(plain.logprobs[:alike]) - sum(draw.logprobs[:alike])) > _CLOSE * alike:
            self._lacks(
                "log-probabilities at temperature 1: --logprobs-mode raw_logprobs (vLLM's default)"
            )

    def _draws(self) -> None:
        """Whether there are several draws a request, all their own, the same for the same seed."""
        replies = [
            self._asked(f"`n`: {_DRAWS} draws", temperature=2.0, n=_DRAWS, seed=1) for _ in "ab"
        ]
        one, other = replies
        if one is None or other is None:
            return
        if len(one.draws) != _DRAWS:
            self._lacks(f"`n`: it gave {len(one.draws)} of {_DRAWS} draws; {_VLLM}")
        elif len({_said(d) for d in one.draws}) == 1:
            self._lacks("draws of their own: with `n` and `seed` all of them are alike")
        elif list(map(_said, one.draws)) != list(map(_said, other.draws)):
            self._lacks(f"`seed`: the same request twice gave different draws; {_VLLM}")

    def _continued(self) -> None:
        """Whether an assistant's turn is continued, and not closed."""
        said = self.served.continued(CONTINUED)
        messages = [_turn("user", QUESTION), {"role": "assistant", "content": said}]
        doing = "continued turns (`continue_final_message` without `add_generation_prompt`)"
        reply = self._asked(doing, messages, temperature=0.0, **CONTINUING)
        expected = self._length(rendered(self.served.processor, said))
        if reply is not None and reply.prompt_tokens != expected:
            self._lacks(
                f"{doing}: its prompt has {reply.prompt_tokens} tokens instead of {expected}; "
                f"{_VLLM}"
            )

    def _images(self) -> None:
        """Whether as many images are taken as there are, and are cut into as many tokens."""
        count, said = self.wants.images, {"type": "text", "text": QUESTION}
        picture = _picture()
        reply = self._asked(
            f"{count} images in a prompt: --limit-mm-per-prompt '{{\"image\": {count}}}'",
            [{"role": "user", "content": [*[_sent(picture)] * count, said]}],
            temperature=0.0,
        )
        if reply is None or not count:
            return
        processor = self.served.processor
        turn = {"role": "user", "content": [*[{"type": "image"}] * count, said]}
        text = processor.apply_chat_template([turn], tokenize=False, add_generation_prompt=True)
        read = processor(images=[[picture] * count], text=[text], add_special_tokens=False)
        expected = len(read["input_ids"][0])
        if reply.prompt_tokens != expected:
            self._lacks(
                f"the policy's own image processor (a prompt with {count} images of {_SIDE} x "
                f"{_SIDE} pixels has {reply.prompt_tokens} tokens instead of {expected}): serve "
                "the model that policy.model names, without --mm-processor-kwargs of its own"
            )

    def _adapters(self) -> None:
        """Whether adapters may be loaded, by one that is not there."""
        assert self.wants.rank is not None
        rank = next((r for r in RANKS if r >= self.wants.rank), self.wants.rank)
        try:
            self.server.load_adapter(_NOWHERE.name, str(_NOWHERE))
        except ServerError as error:
            if error.status is None:
                raise
            # 404 is said of the adapter, too; and where it is not enabled, 500
            said, unknown = str(error).lower(), error.status in (404, 405)
            if "not enabled" in said or (unknown and "no adapter found" not in said):
                self._lacks(
                    "adapters at run time: VLLM_ALLOW_RUNTIME_LORA_UPDATING=True, --enable-lora, "
                    f"--max-lora-rank {rank}"
                )


def _said(draw: Draw) -> object:
    return draw.ids or draw.text


_SIDE = 64
_NOWHERE = Path("/nowhere/selfcal-probe")


def _picture() -> Any:
    from PIL import Image

    return Image.new("RGB", (_SIDE, _SIDE), "white")


def _sent(picture: Any) -> dict[str, Any]:
    picture.save(buffer := io.BytesIO(), "png")
    url = f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
    return {"type": "image_url", "image_url": {"url": url}}


BASICS = {
    "logprobs": True,
    "top_logprobs": 0,
    "return_tokens_as_token_ids": True,
    "skip_special_tokens": True,
    # all said, so that a model's own generation settings on the server change nothing
    "top_p": 1.0,
    "top_k": -1,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
}
"""What every request says."""
CONTINUING = {"add_generation_prompt": False, "continue_final_message": True}
"""What a request says whose last turn is to be continued."""
