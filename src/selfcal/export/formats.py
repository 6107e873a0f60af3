"""How each tool wants a preference pair, or an example for fine-tuning, to look.

Prompts are the run's own: the question with its options, and the images where it has `<image>`
marks, if it has one for each, else before it. TRL gets content parts. The other tools get one text
in which their marks stand for images; what a model or a data file wrote can hold such a mark, too,
and would be read as one more image. So a format names the texts that it cannot take (`marks`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selfcal.export.images import Stored
from selfcal.export.table import write_table
from selfcal.policy import user_turn
from selfcal.store import write_text
from selfcal.types import IMAGE_MARK, Sample, question_text

Fields = dict[str, Any]
IMAGE_TOKENS = (
    "<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>", "<|image|>",
    "<image_soft_token>", "<start_of_image>", "<IMG_CONTEXT>", "<fake_token_around_image>", "[IMG]",
)  # fmt: skip
"""What stands for images in the texts of widespread models. A tokenizer makes no difference between
its own and one that somebody wrote."""


@dataclass(frozen=True, slots=True)
class Example:
    """One example with its images in the export."""

    sample: Sample
    images: tuple[Stored, ...]
    chosen: str
    rejected: str | None
    """None: an example for fine-tuning."""
    rejected_images: tuple[Stored, ...] = ()
    """Those of the rejected response, where they are others."""

    @property
    def names(self) -> list[str]:
        """The images' names."""
        return [i.name for i in self.images]

    @property
    def text(self) -> str:
        """The question in one text, with a mark for each image."""
        own = question_text(self.sample)
        if own.count(IMAGE_MARK) == len(self.images):
            return own
        return "".join(
            part.get("text", IMAGE_MARK) for part in user_turn(self.sample)[0]["content"]
        )


@dataclass(frozen=True, slots=True)
class Format:
    """A tool's format."""

    name: str
    tool: str
    file: str
    """Its rows, relative to the export; `*` where there can be several files."""
    row: Callable[[Example], Fields]
    write: Callable[[Path, str, Iterable[Fields]], None]
    """Writes the rows below a folder, for a dataset of this name."""
    load: Callable[[str, str, bool], str]
    """How to train on it: from its folder, its name, and whether it has pairs."""
    language: str = "bash"
    """Of `load`."""
    marks: tuple[str, ...] = ()
    """Texts that stand for images, sounds or boxes in it, beside `IMAGE_MARK`."""
    rejected_images: bool = False
    """Whether the rejected response may have images of its own."""
    embeds: bool = False
    """Whether images are in the file of the rows."""


def dataset_name(recipe: str, pairs: bool) -> str:
    """A name that tools take, such as `miniworld-src-pairs`."""
    plain = "".join(c if c.isascii() and c.isalnum() else "-" for c in recipe.lower())
    words = [word for word in plain.split("-") if word][:12]
    return "-".join([*(words or ["selfcal"]), "pairs" if pairs else "sft"])


# --- TRL ------------------------------------------------------------------------------------


def _trl_row(e: Example) -> Fields:
    row: Fields = {"images": list(e.images), "prompt": user_turn(e.sample)}
    if e.rejected is None:
        return row | {"completion": _said(e.chosen)}
    return row | {"chosen": _said(e.chosen), "rejected": _said(e.rejected)}


def _said(text: str) -> list[Fields]:
    return [{"role": "assistant", "content": [{"type": "text", "text": text}]}]


def _trl_write(folder: Path, name: str, rows: Iterable[Fields]) -> None:
    write_table(folder / "data", rows)


def _trl_load(where: str, name: str, pairs: bool) -> str:
    kind = "DPO" if pairs else "SFT"
    return (
        "from datasets import load_dataset\n"
        f"from trl import {kind}Config, {kind}Trainer\n\n"
        f'dataset = load_dataset({json.dumps(where, ensure_ascii=False)}, split="train")\n'
        # whatever is cut off takes image tokens or the response with it
        f'args = {kind}Config(output_dir="OUT", max_length=None)\n'
        f'{kind}Trainer("MODEL", args=args, train_dataset=dataset).train()'
    )


# --- LLaMA-Factory --------------------------------------------------------------------------


def _factory_row(e: Example) -> Fields:
    asked = _turn("human", e.text)
    if e.rejected is None:
        return {"conversations": [asked, _turn("gpt", e.chosen)], "images": e.names}
    return {
        "conversations": [asked],
        "chosen": _turn("gpt", e.chosen),
        "rejected": _turn("gpt", e.rejected),
        "images": e.names,
    }


def _turn(who: str, text: str) -> Fields:
    return {"from": who, "value": text}


def _factory_write(folder: Path, name: str, rows: Iterable[Fields]) -> None:
    made = list(rows)
    pairs = any("chosen" in row for row in made)
    columns = {"messages": "conversations", "images": "images"}
    entry: Fields = {"file_name": "train.json", "formatting": "sharegpt", "columns": columns}
    if pairs:
        entry["ranking"] = True
        columns |= {"chosen": "chosen", "rejected": "rejected"}
    _write_json(folder / "train.json", made)
    _write_json(folder / "dataset_info.json", {name: entry})


def _factory_load(where: str, name: str, pairs: bool) -> str:
    return (
        f"llamafactory-cli train --stage {'dpo' if pairs else 'sft'} --do_train true \\\n"
        f"  --dataset_dir {_word(where)} --dataset {name} --cutoff_len 4096 \\\n"
        "  --model_name_or_path MODEL --template TEMPLATE --finetuning_type lora --output_dir OUT"
    )


# --- ms-swift -------------------------------------------------------------------------------


def _swift_row(e: Example) -> Fields:
    turns = [{"role": "user", "content": e.text}, {"role": "assistant", "content": e.chosen}]
    row: Fields = {"messages": turns, "images": e.names}
    if e.rejected is not None:
        row["rejected_response"] = e.rejected
    if e.rejected_images:
        row["rejected_images"] = [i.name for i in e.rejected_images]
    return row


def _swift_write(folder: Path, name: str, rows: Iterable[Fields]) -> None:
    lines = [json.dumps(row, ensure_ascii=False, allow_nan=False) for row in rows]
    write_text(folder / "train.jsonl", "".join(f"{line}\n" for line in lines))


def _swift_load(where: str, name: str, pairs: bool) -> str:
    command = "rlhf --rlhf_type dpo" if pairs else "sft"
    return (
        f"ROOT_IMAGE_DIR={_word(where)} swift {command} --model MODEL \\\n"
        f"  --dataset {_word(f'{where}/train.jsonl')} --output_dir OUT"
    )


# --- LLaVA ----------------------------------------------------------------------------------


def _llava_row(e: Example) -> Fields:
    asked = _turn("human", _leading(e.text, len(e.images)))
    row: Fields = {
        "id": e.sample.id,
        "image": e.names[0] if len(e.images) == 1 else e.names,
        "conversations": [asked, _turn("gpt", e.chosen)],
    }
    if e.rejected is not None:
        row["rejected_conversations"] = [asked, _turn("gpt", e.rejected)]
    return row


def _leading(text: str, n: int) -> str:
    """The question as LLaVA has it: a mark is a line of its own, and a single one comes first."""
    if text.startswith(IMAGE_MARK * n):
        text = text.removeprefix(IMAGE_MARK * n)
    elif n == 1:
        text = " ".join(part.strip() for part in text.split(IMAGE_MARK))
    else:
        return text
    return f"{IMAGE_MARK}\n" * n + text.strip()


def _llava_write(folder: Path, name: str, rows: Iterable[Fields]) -> None:
    _write_json(folder / "train.json", list(rows))


def _llava_load(where: str, name: str, pairs: bool) -> str:
    file = _word(f"{where}/train.json")
    return f"--data_path {file} --image_folder {_word(where)}"


# --------------------------------------------------------------------------------------------


def _write_json(path: Path, content: Sequence[Fields] | Fields) -> None:
    write_text(path, json.dumps(content, ensure_ascii=False, indent=1, allow_nan=False) + "\n")


def _word(text: str) -> str:
    from shlex import quote

    return quote(text)


FORMATS = {
    own.name: own
    for own in (
        Format(
            "trl", "TRL", "data/train-*.parquet",
            _trl_row, _trl_write, _trl_load, "python", embeds=True,
        ),
        Format(
            "llamafactory", "LLaMA-Factory", "train.json",
            _factory_row, _factory_write, _factory_load, marks=("<video>", "<audio>"),
        ),
        Format(
            "swift", "ms-swift", "train.jsonl", _swift_row, _swift_write, _swift_load,
            marks=(
                "<video>", "<audio>", "<bbox>", "<ref-object>", "<cot-process>", "<start-image>",
            ),
            rejected_images=True,
        ),
        Format("llava", "LLaVA", "train.json", _llava_row, _llava_write, _llava_load),
    )
}  # fmt: skip
