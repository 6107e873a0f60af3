"""The settings of a recipe.

Stages take plain parameters or one of the small classes below. Defaults are the paper's where the
paper gives a number (SRC, ICML 2025, arXiv 2509.13919).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from selfcal.recipe.asked import (
    JudgeEndpoint,
    Labels,
    Marker,
    MiniWorldTeacher,
    Teacher,
    VerifierLabels,
)
from selfcal.recipe.base import BaseUrl, Count, KeyName, LocalPath, Positive, Settings, Share
from selfcal.recipe.executor import Executor, LocalExecutor
from selfcal.recipe.training import Dpo, Grpo, JudgeTraining, Rft


class Source(Settings):
    """One data file, or dataset folder, of several that are mixed."""

    path: LocalPath
    """A file or folder of any format that selfcal reads (docs/data.md)."""
    digest: str | None = None
    """Of its rows, as `policy.digest`; image files are no part of it."""
    weight: Annotated[float, Field(gt=0)] = 1.0
    """Its part of the mix."""
    category: str | None = None
    """Category of its samples; None: their own."""
    images: LocalPath | None = None
    """Folder that image paths are below; None: the file's own."""
    columns: dict[str, str] = Field(default_factory=dict)
    """Column of each field where it is called otherwise, such as `{answer: label}`."""
    turns: Literal["first", "all"] = "first"
    """Which turns of a conversation become samples; later ones may lean on what was said before."""


class Data(Settings):
    """Where samples come from and how many of them each part of the run gets."""

    source: LocalPath = "miniworld"
    """`miniworld`, or a folder with a file for each of `rft`, `calibration`, `dev`, `test`;
    `calibration` may be prompts without answers."""
    images: LocalPath | None = Field(default=None, exclude_if=lambda own: own is None)
    """Folder that the image paths of `source` are below; None: that of each split's file."""
    digests: dict[str, str] = Field(default_factory=dict)
    """Of the file of each split of `source`, as a source's `digest`."""
    sources: tuple[Source, ...] = ()
    """Files that are mixed and then split so that no image is in two splits; instead of
    `source`."""
    min_side: Count = 0
    """Images with a side shorter than this, in pixels, are dropped."""
    max_pixels: Annotated[int, Field(gt=0, le=89_478_485)] = 89_478_485
    """Images with more pixels than this are dropped before they are decoded. No image with more
    than the default is ever opened."""
    max_images: Positive = 8
    """Samples with more images than this are dropped."""
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

    @property
    def miniworld(self) -> bool:
        """Whether samples are those of the built-in world, whose truth is known."""
        return self.source == "miniworld" and not self.sources


class Server(Settings):
    """A vLLM-compatible server on which the policy is searched."""

    base_url: BaseUrl = "http://127.0.0.1:8000/v1"
    model: str | None = None
    """Name under which it serves `policy.model`; None: that very name."""
    api_key_env: KeyName
    timeout: Annotated[float, Field(gt=0)] = 600.0
    retries: Annotated[int, Field(ge=0)] = 4
    concurrency: Positive = 64
    """Requests at the same time."""


class Policy(Settings):
    """The model to calibrate."""

    model: str = "miniworld:mini-llava"
    """`miniworld:NAME` (shipped), a folder, or a name on the Hugging Face hub."""
    backend: Literal["transformers", "vllm"] = "transformers"
    """What the search runs on: the model in this process, or a vLLM-compatible server."""
    server: Server | None = None
    """The server of backend `vllm`."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    attention: str | None = None
    """Attention implementation by transformers' name, such as `sdpa` or `flash_attention_2`; None:
    the model's own."""
    chat_template: str | None = None
    """A Jinja2 template over messages and add_generation_prompt; None: the processor's own."""
    device: str = "auto"
    trust_remote_code: bool = False
    """Runs code that comes with the model. Only for a model whose code you have read."""
    digest: str | None = None
    """Of a local model's files. Filled in when a run starts; named here, it must be this one."""


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


class Judge(Settings):
    """Stage 3: the R-Scorer."""

    kind: Literal["rscorer", "endpoint", "guess", "verifier"] = "rscorer"
    """`rscorer` is the method; `endpoint` asks a strong model itself. `guess` (random verdicts) and
    `verifier` (the truth, MiniWorld only) are controls."""
    endpoint: JudgeEndpoint | None = None
    """The model of kind `endpoint`."""
    sees: bool = False
    """Whether the R-Scorer is a vision-language model that is shown the image."""
    model: str = "miniworld:mini-judge"
    digest: str | None = None
    """As `policy.digest`."""
    prompt: str | None = None
    """A Jinja2 template over question, facts, first, second; None: the built-in one."""
    labels: Labels = VerifierLabels()
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
    followed: Count = 50
    """Calibration samples that every checkpoint answers as well, so that answers can be read before
    and after the iteration that trained on them. They are part of no result, and are not marked."""
    marker: Marker | None = None
    """Who marks the flaws of rationales where no verifier knows the truth; None: they are not
    measured."""


class Recipe(Settings):
    """A whole run."""

    name: str
    method: str = "src"
    seed: int = 0
    iterations: Positive = 3
    data: Data = Data()
    policy: Policy = Policy()
    format: Literal["headings", "xml", "think", "free"] = "headings"
    """How rationale and answer stand in a response: under headings; in `<rationale>` and `<answer>`
    tags; the rationale in `<think>` tags; or free text whose last line says the answer."""
    teacher: Teacher = MiniWorldTeacher()
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
    tracking: Literal["none", "tensorboard", "wandb", "trackio"] = "none"
    """Where figures of stages and trainings are sent while a run goes (docs/tracking.md). Does not
    change what is computed."""
    executor: Executor = LocalExecutor()
    """Who does the work (docs/scaling.md). Does not change what is computed."""
    budget: Positive | None = None
    """Tokens that calibration may generate, in equal parts for each iteration; None: no limit."""
    threads: Positive | None = None
    """CPU threads of torch; None leaves torch's own choice. Does not change what is computed."""

    @model_validator(mode="after")
    def _consistent(self) -> Recipe:
        if (self.judge.kind == "endpoint") != (self.judge.endpoint is not None):
            raise ValueError(
                "judge: kind `endpoint` and the settings `judge.endpoint` belong together; give "
                "both or neither"
            )
        if (self.policy.backend == "vllm") != (self.policy.server is not None):
            raise ValueError(
                "policy: backend `vllm` and the settings `policy.server` belong together; give "
                "both or neither"
            )
        shipped = self.data.miniworld and self.policy.model.startswith("miniworld:")
        if shipped and self.format != "headings":
            raise ValueError(
                f"format: {self.policy.model} speaks `headings` alone, not `{self.format}`; leave "
                "format out, or give another policy.model"
            )
        if self.data.sources and self.data.source != "miniworld":
            raise ValueError("data: give `source` or `sources`, not both")
        if self.data.uncertain and not self.data.miniworld:
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
