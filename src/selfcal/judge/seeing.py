"""A judge that sees: a vision-language model that answers turns with images, read off one pass.

Images stand first in a turn, so all turns about one sample begin with them. Where the model's cache
is keys and values of every token, that beginning is computed once for a sample, its images included
(`sharing`); the first sample with several turns is also read turn by turn, and if that says
something else (some models let a prompt's tokens see what comes after them), all are read so.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from selfcal.clock import spent
from selfcal.data import load_image
from selfcal.judge.asking import Chat, Turn, verdict_ids
from selfcal.judge.scorer import Reading, shares, window_of
from selfcal.judge.sharing import Counts, Forward, tree
from selfcal.kv import own_positions, unfit_layer
from selfcal.memory import attempt
from selfcal.policy import ModelError, Policy, Prompt, load_policy

if TYPE_CHECKING:
    import torch

_BY_TOKEN = ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids")
"""The model's inputs that have a column for every token."""
_TRIED = 3
"""Turns of the first sample that are read both ways."""
_UPPER = 1000
"""Likeliest tokens whose logits are compared, at most."""
_OFF = {"float32": 0.01}
"""How far logits of both ways may be apart, in their standard deviations, by number format."""
_OFF_HALF = 0.25


@dataclass(frozen=True, slots=True)
class Shown:
    """Turns about the same images, ready to be read."""

    turns: list[int]
    """Numbers of the turns."""
    prompts: list[Prompt]
    ids: list[list[int]]
    """Tokens of each prompt, those of its images included."""
    inputs: dict[str, torch.Tensor]
    """What the model gets for the first prompt, on the CPU."""
    alike: bool
    """Whether it is certain that prompts differ in what their texts differ in, and in that alone.
    """

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt."""
        return max(map(len, self.ids))


def open_judge(path: str, dtype: str, device: str, four_bit: bool = False) -> Policy:
    """Load a vision-language model as judge; `four_bit` as for `load_policy`.

    Raises:
        ModelError: it cannot be loaded.
    """
    try:
        return load_policy(path, dtype, device, four_bit=four_bit)
    except ModelError as error:
        raise ModelError(
            f"judge.model, with judge.sees: {error}; for a text model leave judge.sees out"
        ) from error


class SeeingReader:
    """A vision-language model that answers a turn by one of a few words."""

    def __init__(self, path: str, words: Sequence[str], how: Reading) -> None:
        """Load it, as `scorer.open_reader` says."""
        self.policy = open_judge(path, how.dtype, how.device)
        tokenizer, config = self.policy.tokenizer, self.policy.model.config
        self._chat = Chat(path, self.policy.processor, sees=True)
        self.words = verdict_ids(tokenizer, words)  # as training cuts them: by themselves
        self._min_mass = how.min_mass
        text = config.get_text_config()
        self._limit = int(getattr(text, "max_position_embeddings", 2**30))
        self._window = window_of(config)
        self._shares: bool | None = False if unfit_layer(config) else None
        self._far = _OFF.get(how.dtype, _OFF_HALF)
        self._forward = Forward(
            self.policy.model, self.policy.pad_id, self.policy.device, how.batch_size
        )

    @property
    def counts(self) -> Counts:
        """What it computed so far."""
        return self._forward.counts

    @property
    def encodes_once(self) -> bool | None:
        """Whether a sample's images are encoded once for all turns; None: not known yet."""
        return self._shares

    def read(self, turns: Sequence[Turn]) -> list[list[float] | None]:
        """Probabilities of the words for every turn, or None, as `Reads` says.

        Raises:
            ImageError: an image cannot be read.
            ModelError: memory is too small for a single turn, or the processor fails at one.
        """
        import torch

        found: list[list[float] | None] = [None] * len(turns)
        by: dict[tuple[str, tuple[str, ...]], list[int]] = {}
        for i, turn in enumerate(turns):
            by.setdefault((turn.group[0], turn.images), []).append(i)
        with torch.inference_mode():
            for numbers in by.values():
                self._sample(turns, numbers, found)
        return found

    def _sample(
        self, turns: Sequence[Turn], numbers: list[int], found: list[list[float] | None]
    ) -> None:
        """Read the turns about one sample."""
        with spent("tokenizer"):
            shown = show(self.policy, self._chat, turns, numbers)
        fits = [k for k, ids in enumerate(shown.ids) if len(ids) <= self._limit]
        for k, logits in self._logits(shown, fits, turns):
            for at, p in zip(k, shares(logits, self.words, self._min_mass), strict=True):
                found[shown.turns[at]] = p

    def _logits(
        self, shown: Shown, fits: list[int], turns: Sequence[Turn]
    ) -> Iterator[tuple[list[int], torch.Tensor]]:
        """Numbers of prompts, and the logits where their answers begin."""
        narrow = self._window and 4 * shown.longest > self._window
        # the first prompt brings the images: without it there is nothing to share
        if len(fits) < 2 or fits[0] or narrow or not shown.alike or self._shares is False:
            yield from self._whole(shown, fits)
            return
        if self._shares is None:
            every = self._tried(shown, fits, turns)
            self._shares = bool(every) and self._agrees(shown, every)
            yield from every if self._shares else self._whole(shown, fits)
        else:
            yield from self._shared(shown, fits, turns)

    def _tried(
        self, shown: Shown, fits: list[int], turns: Sequence[Turn]
    ) -> list[tuple[list[int], torch.Tensor]]:
        """All of `_shared`; nothing where the model's cache is of a kind that cannot be shared."""
        try:
            return list(self._shared(shown, fits, turns))
        except ModelError:
            raise  # memory, with its way out
        except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError):
            return []

    def _agrees(self, shown: Shown, made: Sequence[tuple[list[int], torch.Tensor]]) -> bool:
        """Whether prompts that share a beginning say the same as when each is read as a whole."""
        by = {k: row for some, logits in made for k, row in zip(some, logits, strict=True)}
        tried = list(by)[:: max(1, len(by) // _TRIED)][:_TRIED]
        for some, logits in self._whole(shown, tried):
            if any(_apart(by[k], w) > self._far for k, w in zip(some, logits, strict=True)):
                return False
        return True

    def _shared(
        self, shown: Shown, fits: list[int], turns: Sequence[Turn]
    ) -> Iterator[tuple[list[int], torch.Tensor]]:
        """By a tree of pieces whose root has the images."""
        groups = [turns[shown.turns[k]].group for k in fits]
        (root,) = tree([shown.ids[k] for k in fits], groups)
        root.seen = self._placed(shown.inputs, len(root.tokens))
        for some, logits in self._forward.logits([root]):
            yield [fits[i] for i in some], logits

    def _placed(self, inputs: dict[str, torch.Tensor], tokens: int) -> dict[str, torch.Tensor]:
        """The model's inputs for the first so many tokens of a prompt."""
        cut = {k: v[:, :tokens] if k in _BY_TOKEN else v for k, v in inputs.items()}
        return self.policy.place(cut)

    def _whole(
        self, shown: Shown, wanted: Sequence[int]
    ) -> Iterator[tuple[list[int], torch.Tensor]]:
        """Prompt by prompt, several of them in a batch; each brings its images along."""
        left = sorted(wanted, key=lambda k: len(shown.ids[k]))
        while left:
            batch = left[: self._forward.rows]
            prompts = [shown.prompts[k] for k in batch]
            logits, said = attempt(lambda prompts=prompts: self._pass(prompts))  # type: ignore[misc]
            if logits is None:
                self._forward.back_off(len(batch), said)
                continue
            left = left[len(batch) :]
            self.counts.prompts += len(batch)
            yield batch, logits

    def _pass(self, prompts: Sequence[Prompt]) -> torch.Tensor:
        batch = self.policy.place(self.policy.encode_prompts(prompts))
        mask = batch["attention_mask"]
        if own_positions(self.policy.model) is None:
            batch["position_ids"] = (mask.cumsum(dim=1) - 1).clamp(min=0)
        with spent("model"):
            out = self.policy.model(**batch, use_cache=False, logits_to_keep=1)
        self.counts.images += len(prompts)
        self.counts.needed += int(mask.sum())
        self.counts.forwarded += mask.numel()
        logits: torch.Tensor = out.logits[:, -1].float()
        return logits


def _apart(one: torch.Tensor, other: torch.Tensor) -> float:
    """How far logits are apart, in standard deviations of the other's upper half.

    The lower half may hold what a model can never say, with logits of any size.
    """
    top = other.topk(max(2, min(_UPPER, len(other) // 2))).indices
    return float((one[top] - other[top]).abs().max() / other[top].std())


def show(policy: Policy, chat: Chat, turns: Sequence[Turn], numbers: list[int]) -> Shown:
    """Prompts of turns about the same images; the images are cut into patches once.

    Every prompt's tokens follow from those of the first: what an image becomes is the same in all.

    Raises:
        ImageError: an image cannot be read.
        ModelError: the processor fails.
    """
    images = turns[numbers[0]].images
    decoded = tuple(load_image(Path(i)) for i in images)
    texts = [chat.prompt(turns[i].text, len(images)) for i in numbers]
    plain: list[list[int]] = policy.tokenizer(texts, add_special_tokens=False)["input_ids"]
    prompts = [Prompt(decoded, t, len(ids)) for t, ids in zip(texts, plain, strict=True)]
    inputs = _encoded(policy, prompts[0], turns[numbers[0]])
    first: list[int] = inputs["input_ids"][0].tolist()
    # what all texts begin with should have all of the images' marks: behind it, text is text
    same = _common(plain)
    tails = [ids[same:] for ids in plain]
    head = len(first) - len(tails[0])
    mark = getattr(policy.model.config, "image_token_id", None)
    alike = first[head:] == tails[0] and mark not in first[head:]
    ids = [first[:head] + tail for tail in tails]
    return Shown(list(numbers), prompts, ids, inputs, alike)


def _encoded(policy: Policy, prompt: Prompt, turn: Turn) -> dict[str, torch.Tensor]:
    try:
        return policy.encode_prompts([prompt])
    except (ValueError, TypeError, IndexError, RuntimeError) as error:
        raise ModelError(
            f"judge, sample {turn.group[0]}: its processor cannot read a prompt with "
            f"{len(turn.images)} images ({str(error).splitlines()[0]}); take another judge.model, "
            "or a judge.prompt without marks of the model's own"
        ) from error


def _common(ids: Sequence[Sequence[int]]) -> int:
    """Tokens that all begin with; each keeps its last."""
    end = min(map(len, ids)) - 1
    return next((i for i in range(end) if any(o[i] != ids[0][i] for o in ids)), end)


def prompt_tokens(policy: Policy, chat: Chat, turns: Sequence[Turn]) -> list[int]:
    """Tokens of each turn's prompt, those of its images included."""
    found = [0] * len(turns)
    by: dict[tuple[str, ...], list[int]] = {}
    for i, turn in enumerate(turns):
        by.setdefault(turn.images, []).append(i)
    for numbers in by.values():
        shown = show(policy, chat, turns, numbers)
        for i, ids in zip(shown.turns, shown.ids, strict=True):
            found[i] = len(ids)
    return found


__all__ = ["SeeingReader", "open_judge", "prompt_tokens", "show"]
