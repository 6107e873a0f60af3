"""The engine: nothing depends on the batch, nothing is computed twice, memory may run out."""

from __future__ import annotations

import gc
import itertools
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import DynamicCache, LlamaConfig, PreTrainedTokenizerFast
from transformers.cache_utils import Cache

from selfcal.image import ImageError
from selfcal.policy import ModelError, Policy, load_policy
from selfcal.search import Engine, Limits, Sampling, SearchLimits, prompts, search
from selfcal.search.cache import Layout, Segment, Slots
from selfcal.search.jobs import Ask, Job, Place, Sentence
from selfcal.types import Sample
from tiny.families import SAMPLES, gemma3
from tiny.plain import Ids, Searched, Tree, same, searched

LIMITS = SearchLimits(
    candidates=3, branch=2, keep="stochastic", max_sentences=3, sentence_tokens=7,
    sampling=Sampling(),
)  # fmt: skip


@pytest.fixture(scope="module")
def done(talkative: Policy, samples: list[Sample]) -> Searched:
    """All samples at once."""
    return searched(talkative, samples, LIMITS)


@pytest.fixture
def endless(talkative: Policy) -> Iterator[Policy]:
    """The same model, which never ends a response."""
    stops = torch.tensor(sorted(talkative.stop_ids))
    never = talkative.model.lm_head.register_forward_hook(
        lambda module, args, out: out.index_fill(-1, stops, -1e9)
    )
    yield talkative
    never.remove()


def ready_threads() -> list[threading.Thread]:
    """Threads that read prompts."""
    return [t for t in threading.enumerate() if t.name == "prompts"]


# --- batches --------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [1, 2, 7, 64])
def test_rows_change_nothing(
    talkative: Policy, samples: list[Sample], done: Searched, rows: int
) -> None:
    some = samples if rows > 2 else samples[:4]
    found = searched(talkative, some, LIMITS, may=Limits(rows))
    assert same(found.trees, done.trees[: len(some)])


def test_the_order_of_samples_changes_nothing(
    talkative: Policy, samples: list[Sample], done: Searched
) -> None:
    assert same(searched(talkative, samples[::-1], LIMITS).trees, done.trees[::-1])


def test_a_sample_alone_gives_the_same(
    talkative: Policy, samples: list[Sample], done: Searched
) -> None:
    for sample, tree in zip(samples[:5], done.trees, strict=False):
        assert same(searched(talkative, [sample], LIMITS).trees, [tree])


def test_prompts_read_one_by_one_give_the_same(
    talkative: Policy, samples: list[Sample], done: Searched
) -> None:
    found = searched(talkative, samples, LIMITS, may=Limits(prompt_tokens=1))
    assert same(found.trees, done.trees)


def test_padded_prompts_give_the_same(
    talkative: Policy, samples: list[Sample], done: Searched, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prompts, "_PADDING", 100.0)
    found = searched(talkative, samples, LIMITS)
    assert found.engine.counts.prompt_slots > found.engine.counts.prompt_tokens
    assert same(found.trees, done.trees)


@pytest.mark.parametrize("cache_bytes", [1, 500_000, 3_000_000])
def test_a_small_cache_changes_nothing(
    talkative: Policy, samples: list[Sample], done: Searched, cache_bytes: int
) -> None:
    """Of one, a few and some more rows; even a cache too small for one row has one."""
    found = searched(talkative, samples[:5], LIMITS, may=Limits(cache_bytes=cache_bytes))
    work = found.engine.counts
    assert work.capacity < 192 * work.steps
    assert same(found.trees, done.trees[:5])


def test_small_caches_and_windows_do_not_disturb_each_other() -> None:
    """Rows move in their slots, and a window counts columns."""
    limits = replace(LIMITS, max_sentences=6, candidates=4)
    policy = gemma3()
    wide = searched(policy, SAMPLES, limits)
    for may in (Limits(1), Limits(3), Limits(64, cache_bytes=1)):
        assert same(searched(policy, SAMPLES, limits, may=may).trees, wide.trees)


LONG = replace(LIMITS, candidates=2, max_sentences=12, sentence_tokens=15)


def test_responses_longer_than_the_first_slots(endless: Policy, samples: list[Sample]) -> None:
    """Slots have room for a prompt and some; they move, and are made anew, as responses grow."""
    wide, narrow = (searched(endless, samples[:2], LONG, may=Limits(rows)) for rows in (64, 3))
    assert max(sum(map(len, (*s.before, s.ids))) for t in wide.trees for s in t.said) > 100
    assert same(wide.trees, narrow.trees)


# --- streams --------------------------------------------------------------------------------


def test_results_come_in_order_while_samples_are_still_taken(
    talkative: Policy, samples: list[Sample], done: Searched
) -> None:
    taken: list[str] = []

    def stream() -> Iterator[Sample]:
        for sample in itertools.chain(samples, (replace(s, id=f"{s.id}-2") for s in samples)):
            taken.append(sample.id)
            yield sample

    results = search(talkative, stream(), LIMITS, "0", Limits(rows=4))
    first = next(results)
    assert len(taken) < 2 * len(samples)
    nodes = [first.nodes, *(f.nodes for f in results)]
    assert [own[0].sample_id for own in nodes] == taken
    texts = [[n.text for n in own] for own in nodes[: len(samples)]]
    assert texts == [[n.text for n in f.nodes] for f in done.found]


def test_no_samples_give_no_results(talkative: Policy) -> None:
    assert list(search(talkative, iter([]), LIMITS, "0")) == []
    assert not ready_threads()


def test_an_image_that_cannot_be_read_ends_the_search(
    talkative: Policy, samples: list[Sample], tmp_path: Path
) -> None:
    broken = replace(samples[3], image=str(tmp_path / "none.png"))
    with pytest.raises(ImageError, match=r"none\.png"):
        list(search(talkative, [*samples[:3], broken, *samples[4:]], LIMITS, "0", Limits(rows=8)))
    assert not ready_threads()


def test_an_error_in_the_stream_of_samples_is_raised(
    talkative: Policy, samples: list[Sample]
) -> None:
    def stream() -> Iterator[Sample]:
        yield from samples[:3]
        raise KeyError("the stream broke")

    with pytest.raises(KeyError, match="the stream broke"):
        list(search(talkative, stream(), LIMITS, "0"))
    assert not ready_threads()


@pytest.mark.parametrize("taken", [0, 1, 2])
def test_results_that_nobody_wants_end_the_thread(
    talkative: Policy, samples: list[Sample], taken: int
) -> None:
    results: Any = search(talkative, itertools.cycle(samples), LIMITS, "0", Limits(rows=8))
    for _ in range(taken):
        next(results)
    assert bool(ready_threads()) == (taken > 0)
    results.close()
    assert not ready_threads()


def test_who_takes_the_results_may_still_train(talkative: Policy, samples: list[Sample]) -> None:
    results: Any = search(talkative, samples[:4], LIMITS, "0", Limits(rows=4))
    next(results)
    mode = torch.is_inference_mode_enabled()
    results.close()
    assert not mode


def test_nothing_of_the_cache_outlives_the_search(talkative: Policy, samples: list[Sample]) -> None:
    def alive() -> int:
        gc.collect()
        return sum(type(o) in (Segment, Slots) for o in gc.get_objects())

    before = alive()
    results: Any = search(talkative, samples, LIMITS, "0", Limits(rows=8))
    kept = [next(results)]
    during = alive()
    kept += results
    assert len(kept) == len(samples)
    assert during > before == alive()


# --- what was computed ----------------------------------------------------------------------


@dataclass
class Watched:
    """A model that counts what it is fed, and fails when it is told to."""

    model: Any
    fails: Callable[[str, int, int], Exception | None] = lambda kind, number, rows: None
    """What call `number` (from 0) of kind `prompt` or `step` raises, by its number of rows."""
    calls: list[tuple[str, torch.Tensor, torch.Tensor]] = field(default_factory=list)
    """Kind, tokens and mask of every call that went through."""
    numbers: dict[str, int] = field(default_factory=lambda: {"prompt": 0, "step": 0})
    failed: list[tuple[str, int]] = field(default_factory=list)
    """Kind and rows of every call that did not."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def __call__(self, **given: Any) -> Any:
        kind = "prompt" if "pixel_values" in given else "step"
        ids = given["input_ids"]
        number = self.numbers[kind]
        self.numbers[kind] += 1
        if error := self.fails(kind, number, len(ids)):
            self.failed.append((kind, len(ids)))
            raise error
        out = self.model(**given)
        self.calls.append((kind, ids.clone(), given["attention_mask"].clone()))
        return out

    def rows(self, kind: str) -> list[int]:
        return [len(ids) for k, ids, _ in self.calls if k == kind]


def watched(policy: Any, **how: Any) -> tuple[Any, Watched]:
    model = Watched(policy.model, **how)
    return replace(policy, model=model), model


def prefixes(trees: Sequence[Tree]) -> set[tuple[int, tuple[Ids, ...], Ids]]:
    """All that must be fed to have what was said; the end of a response need not be."""
    return {
        (i, s.before, s.ids[:n])
        for i, tree in enumerate(trees)
        for s in tree.said
        for n in range(1, len(s.ids) + (not s.ended))
    }


@pytest.mark.parametrize("rows", [3, 192])
@pytest.mark.parametrize("sampling", [Sampling(), Sampling(top_k=3), Sampling(temperature=0)])
def test_every_token_and_image_is_computed_once(
    talkative: Policy, samples: list[Sample], sampling: Sampling, rows: int
) -> None:
    """As many tokens as there are distinct beginnings of sentences: none twice, none in vain."""
    some = samples[:6]
    policy, model = watched(talkative)
    seen: list[int] = []
    tower = talkative.model.model.vision_tower.register_forward_hook(
        lambda module, args, kwargs, out: seen.append(len(kwargs.get("pixel_values", *args[:1]))),
        with_kwargs=True,
    )
    try:
        limits = replace(LIMITS, sampling=sampling)
        out = searched(policy, some, limits, may=Limits(rows))
    finally:
        tower.remove()
    work = out.engine.counts
    needed = prefixes(out.trees)
    assert work.tokens == sum(model.rows("step")) == len(needed)
    assert work.steps == len(model.rows("step"))
    assert work.images == sum(seen) == len(some)
    lengths = [int(talkative.encode([s])["attention_mask"].sum()) for s in some]
    masks = [mask for kind, _, mask in model.calls if kind == "prompt"]
    assert work.prompt_tokens == sum(int(m.sum()) for m in masks) == sum(lengths)
    assert work.prompt_slots == sum(m.numel() for m in masks)
    assert sum(map(len, masks)) == len(some)
    assert work.capacity == rows * work.steps
    assert work.occupancy == pytest.approx(len(needed) / (rows * work.steps))
    assert work.back_offs == 0
    fed = sorted(int(t) for kind, ids, _ in model.calls if kind == "step" for t in ids[:, 0])
    assert fed == sorted(beginning[-1] for _, _, beginning in needed)


def test_a_step_is_no_wider_than_what_is_in_work(talkative: Policy, samples: list[Sample]) -> None:
    """The longest row of a step has no padding, and no step has more rows than it may."""
    policy, model = watched(talkative)
    searched(policy, samples[:5], LIMITS, may=Limits(rows=5))
    for kind, ids, mask in model.calls:
        if kind == "step":
            assert ids.shape == (len(mask), 1)
            assert bool(mask[:, 0].any()) and bool(mask[:, -1].all())
            assert 1 <= len(ids) <= 5


def test_draws_that_are_alike_are_decoded_once(talkative: Policy, samples: list[Sample]) -> None:
    """Greedy draws never part: one row, however many draws."""
    policy, model = watched(talkative)
    limits = replace(LIMITS, candidates=8, branch=4, sampling=Sampling(temperature=0))
    searched(policy, samples[:1], limits)
    assert set(model.rows("step")) == {1}


# --- memory ---------------------------------------------------------------------------------


def cuda() -> Exception:
    return torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def cpu() -> Exception:
    return RuntimeError(
        "[enforce fail at alloc_cpu.cpp:121] data. DefaultCPUAllocator: can't allocate memory: "
        "you tried to allocate 8589934592 bytes. Error code 12 (Cannot allocate memory)"
    )


@pytest.mark.parametrize("error", [cuda, cpu, MemoryError])
@pytest.mark.parametrize("at", [0, 1, 9, 30])
def test_a_step_that_runs_out_of_memory_is_done_again_with_half_the_rows(
    talkative: Policy,
    samples: list[Sample],
    done: Searched,
    at: int,
    error: Callable[[], Exception],
) -> None:
    def fails(kind: str, number: int, rows: int) -> Exception | None:
        return error() if kind == "step" and number == at else None

    policy, model = watched(talkative, fails=fails)
    out = searched(policy, samples[:4], LIMITS, may=Limits(rows=8))
    assert same(out.trees, done.trees[:4])
    work = out.engine.counts
    assert work.back_offs == 1
    assert work.tokens == sum(model.rows("step")) == len(prefixes(out.trees))
    assert max(model.rows("step")[at:]) <= 4
    assert work.capacity == 8 * at + 4 * (work.steps - at)


def test_memory_that_runs_out_again_and_again(
    talkative: Policy, samples: list[Sample], done: Searched
) -> None:
    """Room for two rows: 16, 8 and 4 fail."""

    def fails(kind: str, number: int, rows: int) -> Exception | None:
        return cuda() if kind == "step" and rows > 2 else None

    policy, model = watched(talkative, fails=fails)
    out = searched(policy, samples[:5], LIMITS, may=Limits(rows=16))
    assert same(out.trees, done.trees[:5])
    assert out.engine.counts.back_offs == len(model.failed) <= 3
    assert max(model.rows("step")) == 2


@pytest.mark.parametrize("error", [cuda, cpu])
def test_prompts_that_run_out_of_memory_are_read_by_halves(
    talkative: Policy,
    samples: list[Sample],
    done: Searched,
    error: Callable[[], Exception],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The first prompt is read alone; then seven at once fail, and four, and three; two do not."""
    monkeypatch.setattr(prompts, "_PADDING", 100.0)

    def fails(kind: str, number: int, rows: int) -> Exception | None:
        return error() if kind == "prompt" and rows > 2 else None

    policy, model = watched(talkative, fails=fails)
    out = searched(policy, samples[:8], LIMITS, may=Limits(rows=64))
    assert same(out.trees, done.trees[:8])
    assert [rows for _, rows in model.failed] == [7, 4, 3]
    assert out.engine.counts.back_offs == 3
    assert out.engine.counts.images == 8
    assert out.engine.counts.capacity == 64 * out.engine.counts.steps  # no row was in the way


def test_a_prompt_that_does_not_fit_beside_the_rows_halves_them(
    talkative: Policy, samples: list[Sample], done: Searched
) -> None:
    def fails(kind: str, number: int, rows: int) -> Exception | None:
        return cuda() if kind == "prompt" and number == 2 else None

    policy, model = watched(talkative, fails=fails)
    out = searched(policy, samples[:6], LIMITS, may=Limits(rows=8))
    assert same(out.trees, done.trees[:6])
    assert model.failed == [("prompt", 1)]
    work = out.engine.counts
    assert work.back_offs == 1
    assert 4 * work.steps < work.capacity < 8 * work.steps
    assert work.tokens == len(prefixes(out.trees))


def test_slots_that_do_not_fit_are_made_with_half_the_rows(
    talkative: Policy, samples: list[Sample], done: Searched, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Room for three rows."""
    made = Slots.__init__

    def making(self: Slots, layout: Any, size: int, columns: int) -> None:
        if size > 3:
            raise cuda()
        made(self, layout, size, columns)

    monkeypatch.setattr(Slots, "__init__", making)
    out = searched(talkative, samples[:5], LIMITS, may=Limits(rows=8))
    assert same(out.trees, done.trees[:5])
    assert out.engine.counts.back_offs == 2
    assert out.engine.counts.capacity == 2 * out.engine.counts.steps


@pytest.mark.parametrize("used", [1, 3, 7])
@pytest.mark.parametrize("by", [-5, -3, -1, 0, 1, 2, 5])
def test_rows_are_moved_whole_and_without_memory_beside(
    used: int, by: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A move that ran out of memory half way would leave layers at different columns."""
    cache = DynamicCache()
    for layer in range(2):
        cache.update(torch.zeros(1, 2, 1, 4), torch.zeros(1, 2, 1, 4), layer)
    slots = Slots(Layout(cache), size=3, columns=24)
    slots.rows, slots.begin, slots.end = 3, 12 - used, 12
    (bank,) = slots._banks
    bank.copy_(torch.randn(bank.shape))
    own = bank[..., 12 - used : 12, :].clone()
    monkeypatch.setattr(torch.Tensor, "clone", None)
    slots._move(12 + by)
    assert (slots.begin, slots.end) == (12 + by - used, 12 + by)
    assert torch.equal(bank[..., slots.begin : slots.end, :], own)


@pytest.mark.parametrize("kind", ["step", "prompt"])
@pytest.mark.parametrize("at", [0, 3])
def test_one_row_too_many_is_an_error_with_a_way_out(
    talkative: Policy, samples: list[Sample], kind: str, at: int
) -> None:
    policy, _ = watched(
        talkative,
        fails=lambda what, number, rows: cuda() if what == kind and number >= at else None,
    )
    with pytest.raises(ModelError, match=r"policy\.dtype=bfloat16") as error:
        list(search(policy, samples, LIMITS, "0", Limits(rows=8)))
    assert "CUDA out of memory" in str(error.value)
    assert not ready_threads()


@pytest.mark.parametrize("kind", ["step", "prompt"])
def test_other_errors_of_the_model_are_not_taken_for_missing_memory(
    talkative: Policy, samples: list[Sample], kind: str
) -> None:
    policy, model = watched(
        talkative, fails=lambda what, *_: RuntimeError("shape mismatch") if what == kind else None
    )
    with pytest.raises(RuntimeError, match="shape mismatch"):
        list(search(policy, samples, LIMITS, "0", Limits(rows=8)))
    assert len(model.failed) == 1
    assert not ready_threads()


def test_a_layer_without_keys_and_values_is_named(talkative: Policy, samples: list[Sample]) -> None:
    """A recurrent layer has one state for all tokens, which cannot be cut at a token."""

    class RecurrentLayer:
        recurrent_states = torch.zeros(1, 4)

    class Recurrent(Watched):
        def __call__(self, **given: Any) -> Any:
            out = self.model(**given)
            layers = [*out.past_key_values.layers[:2], RecurrentLayer()]
            cache = SimpleNamespace(layers=layers)
            return SimpleNamespace(logits=out.logits, past_key_values=cache)

    policy = replace(talkative, model=Recurrent(talkative.model))
    with pytest.raises(ModelError, match=r"layer 2 .* RecurrentLayer"):
        list(search(policy, samples[:1], LIMITS, "0"))
    assert not ready_threads()


# --- jobs -----------------------------------------------------------------------------------


def test_a_job_may_ask_for_several_places_and_draws_at_once(
    endless: Policy, samples: list[Sample]
) -> None:
    """Answers come in the order of asks and draws; draws alike share one sentence."""
    numbers = np.random.default_rng(0).random((3, LIMITS.sentence_tokens))

    def start(sample: Sample, place: Place) -> Job[list[list[Sentence]]]:
        (first,) = yield [Ask(place, numbers[[0, 1, 0]])]
        rest = yield [Ask(first[1].place, numbers[[2]]), Ask(first[0].place, numbers[[2, 0]])]  # type: ignore[arg-type]
        return [first, *rest]

    def one(sample: Sample, place: Place) -> Job[list[Ids]]:
        ((a,),) = yield [Ask(place, numbers[[0]])]
        ((b,),) = yield [Ask(a.place, numbers[[0]])]  # type: ignore[arg-type]
        return [a.ids, b.ids]

    def run(job: Callable[[Sample, Place], Job[Any]]) -> list[Any]:
        return list(Engine(endless, Sampling(), LIMITS.sentence_tokens).run(samples[:4], job))

    for (first, second, third), (a, b) in zip(run(start), run(one), strict=True):
        assert first[0] is first[2] and first[0] is not first[1]
        assert [len(x) for x in (first, second, third)] == [3, 1, 2]
        assert (first[0].ids, third[1].ids) == (a, b)


def test_a_job_that_asks_nothing_is_done_at_once(talkative: Policy, samples: list[Sample]) -> None:
    def start(sample: Sample, place: Place) -> Job[str]:
        return sample.id
        yield []

    ids = list(Engine(talkative, Sampling(), 5).run(samples, start))
    assert ids == [s.id for s in samples]


# --- sentence ends, with a model that follows a script --------------------------------------


class ScriptedModel:
    """Says the same tokens in every row, each with near certainty."""

    config = LlamaConfig(num_hidden_layers=1)

    def __init__(self, script: list[int], prompt: int, vocabulary: int) -> None:
        self.script, self.prompt, self.vocabulary = script, prompt, vocabulary
        self.fed: list[int] = []

    def __call__(
        self, input_ids: torch.Tensor, position_ids: torch.Tensor, past_key_values: Cache, **_: Any
    ) -> SimpleNamespace:
        if "pixel_values" not in _:
            self.fed += input_ids[:, 0].tolist()
        state = torch.zeros((len(input_ids), 1, input_ids.shape[1], 1))
        past_key_values.update(state, state, 0)
        said = position_ids[:, -1] - self.prompt + 1
        logits = torch.full((len(input_ids), 1, self.vocabulary), -100.0)
        for row, at in enumerate(said.tolist()):
            logits[row, 0, self.script[at]] = 100.0
        return SimpleNamespace(logits=logits, past_key_values=past_key_values)


@dataclass
class Scripted:
    """A policy whose model follows a script."""

    tokenizer: Any
    text: str
    device: str = "cpu"
    pad_id: int = 0

    def __post_init__(self) -> None:
        end = self.tokenizer.eos_token_id
        script = [*self.tokenizer(self.text, add_special_tokens=False)["input_ids"], end]
        self.stop_ids = frozenset([end])
        self.model = ScriptedModel(script, 3, len(self.tokenizer))

    def prompt(self, sample: Sample) -> Any:
        return SimpleNamespace(size=(4, 4), tokens=3)

    def encode_prompts(self, some: Sequence[Any]) -> dict[str, torch.Tensor]:
        ids = torch.ones((len(some), 3), dtype=torch.long)
        return {"input_ids": ids, "attention_mask": ids, "pixel_values": ids}

    def place(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return batch


def said(policy: Any, limit: int = 40, draws: int = 2, whole: bool = False) -> list[Sentence]:
    """The sentences of the scripted response, one after the other."""

    def start(sample: Sample, place: Place) -> Job[list[Sentence]]:
        sentences: list[Sentence] = []
        at: Place | None = place
        while at is not None:
            (own,) = yield [Ask(at, np.full((draws, limit), 0.5))]
            sentences.append(own[0])
            at = own[0].place
        return sentences

    engine = Engine(policy, Sampling(), limit, Limits(rows=4), whole)
    (sentences,) = engine.run([Sample("s", "", "", "")], start)
    assert engine.counts.tokens == len(policy.model.fed)
    return sentences


def sentencepiece_tokenizer(text: str) -> Any:
    """Spaces belong to the word after them, and go at the start of a text, as in LLaVA-1.5."""
    words = re.findall(r"▁?\w+|\W", "▁" + text.replace(" ", "▁"))
    vocabulary = {w: i for i, w in enumerate(["<unk>", "</s>", *dict.fromkeys(words)])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, "<unk>"))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"▁?\w+|\W"), "isolated")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", unk_token="<unk>")


@pytest.fixture(scope="module")
def tokenizer(policy_folder: str) -> Any:
    return load_policy(policy_folder, device="cpu").tokenizer


SCRIPT = "The bar is 3.5 units. It is red, e.g. 7.\nAnswer: 3.5"
SENTENCES = ["The bar is 3.5 units. ", "It is red, e.g. 7.\n", "Answer: 3.5"]


def test_a_sentence_ends_at_its_end_and_not_inside_a_number(tokenizer: Any) -> None:
    policy = Scripted(tokenizer, SCRIPT)
    sentences = said(policy)
    # the space before a word belongs to the word's token, and thus to the next sentence
    assert [s.text.strip() for s in sentences] == [s.strip() for s in SENTENCES]
    assert "".join(s.text for s in sentences) == SCRIPT
    assert [i for s in sentences for i in s.ids] == policy.model.script
    assert [s.ended for s in sentences] == [False, False, True]
    # no token twice, none left out, and never the end of the response
    assert policy.model.fed == policy.model.script[:-1]


@pytest.mark.parametrize("limit", [1, 2, 3, 5, 8])
def test_sentences_join_to_the_response_wherever_a_limit_cuts(tokenizer: Any, limit: int) -> None:
    policy = Scripted(tokenizer, SCRIPT)
    sentences = said(policy, limit)
    assert "".join(s.text for s in sentences) == SCRIPT
    assert all(len(s.ids) <= limit for s in sentences)
    assert policy.model.fed == policy.model.script[:-1]


def test_no_space_is_lost_between_sentences_with_sentencepiece() -> None:
    text = "The bar is 3.5 units. It is red.\nAnswer: 7"
    tokenizer = sentencepiece_tokenizer(text)
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text  # the tokenizer is right
    sentences = [s.text for s in said(Scripted(tokenizer, text))]
    assert [s.strip() for s in sentences] == ["The bar is 3.5 units.", "It is red.", "Answer: 7"]
    assert "".join(sentences) == text
    assert "".join(s.text for s in said(Scripted(tokenizer, text), 2)) == text


def test_a_whole_response_is_not_parted(tokenizer: Any) -> None:
    policy = Scripted(tokenizer, SCRIPT)
    (response,) = said(policy, whole=True)
    assert (response.text, response.ended, response.place) == (SCRIPT, True, None)
    assert response.ids == tuple(policy.model.script)
    cut, *_ = said(Scripted(tokenizer, SCRIPT), 6, whole=True)
    assert (cut.ids, cut.ended) == (response.ids[:6], False)
