"""The settings of a recipe.

Stages take plain parameters or one of the small classes below. Defaults are the paper's where the
paper gives a number (SRC, ICML 2025, arXiv 2509.13919).
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Positive = Annotated[int, Field(gt=0)]
Count = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]


class Settings(BaseModel):
    """Frozen settings that refuse unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Data(Settings):
    """Where samples come from and how many of them each part of the run gets."""

    source: str = "miniworld"
    """`miniworld`, or a folder with `rft`, `calibration`, `dev`, `test` as .jsonl or .parquet;
    `calibration` may be a .json file of prompts (`id`, `image`, `input`) without answers."""
    rft: Count = 20_000
    calibration: Positive = 12_000
    dev: Count = 500
    test: Count = 1_000
    """A split of size 0 is not read."""
    mix: dict[str, float] = Field(default_factory=dict)
    """Weight of each category; empty takes samples as they come."""
    uncertain: Share = 0.0
    """MiniWorld only: share of the calibration images that are spoiled, with facts as doubtful as
    such an image leaves them."""
    repeat: bool = True
    """Whether every iteration searches the same calibration samples; else each its own part."""


class Policy(Settings):
    """The model to calibrate."""

    model: str = "miniworld:mini-llava"
    """`miniworld:NAME` (shipped), a folder, or a name on the Hugging Face hub."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    device: str = "auto"
    trust_remote_code: bool = False
    """Runs code that comes with the model. Only for a model whose code you have read."""
    digest: str | None = None
    """Of a local model's files. Filled in when a run starts; named here, it must be this one."""


class Endpoint(Settings):
    """An OpenAI-compatible server."""

    base_url: str = "http://127.0.0.1:8000/v1"
    model: str = ""
    api_key_env: str = "OPENAI_API_KEY"
    """Environment variable that holds the key; the key itself never stands in a recipe."""
    temperature: Annotated[float, Field(ge=0)] = 0.0
    max_tokens: Positive = 1024
    timeout: Annotated[float, Field(gt=0)] = 120.0
    retries: Annotated[int, Field(ge=0)] = 4


class Teacher(Settings):
    """Who writes the rationale-answer pairs of stage 1."""

    kind: Literal["miniworld", "endpoint"] = "miniworld"
    error_rate: Share = 0.05
    """MiniWorld's teacher errs this often, as a real one does."""
    endpoint: Endpoint = Endpoint()


class Lora(Settings):
    """A LoRA adapter on the language model's linear layers."""

    rank: Positive
    alpha: Positive
    dropout: Share = 0.0


class Training(Settings):
    """One training by TRL."""

    lora: Lora | None = None
    """None trains all weights."""
    learning_rate: Annotated[float, Field(gt=0)]
    batch_size: Positive = 16
    """Samples an optimizer step."""
    micro_batch_size: Positive | None = None
    """Samples a forward pass; None: the whole batch. The rest is gradient accumulation."""
    epochs: Annotated[float, Field(gt=0)] = 1.0
    steps: Positive | None = None
    """Optimizer steps; overrides `epochs`."""
    scheduler: Literal["cosine", "linear", "constant"] = "cosine"
    warmup: Share = 0.03
    """Share of the steps."""
    max_length: Positive = 2048
    """Rows with more tokens than this are left out and counted, never cut."""
    save_steps: Positive | None = None
    """Checkpoint interval for resuming; None: a killed training starts over."""
    gradient_checkpointing: bool = False

    def steps_for(self, rows: int) -> int:
        """Optimizer steps that a training on so many rows takes."""
        return self.steps or max(1, math.ceil(rows / self.batch_size * self.epochs))


class Rft(Training):
    """Stage 1: light SFT on the teacher's RAPs."""

    lora: Lora | None = Lora(rank=4, alpha=8)
    learning_rate: Annotated[float, Field(gt=0)] = 1e-5


class JudgeTraining(Training):
    """Stage 3: SFT of the R-Scorer on labelled pairs; the paper gives no numbers."""

    lora: Lora | None = Lora(rank=16, alpha=32)
    learning_rate: Annotated[float, Field(gt=0)] = 1e-4


class Dpo(Training):
    """Stage 4: DPO with an SFT term on the chosen response (RPO)."""

    lora: Lora | None = Lora(rank=256, alpha=512)
    learning_rate: Annotated[float, Field(gt=0)] = 5e-7
    beta: Annotated[float, Field(gt=0)] = 0.1
    sft_weight: Annotated[float, Field(ge=0)] = 0.02


class Grpo(Training):
    """Online methods: GRPO (arXiv 2402.03300) by TRL, on groups of the policy's own responses."""

    lora: Lora | None = Lora(rank=64, alpha=128)
    learning_rate: Annotated[float, Field(gt=0)] = 1e-5
    batch_size: Positive = 64
    """Responses an optimizer step: whole groups."""
    scheduler: Literal["cosine", "linear", "constant"] = "constant"
    """A budget of tokens may end the training before its last step."""
    group: Annotated[int, Field(ge=2)] = 8
    """Responses to one prompt."""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    max_new_tokens: Positive = 512
    updates: Positive = 1
    """Optimizer steps on each batch of responses."""
    clip: Annotated[float, Field(gt=0)] = 0.2
    """Epsilon of the clipped probability ratio; at one update a batch nothing is clipped."""
    kl: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the divergence from the iteration's first policy (beta)."""
    loss: Literal["grpo", "bnpo", "dr_grpo", "dapo"] = "dapo"
    """How token losses are averaged, by TRL's names."""
    scale: Literal["group", "none"] = "group"
    """Whether advantages are divided by the standard deviation of their group."""
    format_weight: Annotated[float, Field(ge=0)] = 0.1
    """Of the RAP format in the task reward, beside 1 for a right answer."""

    @model_validator(mode="after")
    def _whole_groups(self) -> Grpo:
        if self.batch_size % self.group:
            raise ValueError(
                f"batch_size: {self.batch_size} responses are no whole groups of {self.group}; "
                "set it to a multiple of `group`"
            )
        if self.save_steps and self.save_steps % self.updates:
            raise ValueError(
                f"save_steps: {self.save_steps} would cut a batch in two; set it to a multiple of "
                f"`updates` ({self.updates})"
            )
        return self


class Search(Settings):
    """Stage 2: sentence-level beam search."""

    candidates: Positive = 6
    """Distinct responses wanted a sample."""
    branch: Positive = 2
    """Continuations sampled for each candidate wanted, at every sentence."""
    keep: Literal["stochastic", "likelihood", "top_bottom", "diverse"] = "stochastic"
    """Which paths go on: sampled without replacement by path probability, the most likely ones, the
    most and the least likely ones (CSR), or likely ones that differ in content."""
    temperature: Annotated[float, Field(ge=0)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    top_k: Positive | None = None
    repetition_penalty: Annotated[float, Field(gt=0)] = 1.0
    """Of tokens that stand in prompt or response, as in transformers."""
    max_sentences: Positive = 12
    sentence_tokens: Positive = 80
    min_characters: Count = 0
    """A path whose next sentence is shorter than this is dropped (CSR: 4)."""
    max_characters: Positive | None = None
    """A path that gets longer than this is dropped (CSR: 1,024)."""
    degenerate: Literal["keep", "drop"] = "keep"
    """What becomes of a path that says nothing, stutters, or repeats one of its sentences."""
    batch_rows: Positive = 192
    """Rows decoded at once, at most."""
    cache_gib: Annotated[float, Field(gt=0)] | None = None
    """Memory for keys and values, in evaluation too; None: a share of what is free. Fewer rows if
    they do not fit."""
    prompt_tokens: Positive = 8192
    """Text tokens of prompts that are read at once, at most."""


class Labels(Settings):
    """Who gives the R-Scorer its training verdicts."""

    kind: Literal["verifier", "endpoint"] = "verifier"
    endpoint: Endpoint = Endpoint()


class Judge(Settings):
    """Stage 3: the R-Scorer."""

    kind: Literal["rscorer", "guess", "verifier"] = "rscorer"
    """`rscorer` is the method. `guess` (random verdicts) and `verifier` (the truth, MiniWorld only)
    are controls."""
    model: str = "miniworld:mini-judge"
    digest: str | None = None
    """As `policy.digest`."""
    prompt: str | None = None
    """A Jinja2 template over question, facts, first, second; None: the built-in one."""
    labels: Labels = Labels()
    samples: Positive = 2_000
    """Training samples whose candidates are compared for labels."""
    pairs_per_sample: Positive = 4
    holdout: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Share of those samples kept for the quality report."""
    train: JudgeTraining = JudgeTraining()
    schedule: Literal["full", "one_order", "adaptive"] = "full"
    """Which comparisons are asked: all ordered pairs, every pair in one order (an ablation), or
    those on which best and worst still hang. `adaptive` wants a judge about as steady as
    MiniWorld's, and `curate.tie` above 0."""
    batch_size: Positive = 64
    """Comparisons a forward pass, at most."""
    min_mass: Share = 0.1
    """A comparison whose verdict words together have less probability than this is unscored."""
    calibrate: Literal["never", "once", "each"] = "never"
    """Whether curation corrects verdicts (temperature and a bias for each verdict, after averaging
    both orders): by labels held out before the first iteration, or by fresh labels in each."""
    calibration_samples: Positive = 100
    """Samples of each iteration whose candidates are compared for fresh labels."""
    abstain: Share = 0.0
    """Comparisons of a sample whose facts are less certain than this are left unscored."""


class Reward(Settings):
    """CSR's calibrated reward of a sentence (NeurIPS 2024, arXiv 2405.14622, Eq. 2 to 4)."""

    model: str = "miniworld:mini-clip"
    """A CLIP model: `miniworld:NAME`, a folder, or a name on the Hugging Face hub."""
    digest: str | None = None
    """As `policy.digest`."""
    weight: Share = 0.9
    """Lambda of Eq. 4: weight of image relevance; the rest is likelihood's."""
    normalize: Literal["raw", "rank"] = "rank"
    """Whether Eq. 4 mixes the values themselves (paper) or their ranks among siblings (the authors'
    code)."""


class Curate(Settings):
    """Stage 4: from verdicts to preference pairs."""

    aggregator: Literal["confidence", "expected", "bradley_terry", "majority"] = "confidence"
    margin: Annotated[float, Field(ge=0)] = 0.0
    """Least score gap of a pair."""
    tie: Share = 0.0
    """Scores so near to the best (the worst) count as equal to it; the likelier candidate wins."""
    weigh_facts: bool = False
    """Whether a score counts as much as its sample's facts are certain (`Sample.confidence`)."""
    weak: Literal["drop", "teacher", "widen"] = "drop"
    """What becomes of samples that give no pair because no candidate stands out: none; the
    teacher's RAP as chosen; or a second, wider search, judged anew."""
    widen: Annotated[float, Field(gt=1)] = 2.0
    """How many times as many candidates the wider search wants, at as much higher temperature as
    its square root."""


class Evaluate(Settings):
    """The measurement after every checkpoint."""

    splits: tuple[Literal["dev", "test"], ...] = ("dev", "test")
    batch_size: Positive = 64
    max_new_tokens: Positive = 512


class Recipe(Settings):
    """A whole run."""

    name: str
    method: str = "src"
    seed: int = 0
    iterations: Positive = 3
    data: Data = Data()
    policy: Policy = Policy()
    teacher: Teacher = Teacher()
    rft: Rft | None = Rft()
    """None: calibration starts from the model as it is."""
    search: Search = Search()
    judge: Judge = Judge()
    reward: Reward = Reward()
    curate: Curate = Curate()
    dpo: Dpo = Dpo()
    grpo: Grpo = Grpo()
    evaluate: Evaluate = Evaluate()
    options: dict[str, Any] = Field(default_factory=dict)
    """Settings of the method's own, by its class `Options`."""
    budget: Positive | None = None
    """Tokens that calibration may generate, in equal parts for each iteration; None: no limit."""
    threads: Positive | None = None
    """CPU threads of torch; None leaves torch's own choice. Does not change what is computed."""

    @model_validator(mode="after")
    def _consistent(self) -> Recipe:
        for name in ("teacher", "judge"):
            part = getattr(self, name)
            endpoint = part.labels if name == "judge" else part
            if endpoint.kind == "endpoint" and not endpoint.endpoint.model:
                raise ValueError(f"{name}: kind `endpoint` needs endpoint.model")
        if self.data.uncertain and self.data.source != "miniworld":
            raise ValueError("data.uncertain: only MiniWorld's samples can be spoiled; set it to 0")
        for split in self.evaluate.splits:
            if not getattr(self.data, split):
                raise ValueError(
                    f"evaluate.splits: {split} has no samples (data.{split} is 0); leave it out"
                )
        if self.rft is not None and not self.data.rft:
            raise ValueError("rft: there are no samples for it (data.rft is 0); set `rft: null`")
        if self.judge.calibrate != "never" and self.judge.kind != "rscorer":
            raise ValueError("judge.calibrate: only an R-Scorer can be calibrated; leave it out")
        if self.judge.schedule != "full" and self.judge.calibrate != "never":
            raise ValueError(
                "judge.calibrate: averages both orders, which only judge.schedule `full` asks for"
            )
        if self.judge.schedule == "adaptive" and self.curate.weigh_facts:
            raise ValueError(
                "curate.weigh_facts: changes the scores that judge.schedule `adaptive` stops by; "
                "take `full`"
            )
        if self.judge.schedule == "adaptive" and not self.curate.tie:
            raise ValueError(
                "judge.schedule: `adaptive` needs curate.tie above 0 (such as 0.05), because a "
                "score's last digits hang on all comparisons"
            )
        return self
