"""The search's engine against two ways to do the same search with `model.generate`.

    python benchmarks/search.py

What is compared: the same model, samples, settings and number of candidates wanted, the same end of
a sentence, and the search's own code decides what goes on, so that all trees are drawn from one
distribution. Only who decodes differs:

- **engine**: `selfcal.search.Engine`.
- **node by node**: one sample at a time, and one `generate` call (batch 1) for every sentence that
  is drawn; each call reads the image and the whole prefix anew. `node by node, siblings together`
  is the kinder reading: one call for a node, its branches are the rows (`num_return_sequences`).
- **batched**: one `generate` call a depth for all live nodes of all samples of a batch, each draw a
  row; no keys or values outlive a call. Several batch sizes are tried, the best one counts.

The baselines have a key-value cache inside a call, leave a row when its sentence is over, encode
each image file once, and share the engine's memory of where sentences end. All are run in turn,
several rounds, and the best round of each counts; baselines run on the first few of the samples, so
rates are compared. The engine decodes draws only once as long as they are alike, so that it feeds
fewer tokens than were drawn: `tokens_per_draw_token`.

Prints Markdown tables and, as its last line, one JSON object with the figures and the targets.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from common import last_line, llava_config, quiet, save_random
from miniworld import table
from selfcal import clock
from selfcal.miniworld import models
from selfcal.miniworld.draw import SIZE
from selfcal.policy import Policy, load_policy
from selfcal.search import Engine, Found, Limits, Sampling, SearchLimits, search
from selfcal.search.engine import Ask, Sentence
from selfcal.search.sentences import Sentences
from selfcal.testing import tiny_samples
from selfcal.types import Sample

TARGETS = {
    "speedup_node_by_node": 20.0,
    "speedup_batched_generate": 3.0,
    "speedup_node_by_node_mid": 6.0,
    "token_amplification": 1.05,
    "vision_passes_per_image": 1.0,
    "occupancy": 0.90,
    "forward_share": 0.80,
}
AT_MOST = {"token_amplification", "vision_passes_per_image"}
SETTINGS = SearchLimits(  # of recipes/miniworld-src.yaml
    candidates=6, branch=3, keep="stochastic", max_sentences=8, sentence_tokens=32,
    sampling=Sampling(temperature=1.0, top_p=0.98),
)  # fmt: skip
# random weights end no sentence: length does
MID_SETTINGS = SearchLimits(
    candidates=4, branch=2, keep="stochastic", max_sentences=3, sentence_tokens=8,
    sampling=Sampling(temperature=1.0, top_p=0.98),
)  # fmt: skip
GREEDY_TOKENS = 120


# --- the baselines ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class Front:
    """Where a response stands, for one who keeps no cache: its prompt and all its tokens."""

    prompt: dict[str, torch.Tensor]
    """Of this sample alone, unpadded."""
    ids: tuple[int, ...] = ()

    @property
    def last(self) -> int | None:
        """The token before the next one; None where the response begins."""
        return self.ids[-1] if self.ids else None


class SentenceOver:
    """Tells `generate` which rows have said their sentence; called after every token."""

    def __init__(self, sentences: Sentences, stops: frozenset[int], fronts: Sequence[Front]):
        """One row for each front."""
        self.own: list[list[int]] = [[] for _ in fronts]
        """Tokens of each row's sentence, the end of response included."""
        self.over = [False] * len(fronts)
        self._marked = [False] * len(fronts)
        self._sentences, self._stops, self._fronts = sentences, stops, fronts

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        """Read the last token of each row."""
        for row, token in enumerate(input_ids[:, -1].tolist()):
            if not self.over[row]:
                self._read(row, token)
        return torch.tensor(self.over, device=input_ids.device)

    def _read(self, row: int, token: int) -> None:
        own = self.own[row]
        self._marked[row] = self._marked[row] or self._sentences.marks(token)
        if token in self._stops:
            self.over[row] = True
        elif own and self._marked[row]:
            # the end is known one token late; that token is drawn anew at the next depth
            last = self._fronts[row].last
            self.over[row] = self._sentences.closed_by(token, last, own)
            if self.over[row]:
                return
        own.append(token)


class Generate:
    """Takes the engine's place in `search`, and decodes by `model.generate`."""

    def __init__(
        self, policy: Policy, limits: SearchLimits, split: str = "draw", samples: int = 1
    ) -> None:
        """`split`: what one call is for, a `draw`, a `node` or a `depth` of `samples` samples."""
        self._policy, self._limits = policy, limits
        self._split, self._batch = split, samples
        self._sentences = Sentences(policy.tokenizer)

    def run(self, samples: Iterable[Sample], start: Callable[[Sample, Any], Any]) -> Iterator[Any]:
        """Run a job for each sample, `samples` of them at a time."""
        torch.manual_seed(0)
        waiting = list(samples)
        for i in range(0, len(waiting), self._batch):
            part = waiting[i : i + self._batch]
            prompts = [self._policy.encode([s]) for s in part]
            jobs = [start(s, Front(p)) for s, p in zip(part, prompts, strict=True)]
            yield from self._together(jobs)

    def _together(self, jobs: list[Any]) -> list[Any]:
        """All jobs, depth by depth."""
        results: dict[int, Any] = {}
        answers: dict[int, Any] = dict.fromkeys(range(len(jobs)))
        while answers:
            asked: dict[int, list[Ask]] = {}
            for i, answer in answers.items():
                try:
                    asked[i] = jobs[i].send(answer)
                except StopIteration as end:
                    results[i] = end.value
            said = iter(self._answer([ask for asks in asked.values() for ask in asks]))
            answers = {i: [next(said) for _ in asks] for i, asks in asked.items()}
        return [results[i] for i in range(len(jobs))]

    def _answer(self, asks: list[Ask]) -> list[list[Sentence]]:
        fronts = [[a.place] * len(a.uniforms) for a in asks]
        calls: list[list[Any]] = fronts
        if self._split == "draw":
            calls = [[front] for own in fronts for front in own]
        elif self._split == "depth":
            calls = [[front for own in fronts for front in own]]
        said = iter([sentence for rows in calls if rows for sentence in self._say(rows)])
        return [[next(said) for _ in own] for own in fronts]

    def _say(self, fronts: Sequence[Front]) -> list[Sentence]:
        """One `generate` call: a sentence for each row."""
        own = SentenceOver(self._sentences, self._policy.stop_ids, fronts)
        sampling = self._limits.sampling
        draws: dict[str, Any] = {"do_sample": False}
        if sampling.temperature:
            draws = {"do_sample": True, "temperature": sampling.temperature}
            draws |= {"top_p": sampling.top_p, "top_k": 0}
        with torch.inference_mode():
            out = self._policy.model.generate(
                **self._batch_of(fronts), **draws, stopping_criteria=[own],
                max_new_tokens=self._limits.sentence_tokens, pad_token_id=self._policy.pad_id,
                output_logits=True, return_dict_in_generate=True,
            )  # fmt: skip
            gained = torch.stack(out.logits, dim=1).float().log_softmax(dim=-1)
            new = out.sequences[:, -gained.shape[1] :, None]
            gains = gained.gather(-1, new)[..., 0].tolist()
        return [self._sentence(f, i, g) for f, i, g in zip(fronts, own.own, gains, strict=True)]

    def _sentence(self, front: Front, ids: list[int], gains: list[float]) -> Sentence:
        ended = ids[-1] in self._policy.stop_ids
        said = ids[:-1] if ended else ids
        place: Any = None if ended else Front(front.prompt, (*front.ids, *ids))
        text = self._sentences.text(front.last, said)
        return Sentence(place, text, sum(gains[: len(ids)]), tuple(ids), ended)

    def _batch_of(self, fronts: Sequence[Front]) -> dict[str, torch.Tensor]:
        """Image and whole prefix of each row, padded on the left."""
        # random weights may say the image's placeholder, which no prompt may hold once more
        held = {int(self._policy.model.config.image_token_id): self._policy.pad_id}
        rows = [
            [*f.prompt["input_ids"][0].tolist(), *(held.get(i, i) for i in f.ids)] for f in fronts
        ]
        width = max(map(len, rows))
        device = self._policy.device
        pads = [width - len(row) for row in rows]
        padded = [[self._policy.pad_id] * n + row for n, row in zip(pads, rows, strict=True)]
        ids = torch.tensor(padded, device=device)
        mask = torch.arange(width, device=device) >= torch.tensor(pads, device=device)[:, None]
        pixels = torch.cat([f.prompt["pixel_values"] for f in fronts])
        return {"input_ids": ids, "attention_mask": mask.long(), "pixel_values": pixels}


# --- measuring ----------------------------------------------------------------------------------


@dataclass(slots=True)
class Speed:
    """What one way to search got done."""

    seconds: float
    samples: int
    candidates: int
    draws: int
    spent: dict[str, float]
    """Seconds by what they went to, where selfcal counted them."""

    def rate(self, what: str) -> float:
        """Samples, candidates or draws a second."""
        return float(getattr(self, what)) / self.seconds

    @property
    def shares(self) -> dict[str, float]:
        """Shares of the time by what they went to."""
        return {name: seconds / self.seconds for name, seconds in self.spent.items()}


def timed(policy: Policy, limits: SearchLimits, samples: Sequence[Sample], who: Any) -> Speed:
    """Search once."""
    clock.take()
    began = time.perf_counter()
    found = list(search(policy, samples, limits, "benchmark", engine=who))
    seconds = time.perf_counter() - began
    return Speed(
        seconds, len(samples), sum(len(f.candidates) for f in found),
        sum(n.draws for f in found for n in f.nodes), clock.take(),
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Way:
    """One way to search."""

    name: str
    make: Callable[[], Any]
    samples: int


def ways(
    policy: Policy, limits: SearchLimits, rows: int, samples: dict[str, int], batches: list[int]
) -> list[Way]:
    """The engine and its baselines; `samples` says on how many each runs."""
    may = Limits(rows=rows)
    found = [
        Way("engine", partial(
            Engine, policy, limits.sampling, limits.sentence_tokens, may), samples["engine"]),
        Way("node by node", partial(Generate, policy, limits), samples["node"]),
        Way("node by node, siblings together", partial(
            Generate, policy, limits, "node"), samples["siblings"]),
    ]  # fmt: skip
    for size in batches:
        make = partial(Generate, policy, limits, "depth", size)
        found.append(Way(f"batched, {size} samples", make, max(size, samples["batched"])))
    return found


def race(
    policy: Policy, limits: SearchLimits, samples: Sequence[Sample], who: list[Way], rounds: int
) -> dict[str, Speed]:
    """All ways in turn, several rounds after one to warm up; the best round of each."""
    best: dict[str, Speed] = {}
    for way in who:
        timed(policy, limits, samples[:1], way.make())
    for _ in range(rounds):
        for way in who:
            speed = timed(policy, limits, samples[: way.samples], way.make())
            if way.name not in best or speed.seconds < best[way.name].seconds:
                best[way.name] = speed
    return best


def speedups(best: dict[str, Speed], what: str) -> dict[str, float]:
    """The engine's rate over the others'; of the batched ones the best."""
    engine = best["engine"].rate(what)
    found = {
        "node_by_node": engine / best["node by node"].rate(what),
        "node_by_node_siblings": engine / best["node by node, siblings together"].rate(what),
    }
    batched = [s.rate(what) for name, s in best.items() if name.startswith("batched")]
    return found | ({"batched_generate": engine / max(batched)} if batched else {})


def show(title: str, best: dict[str, Speed]) -> None:
    """Print one race."""
    print(f"{title}\n")
    engine = best["engine"]
    kinds = ("samples", "candidates", "draws")
    rows = [
        [name, str(s.samples), f"{s.seconds:.2f}", f"{s.candidates / s.samples:.2f}"]
        + [f"{s.rate(k):.2f}" for k in kinds]
        + [f"{engine.rate(k) / s.rate(k):.1f}" for k in kinds]
        for name, s in best.items()
    ]
    header = ["", "n samples", "seconds", "candidates a sample"]
    table([*header, *(f"{k}/s" for k in kinds), *(f"engine: times {k}/s" for k in kinds)], rows)


# --- the engine's account -----------------------------------------------------------------------


@dataclass(slots=True)
class Account:
    """Tokens and images, counted outside the engine."""

    forwarded: int = 0
    """Of all forward passes, padding and image tokens included."""
    needed: int = 0
    """Of prompts once, and of each place's draws as far as they differ."""
    drawn: int = 0
    images: int = 0
    handles: list[Any] = field(default_factory=list)

    def watch(self, policy: Policy) -> None:
        """Count what enters the model and its vision tower."""
        towers = [m for n, m in policy.model.named_modules() if n.endswith("vision_tower")]

        def text(module: Any, args: Any, kwargs: Any) -> None:
            self.forwarded += kwargs["input_ids"].numel()

        def vision(module: Any, args: Any, kwargs: Any, out: Any) -> None:
            self.images += len(out.last_hidden_state)

        self.handles = [policy.model.register_forward_pre_hook(text, with_kwargs=True)]
        for tower in towers:
            self.handles.append(tower.register_forward_hook(vision, with_kwargs=True))

    def follow(self, job: Any) -> Generator[list[Ask], list[list[Sentence]], Any]:
        """The same job, its sentences counted on the way."""
        said = None
        while True:
            try:
                asks = job.send(said)
            except StopIteration as end:
                return end.value
            said = yield asks
            for sentences in said:
                self._count(sentences)

    def _count(self, sentences: Sequence[Sentence]) -> None:
        fed: set[tuple[int, ...]] = set()
        for s in sentences:
            self.drawn += len(s.ids)
            length = len(s.ids) - s.ended  # the end of response is never fed
            fed |= {s.ids[: i + 1] for i in range(length)}
        self.needed += len(fed)


class Watched:
    """An engine whose jobs are followed."""

    def __init__(self, engine: Engine, account: Account) -> None:
        """Follow all jobs of `engine`."""
        self._engine, self._account = engine, account

    def run(self, samples: Iterable[Sample], start: Callable[[Sample, Any], Any]) -> Iterator[Any]:
        """As the engine's."""
        return self._engine.run(samples, lambda s, place: self._account.follow(start(s, place)))


def account(
    policy: Policy, limits: SearchLimits, samples: Sequence[Sample], rows: int
) -> dict[str, Any]:
    """What the engine fed to the model, and how full its rows were."""
    engine = Engine(policy, limits.sampling, limits.sentence_tokens, Limits(rows=rows))
    seen = Account()
    seen.watch(policy)
    try:
        who: Any = Watched(engine, seen)
        for _ in search(policy, samples, limits, "benchmark", engine=who):
            pass
    finally:
        for handle in seen.handles:
            handle.remove()
    work = engine.counts
    return {
        "token_amplification": seen.forwarded / (work.prompt_tokens + seen.needed),
        "token_amplification_by_engine": (work.prompt_slots + work.tokens)
        / (work.prompt_tokens + work.tokens),
        "vision_passes_per_image": seen.images / len(samples),
        "occupancy": work.occupancy,
        "tokens_per_draw_token": work.tokens / max(1, seen.drawn),
        "steps": work.steps,
        "back_offs": work.back_offs,
    }


def generated(policy: Policy, samples: Sequence[Sample], tokens: int) -> list[str]:
    """Greedy responses by transformers' own `generate`, in one batch."""
    batch = policy.encode(samples)
    with torch.inference_mode():
        out = policy.model.generate(
            **batch, do_sample=False, max_new_tokens=tokens, pad_token_id=policy.pad_id
        )
    new = out[:, batch["input_ids"].shape[1] :]
    return [t.strip() for t in policy.tokenizer.batch_decode(new, skip_special_tokens=True)]


def greedy_agreement(policy: Policy, samples: Sequence[Sample]) -> dict[str, float]:
    """Share of samples whose greedy texts are those of one plain `generate` call.

    Searched greedily, one candidate and one branch, by the engine and by each baseline.
    """
    limits = SearchLimits(1, 1, "likelihood", 40, GREEDY_TOKENS, Sampling(temperature=0.0))
    plain = generated(policy, samples, GREEDY_TOKENS)
    engine = Engine(policy, limits.sampling, limits.sentence_tokens, Limits(rows=16))
    kinds = {
        "engine": engine,
        "node by node": Generate(policy, limits),
        "batched": Generate(policy, limits, "depth", len(samples)),
    }
    agreement = {}
    for name, who in kinds.items():
        found: list[Found] = list(search(policy, samples, limits, "greedy", engine=who))
        texts = [f.candidates[0].text if f.candidates else "" for f in found]
        same = sum(a == b for a, b in zip(texts, plain, strict=True))
        agreement[name] = same / len(samples)
    return agreement


def save_mid(folder: Path, quick: bool) -> tuple[str, int]:
    """A LLaVA of about 100M random weights with MiniWorld's processor; much smaller if quick."""
    from transformers import AutoModelForImageTextToText

    tokenizer = models.build_tokenizer()
    width, depth = (128, 2) if quick else (768, 12)
    seen = {
        "hidden_size": width // 2, "intermediate_size": width * 2, "num_hidden_layers": depth,
        "num_attention_heads": 4, "image_size": SIZE, "patch_size": models.PATCH,
        "projection_dim": width // 2,
    }  # fmt: skip
    text = {
        "vocab_size": len(tokenizer), "hidden_size": width, "intermediate_size": width * 8 // 3,
        "num_hidden_layers": depth, "num_attention_heads": width // 64,
        "num_key_value_heads": width // 64, "max_position_embeddings": 512,
        "tie_word_embeddings": True, "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id, "bos_token_id": None,
    }  # fmt: skip
    config = llava_config(seen, text, tokenizer.convert_tokens_to_ids("<image>"), -1)
    size = save_random(AutoModelForImageTextToText, config, folder, "cpu", torch.float32)
    models.build_processor(tokenizer).save_pretrained(folder)
    return str(folder), size


# --- the report ---------------------------------------------------------------------------------


def race_shipped(
    policy: Policy, name: str, samples: Sequence[Sample], args: argparse.Namespace
) -> dict[str, Any]:
    """The race with the small trained model, and the engine's account."""
    n = len(samples)
    sizes = {"engine": n, "node": 24, "siblings": 48, "batched": 32}
    batches = [8, 16, 32]
    if args.quick:
        sizes, batches = {"engine": n, "node": 1, "siblings": 2, "batched": 8}, [8]
    who = ways(policy, SETTINGS, args.rows, sizes, batches)
    best = race(policy, SETTINGS, samples, who, args.rounds)
    show(f"{name}, {torch.get_num_threads()} threads, best of {args.rounds} rounds", best)
    found: dict[str, Any] = {f"speedup_{k}": v for k, v in speedups(best, "candidates").items()}
    found["speedups_by_draws"] = speedups(best, "draws")
    found |= account(policy, SETTINGS, samples, args.rows)
    found["shares"] = best["engine"].shares
    found["forward_share"] = found["shares"]["model"]
    found["greedy_agreement"] = greedy_agreement(policy, samples[: 4 if args.quick else 32])
    found["candidates_per_second"] = best["engine"].rate("candidates")
    found["n"] = {w.name: w.samples for w in who}
    return found


def race_mid(folder: Path, samples: Sequence[Sample], args: argparse.Namespace) -> dict[str, Any]:
    """The race with a larger model of random weights."""
    path, size = save_mid(folder, args.quick)
    policy = load_policy(path, device="cpu")
    sizes = {"engine": 48, "node": 1, "siblings": 2, "batched": 8}
    if args.quick:
        sizes["engine"] = 4
    who = ways(policy, MID_SETTINGS, args.rows_mid, sizes, [8])
    best = race(policy, MID_SETTINGS, samples, who, min(args.rounds, 2))
    title = f"LLaVA of {size / 1e6:.0f}M random weights (hardly two draws alike: the worst case)"
    show(f"{title}, best of {min(args.rounds, 2)} rounds", best)
    found: dict[str, Any] = {f"speedup_{k}_mid": v for k, v in speedups(best, "candidates").items()}
    found["speedups_by_draws_mid"] = speedups(best, "draws")
    found["forward_share_mid"] = best["engine"].shares["model"]
    found["parameters_mid"] = size
    found["n_mid"] = {w.name: w.samples for w in who}
    return found


def show_targets(found: dict[str, Any]) -> None:
    """Print the figures that have a target, and those beside them."""
    rows = []
    for name, target in TARGETS.items():
        sign, value = ("<=" if name in AT_MOST else ">="), found[name]
        reached = value <= target if name in AT_MOST else value >= target
        rows.append([f"`{name}`", f"{sign} {target:g}", f"{value:.3f}",
                     "reached" if reached else "missed"])  # fmt: skip
    for name in ("forward_share_mid", "tokens_per_draw_token", "speedup_node_by_node_siblings"):
        rows.append([f"`{name}`", "", f"{found[name]:.3f}", ""])
    for name, share in found["greedy_agreement"].items():
        rows.append([f"greedy texts as one `generate` call's: {name}", "", f"{share:.3f}", ""])
    table(["figure", "target", "measured", ""], rows)


def main() -> None:
    """Run, print, and end with one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--policy", default="miniworld:mini-llava", help="folder of a LLaVA")
    parser.add_argument("--samples", type=int, default=1000, help="MiniWorld's, for the engine")
    parser.add_argument("--rows", type=int, default=96, help="decoded at once by the engine")
    parser.add_argument("--rows-mid", type=int, default=96, help="the same, larger model")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="a smoke test of a few seconds")
    args = parser.parse_args()
    if args.quick:
        args.samples, args.rounds = min(args.samples, 24), 1
    quiet()
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        samples = tiny_samples(Path(folder) / "world", max(64, args.samples), "test")
        policy = load_policy(args.policy, device="cpu")
        found = race_shipped(policy, args.policy, samples[: args.samples], args)
        found |= race_mid(Path(folder) / "mid", samples, args)
    show_targets(found)
    found |= {"policy": args.policy, "rows": args.rows, "rows_mid": args.rows_mid}
    found |= {"rounds": args.rounds, "quick": args.quick, "threads": torch.get_num_threads()}
    last_line(found | {"torch": torch.__version__, "targets": TARGETS})


if __name__ == "__main__":
    main()
