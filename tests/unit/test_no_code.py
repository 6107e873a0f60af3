"""No file that selfcal reads can run code: what could is nowhere called, or called safely."""

from __future__ import annotations

import ast
import pickle
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

SOURCE = Path(__file__).resolve().parents[2] / "src" / "selfcal"
MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "joblib", "jsonpickle"}
CALLS = {"eval", "exec", "compile", "os.system", "os.popen", "yaml.unsafe_load", "yaml.full_load",
         "tempfile.mktemp", "np.fromfile"}  # fmt: skip
SAFE = {"weights_only": True}
UNSAFE = {"allow_pickle": True, "verify": False, "shell": True, "trust_remote_code": True,
          "weights_only": False, "follow_redirects": True, "check_hostname": False}  # fmt: skip


def faults(tree: ast.AST) -> Iterator[str]:
    """What a source does that it must not, with its line."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        for name in names:
            if name.split(".")[0] in MODULES:
                yield f"line {node.lineno}: imports {name}"
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        given = {
            k.arg: k.value.value
            for k in node.keywords
            if k.arg and isinstance(k.value, ast.Constant)
        }
        if called in CALLS:
            yield f"line {node.lineno}: calls {called}"
        if called == "torch.load" and given.get("weights_only") is not True:
            yield f"line {node.lineno}: torch.load without weights_only=True"
        if called == "yaml.load" and not (
            len(node.args) > 1 and ast.unparse(node.args[1]) == "_Loader"
        ):
            yield f"line {node.lineno}: yaml.load with a loader of its own"
        if called == "Image.open" and "formats" not in {k.arg for k in node.keywords}:
            yield f"line {node.lineno}: Image.open asks every decoder"
        for name, value in given.items():
            if name in UNSAFE and value is UNSAFE[name]:
                yield f"line {node.lineno}: {called}({name}={value})"


@pytest.mark.parametrize(
    "line",
    ["import pickle", "from dill import loads", "eval(x)", "torch.load(f)", "yaml.load(t, Loader)",
     "np.load(f, allow_pickle=True)", "get(u, verify=False)", "run(c, shell=True)",
     "M.from_pretrained(p, trust_remote_code=True)", "Image.open(f)",
     "torch.load(f, weights_only=False)"],
)  # fmt: skip
def test_each_of_these_would_be_found(line: str) -> None:
    assert list(faults(ast.parse(line)))


def test_the_source_does_none_of_it() -> None:
    found = [
        f"{path.relative_to(SOURCE)}: {fault}"
        for path in sorted(SOURCE.rglob("*.py"))
        for fault in faults(ast.parse(path.read_text(encoding="utf-8")))
    ]
    assert not found


class Bomb:
    """What runs code when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (self.mark,))


def test_weights_that_are_a_pickle_run_nothing(tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    config = LlamaConfig(vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
                         num_attention_heads=1)  # fmt: skip
    config.save_pretrained(tmp_path)
    mark = tmp_path / "ran"
    pickle.loads(pickle.dumps(Bomb(mark)))
    assert mark.exists()  # it would
    mark.unlink()
    for save in (torch.save, lambda bomb, path: path.write_bytes(pickle.dumps(bomb))):
        save(Bomb(mark), tmp_path / "pytorch_model.bin")
        with pytest.raises(Exception, match=r"(?i)weights|unpickl|pickle"):
            AutoModelForCausalLM.from_pretrained(tmp_path)
        assert not mark.exists()


def test_a_checkpoint_of_a_training_runs_nothing(tmp_path: Path) -> None:
    import torch
    from transformers import Trainer

    mark = tmp_path / "ran"
    torch.save(Bomb(mark), tmp_path / "rng_state.pth")
    trainer = SimpleNamespace(args=SimpleNamespace(world_size=1, process_index=0))
    with pytest.raises(Exception, match=r"(?i)weights"):
        Trainer._load_rng_state(trainer, str(tmp_path))  # type: ignore[arg-type]
    assert not mark.exists()
