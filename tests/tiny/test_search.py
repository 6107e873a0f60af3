"""The search against an obvious reference: one plain forward pass over prompt and response."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
)

from selfcal.policy import Policy, load_policy
from selfcal.search import SearchLimits, beam, search
from selfcal.search.decode import Branches, Row, Sentence
from selfcal.types import Candidate, Sample, SearchNode

LIMITS = SearchLimits(
    candidates=4, branch=2, keep="stochastic", temperature=1.0, top_p=1.0, max_sentences=4,
    sentence_tokens=9,
)  # fmt: skip
SPOKEN = [".", " The", " red", " bar", " is", " 3", "5", "\n", "Answer", ":", " 7"]


@pytest.fixture(scope="module")
def random_policy(policy_folder: str) -> Policy:
    """A model of random weights that likes to say sentences."""
    loaded = load_policy(policy_folder, device="cpu")
    bias = torch.zeros(len(loaded.tokenizer))
    for token in SPOKEN:
        ids = loaded.tokenizer(token, add_special_tokens=False)["input_ids"]
        bias[ids[-1]] = 4.0
    bias[loaded.tokenizer.convert_tokens_to_ids("<image>")] = -1e9
    for stop in loaded.stop_ids:
        bias[stop] = 3.0
    loaded.model.lm_head.register_forward_hook(lambda module, args, out: out + bias)
    return loaded


@pytest.fixture(scope="module", params=["random", "shipped"])
def policy(request: pytest.FixtureRequest, random_policy: Policy) -> Policy:
    """The model of random weights, and the shipped one."""
    if request.param == "shipped":
        return load_policy("miniworld:mini-llava", device="cpu")
    return random_policy


# --- the reference --------------------------------------------------------------------------


def reference(policy: Policy, sample: Sample, ids: Sequence[int]) -> torch.Tensor:
    """Logits that each token of a response is drawn from, [len(ids), vocabulary]."""
    batch = policy.encode([sample])
    response = torch.tensor([ids])
    batch["input_ids"] = torch.cat([batch["input_ids"], response], dim=1)
    batch["attention_mask"] = torch.ones_like(batch["input_ids"])
    with torch.inference_mode():
        logits = policy.model(**batch, use_cache=False).logits[0]
    return logits[-len(ids) - 1 : -1]


@dataclass
class Found:
    """A search with the tokens of every sentence, which records leave out."""

    candidates: list[Candidate]
    nodes: list[SearchNode]
    ids: dict[tuple[str, float], tuple[int, ...]]

    def path(self, node: SearchNode) -> list[SearchNode]:
        """The nodes from a first sentence to this one."""
        by_number = {n.node: n for n in self.nodes if n.sample_id == node.sample_id}
        path = [node]
        while path[0].parent >= 0:
            path.insert(0, by_number[path[0].parent])
        return path

    def tokens(self, sentences: Sequence[tuple[str, float]]) -> list[tuple[int, ...]]:
        return [self.ids[s] for s in sentences]


class Recorded(Branches):
    """Branches that note the tokens of the sentences they decode."""

    notes: dict[tuple[str, float], tuple[int, ...]]
    rows = 0

    def sample(self, rows: Sequence[Row], uniforms: Sequence[np.ndarray]) -> list[Sentence]:
        sentences = super().sample(rows, uniforms)
        type(self).notes |= {(s.text, s.logprob): s.ids for s in sentences}
        type(self).rows += len(rows)
        return sentences


def run(
    policy: Policy, samples: Sequence[Sample], limits: SearchLimits = LIMITS, seed: str = "0"
) -> Found:
    Recorded.notes = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(beam, "Branches", Recorded)
        candidates, nodes, _ = search(policy, samples, limits, seed)
    return Found(candidates, nodes, Recorded.notes)


@pytest.fixture(scope="module")
def found(policy: Policy, samples: list[Sample]) -> Found:
    return run(policy, samples[:5])


# --- log-probabilities ----------------------------------------------------------------------


def test_every_sentence_has_the_log_probability_of_a_plain_forward_pass(
    policy: Policy, samples: list[Sample], found: Found
) -> None:
    """Later sentences too: what is drawn past a sentence's end must leave no trace."""
    by_id = {s.id: s for s in samples}
    for node in found.nodes:
        path = found.path(node)
        tokens = found.tokens([(n.text, n.logprob) for n in path])
        ids = [i for own in tokens for i in own]
        logits = reference(policy, by_id[node.sample_id], ids)
        logprobs = torch.log_softmax(logits.float(), dim=-1)
        gained = logprobs[torch.arange(len(ids)), ids][-len(tokens[-1]) :].sum()
        assert node.logprob == pytest.approx(float(gained), abs=1e-4)
        assert node.tokens == len(tokens[-1])


def test_a_candidate_has_the_log_probability_of_its_tokens(
    policy: Policy, samples: list[Sample], found: Found
) -> None:
    by_id = {s.id: s for s in samples}
    assert found.candidates
    for c in found.candidates:
        parts = found.tokens(list(zip(c.sentences, c.sentence_logprobs, strict=True)))
        ids = [i for own in parts for i in own]
        logprobs = torch.log_softmax(reference(policy, by_id[c.sample_id], ids), dim=-1)
        assert c.logprob == pytest.approx(
            float(logprobs[torch.arange(len(ids)), ids].sum()), abs=1e-4
        )
        assert c.token_counts == tuple(map(len, parts))
        assert c.finished == (ids[-1] in policy.stop_ids)
        assert policy.tokenizer.decode(ids, skip_special_tokens=True).strip() == c.text


def test_the_random_model_goes_deep_and_ends_sentences_and_responses(
    random_policy: Policy, samples: list[Sample]
) -> None:
    """Else the tests above would not see what they are for."""
    found = run(random_policy, samples[:5])
    depths = Counter(len(found.path(n)) for n in found.nodes)
    assert all(depths[d] > 5 for d in (1, 2, 3))
    assert sum(n.tokens < LIMITS.sentence_tokens for n in found.nodes) > 5
    assert any(c.finished for c in found.candidates)


def test_a_model_that_counts_positions_itself(samples: list[Sample]) -> None:
    """Qwen-VL: an image of 2 x 2 merged patches takes 4 tokens and 2 positions."""
    torch.manual_seed(0)
    heads = {"num_attention_heads": 2, "num_hidden_layers": 2, "hidden_size": 32}
    rope = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 1e4}
    config = Qwen2_5_VLConfig(
        text_config={
            **heads, "intermediate_size": 64, "num_key_value_heads": 2, "vocab_size": 50,
            "rope_parameters": rope, "initializer_range": 0.3, "bos_token_id": None,
            "eos_token_id": 1, "pad_token_id": 0,
        },
        vision_config={
            "depth": 2, "hidden_size": 32, "num_heads": 2, "intermediate_size": 64,
            "out_hidden_size": 32, "patch_size": 4, "fullatt_block_indexes": [1], "window_size": 16,
            "initializer_range": 0.3,
        },
        image_token_id=4, video_token_id=5, vision_start_token_id=6, vision_end_token_id=7,
    )  # fmt: skip
    model = Qwen2_5_VLForConditionalGeneration(config).eval()
    never = torch.isin(torch.arange(50), torch.tensor([0, 1, 4, 5]))  # padding, end, images
    model.lm_head.register_forward_hook(lambda module, args, out: out - 1e9 * never)
    image = [6, 4, 4, 4, 4, 7]
    prompts = {"a": [10, 11, *image, 12, 13, 14, 15, 16], "b": [*image, 20]}
    pixels = {"a": torch.randn(16, 3 * 2 * 4 * 4), "b": torch.randn(16, 3 * 2 * 4 * 4)}

    def encode(some: Sequence[Sample], more: Sequence[int] = ()) -> dict[str, torch.Tensor]:
        width = max(len(prompts[s.id]) for s in some)
        rows = [[0] * (width - len(prompts[s.id])) + prompts[s.id] + list(more) for s in some]
        ids = torch.tensor(rows)
        return {
            "input_ids": ids,
            "attention_mask": (ids != 0).long(),
            "mm_token_type_ids": (ids == 4).int(),
            "pixel_values": torch.cat([pixels[s.id] for s in some]),
            "image_grid_thw": torch.tensor([[1, 4, 4]] * len(some)),
        }

    tokenizer = SimpleNamespace(decode=lambda ids, **_: "".join(f" {i}" for i in ids))
    policy: Any = SimpleNamespace(
        model=model, encode=encode, tokenizer=tokenizer, device="cpu", pad_id=0,
        stop_ids=frozenset([1]),
    )  # fmt: skip
    a, b = (replace(samples[0], id=i) for i in "ab")
    branches = Branches(policy, [a, b], 1.0, 1.0, sentence_tokens=5)
    rows = branches.roots()
    before: list[list[int]] = [[], []]
    for _ in range(2):
        draws = [np.random.default_rng(i).random(5) for i in range(2)]
        sentences = branches.sample(rows, draws)
        rows = [s.row for s in sentences]
        for sample, own, sentence in zip((a, b), before, sentences, strict=True):
            own += sentence.ids
            with torch.inference_mode():
                logits = model(**encode([sample], own), use_cache=False).logits[0]
            logprobs = torch.log_softmax(logits[-len(own) - 1 : -1], dim=-1)
            gained = logprobs[torch.arange(len(own)), own][-len(sentence.ids) :].sum()
            assert sentence.logprob == pytest.approx(float(gained), abs=1e-4)


# --- trees and candidates -------------------------------------------------------------------


def test_trees_are_consistent(found: Found) -> None:
    for sample_id in {n.sample_id for n in found.nodes}:
        nodes = [n for n in found.nodes if n.sample_id == sample_id]
        assert [n.node for n in nodes] == list(range(len(nodes)))
        assert all(-1 <= n.parent < n.node for n in nodes)
        assert all(nodes[n.parent].kept for n in nodes if n.parent >= 0)
        ends = {n.candidate: n for n in nodes if n.candidate >= 0}
        own = [c for c in found.candidates if c.sample_id == sample_id]
        assert [c.index for c in own] == sorted(ends) == list(range(len(own)))
        for c in own:
            path = found.path(ends[c.index])
            assert all(n.kept for n in path)
            assert "".join(n.text for n in path).strip() == c.text
            assert tuple(n.text for n in path) == c.sentences
            assert tuple(n.logprob for n in path) == c.sentence_logprobs


def test_candidates_are_distinct(found: Found) -> None:
    for sample_id in {c.sample_id for c in found.candidates}:
        texts = [" ".join(c.text.split()) for c in found.candidates if c.sample_id == sample_id]
        assert len(set(texts)) == len(texts) <= LIMITS.candidates
        assert all(texts)


def test_siblings_are_distinct(found: Found) -> None:
    keys = Counter((n.sample_id, n.parent, " ".join(n.text.split())) for n in found.nodes)
    assert set(keys.values()) == {1}


def test_a_sample_without_candidates_is_named(policy: Policy, samples: list[Sample]) -> None:
    stop = min(policy.stop_ids)
    quiet = policy.model.lm_head.register_forward_hook(
        lambda module, args, out: out + 1e4 * (torch.arange(out.shape[-1]) == stop)
    )
    try:
        candidates, _, drops = search(policy, samples[:2], LIMITS, "0")
    finally:
        quiet.remove()
    assert not candidates
    reasons = Counter((d.sample_id, d.reason) for d in drops)
    assert all(reasons[s.id, "no-candidate"] == 1 for s in samples[:2])


# --- batches and seeds ----------------------------------------------------------------------


def texts(found: Found) -> dict[str, list[str]]:
    by_sample: dict[str, list[str]] = {}
    for c in found.candidates:
        by_sample.setdefault(c.sample_id, []).append(c.text)
    return by_sample


def test_neither_batch_nor_order_changes_the_candidates(
    policy: Policy, samples: list[Sample], found: Found
) -> None:
    assert texts(run(policy, samples[4::-1])) == texts(found)
    alone: dict[str, list[str]] = {}
    for sample in samples[:5]:
        alone |= texts(run(policy, [sample]))
    assert alone == texts(found)


def test_the_seed_changes_the_candidates(
    policy: Policy, samples: list[Sample], found: Found
) -> None:
    assert texts(run(policy, samples[:5])) == texts(found)
    assert texts(run(policy, samples[:5], seed="1")) != texts(found)


# --- limits ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("sentences", "tokens", "wanted"), [(1, 3, 2), (2, 5, 3), (3, 1, 6)])
def test_limits_hold(
    policy: Policy, samples: list[Sample], sentences: int, tokens: int, wanted: int
) -> None:
    limits = replace(LIMITS, max_sentences=sentences, sentence_tokens=tokens, candidates=wanted)
    out = run(policy, samples[:3], limits)
    assert out.candidates
    for c in out.candidates:
        assert len(c.sentences) <= sentences
        assert max(c.token_counts) <= tokens
        assert c.finished or len(c.sentences) == sentences
    assert max(Counter(c.sample_id for c in out.candidates).values()) <= wanted
    for level in range(sentences):
        kept = Counter(n.sample_id for n in out.nodes if n.kept and len(out.path(n)) == level + 1)
        assert all(k <= wanted for k in kept.values())


def test_every_level_draws_branch_times_the_candidates_still_wanted(
    policy: Policy, samples: list[Sample]
) -> None:
    Recorded.rows = 0
    run(policy, samples[:1], replace(LIMITS, max_sentences=1, candidates=5, branch=3))
    assert Recorded.rows == 15


def test_likelihood_keeps_the_likeliest_of_every_level(
    random_policy: Policy, samples: list[Sample]
) -> None:
    out = run(
        random_policy, samples[:4], replace(LIMITS, keep="likelihood", candidates=3, branch=3)
    )

    def score(node: SearchNode) -> float:
        path = out.path(node)
        return sum(n.logprob for n in path) / sum(n.tokens for n in path)

    pruned = 0
    levels: dict[tuple[str, int], list[SearchNode]] = {}
    for node in out.nodes:
        levels.setdefault((node.sample_id, len(out.path(node))), []).append(node)
    for nodes in levels.values():
        kept = [score(n) for n in nodes if n.kept]
        lost = [score(n) for n in nodes if not n.kept]
        assert not lost or min(kept) >= max(lost)
        pruned += len(lost)
    assert pruned > 5


def test_stochastic_keeps_in_proportion_to_probability() -> None:
    """With room for one, a path of probability p is kept p of the time."""
    children = [
        (beam._Path(Row(0)), Sentence(Row(i), text, float(np.log(p)), (0,), True))
        for i, (text, p) in enumerate([("a", 0.6), ("b", 0.3), ("c", 0.1)])
    ]
    kept = Counter[str]()
    n = 4000
    for seed in range(n):
        tree = beam._Tree(Sample("s", "", "", ""), [])
        one = replace(LIMITS, candidates=1)
        beam._select(tree, children, one, np.random.default_rng(seed), last=False)
        kept[tree.finished[0].text] += 1
    for text, p in (("a", 0.6), ("b", 0.3), ("c", 0.1)):
        assert kept[text] / n == pytest.approx(p, abs=4 * (p * (1 - p) / n) ** 0.5)


# --- drawing --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("temperature", "top_p"), [(1.0, 1.0), (0.5, 1.0), (2.0, 1.0), (1.0, 0.6), (0.7, 0.9)]
)
def test_tokens_are_drawn_by_temperature_and_top_p(
    policy: Policy, samples: list[Sample], temperature: float, top_p: float
) -> None:
    """An even grid of n numbers draws a token of probability p very nearly n p times."""
    n = 500
    sample = samples[0]
    branches = Branches(policy, [sample], temperature, top_p, sentence_tokens=1)
    grid = [np.array([(i + 0.5) / n]) for i in range(n)]
    drawn = Counter(s.ids[0] for s in branches.sample([branches.roots()[0]] * n, grid))

    logits = reference(policy, sample, [0])[0].double()
    probs = torch.softmax(logits / temperature, dim=-1)
    ranked = sorted(range(len(probs)), key=lambda t: -float(probs[t]))
    nucleus: list[int] = []
    while sum(float(probs[t]) for t in nucleus) < top_p and len(nucleus) < len(ranked):
        nucleus.append(ranked[len(nucleus)])
    total = sum(float(probs[t]) for t in nucleus)
    assert set(drawn) <= set(nucleus)
    for token in nucleus:
        assert abs(drawn[token] - n * float(probs[token]) / total) <= 1.01


def test_a_very_low_temperature_is_greedy(policy: Policy, samples: list[Sample]) -> None:
    limits = replace(LIMITS, temperature=1e-4, max_sentences=3, sentence_tokens=30)
    out = run(policy, samples[:4], limits)
    greedy = policy.respond(samples[:4], max_new_tokens=90)
    for sample, text in zip(samples[:4], greedy, strict=True):
        (only,) = [c for c in out.candidates if c.sample_id == sample.id]
        assert text.startswith(only.text)
        if only.finished:
            assert text == only.text


def test_the_log_probability_is_that_of_temperature_one(
    policy: Policy, samples: list[Sample]
) -> None:
    out = run(policy, samples[:2], replace(LIMITS, temperature=0.5, top_p=0.8))
    by_id = {s.id: s for s in samples}
    for c in out.candidates:
        parts = out.tokens(list(zip(c.sentences, c.sentence_logprobs, strict=True)))
        ids = [i for own in parts for i in own]
        logprobs = torch.log_softmax(reference(policy, by_id[c.sample_id], ids), dim=-1)
        gained = float(logprobs[torch.arange(len(ids)), ids].sum())
        assert c.logprob == pytest.approx(gained, abs=1e-4)


# --- sentence ends, with a model that follows a script --------------------------------------


class ScriptedCache:
    def batch_select_indices(self, at: torch.Tensor) -> None:
        """Nothing: the script goes by positions alone."""


class ScriptedModel:
    """Says the same tokens in every row, each with near certainty."""

    def __init__(self, script: list[int], prompt: int, vocabulary: int) -> None:
        self.script, self.prompt, self.vocabulary = script, prompt, vocabulary
        self.fed: list[int] = []

    def __call__(
        self, input_ids: torch.Tensor, position_ids: torch.Tensor, **more: Any
    ) -> SimpleNamespace:
        if "past_key_values" in more:
            self.fed += input_ids[:, 0].tolist()
        said = position_ids[:, -1] - self.prompt + 1
        logits = torch.full((len(input_ids), 1, self.vocabulary), -100.0)
        for row, at in enumerate(said.tolist()):
            logits[row, 0, self.script[at]] = 100.0
        return SimpleNamespace(logits=logits, past_key_values=ScriptedCache())


def scripted(tokenizer: Any, text: str) -> Any:
    script = [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    prompt = torch.full((1, 3), 1)
    return SimpleNamespace(
        tokenizer=tokenizer,
        device="cpu",
        pad_id=0,
        stop_ids=frozenset([tokenizer.eos_token_id]),
        encode=lambda samples: {"input_ids": prompt, "attention_mask": torch.ones_like(prompt)},
        model=ScriptedModel(script, prompt.shape[1], len(tokenizer)),
    )


def said(policy: Any, limit: int = 40) -> Iterator[Sentence]:
    branches = Branches(policy, [Sample("s", "", "", "")], 1.0, 1.0, limit)
    (row,) = branches.roots()
    while True:
        (sentence,) = branches.sample([row], [np.full(limit, 0.5)])
        yield sentence
        if sentence.ended:
            return
        row = sentence.row


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


SCRIPT = "The bar is 3.5 units. It is red, e.g. 7.\nAnswer: 3.5"
SENTENCES = ["The bar is 3.5 units. ", "It is red, e.g. 7.\n", "Answer: 3.5"]


def test_a_sentence_ends_at_its_end_and_not_inside_a_number(policy_folder: str) -> None:
    policy = scripted(load_policy(policy_folder, device="cpu").tokenizer, SCRIPT)
    sentences = list(said(policy))
    # the space before a word belongs to the word's token, and thus to the next sentence
    assert [s.text.strip() for s in sentences] == [s.strip() for s in SENTENCES]
    assert "".join(s.text for s in sentences) == SCRIPT
    assert [i for s in sentences for i in s.ids] == policy.model.script
    assert [s.ended for s in sentences] == [False, False, True]
    # no token twice, none left out, and never the end of the response
    assert policy.model.fed == policy.model.script[:-1]


@pytest.mark.parametrize("limit", [1, 2, 3, 5, 8])
def test_sentences_join_to_the_response_wherever_a_limit_cuts(
    policy_folder: str, limit: int
) -> None:
    policy = scripted(load_policy(policy_folder, device="cpu").tokenizer, SCRIPT)
    sentences = list(said(policy, limit))
    assert "".join(s.text for s in sentences) == SCRIPT
    assert all(len(s.ids) <= limit for s in sentences)


def test_no_space_is_lost_between_sentences_with_sentencepiece() -> None:
    text = "The bar is 3.5 units. It is red.\nAnswer: 7"
    tokenizer = sentencepiece_tokenizer(text)
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text  # the tokenizer is right
    policy = scripted(tokenizer, text)
    sentences = [s.text for s in said(policy)]
    assert [s.strip() for s in sentences] == ["The bar is 3.5 units.", "It is red.", "Answer: 7"]
    assert "".join(sentences) == text
    assert "".join(s.text for s in said(scripted(tokenizer, text), 2)) == text
