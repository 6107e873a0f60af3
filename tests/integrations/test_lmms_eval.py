"""lmms-eval itself runs a task on a model of selfcal: it gets final answers, the log the texts.

It is installed apart from everything else (`make integrations`), and the test is skipped without.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from selfcal.testing import tiny_samples

SITE = Path(os.environ.get("SELFCAL_INTEGRATIONS", Path(__file__).parents[2] / ".integrations"))
TASK = """\
task: selfcal_mini
dataset_path: parquet
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: generate_until
doc_to_visual: !function utils.to_visual
doc_to_text: !function utils.to_text
doc_to_target: answer
generation_kwargs: {{max_new_tokens: 4, until: ["\\n\\n"], temperature: 0, do_sample: false}}
process_results: !function utils.process_results
metric_list: [{{metric: exact, aggregation: mean, higher_is_better: true}}]
metadata: [{{version: 0.0}}]
"""
UTILS = """\
def to_visual(doc):
    return [doc["image"].convert("RGB")]

def to_text(doc, lmms_eval_specific_kwargs=None):
    return doc["question"]

def process_results(doc, results):
    return {"exact": float(results[0].lower() == doc["answer"])}
"""
ENTRY = "[lmms_eval.models]\nselfcal = selfcal.integrations.lmms_eval:manifest\n"


def write_task(folder: Path, n: int) -> None:
    """A task of MiniWorld's questions that grades as strictly as POPE does."""
    from datasets import Dataset, Features, Value
    from datasets import Image as Picture

    samples = tiny_samples(folder / "data", n, "test")
    columns = {
        "question": [s.question for s in samples],
        "answer": [s.answer for s in samples],
        "image": [{"path": None, "bytes": Path(s.image).read_bytes()} for s in samples],
    }
    text = Value("string")
    kinds = Features({"question": text, "answer": text, "image": Picture()})
    Dataset.from_dict(columns, features=kinds).to_parquet(folder / "mini.parquet")
    (folder / "task").mkdir()
    (folder / "task" / "mini.yaml").write_text(TASK.format(data=folder / "mini.parquet"))
    (folder / "task" / "utils.py").write_text(UTILS)


@pytest.mark.skipif(not (SITE / "lmms_eval").is_dir(), reason="no lmms-eval: `make integrations`")
def test_lmms_eval_grades_final_answers(tmp_path: Path) -> None:
    write_task(tmp_path, 16)
    entry = tmp_path / "entry" / "selfcal_entry-0.dist-info"  # also where selfcal is not installed
    entry.mkdir(parents=True)
    (entry / "METADATA").write_text("Metadata-Version: 2.1\nName: selfcal-entry\nVersion: 0\n")
    (entry / "entry_points.txt").write_text(ENTRY)
    command = [
        sys.executable, "-m", "lmms_eval", "--model", "selfcal", "--tasks", "selfcal_mini",
        "--model_args", f"pretrained=miniworld:mini-llava,device=cpu,log={tmp_path / 'log'}",
        "--include_path", str(tmp_path / "task"), "--batch_size", "8",
        "--output_path", str(tmp_path / "out"), "--log_samples",
    ]  # fmt: skip
    environment = {
        **os.environ, "PYTHONPATH": os.pathsep.join([str(SITE), str(tmp_path / "entry")]),
        "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    done = subprocess.run(
        command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    (file,) = (tmp_path / "out").rglob("*_samples_selfcal_mini.jsonl")
    graded = [json.loads(line) for line in file.read_text().splitlines()]
    (log,) = (tmp_path / "log" / "0").iterdir()
    texts = {r["name"]: r for r in map(json.loads, log.read_text().splitlines())}
    assert len(graded) == len(texts) == 16
    reasoned = 0
    for row in graded:
        kept = texts[f"selfcal_mini test {row['doc_id']}"]
        answer = row["filtered_resps"]
        assert answer == kept["answer"] and not answer.lower().startswith("rationale")
        # the task's cap of 4 tokens and its stops would have cut this
        reasoned += "Rationale:" in kept["text"] and "Answer:" in kept["text"]
    assert reasoned >= 8
    assert sum(row["exact"] for row in graded) >= 8  # the model is right about 7 times in 10
