"""An export to ms-swift, read and encoded by ms-swift, as its own card says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from integrations.exports import Made, command, spoil

pytestmark = pytest.mark.filterwarnings("default")  # of a library, and of its versions of others
pytest.importorskip(
    "swift.dataset", reason="ms-swift is not installed; `make integrations` does it"
)


def loaded(
    made: Made, out: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[list[dict[str, Any]], list[dict[str, Any]], Any]:
    """Rows as ms-swift reads them, rows as it encodes them, and its tokenizer."""
    from swift.dataset import load_dataset
    from swift.model import get_processor
    from swift.template import get_template

    root, tool, kind, *words = command(out, MODEL=made.model, OUT=str(out / "trained"))
    name, _, folder = root.partition("=")
    assert tool == "swift"
    monkeypatch.setenv(name, folder)
    train, _ = load_dataset(words[words.index("--dataset") + 1], strict=True)
    processor = get_processor(made.model, model_type="llava1_5_hf")
    template = get_template(processor, max_length=None)
    template.set_mode({"rlhf": "rlhf", "sft": "train"}[kind])
    rows = [dict(row) for row in train]
    return rows, [template.encode(dict(row)) for row in rows], processor.tokenizer


def test_swift_reads_the_pairs_as_they_are(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    out = made.export("swift")
    rows, encoded, tokenizer = loaded(made, out, monkeypatch)
    image = tokenizer.convert_tokens_to_ids("<image>")
    pairs = list(zip(rows, encoded, made.samples, made.questions, made.pairs, strict=True))
    for row, ids, sample, question, pair in pairs:
        assert row["messages"] == [
            {"role": "user", "content": question},
            {"role": "assistant", "content": pair.chosen},
        ]
        assert row["rejected_response"] == pair.rejected
        shown = [(out / i["path"]).read_bytes() for i in row["images"]]
        assert shown == [Path(path).read_bytes() for path in sample.images]
        for half in ("chosen", "rejected"):
            # 48 x 48 pixels are 9 patches of 16 x 16
            assert ids[f"{half}_input_ids"].count(image) == 9 * len(sample.images)
            assert len(ids[f"{half}_pixel_values"]) == len(sample.images)
            learned = [i for i in ids[f"{half}_labels"] if i >= 0]
            assert tokenizer.decode(learned).startswith(getattr(pair, half))


def test_swift_shows_the_rejected_response_its_own_image(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(made)
    _, encoded, _ = loaded(made, made.export("swift"), monkeypatch)
    for ids, sample, spoiled in zip(encoded, made.samples, (True, False, False, True), strict=True):
        chosen, rejected = ids["chosen_pixel_values"], ids["rejected_pixel_values"]
        assert len(chosen) == len(rejected) == len(sample.images)
        assert bool((chosen[0] != rejected[0]).any()) is spoiled
        assert bool((chosen[1:] == rejected[1:]).all())


def test_swift_reads_what_the_teacher_wrote(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, encoded, _ = loaded(made, made.export("swift", "sft"), monkeypatch)
    assert len(encoded) == len(made.pairs)
    found = [(row["messages"][0]["content"], row["messages"][1]["content"]) for row in rows]
    assert found == list(zip(made.questions, [p.chosen for p in made.pairs], strict=True))
