"""The samples that mutations start from, and the words that they put in, by target."""

# ruff: noqa: E501, RUF001

from __future__ import annotations

import io
import json
from functools import cache
from pathlib import Path
from typing import Any

import yaml

RECIPES = Path(__file__).resolve().parents[2] / "recipes"

RESPONSES = (
    "Rationale: There are 3 cats. Dr. Smith sees 2.5 dogs, e.g. a poodle. So 3 > 2.\nAnswer: 3",
    "### **Rationale**: The bar for 2010 is the tallest.\n1. It is red.\n2) It is 40%.\n**Answer:** B",
    "<rationale>The sign is red. It says STOP!</rationale>\n<answer>stop</answer>",
    "<think>\nThe left one is larger. Wait, no: the right one is.\n</think>\n\n\\boxed{B}",
    "<think>Let me see. Final answer: 7</think> The answer is 7.",
    "The chart shows 1,234.5 and 1.234,5. Therefore, the correct answer is (C) 12 cm.",
    "Answer: A\nAnswer: B\nRationale: none.",
    "I cannot determine it from the image. Sorry, as an AI I do not know.",
    "So the answer is $\\frac{3}{4}$, i.e. \\(0.75\\), which is \\textbf{75\\%}.",
    "Yes, there are two (2) apples, not three. Actually, hold on: no. It is 3 x 10^5 m².",
    "Option A is wrong, B is too small; C is the best option because it fits. 因此选C。 答案是 C。",
    'No. 5 Main St. is J.R. Smith\'s. "Quoted." (Really?) [1] See fig. 2. U.S. law…',
    "Verdict: first",
    "The second is better.\n\n**second**",
    "2 > 1 = 3 > 4",
    "neutral.",
    "Yes.",
    "Final answer: yes\nQuestion: what else?\nAnswer: no",
    "- \\boxed{\\text{A. cat}} - twenty-one",
    "minus three hundred and five thousand percent",
    "1/2, ½, 5¼, 1e-5, -0.0, +7, 1 2/3, ½%",
    "<rationale",
    "</think",
    "<answer>B<answer>C</answer></answer>",
    "$$x = 5$$ and `code` ~~no~~",
    "**Answer**: *B*. The rationale: it is __blue__.\n\n\n> quote\n# head\n| a | b |",
)
WORDS = (
    "Rationale:", "Answer:", "\nAnswer: ", "rationale: ", "Final answer: ", "<rationale>",
    "</rationale>", "<answer>", "</answer>", "<think>", "</think>", "\\boxed{", "}", "{", "$", "$$",
    "\\frac{1}{2}", "\\text{", "(A)", "B.", "option C", "first", "second", "neutral", "yes", "no",
    "not", "but", "the answer is ", "wait", "actually", "e.g.", "Dr.", "1.", "2)", "- ", "* ", "**",
    "__", "`", "# ", "\n", "\n\n", ". ", "! ", "? ", "。", "！", "…", "\"", "'", ")", "]", "”", ">",
    "=", ",", ";", ":", "%", "½", "x 10^5", "twenty", "hundred", "1,000", "3.5", "1/0", "e5", "-",
    "minus ", "Question:", "user:", "</s>", "<|im_end|>", "is correct", "因此", "答案", "是", "不",
)  # fmt: skip

SAMPLES: tuple[list[dict[str, Any]], ...] = (
    [
        {"id": "1", "image": "cat.png", "question": "How many?", "answer": "1"},
        {"id": 2, "image": "cat.png", "question": "Which?", "answer": "B",
         "choices": ["dog", "cat"], "category": "p", "confidence": 0.5, "facts": "a cat"},
        {"id": "3", "images": ["a.png", "b.png"], "question": "<image> or <image>?",
         "answer": "a cat", "rationale": "It is.", "more": {"x": [1, None]}},
    ],
    [
        {"id": "1", "image": "cat.png", "conversations": [
            {"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A cat."},
            {"from": "human", "value": "And?"}, {"from": "gpt", "value": "It sleeps."}]},
        {"id": "2", "conversations": [
            {"from": "system", "value": "Be kind."}, {"from": "human", "value": "Hi"},
            {"from": "gpt", "value": "Hello"}]},
    ],
    [
        {"id": 7, "image": "cat.png", "input": "<image>\nDescribe it."},
        {"id": 8, "image": {"bytes": None, "path": "cat.png"}, "input": "What?"},
    ],
    [
        {"id": "a", "image": "data:image/png;base64,iVBORw0KGgo=", "question": "q", "answer": "0",
         "choices": "['x', \"y\"]"},
        {"id": "b", "image": "['a.png', 'b.png']", "question": "q", "answer": 1,
         "choices": ["x", "y"]},
        {"id": "c", "image": "/abs/a.png", "question": "q", "answer": "(b) y", "choices": ["x", "y"]},
    ],
)  # fmt: skip
COLUMNS = (
    "id", "image", "images", "question", "answer", "choices", "category", "rationale", "facts",
    "confidence", "conversations", "input", "from", "value", "bytes", "path", "index", "A", "B",
    "hint", "image_path", "l2-category", "sample_id", "first", "second", "verdict",
)  # fmt: skip
CELLS = (
    "human", "gpt", "system", "<image>", "../x.png", "/etc/passwd", "a\0b", "data:image/png;base64,",
    "ROW", "A", "B", "(c)", "0", "[1, 2]", "['a']", "['a', 'b'", '["a"]', "yes", "\"", "\t", "\n",
    "first", "second", "neutral", "1e5",
)  # fmt: skip
TABLE = (
    "index\timage\tquestion\thint\tA\tB\tC\tanswer\tcategory\n"
    "0\tiVBORw0KGgoAAAANSUhEUgAAAAIAAAACCAIAAAD91JpzAAAAFklEQVR4nGP8z8DAwMDAxMDAwMDAAAANHQEDasKb6QAA"
    "AABJRU5ErkJggg==\tWhich?\tLook.\tblue\tred\tgreen\tB\tcolour\n"
    '1\t0\tHow many?\t\t\t\t\t0\tcount\n2\t0\t"a ""q"""\t\tx\ty\t\tx\t\n',
    "index\timage_path\tquestion\tanswer\n0\ta.png\tq\ta\n1\t['a.png', 'b.png']\tq\tb\n",
)

LABELS = (
    [
        {"sample_id": "1", "question": "q", "first": "It is red.", "second": "It is blue.",
         "verdict": "first", "facts": "red"},
        {"sample_id": 2, "question": "q", "first": "a", "second": "b", "verdict": "neutral",
         "facts": "", "images": ["a.png"]},
        {"sample_id": "2", "question": "q", "first": "b", "second": "a", "verdict": "second",
         "facts": "f", "images": []},
    ],
)  # fmt: skip
AUDITED = (
    [
        {"sample_id": "s1", "iteration": 1, "first": 0, "second": 2, "texts": "ab12",
         "verdict": "first", "annotator": "Ann", "flaw_in": "second",
         "false_sentence": {"number": 1, "text": "It is red."}, "flaw": "counterfactual",
         "seconds": 3.5, "at": "2026-01-01T00:00:00Z"},
        {"sample_id": "s1", "iteration": 1, "first": 2, "second": 0, "texts": "ab12",
         "verdict": None, "annotator": "the judge"},
    ],
)  # fmt: skip
WRITTEN = (
    [
        {"id": "1", "rationale": "It is red.", "answer": "red", "facts": "red"},
        {"id": 2, "rationale": "Rationale: a.\nAnswer: b", "answer": None},
        {"id": "3", "facts": "blue", "answer": 3.5},
    ],
)
PREDICTED = (
    [{"id": "1", "text": "Answer: 3", "cut": False}, {"id": "2", "text": "", "cut": True}],
)
ACCOUNT = (
    [
        {"id": "ab", "stage": "rft/teacher", "reserved": 500},
        {"id": "ab", "stage": "rft/teacher", "prompt": 100, "reply": 20},
        {"stage": "rft/teacher", "cached": 1},
        {"id": "cd", "stage": "rft/teacher", "reserved": 70},
    ],
)
COMPLETIONS = (
    {
        "id": "c", "choices": [
            {"index": 0, "message": {"role": "assistant", "content": "<think>x</think>first",
                                     "reasoning_content": None},
             "finish_reason": "stop", "stop_reason": None,
             "logprobs": {"content": [
                 {"token": "token_id:5", "logprob": -0.1,
                  "top_logprobs": [{"token": "A", "logprob": -0.1}, {"token": "B", "logprob": -2}]}]}},
            {"index": 1, "message": {"content": None}, "finish_reason": "length", "logprobs": None},
        ],
        "usage": {"prompt_tokens": 10, "completion_tokens": 3},
    },
    {"error": {"message": "no", "code": 429}},
    {"data": [{"id": "m", "root": "/models/m", "parent": None, "max_model_len": 4096}]},
    {"texts": ["a"], "first_tokens": [{"A": -0.5}], "finished": [True], "ignored": ["n"]},
)  # fmt: skip
STATES = (
    {"fingerprint": "0123456789abcdef", "written": "2026-01-01T00:00:00+00:00", "seconds": 1.5,
     "stats": {"n": 3}, "files": {"pairs-00000.parquet": {"sha256": "ab", "size": 3}}},
    {"fingerprint": "0123456789abcdef", "files": {"pairs-00000.parquet": {"sha256": "x", "size": 3}}},
    {"fingerprint": "0123456789abcdef"},
    {"recipe": {"name": "x", "method": "src", "seed": 0}, "format": 6},
)  # fmt: skip
STATE_KEYS = (
    "fingerprint", "files", "stats", "seconds", "sha256", "size", "pairs-00000.parquet",
    "../x", "/etc/passwd", "recipe", "format", "method", "evaluate", "data",
)  # fmt: skip


@cache
def recipes() -> tuple[dict[str, Any], ...]:
    """The shipped recipes' parts, small enough for many a second."""
    found: list[dict[str, Any]] = []
    for path in sorted(RECIPES.glob("*.yaml")):
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
        own = {k: values[k] for k in ("name", "method", "seed", "iterations") if k in values}
        parts = [k for k, v in values.items() if isinstance(v, dict)]
        found += [{**own, part: values[part]} for part in parts]
        found.append(own)
    return tuple(found)


RECIPE_WORDS = (
    "&a", "*a", "<<: *a", "!!python/object:os.system", "!!binary", "!!timestamp", "!!set", "---",
    "...", "|", ">", "? ", ": ", "- ", "{", "}", "[", "]", "#", "'", '"', "\t", "%YAML 1.1", "@",
    "1:30:00", "0o17", "0x1F", "1e5", ".inf", ".nan", "~", "null", "yes", "2026-01-01", "=", "!",
    "src", "csr", "grpo", "miniworld", "endpoint", "local", "file", "ray", "base: a.yaml", "9" * 30,
)  # fmt: skip
RECIPE_KEYS = (
    "name", "method", "seed", "iterations", "base", "data", "policy", "teacher", "rft", "search",
    "judge", "curate", "dpo", "grpo", "evaluate", "executor", "kind", "lora", "train", "labels",
    "model", "source", "sources", "server", "base_url", "api_key_env", "tracking", "mix", "path",
    "images", "steps", "epochs", "prompt", "deepspeed", "fsdp", "options", "budget", "columns",
)  # fmt: skip


@cache
def typed_tables() -> dict[str, tuple[bytes, ...]]:
    """Small Parquet and Arrow files of samples, labels and written rationales."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    tables = [
        pa.Table.from_pylist([{**row, "id": str(row["id"])} for row in SAMPLES[0]]),
        pa.Table.from_pylist(LABELS[0][1:2]),
    ]
    tables.append(pa.table({
        "id": [1, 2], "image": [{"bytes": b"\x89PNG", "path": "a"}, {"bytes": None, "path": "b"}],
        "question": ["q", "r"], "answer": [1.5, float("nan")], "choices": [["a", "b"], None],
    }))  # fmt: skip
    tables.append(
        pa.table({"id": pa.array(["a", "a"]).dictionary_encode(), "rationale": ["r", "s"]})
    )
    found: dict[str, list[bytes]] = {"parquet": [], "stream": [], "feather": []}
    for table in tables:
        for kind in found:
            sink = io.BytesIO()
            if kind == "parquet":
                pq.write_table(table, sink, compression="none")
            else:
                made = pa.ipc.new_stream if kind == "stream" else pa.ipc.new_file
                with made(sink, table.schema) as writer:
                    writer.write_table(table)
            found[kind].append(sink.getvalue())
    return {kind: tuple(files) for kind, files in found.items()}


@cache
def pictures() -> tuple[bytes, ...]:
    """A small picture in each format that is read."""
    from PIL import Image

    found: list[bytes] = []
    for mode in ("RGB", "RGBA", "P", "L", "CMYK", "I;16", "1", "F"):
        image = Image.new(mode, (7, 5))
        for kind in ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF"):
            exif = Image.Exif()
            exif[0x0112] = 6
            buffer = io.BytesIO()
            try:
                image.save(
                    buffer, kind, **({"exif": exif} if kind in ("JPEG", "PNG", "WEBP") else {})
                )
            except (OSError, ValueError, KeyError):
                continue
            found.append(buffer.getvalue())
    frames = [Image.new("P", (7, 5), color) for color in (1, 2, 3)]
    for kind in ("GIF", "WEBP", "PNG", "TIFF"):
        buffer = io.BytesIO()
        frames[0].save(buffer, kind, save_all=True, append_images=frames[1:])
        found.append(buffer.getvalue())
    return tuple(found)


def lines(rows: list[dict[str, Any]]) -> bytes:
    """Rows as JSON lines."""
    return "".join(json.dumps(row) + "\n" for row in rows).encode()
