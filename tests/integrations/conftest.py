"""One run for all tools. Tests are skipped where a tool is not installed."""

from __future__ import annotations

from pathlib import Path

import pytest

from integrations.exports import Made, make


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Made:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setenv("MODELSCOPE_CACHE", str(tmp_path / "modelscope"))
    return make(tmp_path)
