"""CSR's calibrated reward: what a sentence is worth by its likelihood and by the image.

CSR (Calibrated Self-Rewarding, NeurIPS 2024, arXiv 2405.14622) has no judge. A sentence's own
likelihood under the policy (Eq. 2) is calibrated by how well it goes with the image in a CLIP model
(Eq. 3); lambda mixes the two (Eq. 4). A response is worth the sum over its sentences.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from selfcal.clock import spent
from selfcal.image import load_image
from selfcal.memory import attempt, note
from selfcal.policy import NOT_LOADED, ModelError, model_path, pick_device
from selfcal.processors import control_marks, inert
from selfcal.types import Sample, SentenceReward

if TYPE_CHECKING:
    import torch

_DIGITS = 4
"""Decimals of a relevance, which goes to 100."""
_KEPT = 50_000
"""Embeddings that are remembered: a small model says many sentences often."""


def likelihood(logprob: float) -> float:
    """`R_T(s) = prod_t P(r_t | x, r_<t)` from the sum of log-probabilities in nats (Eq. 2)."""
    return math.exp(min(0.0, logprob))


def relevance(cosine: float) -> float:
    """`R_I(s) = max(100 * cos(F_image(x), F_text(s)), 0)` (Eq. 3)."""
    return max(100.0 * cosine, 0.0)


def calibrated(
    relevances: Sequence[float],
    likelihoods: Sequence[float],
    weight: float,
    normalize: Literal["raw", "rank"],
) -> list[float]:
    """`R(s) = weight * R_I(s) + (1 - weight) * R_T(s)` of siblings (Eq. 4).

    `raw` mixes the values, as the paper has it: relevance then counts a hundredfold. `rank` mixes
    their ranks among the siblings instead, as the authors' code does: the worst has 0, the best 1,
    equal ones the mean of their ranks, an only child 0.5.
    """
    if normalize == "rank":
        relevances, likelihoods = ranks(relevances), ranks(likelihoods)
    return [weight * i + (1 - weight) * t for i, t in zip(relevances, likelihoods, strict=True)]


def ranks(values: Sequence[float]) -> list[float]:
    """Ranks from 0 (least) to 1 (greatest); equal values share the mean of their ranks."""
    if len(values) < 2:
        return [0.5] * len(values)
    return [
        (sum(v < value for v in values) + (sum(v == value for v in values) - 1) / 2)
        / (len(values) - 1)
        for value in values
    ]


class Relevance:
    """How well sentences go with images, by a CLIP model."""

    def __init__(self, name: str, dtype: str = "float32", device: str = "auto") -> None:
        """Load it from a folder, the hub or `miniworld:NAME`.

        Raises:
            ModelError: it cannot be loaded as a CLIP model with its processor.
        """
        from transformers import AutoConfig, AutoProcessor, CLIPModel

        path = model_path(name)
        try:
            with spent("disk"):
                kind = AutoConfig.from_pretrained(path, trust_remote_code=False).model_type
                if kind != "clip":  # transformers would make one of random weights
                    raise ValueError(f"it is a model of type {kind}")
                self._processor: Any = AutoProcessor.from_pretrained(path, trust_remote_code=False)
                model = CLIPModel.from_pretrained(path, dtype=dtype)
        except NOT_LOADED as error:
            first = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ModelError(
                f"reward {name}: cannot be loaded as a CLIP model ({first}); give a folder with "
                "model and processor, or a hub name"
            ) from error
        self._device = pick_device(device)
        self._model: Any = model.to(self._device).eval()
        self._longest = int(model.config.text_config.max_position_embeddings)
        self._images: OrderedDict[str, torch.Tensor] = OrderedDict()
        self._texts: OrderedDict[str, torch.Tensor] = OrderedDict()
        self._most = 2**30  # sentences a pass

    def forget(self) -> None:
        """Forget all embeddings, as if it were just loaded."""
        self._images.clear()
        self._texts.clear()

    def of(self, image: str, sentences: Sequence[str]) -> list[float]:
        """Relevance of each sentence to an image, 0 to 100 (Eq. 3).

        A sentence longer than CLIP's context is cut there.

        Raises:
            ImageError: the image cannot be read.
        """
        if not sentences:
            return []
        import torch

        with torch.inference_mode(), spent("reward"):
            seen = self._image(image)
            said = self._said([" ".join(s.split()) for s in sentences])
            # sums differ in their last digits from batch to batch, and a resumed search has others
            return [round(relevance(c), _DIGITS) for c in (said @ seen).tolist()]

    def _image(self, path: str) -> torch.Tensor:
        """Unit vector of an image, [width]."""
        if path not in self._images:
            pixels = self._processor(images=load_image(Path(path)), return_tensors="pt")
            value = pixels["pixel_values"].to(self._device, self._model.dtype)
            made, said = attempt(lambda: _unit(self._model.get_image_features(value))[0])
            if made is None:
                self._back_off(1, said)
            else:
                self._keep(self._images, path, made)
        return self._images[path]

    def _said(self, sentences: list[str]) -> torch.Tensor:
        """Unit vectors of sentences, [sentences, width]."""
        import torch

        new = [s for s in dict.fromkeys(sentences) if s not in self._texts]
        known = {s: self._texts[s] for s in sentences if s in self._texts}
        left = new
        while left:
            batch = left[: self._most]
            made, said = attempt(lambda batch=batch: self._embedded(batch))  # type: ignore[misc]
            if made is None:
                self._back_off(len(batch), said)
                continue
            known |= dict(zip(batch, made, strict=True))
            left = left[len(batch) :]
        for sentence in new:
            self._keep(self._texts, sentence, known[sentence])
        return torch.stack([known[s] for s in sentences])

    def _embedded(self, sentences: list[str]) -> torch.Tensor:
        """Unit vectors of sentences in one pass, [sentences, width]."""
        marks = control_marks(self._processor)  # behind an end of text, CLIP would read nothing
        batch = self._processor(
            text=[inert(s, marks) for s in sentences], padding=True, truncation=True,
            max_length=self._longest, return_tensors="pt",
        ).to(self._device)  # fmt: skip
        inputs = {k: batch[k] for k in ("input_ids", "attention_mask")}
        return _unit(self._model.get_text_features(**inputs))

    def _back_off(self, rows: int, said: str) -> None:
        """Go on with half as many sentences a pass.

        Raises:
            ModelError: there was just one.
        """
        if rows == 1:
            raise ModelError(
                f"CLIP runs out of memory with a single sentence or image ({said}): give a smaller "
                "reward.model, a smaller search.cache_gib or search.batch_rows, or more memory"
            )
        self._most = rows // 2
        note("CLIP ran out of memory: it goes on with fewer sentences a pass")

    @staticmethod
    def _keep(memory: OrderedDict[str, torch.Tensor], key: str, value: torch.Tensor) -> None:
        memory[key] = value
        if len(memory) > _KEPT:
            memory.popitem(last=False)


def of_images(clip: Relevance, images: Sequence[str], sentences: Sequence[str]) -> list[float]:
    """Relevance of each sentence to the image that it fits best: it need not be about all.

    Raises:
        ImageError: an image cannot be read.
    """
    return [max(own) for own in zip(*(clip.of(i, sentences) for i in images), strict=True)]


def _unit(features: Any) -> torch.Tensor:
    found = getattr(features, "pooler_output", features)
    unit: torch.Tensor = found.float()
    return unit / unit.norm(dim=-1, keepdim=True)


class CalibratedReward:
    """Guides a search by the calibrated reward of sentences."""

    def __init__(
        self, relevance: Relevance, weight: float, normalize: Literal["raw", "rank"]
    ) -> None:
        """Mix relevance by `weight` (Eq. 4)."""
        self._relevance, self._weight, self._normalize = relevance, weight, normalize

    def rate(self, sample: Sample, siblings: Sequence[tuple[str, float]]) -> list[SentenceReward]:
        """Reward sentences that go on from one path, each given as text and log-probability.

        Raises:
            ImageError: the sample's image cannot be read.
        """
        seen = of_images(self._relevance, sample.images, [text for text, _ in siblings])
        likely = [likelihood(logprob) for _, logprob in siblings]
        mixed = calibrated(seen, likely, self._weight, self._normalize)
        return [SentenceReward(r, i) for r, i in zip(mixed, seen, strict=True)]
