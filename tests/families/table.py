"""The table of families and stages, and what it is made of."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import transformers

from families.models import FAMILIES

FOUND = pytest.StashKey[dict[tuple[str, str], str]]()
"""What was found, by stage and family."""
OPTION = "--families-table"
HOLDS, REFUSED, FAILED = "yes", "refused", "no"
PAGE = Path(__file__).parents[2] / "docs" / "families.md"
BEGIN, END = "<!-- table: begin -->", "<!-- table: end -->"
STAGES = (
    "Prompt with image", "Several images", "Rationale SFT (LoRA)", "Merge, save, load", "Search",
    "Judge that sees", "DPO (LoRA)", "Evaluation (greedy)", "CSR reward, search and DPO", "GRPO",
)  # fmt: skip


def table(found: Mapping[tuple[str, str], str]) -> str:
    """A row a family; a dash where a stage was not run, because one before it is refused."""
    lines = [
        f"With transformers {transformers.__version__}:",
        "",
        f"| Family | {' | '.join(STAGES)} |",
        "|---" * (len(STAGES) + 1) + "|",
    ]
    for family in FAMILIES:
        cells = [found.get((stage, family.name), "-") for stage in STAGES]
        lines.append(f"| {family.name} | {' | '.join(cells)} |")
    return "\n".join(lines)
