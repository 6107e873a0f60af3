"""Teacher, facts and labels in a run, against a real server with real models: `transformers serve`.

The server loads the shipped models, so that what comes back can be trained on; recipes give the
prompts that these were trained on.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from selfcal.chat import ChatClient, ChatError, Keeping, Ledger, SpentError, user_message
from selfcal.local import LocalModel, Running
from selfcal.miniworld.verifier import compare
from selfcal.policy import model_path
from selfcal.prompts import Prompts
from selfcal.recipe import Recipe
from selfcal.teacher import ChatTeacher, MiniWorldTeacher
from selfcal.types import Candidate, LabelledPair, Sample, WrittenRap
from unit.doing import do, folders, foreign, recipe

pytestmark = pytest.mark.skipif(
    any(find_spec(name) is None for name in ("fastapi", "uvicorn")),
    reason="needs transformers[serving]",
)
LLAVA, JUDGE = model_path("miniworld:mini-llava"), model_path("miniworld:mini-judge")
BARE = "{{ question }}\n"
COMPARE = "Question: {{ question }}\nFacts: {{ facts }}\nFirst: {{ first }}\nSecond: {{ second }}"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("serve")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    start = "from transformers.cli.transformers import main; main()"
    where = ["--host", "127.0.0.1", "--port", str(port), "--device", "cpu", "--dtype", "float32"]
    own = {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(folder), "OMP_NUM_THREADS": "1"}
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", start, "serve", *where],
            env={**os.environ, **own}, stdout=log, stderr=log,
        )  # fmt: skip
        try:
            _await(f"http://127.0.0.1:{port}/health", process, folder / "log")
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            process.terminate()
            process.wait(20)


def _await(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    for _ in range(900):
        if process.poll() is not None:
            break
        try:
            opener.open(url, timeout=1).close()
            return
        except OSError:
            time.sleep(0.1)
    raise AssertionError(f"no server: {log.read_text()[-2000:]}")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return foreign(tmp_path_factory.mktemp("data"))


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def asking(data: Path, url: str, **more: Any) -> Recipe:
    """A recipe whose teacher and label giver are the served models."""
    where = {"kind": "endpoint", "base_url": url, "api_key_env": ""}
    prompts = {"rationale": BARE, "facts": BARE}
    teacher = {**where, "model": LLAVA, "max_tokens": 48, "prompts": prompts, **more}
    labels = {**where, "model": JUDGE, "max_tokens": 1, "prompts": {"compare": COMPARE}}
    return recipe(data, teacher=teacher, judge={"labels": labels})


def test_a_teacher_behind_a_server_teaches_what_the_same_model_does_here(
    server: str, data: Path, tmp_path: Path
) -> None:
    own = asking(data, server)
    stats = do(own, tmp_path, "data", "teacher")
    assert (stats["requests"], stats["cached"]) == (6, 0)
    assert stats["prompt_tokens"] > 60 and stats["reply_tokens"] > 20
    served = {
        r.sample_id: r.text for r in folders(own, tmp_path)["teacher"].read("raps", WrittenRap)
    }
    assert stats["raps"] + sum(stats["drops"].values()) == 6 and stats["raps"] == len(served) > 0
    local = {"kind": "local", "model": LLAVA, "dtype": "float32", "max_tokens": 48}
    here = recipe(data, teacher={**local, "prompts": {"rationale": BARE, "facts": BARE}})
    do(here, tmp_path / "here", "data", "teacher")
    raps = folders(here, tmp_path / "here")["teacher"].read("raps", WrittenRap)
    assert {r.sample_id: r.text for r in raps} == served


def test_facts_and_labels(server: str, data: Path, tmp_path: Path) -> None:
    own = asking(data, server)
    stats = do(own, tmp_path, "data", "facts")
    assert stats["written"] == stats["requests"] == 10 and stats["drops"] == {}
    told = folders(own, tmp_path)["facts"].read("rft", Sample)
    assert all(s.facts for s in told)
    found = folders(own, tmp_path)["judge/candidates"]
    found.open()
    good, bad = MiniWorldTeacher(0, 0), MiniWorldTeacher(1, 0)
    truth = {s.id: s for s in _worlds(data)}
    texts = [(s.id, i, who.write(truth[s.id])) for s in told for i, who in enumerate((good, bad))]
    rows = [Candidate(*row, (), (), (), True) for row in texts]
    found.write_shard("candidates", 0, rows, Candidate)
    found.finish({}, 0.0)
    stats = do(own, tmp_path, "judge/labels")
    assert stats["requests"] == 6
    labelled = folders(own, tmp_path)["judge/labels"].read("labelled", LabelledPair)
    assert len(labelled) + stats["drops"].get("unreadable-label", 0) == 6
    facts = {s.id: s.facts for s in told}
    assert labelled and all(p.facts == facts[p.sample_id] for p in labelled)


def _worlds(data: Path) -> list[Sample]:
    from selfcal.data import read_samples

    return read_samples(data / "world" / "rft.jsonl")[0]


def test_labels_by_the_truth(server: str, data: Path) -> None:
    """With MiniWorld's own facts, the served judge is right as often as it is here."""
    from selfcal.judge.labels import ChatLabels

    good, bad = MiniWorldTeacher(0, 0), MiniWorldTeacher(1, 0)
    with ChatClient(server, JUDGE, max_tokens=1) as client:
        who = ChatLabels(client, Prompts("labels", {"compare": COMPARE}))
        here = ChatLabels(
            LocalModel(JUDGE, Running("float32", "cpu", max_tokens=1)),
            Prompts("labels", {"compare": COMPARE}),
        )
        for s in _worlds(data)[:3]:
            pair = good.write(s), bad.write(s)
            assert compare(s, *pair) == "first"
            assert who.compare(s, *pair) == here.compare(s, *pair)


def test_a_budget_stops_and_goes_on(server: str, data: Path, tmp_path: Path) -> None:
    with pytest.raises(SpentError, match=r"raise teacher\.budget\.requests"):
        do(asking(data, server, budget={"requests": 2}), tmp_path, "data", "teacher")
    stats = do(asking(data, server, budget={"requests": 6}), tmp_path, "teacher")
    assert (stats["requests"], stats["cached"]) == (6, 2)


def test_what_the_server_is_told_and_does_not_do(server: str, data: Path) -> None:
    sample = _worlds(data)[0]
    asked = [user_message(sample.question, sample.images)]
    with ChatClient(server, LLAVA, max_tokens=30, keeping=Keeping(Ledger())) as client:
        reply = client.reply(asked, n=2, logprobs=5, choice=["a", "b"])
        assert reply.ignored == ("n", "logprobs", "choice") and len(reply.texts) == 1
        assert client.spent.requests == 2  # it refuses `choice` with 422
        assert client.spent.tokens == reply.usage.tokens > 20
        assert len(client.draws(asked, 2, temperature=1.0)) == 2
    with ChatClient(server, "no/such-model", retries=0) as client, pytest.raises(ChatError) as told:
        client.ask(asked)
    assert "status" in str(told.value) and server in str(told.value)


def test_sight_decides_what_is_said(server: str, data: Path) -> None:
    with ChatClient(server, LLAVA, max_tokens=30) as client:
        teacher = ChatTeacher(client, Prompts("teacher", {"rationale": BARE}))
        same = [replace(s, question="What is at the top?") for s in _worlds(data)]
        assert len({teacher.write(s) for s in same}) > 1
