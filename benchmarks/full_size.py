"""The paper's run at full size, measured on random weights and projected to GPU-hours.

    python benchmarks/full_size.py

Builds LLaVA-1.5-7B's architecture and Qwen2.5-1.5B's with random weights, on the GPU if there is
one, so nothing is downloaded. Then it measures the parts of an iteration of
`recipes/src-llava15-7b.yaml` with that recipe's settings: the search, the R-Scorer's comparisons
and DPO by selfcal's own training, rationale fine-tuning and greedy evaluation. From the rates it
projects what the paper's run takes: 12K samples, three iterations. The R-Scorer's own short
training is not measured.

What is unlike a real run: random weights end no sentence, so each has a fixed length; and their
draws are nearly uniform, so hardly two begin alike. The engine decodes draws once while they are
alike, so for it this is the worst case. Every sample has all its candidates and a pair, and the
R-Scorer is asked for all ordered pairs. The first steps of a training are not counted.

Without a GPU it runs a scaled-down version that shows only that all parts work, and projects
nothing. A part that fails, for example for want of memory, says so; the others go on. Prints
Markdown tables and, as its last line, one JSON object.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from common import last_line, llava_config, quiet, save_random
from miniworld import ROOT, table
from selfcal.judge.scorer import PROMPT, Comparison, PromptWriter, RScorer, all_comparisons
from selfcal.policy import load_policy
from selfcal.recipe import Recipe, Training, load_recipe
from selfcal.search import Engine, Limits, Sampling, SearchLimits, respond, search
from selfcal.train import Run, dpo, sft
from selfcal.types import Candidate, PreferencePair, Sample

TARGET_HOURS = 12.0
QUESTION, FACTS, SENTENCES, SENTENCE = 45, 250, 6, 20
"""Tokens of a question and of a sample's facts, sentences of a response, tokens of each."""
WARM = 2
"""First steps of a training that are not counted."""


@dataclass(frozen=True, slots=True)
class Size:
    """How large the models are and how much of each part is measured."""

    vision: dict[str, int]
    text: dict[str, int]
    judge: dict[str, int]
    samples: int
    judged: int
    responses: int
    micro_batches: int
    """Of an optimizer step; the recipe's micro batch is kept, its batch is larger."""
    steps: int


FULL = Size(
    vision={"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24,
            "num_attention_heads": 16, "image_size": 336, "patch_size": 14, "projection_dim": 768},
    text={"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
          "num_attention_heads": 32, "num_key_value_heads": 32, "vocab_size": 32064},
    judge={"hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28,
           "num_attention_heads": 12, "num_key_value_heads": 2, "vocab_size": 151936},
    samples=128, judged=96, responses=64, micro_batches=4, steps=6,
)  # fmt: skip
SMALL = Size(
    vision={"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 4,
            "num_attention_heads": 4, "image_size": 112, "patch_size": 14, "projection_dim": 64},
    text={"hidden_size": 128, "intermediate_size": 344, "num_hidden_layers": 4,
          "num_attention_heads": 4, "num_key_value_heads": 4, "vocab_size": 4096},
    judge={"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 4,
           "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 4096},
    samples=4, judged=2, responses=4, micro_batches=1, steps=3,
)  # fmt: skip


# --- models -------------------------------------------------------------------------------------


WORDS = 1000
"""Words that texts are made of, `w0` and so on: a token each."""


def policy_tokenizer(size: int) -> Any:
    """A tokenizer of `size` words, none of which ends a sentence."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = ["<unk>", "<s>", "</s>", "<pad>", "<image>"]
    known = [*special, *(f"w{i}" for i in range(size - len(special)))]
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(known)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.add_special_tokens(special)
    return PreTrainedTokenizerFast(
        tokenizer_object=made, unk_token="<unk>", bos_token="<s>", eos_token="</s>",
        pad_token="<pad>", padding_side="left", extra_special_tokens={"image_token": "<image>"},
    )  # fmt: skip


def judge_tokenizer() -> Any:
    """A tokenizer that knows the words of texts and of the judge's prompt; white space is nothing.

    transformers opens a Qwen2's tokenizer as its own class whatever the file says, so it is one.
    """
    from tokenizers import AddedToken, pre_tokenizers
    from transformers import Qwen2Tokenizer

    own = Qwen2Tokenizer(vocab={"<|endoftext|>": 0}, merges=[])
    words = [word for word, _ in pre_tokenizers.Whitespace().pre_tokenize_str(PROMPT)]
    words = [*dict.fromkeys(words), *(f"w{i}" for i in range(WORDS))]
    own.add_tokens([AddedToken(w, single_word=w.isalnum(), normalized=False) for w in words])
    own.chat_template = "{%- for m in messages -%}{{ m['content'] }}{%- endfor -%}"
    return own


_VISION_TEMPLATE = (
    "{%- for m in messages -%}"
    "{%- if m['role'] == 'user' -%}<s>{%- else -%}{{ ' ' }}{%- endif -%}"
    "{%- if m['content'] is string -%}{{ m['content'] }}"
    "{%- else -%}{%- for part in m['content'] -%}"
    "{%- if part['type'] == 'image' -%}{{ '<image>\n' }}{%- else -%}{{ part['text'] }}{%- endif -%}"
    "{%- endfor -%}{%- endif -%}"
    "{%- if m['role'] == 'assistant' -%}</s>{%- endif -%}"
    "{%- endfor -%}{%- if add_generation_prompt -%}{{ ' ' }}{%- endif -%}"
)


def save_policy(folder: Path, size: Size, device: str, dtype: torch.dtype) -> int:
    """LLaVA-1.5's architecture with its processor; returns the number of parameters."""
    from transformers import AutoModelForImageTextToText, CLIPImageProcessorPil
    from transformers.models.llava.processing_llava import LlavaProcessor

    own = policy_tokenizer(size.text["vocab_size"])
    text = {
        **size.text, "max_position_embeddings": 4096, "rms_norm_eps": 1e-5,
        "pad_token_id": own.pad_token_id, "eos_token_id": own.eos_token_id,
        "bos_token_id": own.bos_token_id,
    }  # fmt: skip
    config = llava_config(size.vision, text, own.convert_tokens_to_ids("<image>"), -2)
    made = save_random(AutoModelForImageTextToText, config, folder, device, dtype)
    pixels = size.vision["image_size"]
    images = CLIPImageProcessorPil(
        size={"shortest_edge": pixels}, crop_size={"height": pixels, "width": pixels}
    )
    LlavaProcessor(
        image_processor=images, tokenizer=own, patch_size=size.vision["patch_size"],
        vision_feature_select_strategy="default", image_token="<image>",
        num_additional_image_tokens=1, chat_template=_VISION_TEMPLATE,
    ).save_pretrained(folder)  # fmt: skip
    return made


def save_judge(folder: Path, size: Size, device: str, dtype: torch.dtype) -> int:
    """Qwen2.5's architecture with its tokenizer; returns the number of parameters."""
    from transformers import AutoModelForCausalLM, Qwen2Config

    own = judge_tokenizer()
    config = Qwen2Config(
        **size.judge, max_position_embeddings=32768, tie_word_embeddings=True,
        rope_parameters={"rope_theta": 1e6, "rope_type": "default"},
        pad_token_id=own.pad_token_id, eos_token_id=own.eos_token_id, bos_token_id=None,
    )  # fmt: skip
    made = save_random(AutoModelForCausalLM, config, folder, device, dtype)
    own.save_pretrained(folder)
    return made


# --- data ---------------------------------------------------------------------------------------


def some_words(rng: random.Random, n: int) -> str:
    """`n` tokens of text, for both tokenizers."""
    return " ".join(f"w{rng.randrange(WORDS)}" for _ in range(n))


def make_samples(folder: Path, n: int) -> list[Sample]:
    """Samples about a few photo-sized images of noise."""
    import numpy as np
    from PIL import Image

    rng = random.Random(0)
    folder.mkdir()
    noise = np.random.default_rng(0)
    paths = [folder / f"{i}.jpg" for i in range(8)]
    for path in paths:
        small = noise.integers(0, 256, (60, 80, 3), dtype=np.uint8)
        Image.fromarray(small).resize((640, 480)).save(path, quality=90)
    return [
        Sample(
            f"s{i}", str(paths[i % len(paths)]), some_words(rng, QUESTION), "w1",
            facts=some_words(rng, FACTS),
        )
        for i in range(n)
    ]  # fmt: skip


def make_candidates(sample: Sample, n: int) -> list[Candidate]:
    """Responses that have nothing in common, as long as those of the search."""
    rng = random.Random(sample.id)
    texts = [some_words(rng, SENTENCES * SENTENCE) for _ in range(n)]
    return [
        Candidate(sample.id, i, text, (text,), (0.0,), (SENTENCES * SENTENCE,), finished=True)
        for i, text in enumerate(texts)
    ]


# --- the parts ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Bench:
    """What all parts need."""

    folder: Path
    recipe: Recipe
    size: Size
    device: str
    dtype: str
    samples: list[Sample]

    @property
    def policy(self) -> str:
        """Folder of the policy."""
        return str(self.folder / "policy")


def measure_search(bench: Bench) -> dict[str, Any]:
    """Candidates and tokens a second, with the recipe's width."""
    s, policy = bench.recipe.search, load_policy(bench.policy, bench.dtype, bench.device)
    sampling = Sampling(s.temperature, s.top_p, s.top_k, s.repetition_penalty)
    limits = SearchLimits(s.candidates, s.branch, s.keep, SENTENCES, SENTENCE, sampling)
    may = Limits(s.batch_rows, None, s.prompt_tokens)

    def run(samples: Sequence[Sample]) -> tuple[float, int, Engine]:
        engine = Engine(policy, sampling, SENTENCE, may)
        began = now(bench.device)
        found = list(search(policy, samples, limits, "full size", engine=engine))
        return now(bench.device) - began, sum(len(f.candidates) for f in found), engine

    run(bench.samples[:2])
    samples = bench.samples[: bench.size.samples]
    seconds, candidates, engine = run(samples)
    return {
        "n": len(samples),
        "samples_per_second": len(samples) / seconds,
        "candidates_per_second": candidates / seconds,
        "generated_tokens_per_second": engine.counts.tokens / seconds,
        "occupancy": engine.counts.occupancy,
        "rows": round(engine.counts.tokens / max(1, engine.counts.steps), 1),
        "back_offs": engine.counts.back_offs,
    }


def measure_judge(bench: Bench) -> dict[str, Any]:
    """Comparisons a second: all ordered pairs of each sample's candidates."""
    settings = bench.recipe.judge
    scorer = RScorer(
        str(bench.folder / "judge"), batch_size=settings.batch_size,
        min_mass=0.0,  # random weights have no reason to say a verdict
        dtype=bench.dtype, device=bench.device,
    )  # fmt: skip
    asked = [
        list(all_comparisons(s, make_candidates(s, bench.recipe.search.candidates)))
        for s in bench.samples[: bench.size.judged]
    ]
    scorer.judge(asked[0])
    began, done = now(bench.device), 0
    for i in range(0, len(asked), 64):  # a shard, as a run would
        done += len(scorer.judge([c for own in asked[i : i + 64] for c in own]))
    seconds = now(bench.device) - began
    return {
        "n": done,
        "comparisons_per_second": done / seconds,
        "prompt_tokens": prompt_tokens(asked[0][0]),
    }


def prompt_tokens(c: Comparison) -> int:
    """Tokens of a comparison's prompt."""
    text = PromptWriter().write(c.sample.question, c.sample.facts, c.first.text, c.second.text)
    return len(judge_tokenizer()(text)["input_ids"])


def measure_dpo(bench: Bench) -> dict[str, Any]:
    """Pairs a second in DPO."""
    settings, rows = _shortened(bench, bench.recipe.dpo)
    pairs = [
        (s, PreferencePair(s.id, c.text, r.text, 0, 1, 1.0, -1.0))
        for s in _cycled(bench.samples, rows)
        for c, r in [make_candidates(s, 2)]
    ]
    return _trained(bench, "dpo", settings, partial(dpo, bench.policy, pairs, settings))


def measure_sft(bench: Bench) -> dict[str, Any]:
    """Rows a second in rationale fine-tuning."""
    settings, rows = _shortened(bench, bench.recipe.rft)
    texts = [(s, make_candidates(s, 1)[0].text) for s in _cycled(bench.samples, rows)]
    return _trained(bench, "sft", settings, partial(sft, bench.policy, texts, settings))


def _shortened(bench: Bench, settings: Any) -> tuple[Any, int]:
    """The recipe's training for a few steps of a few of its micro batches; rows that it takes."""
    micro = settings.micro_batch_size if bench.size is FULL else 2
    batch = micro * bench.size.micro_batches
    few = {"batch_size": batch, "micro_batch_size": micro, "save_steps": None}
    return settings.model_copy(update=few | {"steps": bench.size.steps}), batch * bench.size.steps


def _cycled(samples: Sequence[Sample], n: int) -> list[Sample]:
    return [samples[i % len(samples)] for i in range(n)]


def _trained(
    bench: Bench, name: str, settings: Training, train: Callable[[Run], Any]
) -> dict[str, Any]:
    ends: list[float] = []
    with tempfile.TemporaryDirectory(dir=bench.folder) as out:
        run = Run(
            Path(out), 0, bench.device, bench.dtype, lambda *_: ends.append(now(bench.device))
        )
        train(run)
    counted = max(1, len(ends) - WARM)
    seconds = (ends[-1] - ends[-1 - counted]) / counted
    return {
        "n": counted,
        "batch": settings.batch_size,
        "micro_batch": settings.micro_batch_size,
        "steps_per_second": 1 / seconds,
        "rows_per_second": settings.batch_size / seconds,
    }


def measure_evaluation(bench: Bench) -> dict[str, Any]:
    """Greedy responses a second."""
    policy = load_policy(bench.policy, bench.dtype, bench.device)
    may = Limits(bench.recipe.evaluate.batch_size)
    samples = bench.samples[: bench.size.responses]
    list(respond(policy, samples[:4], 4, may))
    began = now(bench.device)
    list(respond(policy, samples, SENTENCES * SENTENCE, may))
    return {"n": len(samples), "responses_per_second": len(samples) / (now(bench.device) - began)}


PARTS: dict[str, Callable[[Bench], dict[str, Any]]] = {
    "search": measure_search,
    "judge": measure_judge,
    "dpo": measure_dpo,
    "sft": measure_sft,
    "evaluation": measure_evaluation,
}


def now(device: str) -> float:
    """The time when all that the GPU was given is done."""
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def guarded(name: str, bench: Bench) -> dict[str, Any]:
    """Measure a part with its peak memory; what it failed with, if it failed."""
    print(f"measuring: {name}", file=sys.stderr, flush=True)
    if bench.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    try:
        found = PARTS[name](bench)
    except Exception as error:
        traceback.print_exc()
        said = str(error).splitlines()
        found = {"error": f"{type(error).__name__}: {said[0] if said else ''}"}
    found["peak_gib"] = None
    if bench.device == "cuda":
        found["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
    free()
    return found


def free() -> None:
    """Give back the memory of what is gone: the search looks at how much is free."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


# --- the projection -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Bill:
    """One line of the projection."""

    name: str
    part: str
    rate: str
    """Key of the part's figures."""
    units: int
    arithmetic: str
    counted: bool = True
    """Whether it belongs to the three iterations."""

    def hours(self, found: dict[str, Any]) -> float | None:
        """GPU-hours; None if the part was not measured."""
        rate = found.get(self.part, {}).get(self.rate)
        return self.units / rate / 3600 if rate else None


def bills(recipe: Recipe) -> list[Bill]:
    """What the paper's run has to do."""
    t, n, width = recipe.iterations, recipe.data.calibration, recipe.search.candidates
    ordered = width * (width - 1)
    shown = recipe.data.dev + recipe.data.test
    searched = recipe.judge.samples
    return [
        Bill("search", "search", "samples_per_second", t * n, f"{t} x {n} samples"),
        Bill("scoring", "judge", "comparisons_per_second", t * n * ordered,
             f"{t} x {n} samples x {width} x {width - 1} comparisons"),
        Bill("DPO", "dpo", "rows_per_second", t * n, f"{t} x {n} pairs, every sample has one"),
        Bill("rationale SFT", "sft", "rows_per_second",
             int(recipe.data.rft * recipe.rft.epochs), f"{recipe.data.rft} rows", False),
        Bill("the R-Scorer's candidates", "search", "samples_per_second", searched,
             f"{searched} samples; its training is not measured", False),
        Bill("evaluation", "evaluation", "responses_per_second", (t + 2) * shown,
             f"{t + 2} checkpoints x {shown} greedy responses of {SENTENCES * SENTENCE} tokens",
             False),
    ]  # fmt: skip


def report(bench: Bench, found: dict[str, Any]) -> dict[str, float | None]:
    """Print what was measured and, at full size, the projection; returns its GPU-hours."""
    scaled = bench.size is not FULL
    rows = [
        [name, f"`{key}`", value if isinstance(value, str) else f"{value:.4g}"]
        for name, own in found.items()
        for key, value in own.items()
        if value is not None
    ]
    note = " (scaled down: it shows that all parts work, no speed)" if scaled else ""
    print(f"Measured on {device_name(bench.device)}{note}\n")
    table(["part", "figure", "measured"], rows)
    if scaled:
        return {"projected_gpu_hours": None, "projected_gpu_hours_loop": None}
    print("Random weights: hardly two draws begin alike, which is the engine's worst case.\n")
    lines, whole, loop = [], 0.0, 0.0
    for bill in bills(bench.recipe):
        hours = bill.hours(found)
        rate = found.get(bill.part, {}).get(bill.rate)
        lines.append([bill.name, bill.arithmetic, f"{rate:.4g}/s" if rate else "not measured",
                      f"{hours:.2f}" if hours else ""])  # fmt: skip
        whole += hours if hours else float("nan")
        if bill.counted:
            loop += hours if hours else float("nan")
    lines.append(["search + scoring + DPO", "", "", said(loop)])
    lines.append(["**all**", f"target: at most {TARGET_HOURS:g}", "", f"**{said(whole)}**"])
    table(["part", "the paper's run", "rate", "GPU-hours"], lines)
    known = {"projected_gpu_hours": whole, "projected_gpu_hours_loop": loop}
    return {name: None if hours != hours else hours for name, hours in known.items()}


def said(hours: float) -> str:
    """Hours in words."""
    return "not known" if hours != hours else f"{hours:.2f}"


def device_name(device: str) -> str:
    """What it ran on."""
    return torch.cuda.get_device_name() if device == "cuda" else "the CPU"


def main() -> None:
    """Run, print, and end with one JSON line; exit code 1 if a part failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recipe", type=Path, default=ROOT / "recipes" / "src-llava15-7b.yaml")
    parser.add_argument("--set", action="append", default=[], help="as for `selfcal run`")
    parser.add_argument("--parts", default=",".join(PARTS), help="some of them, with commas")
    parser.add_argument("--earlier", type=Path, help="last line of an earlier run, to go on with")
    parser.add_argument("--folder", type=Path, help="for the models, 45 GB; default: temporary")
    parser.add_argument("--threads", type=int, help="CPU threads of torch")
    args = parser.parse_args()
    quiet()
    if args.threads:
        torch.set_num_threads(args.threads)
    recipe = load_recipe(args.recipe, args.set)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    size, dtype = (FULL, recipe.policy.dtype) if device == "cuda" else (SMALL, "float32")
    found = json.loads(args.earlier.read_text())["parts"] if args.earlier else {}
    with tempfile.TemporaryDirectory(dir=args.folder) as made:
        folder = Path(made)
        number = getattr(torch, dtype)
        sizes = {"policy": save_policy(folder / "policy", size, device, number)}
        sizes["judge"] = save_judge(folder / "judge", size, device, number)
        free()
        samples = make_samples(folder / "images", max(size.samples, size.judged, size.responses))
        bench = Bench(folder, recipe, size, device, dtype, samples)
        for name in args.parts.split(","):
            found[name] = guarded(name, bench)
    hours = report(bench, found)
    last_line(
        {"scaled_down": size is not FULL, **hours,
         "targets": {"projected_gpu_hours": TARGET_HOURS}, "device": device_name(device),
         "parameters": sizes, "parts": found, "dtype": dtype, "threads": torch.get_num_threads(),
         "torch": torch.__version__, "sentences": SENTENCES, "sentence_tokens": SENTENCE}
    )  # fmt: skip
    if any("error" in own for own in found.values()):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
