"""Shared prompts: the tree gives every prompt back, and no logit differs from a plain pass."""

from __future__ import annotations

import itertools
import random
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    AutoModelForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from selfcal.judge.sharing import Forward, Piece, _batch, tree
from selfcal.policy import ModelError
from selfcal.testing import _randomize

Prompts = list[list[int]]
Groups = list[tuple[object, object]]
PAD = 0


def paths(pieces: Sequence[Piece], before: tuple[int, ...] = ()) -> Iterator[tuple[int, list[int]]]:
    """Number and tokens of every prompt, joined along the way to it."""
    for piece in pieces:
        here = (*before, *piece.tokens)
        if piece.prompt >= 0:
            yield piece.prompt, list(here)
        yield from paths(piece.after, here)


def everyone(pieces: Sequence[Piece]) -> Iterator[Piece]:
    for piece in pieces:
        yield piece
        yield from everyone(piece.after)


# --- the tree -------------------------------------------------------------------------------

LEAF: list[Any] = []


def shape(pieces: Sequence[Piece]) -> list[Any]:
    """Tokens, number and what follows of each piece."""
    return [(p.tokens, p.prompt, shape(p.after)) for p in pieces]


def test_what_is_common_to_all_to_a_sample_and_to_a_first_response_is_one_piece() -> None:
    prompts = [
        [1, 2, 10, 11, 20, 30],  # sample a, first response 0
        [1, 2, 10, 11, 20, 31],
        [1, 2, 10, 11, 21, 22, 32, 33],  # first response 1
        [1, 2, 10, 11, 21, 22, 34],
        [1, 2, 12, 23, 35],  # sample b
        [1, 2, 12, 23, 36],
    ]
    groups: Groups = [("a", 0), ("a", 0), ("a", 1), ("a", 1), ("b", 0), ("b", 0)]
    first = ([20], -1, [([30], 0, LEAF), ([31], 1, LEAF)])
    second = ([21, 22], -1, [([32, 33], 2, LEAF), ([34], 3, LEAF)])
    b = ([12, 23], -1, [([35], 4, LEAF), ([36], 5, LEAF)])
    assert shape(tree(prompts, groups)) == [([1, 2], -1, [([10, 11], -1, [first, second]), b])]


def test_a_prompt_that_begins_another_keeps_its_last_token() -> None:
    roots = tree([[1, 2, 3], [1, 2, 3, 4], [1, 2, 3]], [("a", 0)] * 3)
    assert shape(roots) == [([1, 2], -1, [([3], 0, LEAF), ([3, 4], 1, LEAF), ([3], 2, LEAF)])]


def test_prompts_of_one_token_share_nothing() -> None:
    assert shape(tree([[1], [1, 2]], [("a", 0), ("a", 0)])) == [([1], 0, LEAF), ([1, 2], 1, LEAF)]


@pytest.mark.parametrize("prompt", [[7], [7, 8, 9]])
def test_a_prompt_alone_is_one_piece(prompt: list[int]) -> None:
    assert shape(tree([prompt], [("a", 0)])) == [(prompt, 0, LEAF)]


def test_a_sample_with_one_prompt_is_one_piece_after_what_all_have_in_common() -> None:
    roots = tree([[1, 2, 3], [1, 4, 5], [1, 4, 6]], [("a", 0), ("b", 0), ("b", 1)])
    b = ([4], -1, [([5], 1, LEAF), ([6], 2, LEAF)])
    assert shape(roots) == [([1], -1, [([2, 3], 0, LEAF), b])]


def test_nothing_common_to_all_gives_a_root_a_sample() -> None:
    roots = tree([[1, 2], [3, 4], [1, 5]], [("a", 0), ("b", 0), ("a", 1)])
    assert shape(roots) == [([1], -1, [([2], 0, LEAF), ([5], 2, LEAF)]), ([3, 4], 1, LEAF)]


TOKENS = st.lists(st.integers(1, 2), min_size=1, max_size=7)
GROUPED = st.lists(
    st.tuples(TOKENS, st.tuples(st.integers(0, 2), st.integers(0, 2))), min_size=1, max_size=12
)


@settings(deadline=None)
@given(GROUPED)
def test_pieces_joined_give_every_prompt_back(
    made: list[tuple[list[int], tuple[object, object]]],
) -> None:
    prompts = [p for p, _ in made]
    roots = tree(prompts, [g for _, g in made])
    assert sorted(paths(roots)) == list(enumerate(prompts))
    for piece in everyone(roots):
        assert piece.tokens
        # a prompt ends where nothing follows, and nowhere else
        assert (piece.prompt >= 0) == (not piece.after)


# --- batches --------------------------------------------------------------------------------


def pieces(*lengths: int) -> list[Piece]:
    return [Piece([1] * n) for n in lengths]


@pytest.mark.parametrize(
    ("lengths", "rows", "taken"),
    [
        ([5], 64, 1),
        ([5], 1, 1),
        ([5, 5, 5], 1, 1),
        ([5] * 10, 4, 4),
        ([5] * 10, 10, 10),
        # eight rows go together whatever the padding
        ([1] * 7 + [100], 64, 8),
        # 20 x 10 = 200 columns for 9 x 10 + 20 = 110 tokens
        ([10] * 9 + [20], 64, 9),
        ([1, 100] + [200] * 8, 64, 8),
        # 10 x 116 = 1160 columns are at most 1.15 x 1016 = 1168.4, 10 x 118 = 1180 are more
        # than 1.15 x 1018 = 1170.7
        ([100] * 9 + [116], 64, 10),
        ([100] * 9 + [118], 64, 9),
    ],
)
def test_a_batch_is_of_like_length(lengths: list[int], rows: int, taken: int) -> None:
    own = pieces(*lengths)
    found = _batch(own, rows)
    assert len(found) == taken
    assert all(a is b for a, b in zip(found, own, strict=False))


@given(st.lists(st.integers(1, 60), min_size=1, max_size=40), st.integers(1, 20))
def test_batches_take_all_in_order_with_little_padding(lengths: list[int], rows: int) -> None:
    left = pieces(*sorted(lengths))
    while left:
        batch = _batch(left, rows)
        assert 1 <= len(batch) <= rows
        assert all(a is b for a, b in zip(batch, left, strict=False))
        own = [len(p.tokens) for p in batch]
        if len(batch) > 8:
            assert max(own) * len(own) <= 1.15 * sum(own)
        left = left[len(batch) :]


# --- forward passes -------------------------------------------------------------------------

TEXT = {
    "vocab_size": 60, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "bos_token_id": None, "eos_token_id": 1,
    "pad_token_id": PAD, "max_position_embeddings": 512,
}  # fmt: skip


def qwen2() -> Any:
    """Two heads of queries share one of keys."""
    return Qwen2ForCausalLM(Qwen2Config(**TEXT))


def gemma3(window: int) -> Any:
    """Every other layer sees a window."""
    config = Gemma3TextConfig(
        **TEXT, head_dim=8, query_pre_attn_scalar=8, sliding_window=window,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    )  # fmt: skip
    return Gemma3ForCausalLM(config)


@pytest.fixture(scope="module")
def models(judge_folder: str) -> dict[str, Any]:
    made = {
        "judge": AutoModelForCausalLM.from_pretrained(judge_folder),
        "qwen2": qwen2(),
        "gemma3": gemma3(256),
        "gemma3, short window": gemma3(8),
    }
    for name, model in made.items():
        if name != "judge":
            _randomize(model, 0)
        model.eval()
    return made


class Watched:
    """A model that counts what it is given, and runs out of memory at chosen passes."""

    def __init__(
        self, model: Any, fails: Collection[int] = (), error: Exception | None = None
    ) -> None:
        self.passes: list[tuple[int, int]] = []
        """Rows and columns of each pass, the failed ones too."""
        self.done: list[tuple[int, int]] = []
        self._model, self._fails, self._error = model, fails, error or FULL[0]

    def __call__(self, *, input_ids: torch.Tensor, **rest: Any) -> Any:
        rows, columns = input_ids.shape
        self.passes.append((rows, columns))
        out = self._model(input_ids=input_ids, **rest)
        if len(self.passes) in self._fails:
            raise self._error  # late, when caches were written already
        self.done.append((rows, columns))
        return out

    @property
    def forwarded(self) -> int:
        return sum(rows * columns for rows, columns in self.done)


FULL = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 MiB"),
    RuntimeError("[enforce fail] . DefaultCPUAllocator: can't allocate memory: you tried 9 bytes"),
]


def some_prompts(samples: int, responses: Sequence[int], seed: int = 0) -> tuple[Prompts, Groups]:
    """Prompts of all ordered pairs of a sample's responses, which have these many tokens."""
    rng = random.Random(seed)

    def words(n: int) -> list[int]:
        return [rng.randrange(10, 60) for _ in range(n)]

    found: list[tuple[list[int], tuple[object, object]]] = []
    instructions = words(6)
    for s in range(samples):
        # beginnings differ, so that what is shared is known
        question = [2 + s, *words(1 + 4 * s)]
        texts = [[5 + i, *words(n)] for i, n in enumerate(responses)]
        for i, j in itertools.permutations(range(len(texts)), 2):
            found.append(([*instructions, *question, *texts[i], 9, *texts[j], 8], (s, i)))
    rng.shuffle(found)
    return [p for p, _ in found], [g for _, g in found]


def plainly(model: Any, prompts: Prompts) -> list[torch.Tensor]:
    """The logits after each prompt, by a pass of its own."""
    with torch.inference_mode():
        return [model(input_ids=torch.tensor([p])).logits[0, -1].float() for p in prompts]


def computed(forward: Forward, roots: Sequence[Piece]) -> dict[int, torch.Tensor]:
    found: dict[int, torch.Tensor] = {}
    for numbers, logits in forward.logits(roots):
        assert len(logits) == len(numbers) and not found.keys() & set(numbers)
        found |= dict(zip(numbers, logits, strict=True))
    return found


def agree(found: dict[int, torch.Tensor], expected: Sequence[torch.Tensor]) -> bool:
    assert sorted(found) == list(range(len(expected)))
    return all(torch.allclose(found[i], e, atol=2e-5) for i, e in enumerate(expected))


@pytest.mark.parametrize("rows", [1, 3, 64])
@pytest.mark.parametrize("name", ["judge", "qwen2", "gemma3"])
def test_logits_are_those_of_plain_passes(models: dict[str, Any], name: str, rows: int) -> None:
    prompts, groups = some_prompts(3, [2, 9, 4])
    assert len({len(p) for p in prompts}) > 6
    model = Watched(models[name])
    forward = Forward(model, PAD, "cpu", rows)
    found = computed(forward, tree(prompts, groups))
    assert agree(found, plainly(models[name], prompts))
    assert all(r <= rows for r, _ in model.done)
    if rows == 64:
        assert forward.counts.forwarded > forward.counts.needed  # there was padding


@pytest.mark.parametrize("rows", [2, 64])
def test_whole_prompts_in_padded_batches_keep_to_their_window(
    models: dict[str, Any], rows: int
) -> None:
    prompts, _ = some_prompts(2, [2, 13, 5])
    forward = Forward(models["gemma3, short window"], PAD, "cpu", rows)
    found = computed(forward, [Piece(p, prompt=i) for i, p in enumerate(prompts)])
    assert agree(found, plainly(models["gemma3, short window"], prompts))
    # and the window matters
    wide = gemma3(256)
    wide.load_state_dict(models["gemma3, short window"].state_dict())
    assert not agree(found, plainly(wide.eval(), prompts))


def test_a_prompt_may_end_where_others_go_on(models: dict[str, Any]) -> None:
    """By hand: the piece of prompt 0 is followed by those of 1 and 2."""
    roots = [Piece([11, 12, 13], [Piece([14], prompt=1), Piece([15, 16], prompt=2)], prompt=0)]
    found = computed(Forward(models["qwen2"], PAD, "cpu", 8), roots)
    prompts = [[11, 12, 13], [11, 12, 13, 14], [11, 12, 13, 15, 16]]
    assert agree(found, plainly(models["qwen2"], prompts))


def test_a_token_that_looks_like_padding_is_read(models: dict[str, Any]) -> None:
    prompts = [[11, PAD, 12, PAD], [11, PAD, 12, 13, PAD, 14], [PAD, 11]]
    found = computed(Forward(models["qwen2"], PAD, "cpu", 8), tree(prompts, [("a", 0)] * 3))
    assert agree(found, plainly(models["qwen2"], prompts))


def test_counts_by_hand(models: dict[str, Any]) -> None:
    prompts = [[11, 12, 13, 20, 30], [11, 12, 13, 20, 31, 32, 33], [11, 12, 14, 15, 16, 17, 18]]
    model = Watched(models["qwen2"])
    forward = Forward(model, PAD, "cpu", 64)
    computed(forward, tree(prompts, [("a", 0), ("a", 0), ("b", 0)]))
    # [11 12] | [13 20] and [14 15 16 17 18], padded to 5 | [30] and [31 32 33], padded to 3
    assert model.done == [(1, 2), (2, 5), (2, 3)]
    assert forward.counts.needed == 2 + (2 + 5) + (1 + 3)
    assert forward.counts.forwarded == 1 * 2 + 2 * 5 + 2 * 3
    assert (forward.counts.prompts, forward.counts.back_offs) == (3, 0)


def test_every_piece_is_computed_once(models: dict[str, Any]) -> None:
    prompts, groups = some_prompts(3, [2, 9, 4, 1])
    for rows in (1, 5, 64):
        model = Watched(models["qwen2"])
        forward = Forward(model, PAD, "cpu", rows)
        roots = tree(prompts, groups)
        computed(forward, roots)
        assert forward.counts.needed == sum(len(p.tokens) for p in everyone(roots))
        assert forward.counts.forwarded == model.forwarded
        assert forward.counts.prompts == len(prompts)
        assert rows > 1 or model.forwarded == forward.counts.needed
    assert forward.counts.needed < sum(map(len, prompts)) / 2


def test_nothing_asked_nothing_computed(models: dict[str, Any]) -> None:
    model = Watched(models["qwen2"])
    assert computed(Forward(model, PAD, "cpu", 8), []) == {}
    assert model.passes == []


# --- memory runs out ------------------------------------------------------------------------


@pytest.mark.parametrize("error", FULL, ids=["gpu", "cpu"])
@pytest.mark.parametrize(
    ("fails", "passes", "rows"),
    [
        ([1], [16, 8, 8], 8),
        ([1, 2], [16, 8, 4, 4, 4, 4], 4),
        # the first eight are done and stay done
        ([1, 3], [16, 8, 8, 4, 4], 4),
        ([1, 2, 3, 4], [16, 8, 4, 2] + [1] * 16, 1),
    ],
)
def test_rows_are_halved_and_what_is_done_stays_done(
    models: dict[str, Any], error: Exception, fails: list[int], passes: list[int], rows: int
) -> None:
    prompts = [[11 + i, 12, 13 + i, 14] for i in range(16)]
    model = Watched(models["qwen2"], fails, error)
    forward = Forward(model, PAD, "cpu", 16)
    found = computed(forward, [Piece(p, prompt=i) for i, p in enumerate(prompts)])
    assert [r for r, _ in model.passes] == passes
    assert (forward.rows, forward.counts.back_offs) == (rows, len(fails))
    assert forward.counts.needed == forward.counts.forwarded == 16 * 4
    assert agree(found, plainly(models["qwen2"], prompts))


@pytest.mark.parametrize("error", FULL, ids=["gpu", "cpu"])
@pytest.mark.parametrize("name", ["judge", "qwen2", "gemma3"])
def test_shared_pieces_survive_that_memory_runs_out(
    models: dict[str, Any], name: str, error: Exception
) -> None:
    prompts, groups = some_prompts(3, [2, 9, 4])
    expected = plainly(models[name], prompts)
    for fails in ([2], [3], [4], [3, 5], [3, 6]):
        model = Watched(models[name], fails, error)
        forward = Forward(model, PAD, "cpu", 64)
        assert agree(computed(forward, tree(prompts, groups)), expected)
        assert forward.counts.back_offs == len(fails)
        assert forward.counts.forwarded == model.forwarded
        for n, at in enumerate(model.passes, start=1):
            if n in fails:
                assert all(rows <= at[0] // 2 for rows, _ in model.passes[n:])


def test_rows_that_memory_has_no_room_for_are_not_tried_again(models: dict[str, Any]) -> None:
    model = Watched(models["qwen2"], [1])
    forward = Forward(model, PAD, "cpu", 16)
    for _ in range(2):
        computed(forward, [Piece([11 + i, 12], prompt=i) for i in range(16)])
    assert [r for r, _ in model.passes] == [16, 8, 8, 8, 8]


@pytest.mark.parametrize("error", FULL, ids=["gpu", "cpu"])
def test_a_single_row_without_memory_names_the_way_out(
    models: dict[str, Any], error: Exception
) -> None:
    model = Watched(models["qwen2"], range(1, 100), error)
    forward = Forward(model, PAD, "cpu", 4)
    with pytest.raises(ModelError, match=r"judge\.batch_size") as refused:
        computed(forward, [Piece([11 + i, 12], prompt=i) for i in range(4)])
    assert str(error).splitlines()[0] in str(refused.value)
    assert [r for r, _ in model.passes] == [4, 2, 1]


def test_other_errors_are_not_taken_for_memory(models: dict[str, Any]) -> None:
    model = Watched(models["qwen2"], [1], RuntimeError("a defect"))
    with pytest.raises(RuntimeError, match="a defect"):
        computed(Forward(model, PAD, "cpu", 4), [Piece([11, 12], prompt=0)])
    assert len(model.passes) == 1
