"""The search against the same search done plainly: `tiny.plain`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from selfcal.policy import Policy, load_policy
from selfcal.search import Found, Limits, Sampling, SearchLimits, beam, search
from selfcal.search.jobs import Place, Sentence
from selfcal.search.keep import KEEP
from selfcal.types import Sample, SearchNode
from tiny.conftest import talk
from tiny.plain import Ids, Plain, Searched, generated, same, searched

LIMITS = SearchLimits(
    candidates=4, branch=2, keep="stochastic", max_sentences=4, sentence_tokens=9,
    sampling=Sampling(),
)  # fmt: skip
SMALL = replace(LIMITS, candidates=3, max_sentences=3, sentence_tokens=7)


@pytest.fixture(scope="module", params=["random", "shipped"])
def policy(request: pytest.FixtureRequest, talkative: Policy) -> Policy:
    """The model of random weights, and the shipped one."""
    if request.param == "shipped":
        return load_policy("miniworld:mini-llava", device="cpu")
    return talkative


@pytest.fixture(scope="module")
def random_plain(talkative: Policy) -> Plain:
    return Plain(talkative)


@pytest.fixture(scope="module")
def plain(policy: Policy, talkative: Policy, random_plain: Plain) -> Plain:
    return random_plain if policy is talkative else Plain(policy)


@pytest.fixture(scope="module")
def few(samples: list[Sample]) -> list[Sample]:
    return samples[:5]


@pytest.fixture(scope="module")
def done(policy: Policy, few: list[Sample]) -> Searched:
    return searched(policy, few, LIMITS)


def joined(path: Sequence[Ids]) -> Ids:
    return tuple(i for ids in path for i in ids)


def path_to(found: Found, node: SearchNode) -> list[SearchNode]:
    """The nodes from a first sentence to this one."""
    path = [node]
    while path[0].parent >= 0:
        path.insert(0, found.nodes[path[0].parent])
    return path


# --- log-probabilities ----------------------------------------------------------------------


def test_every_sentence_has_the_log_probability_of_a_plain_forward_pass(
    plain: Plain, few: list[Sample], done: Searched
) -> None:
    """Later sentences too: what is drawn past a sentence's end must leave no trace."""
    for sample, tree in zip(few, done.trees, strict=True):
        for said in tree.said:
            gained = plain.logprobs(sample, joined((*said.before, said.ids)))
            assert said.logprob == pytest.approx(float(gained[-len(said.ids) :].sum()), abs=1e-4)


def test_a_candidate_has_the_log_probability_of_its_tokens(
    policy: Policy, plain: Plain, few: list[Sample], done: Searched
) -> None:
    for sample, found, tree in zip(few, done.found, done.trees, strict=True):
        assert found.candidates
        whole = [((*s.before, s.ids), s.ended) for s in tree.said]
        texts = {policy.tokenizer.decode(joined(p), skip_special_tokens=True): p for p, _ in whole}
        for c in found.candidates:
            (path,) = [p for text, p in texts.items() if text.strip() == c.text][:1]
            assert c.logprob == pytest.approx(
                float(plain.logprobs(sample, joined(path)).sum()), abs=1e-4
            )
            assert c.token_counts == tuple(map(len, path))
            assert c.finished == (path[-1][-1] in policy.stop_ids)


def test_the_log_probability_is_that_of_temperature_one(
    policy: Policy, plain: Plain, few: list[Sample]
) -> None:
    limits = replace(SMALL, sampling=Sampling(temperature=0.5, top_p=0.8, repetition_penalty=1.3))
    for sample, tree in zip(few, searched(policy, few, limits).trees, strict=True):
        for said in tree.said:
            gained = plain.logprobs(sample, joined((*said.before, said.ids)))
            assert said.logprob == pytest.approx(float(gained[-len(said.ids) :].sum()), abs=1e-4)


def test_bfloat16_stays_near_its_own_plain_pass(policy_folder: str, few: list[Sample]) -> None:
    policy = load_policy(policy_folder, dtype="bfloat16", device="cpu")
    policy.model.lm_head.register_forward_hook(talk(policy))
    plain = Plain(policy)
    done = searched(policy, few, SMALL)
    errors = []
    for sample, tree in zip(few, done.trees, strict=True):
        for said in tree.said:
            gained = plain.logprobs(sample, joined((*said.before, said.ids)))
            errors.append(abs(said.logprob - float(gained[-len(said.ids) :].sum())))
    assert len(errors) > 30
    # 8 bits of precision: about 0.03 for a logit of 8, and up to 7 tokens
    assert max(errors) < 0.3
    assert sum(errors) / len(errors) < 0.05


# --- whole trees ----------------------------------------------------------------------------


def test_the_tree_is_that_of_a_plain_search(
    plain: Plain, few: list[Sample], done: Searched
) -> None:
    assert same(done.trees[:2], [plain.tree(s, LIMITS) for s in few[:2]])


@pytest.mark.parametrize("keep", KEEP)
def test_so_it_is_with_every_policy_of_keeping(
    policy: Policy, plain: Plain, few: list[Sample], keep: str
) -> None:
    limits = replace(SMALL, keep=keep)
    assert same(
        searched(policy, few[:2], limits, "1").trees,
        [plain.tree(s, limits, "1") for s in few[:2]],
    )


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=0.7, top_p=0.9),
        Sampling(top_k=4),
        Sampling(repetition_penalty=1.8),
        Sampling(temperature=1.3, top_p=0.95, top_k=50, repetition_penalty=1.2),
    ],
    ids=str,
)
def test_so_it_is_with_every_way_of_sampling(
    talkative: Policy, random_plain: Plain, few: list[Sample], sampling: Sampling
) -> None:
    """The repetition penalty sees the prompt, the sentences before and the sentence itself."""
    limits = replace(SMALL, sampling=sampling)
    assert same(
        searched(talkative, few[:1], limits).trees, [random_plain.tree(s, limits) for s in few[:1]]
    )


@pytest.mark.parametrize("sampling", [Sampling(temperature=0), Sampling(temperature=1e-4)], ids=str)
def test_greedy_is_as_generate_is(policy: Policy, few: list[Sample], sampling: Sampling) -> None:
    limits = replace(LIMITS, sampling=sampling, max_sentences=3, sentence_tokens=30)
    out = searched(policy, few, limits)
    greedy = generated(policy, few, 90)
    for found, text in zip(out.found, greedy, strict=True):
        (only,) = found.candidates
        assert text.startswith(only.text)
        if only.finished:
            assert text == only.text


def test_the_random_model_goes_deep_and_ends_sentences_and_responses(
    talkative: Policy, few: list[Sample]
) -> None:
    """Else the tests above would not see what they are for."""
    found = searched(talkative, few, LIMITS).found
    depths = Counter(len(path_to(f, n)) for f in found for n in f.nodes)
    assert all(depths[d] > 5 for d in (1, 2, 3))
    assert sum(n.tokens < LIMITS.sentence_tokens for f in found for n in f.nodes) > 5
    assert any(c.finished for f in found for c in f.candidates)


def test_equal_draws_are_merged_and_their_tree_is_the_plain_one(
    talkative: Policy, random_plain: Plain, few: list[Sample]
) -> None:
    limits = replace(SMALL, branch=4, sentence_tokens=2, sampling=Sampling(top_k=3))
    done = searched(talkative, few[:2], limits)
    assert sum(n.draws > 1 for f in done.found for n in f.nodes) > 5
    assert same(done.trees, [random_plain.tree(s, limits) for s in few[:2]])


# --- what records say -----------------------------------------------------------------------


def test_trees_are_consistent(done: Searched, few: list[Sample]) -> None:
    for found, sample in zip(done.found, few, strict=True):
        nodes = found.nodes
        assert {n.sample_id for n in nodes} == {sample.id}
        assert [n.node for n in nodes] == list(range(len(nodes)))
        assert all(-1 <= n.parent < n.node for n in nodes)
        assert all(nodes[n.parent].kept for n in nodes if n.parent >= 0)
        ends = {n.candidate: n for n in nodes if n.candidate >= 0}
        assert [c.index for c in found.candidates] == sorted(ends) == list(range(len(ends)))
        for c in found.candidates:
            path = path_to(found, ends[c.index])
            assert all(n.kept for n in path)
            assert "".join(n.text for n in path).strip() == c.text
            assert tuple(n.text for n in path) == c.sentences
            assert tuple(n.logprob for n in path) == c.sentence_logprobs
            assert tuple(n.tokens for n in path) == c.token_counts


def test_candidates_are_distinct(done: Searched) -> None:
    for found in done.found:
        texts = [" ".join(c.text.split()) for c in found.candidates]
        assert len(set(texts)) == len(texts) <= LIMITS.candidates
        assert all(texts)


def test_siblings_are_distinct(done: Searched) -> None:
    keys = Counter(
        (n.sample_id, n.parent, " ".join(n.text.split())) for f in done.found for n in f.nodes
    )
    assert set(keys.values()) == {1}


def test_every_draw_is_counted_once(done: Searched) -> None:
    """The draws of a level: `branch` for each candidate still wanted, shared by the live paths."""
    for found in done.found:
        assert sum(n.draws for n in found.nodes if n.parent < 0) == 8
        finished, live = 0, [-1]
        for level in range(1, LIMITS.max_sentences + 1):
            nodes = [n for n in found.nodes if len(path_to(found, n)) == level]
            assert {n.parent for n in nodes} == set(live)
            share = -(-(4 - finished) * 2 // len(live)) if live else 0
            for parent in live:
                assert sum(n.draws for n in nodes if n.parent == parent) == share
            parents = {n.parent for n in found.nodes}
            kept = [n.node for n in nodes if n.kept]
            live = [i for i in kept if i in parents]
            finished += len(kept) - len(live)


def test_what_is_dropped_is_named(done: Searched) -> None:
    for found in done.found:
        parents = {n.parent for n in found.nodes}
        ends = [n for n in found.nodes if n.kept and n.node not in parents]
        reasons = Counter(d.reason for d in found.drops)
        assert len(ends) == len(found.candidates) + reasons["duplicate"] + reasons["empty"]


def test_a_sample_without_candidates_is_named(policy: Policy, few: list[Sample]) -> None:
    stop = min(policy.stop_ids)
    quiet = policy.model.lm_head.register_forward_hook(
        lambda module, args, out: out + 1e4 * (torch.arange(out.shape[-1]) == stop)
    )
    try:
        found = list(search(policy, few[:2], LIMITS, "0"))
    finally:
        quiet.remove()
    for sample, own in zip(few, found, strict=False):
        assert not own.candidates
        assert [(d.sample_id, d.reason) for d in own.drops] == [
            (sample.id, "empty"),
            (sample.id, "no-candidate"),
        ]
        (node,) = own.nodes
        assert (node.tokens, node.draws, node.text) == (1, 8, "")


def test_sentences_that_differ_in_white_space_are_one() -> None:
    """The first of them goes on, and counts for all."""

    def said(text: str, ended: bool = False) -> Sentence:
        place = None if ended else Place(None, None, 0, ())  # type: ignore[arg-type]
        return Sentence(place, text, -1.0, (5, 6), ended)

    limits = replace(LIMITS, candidates=2, keep="likelihood", max_sentences=2)
    root = Place(None, None, 0, ())  # type: ignore[arg-type]
    job = beam._search(Sample("s", "", "", ""), root, limits, "0")
    (ask,) = next(job)
    assert ask.place is root
    assert ask.uniforms.shape == (4, LIMITS.sentence_tokens)
    a, b = said("A.  "), said("B. ")
    asks = job.send([[a, said("A.\n"), b, said(" A. ")]])
    assert [x.place for x in asks] == [a.place, b.place]
    assert [len(x.uniforms) for x in asks] == [2, 2]
    with pytest.raises(StopIteration) as end:
        job.send([[said("C."), said("C.", ended=True)], [said("", ended=True), said("D.")]])
    found: Found = end.value.value
    assert [(n.parent, n.text, n.draws) for n in found.nodes] == [
        (-1, "A.  ", 3), (-1, "B. ", 1), (0, "C.", 2), (1, "", 1), (1, "D.", 1)
    ]  # fmt: skip
    assert [c.text for c in found.candidates] == ["A.  C.", "B."]


def test_a_candidate_that_another_one_equals_is_dropped() -> None:
    """Paths can part and meet again: "A. B." in two sentences, and in one."""

    def said(text: str, ended: bool) -> Sentence:
        place = None if ended else Place(None, None, 0, ())  # type: ignore[arg-type]
        return Sentence(place, text, -1.0, (5, 6), ended)

    limits = replace(LIMITS, candidates=2, branch=1, keep="likelihood", max_sentences=3)
    root = Place(None, None, 0, ())  # type: ignore[arg-type]
    job = beam._search(Sample("s", "", "", ""), root, limits, "0")
    next(job)
    job.send([[said("A. B.", ended=True), said("A. ", ended=False)]])
    with pytest.raises(StopIteration) as end:
        job.send([[said("B.", ended=True)]])
    found: Found = end.value.value
    assert [c.text for c in found.candidates] == ["A. B."]
    assert [d.reason for d in found.drops] == ["duplicate"]


# --- seeds and limits -----------------------------------------------------------------------


def test_the_seed_changes_the_candidates(policy: Policy, few: list[Sample], done: Searched) -> None:
    assert same(searched(policy, few, LIMITS).trees, done.trees)
    assert not same(searched(policy, few, LIMITS, "1").trees, done.trees)


@pytest.mark.parametrize(("sentences", "tokens", "wanted"), [(1, 3, 2), (2, 5, 3), (3, 1, 6)])
def test_limits_hold(
    policy: Policy, few: list[Sample], sentences: int, tokens: int, wanted: int
) -> None:
    limits = replace(LIMITS, max_sentences=sentences, sentence_tokens=tokens, candidates=wanted)
    for found in searched(policy, few[:3], limits).found:
        assert 0 < len(found.candidates) <= wanted
        for c in found.candidates:
            assert len(c.sentences) <= sentences
            assert max(c.token_counts) <= tokens
            assert c.finished or len(c.sentences) == sentences
        for level in range(sentences):
            kept = [n for n in found.nodes if n.kept and len(path_to(found, n)) == level + 1]
            assert len(kept) <= wanted


def test_limits_of_the_machine_are_taken(talkative: Policy, few: list[Sample]) -> None:
    """Without an engine of one's own, too."""
    wide, narrow = (list(search(talkative, few, SMALL, "0", Limits(rows=r))) for r in (64, 1))
    assert [f.nodes for f in wide] == [
        [replace(n, logprob=pytest.approx(n.logprob, abs=1e-4)) for n in f.nodes] for f in narrow
    ]
