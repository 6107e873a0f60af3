"""A recipe and a machine in; memory, disk and time of each stage out.

Memory is what the weights, an adapter's training and one forward pass take, by the usual formulas:
16 bytes for each trained parameter of an adapter (weight, gradient and Adam's two moments in
float32), 100 bytes x hidden size for each token and layer that is kept for the backward pass (in 16
bits), or 2 x hidden size with gradient checkpointing, and 10 bytes for each token and word of the
vocabulary. Korthikanti et al. (2022, arXiv 2205.05198) reckon with 34 bytes where operations are
fused; with PyTorch's own and an adapter it was three times that (benchmarks/plan.py). Time is
arithmetic and bandwidth over what the GPU's data sheet says, at the shares below. Both are rough. A
teacher, label giver or marker on this machine counts with its weights alone.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

from selfcal.cost.counts import comparisons_of, items_of, kind, wanted_of, written_of
from selfcal.cost.machine import GIB, Machine
from selfcal.cost.sizes import Sizes, sizes_of
from selfcal.errors import SelfcalError
from selfcal.policy import load_processor, prompt_text
from selfcal.recipe import Grpo, Local, Recipe, Training
from selfcal.stage import Stage
from selfcal.types import Sample

QUESTION_TOKENS = 96
RESPONSE_TOKENS = 160
"""What a rationale and its answer take, usually."""
JUDGE_TOKENS = 700
"""A judge's prompt: question, facts and two responses."""
LAYER_BYTES = 100
"""Of a token in a layer, for each unit of hidden size, kept for the backward pass in 16 bits."""
_PHOTO = (1024, 768)
_PHOTO_TOKENS = 1024
"""Tokens of a photo where the processor is not there to be asked."""
_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
_FOUR_BIT = 0.56
"""Bytes of a weight in NF4, with its scales."""
_CONTEXT = GIB
"""What the GPU's runtime and its libraries take."""
_SPREAD = 1.1
"""What fragments of memory take on top."""
_TRAINING, _READING, _STREAMING = 0.35, 0.40, 0.60
"""Shares of the data sheet that are reached: training, reading prompts, decoding (bandwidth)."""

_TRAINS_POLICY = {"rft", "sft", "dpo", "grpo"}
_TRAINS_JUDGE = {"train", "grader", "ranker"}
_ASKS_POLICY = {"candidates", "guided", "eval", "reward", "written"}
_ASKS_JUDGE = {
    "judgments", "quality", "calibration", "grader-quality", "ranker-quality", "taught",
}  # fmt: skip
_ASKS_TEACHER = {"teacher", "facts", "taught"}
_ASKS_LABELS = {"labels", "grades", "rankings"}
_ASKS_BESIDE = {"taught", "calibration"}
"""Stages that ask a teacher, or label giver, and the judge."""


@dataclass(frozen=True, slots=True)
class Need:
    """What a stage takes."""

    stage: str
    memory: int = 0
    """Bytes of the GPU (or of a CPU's memory) without which it does not run."""
    useful: int = 0
    """Bytes that it would use if there were more: a search keeps more rows in work."""
    disk: int = 0
    """Bytes that it writes, and keeps."""
    seconds: float = 0.0
    """On the machine; 0 where its speed is not known."""
    hint: str = ""
    """What would make it smaller."""


class Needs:
    """What the stages of a recipe take on a machine."""

    def __init__(self, recipe: Recipe, on: Machine) -> None:
        """Take a recipe; models are looked at when they are first needed.

        Raises:
            SizeError: nothing tells how large a model is.
        """
        self._recipe, self._on = recipe, on

    @cached_property
    def policy(self) -> Sizes:
        """The policy's sizes."""
        return sizes_of(self._recipe.policy.model)

    @cached_property
    def judge(self) -> Sizes:
        """The R-Scorer's sizes."""
        return sizes_of(self._recipe.judge.model)

    @cached_property
    def image_tokens(self) -> int:
        """Tokens of a photo of 1,024 x 768 pixels."""
        return image_tokens(self._recipe.policy.model) if self.exact else _PHOTO_TOKENS

    @cached_property
    def exact(self) -> bool:
        """Whether the models' own configurations were there."""
        return self.policy.exact

    @property
    def _width(self) -> int:
        return _BYTES[self._recipe.policy.dtype]

    @property
    def _prompt(self) -> int:
        return self.image_tokens + QUESTION_TOKENS

    def of(self, stage: Stage) -> Need:
        """What a stage takes.

        Raises:
            SizeError: nothing tells how large a model is that it loads.
        """
        need, guest = self._of_own(stage), _guest(self._recipe, stage)
        if guest is None:
            return need
        held = sizes_of(guest.model).parameters * _BYTES[guest.dtype]
        # some stages ask both in turn, so that both stay loaded; elsewhere one follows the other
        both = kind(stage) in _ASKS_BESIDE or bool(written_of(stage, "responses"))
        memory = self._whole(held)
        if both and need.memory:
            memory = need.memory + round(held * _SPREAD)
        if memory <= need.memory:
            return need
        hint = f"ask {guest.model} behind a server (kind `endpoint`), or take a smaller one"
        return replace(need, memory=memory, useful=max(need.useful, memory), hint=hint)

    def _of_own(self, stage: Stage) -> Need:
        """What it takes for the models that the recipe calibrates and trains."""
        what = kind(stage)
        if what in _TRAINS_POLICY:
            return self._training_of_policy(stage, what)
        if what in _TRAINS_JUDGE:
            settings, sizes = self._recipe.judge.train, self.judge
            rows = stage.size * settings.batch_size
            seen = self.image_tokens if self._recipe.judge.sees else 0
            return self._training(stage.name, settings, sizes, rows, JUDGE_TOKENS + seen)
        if what in _ASKS_POLICY and self._recipe.policy.backend == "transformers":
            return self._asking(stage, what)
        if what in _ASKS_JUDGE and self._recipe.judge.kind == "rscorer":
            return self._judging(stage)
        return Need(stage.name, disk=stage.size * _RECORD)

    # --- training -------------------------------------------------------------------------

    def _training_of_policy(self, stage: Stage, what: str) -> Need:
        recipe = self._recipe
        settings: Training | None = {
            "rft": recipe.rft, "sft": recipe.rft, "dpo": recipe.dpo, "grpo": recipe.grpo,
        }[what]  # fmt: skip
        if settings is None:
            raise SelfcalError(f"stage {stage.name}: the recipe has no settings for it")
        batch = recipe.dpo.batch_size if what == "sft" else settings.batch_size
        long = min(settings.max_length, self._prompt + RESPONSE_TOKENS)
        need = self._training(
            stage.name, settings, self.policy, stage.size * batch, long, pairs=what == "dpo"
        )
        if not isinstance(settings, Grpo):
            return need
        decoded = items_of(recipe, stage) * settings.batch_size * RESPONSE_TOKENS
        seconds = self._decoding(self.policy, decoded, settings.batch_size, long)
        return Need(need.stage, need.memory, 0, need.disk, need.seconds + seconds, need.hint)

    def _training(
        self, name: str, settings: Training, sizes: Sizes, rows: int, long: int, pairs: bool = False
    ) -> Need:
        width, lora = self._width, settings.lora
        held = sizes.parameters * width
        if lora is not None:
            trained = lora.rank * sizes.lora_width
            if lora.four_bit:
                held -= round(sizes.language * (width - _FOUR_BIT))
            held += 16 * trained
        else:
            trained = sizes.parameters
            held += trained * 3 * width + (held if pairs else 0)  # gradients, moments, reference
        micro = min(settings.micro_batch_size or settings.batch_size, settings.batch_size)
        sides = 2 if pairs else 1
        tokens = micro * sides * long
        layers = (
            2 * sizes.layers + LAYER_BYTES
            if settings.gradient_checkpointing
            else LAYER_BYTES * sizes.layers
        ) * sizes.hidden
        words = 0 if settings.liger else 10 * sizes.vocabulary
        worked = tokens * (layers * width // 2 + words)
        written = sizes.parameters * width + 4 * trained * (lora is not None)
        kept = written + (12 * trained if settings.save_steps else 0)
        passes = 8 if settings.gradient_checkpointing else 6
        flops = sizes.parameters * rows * sides * long * (passes + (2 if pairs else 0))
        return Need(
            name, self._whole(held + worked), 0, kept, self._computing(flops, _TRAINING),
            _hint(settings, micro, held, worked),
        )  # fmt: skip

    # --- inference ------------------------------------------------------------------------

    def _asking(self, stage: Stage, what: str) -> Need:
        recipe, sizes = self._recipe, self.policy
        search = recipe.search
        rows = recipe.evaluate.batch_size if what in ("eval", "written") else search.batch_rows
        long = self._prompt + RESPONSE_TOKENS
        row = long * sizes.kv_width * self._width
        draws = wanted_of(recipe, stage) * search.branch if what in ("candidates", "guided") else 1
        held = sizes.parameters * self._width
        read = search.prompt_tokens * sizes.hidden * LAYER_BYTES * self._width // 2
        seconds = self._computing(2 * sizes.parameters * stage.size * self._prompt, _READING)
        seconds += self._decoding(sizes, stage.size * draws * RESPONSE_TOKENS, rows, long)
        return Need(
            stage.name, self._whole(held + row), self._whole(held + read + rows * row),
            stage.size * max(1, draws) * _RECORD, seconds,
            "load the model in bfloat16 (policy.dtype)" if self._width == 4 else "",
        )  # fmt: skip

    def _judging(self, stage: Stage) -> Need:
        recipe, sizes = self._recipe, self.judge
        asked = items_of(recipe, stage) * comparisons_of(recipe, stage)
        seen = self.image_tokens if recipe.judge.sees else 0
        long = JUDGE_TOKENS + seen
        held = sizes.parameters * self._width
        row = long * (sizes.kv_width + LAYER_BYTES * sizes.hidden) * self._width
        seconds = self._computing(2 * sizes.parameters * asked * long, _READING)
        batch = recipe.judge.batch_size
        useful = self._whole(held + batch * row)
        return Need(stage.name, self._whole(held + row), useful, asked * 64, seconds)

    def _decoding(self, sizes: Sizes, tokens: int, rows: int, long: int) -> float:
        """Seconds to decode tokens, so many rows at once as are wanted and as fit."""
        if not self._on.gpu:
            return 0.0
        held = sizes.parameters * self._width
        row = long * sizes.kv_width * self._width
        fitting = max(1, min(rows, int((self._on.memory - held * _SPREAD - _CONTEXT) // row)))
        moved = (held + fitting * row) / (self._on.bandwidth * _STREAMING)
        computed = 2 * sizes.parameters * fitting / (self._on.flops * _READING)
        return tokens / fitting * max(moved, computed)

    def _computing(self, flops: float, share: float) -> float:
        return flops / (self._on.flops * share) if self._on.gpu else 0.0

    def _whole(self, own: float) -> int:
        return round(own * _SPREAD + (_CONTEXT if self._on.gpu else 0))


_RECORD = 600
"""Bytes of a record on disk, compressed: a response with its sentences, or a judgment."""


def _guest(recipe: Recipe, stage: Stage) -> Local | None:
    """The model on this machine that a stage asks as a teacher, label giver or marker."""
    what, labels = kind(stage), recipe.judge.labels
    asked = (
        (what in _ASKS_TEACHER or bool(written_of(stage, "requests")), recipe.teacher),
        (what in _ASKS_LABELS or (what == "calibration" and stage.unit == "samples"), labels),
        (what == "eval" and not recipe.data.miniworld, recipe.evaluate.marker),
    )
    return next((who for asks, who in asked if asks and isinstance(who, Local)), None)


def _hint(settings: Training, micro: int, held: int, worked: int) -> str:
    """What would make a training smaller: whatever takes most of its memory first."""
    if worked > held:
        if not settings.gradient_checkpointing:
            return "turn on gradient_checkpointing"
        if micro > 1:
            return f"lower micro_batch_size (now {micro})"
    if settings.lora is None:
        return "train an adapter (lora)"
    if not settings.lora.four_bit:
        return "hold the frozen weights in 4 bits (lora.four_bit)"
    return "move weights to the CPU's memory (deepspeed with offloading), or take a larger GPU"


def image_tokens(model: str) -> int:
    """Tokens that a photo of 1,024 x 768 pixels takes, by the model's own processor."""
    from PIL import Image

    try:
        processor = load_processor(model)
        text = prompt_text(processor, Sample("", "", "?", ""))
        photo = Image.new("RGB", _PHOTO, "grey")
        batch = processor(images=[[photo]], text=[text], add_special_tokens=False)
        bare = processor.tokenizer(text, add_special_tokens=False)["input_ids"]
        return max(1, len(batch["input_ids"][0]) - len(bare))
    except SelfcalError:
        return _PHOTO_TOKENS
