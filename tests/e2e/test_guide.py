"""The guide to one's own model and images, followed word for word."""

from __future__ import annotations

from pathlib import Path

from e2e.guide import filled, follow, masked, steps

PAGE = Path(__file__).parents[2] / "docs" / "your-own.md"


def test_the_guide_can_be_followed_and_says_what_it_says(tmp_path: Path) -> None:
    page = PAGE.read_text(encoding="utf-8")
    done = list(follow(page, tmp_path))
    assert len(done) == len(steps(page)) > 8
    for real, told in zip(done, steps(page), strict=True):
        assert masked(real.said) == masked(told.said), f"$ {told.command}"
    assert (tmp_path / "runs/my-run/iter-3/dpo/checkpoint/model.safetensors").exists()


def test_a_page_filled_with_its_own_words_is_itself() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert filled(page, steps(page)) == page
