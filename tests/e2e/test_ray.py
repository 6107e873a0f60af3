"""Runs on a Ray cluster of two nodes on one machine: the same records, whoever died over them."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from threading import Thread, current_thread
from typing import Any

import psutil
import pytest

from e2e.runs import Told, Undisturbed, near, outcome, small
from selfcal import stopping
from selfcal.executor.room import ClusterError
from selfcal.executor.worker import Share
from selfcal.pipeline import execute, locate
from selfcal.planning import Planned
from selfcal.recipe import RayExecutor, Recipe
from selfcal.stage import Stage, Work
from selfcal.store import StageDir
from selfcal.types import Drop

ray = pytest.importorskip("ray")

from ray.cluster_utils import Cluster  # noqa: E402

from selfcal.executor.foreman import Foreman  # noqa: E402
from selfcal.executor.ray import StageWorker, _told, open_cluster  # noqa: E402
from selfcal.executor.ray_train import _room_given_back  # noqa: E402

# Ray's own business: it leaves sockets and pipes of its processes to the garbage collector
pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.*"),
    pytest.mark.filterwarnings("ignore::FutureWarning:ray.*"),
]

TESTS = str(Path(__file__).parents[1])
SPREAD = ("eval/iter-2", "iter-2/candidates", "iter-2/judgments")
"""One stage of each kind that workers do."""
CONNECT = f"""
import logging, ray
ray.init(
    {{address!r}}, log_to_driver=False, logging_level=logging.ERROR,
    runtime_env={{{{
        "worker_process_setup_hook": "e2e.runs.be_a_worker",
        "env_vars": {{{{"PYTHONPATH": {TESTS!r}, "OMP_NUM_THREADS": "1"}}}},
    }}}},
)
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A cluster of one node, to which this process is connected."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("RAY_USAGE_STATS_ENABLED", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"):
            patch.setenv(name, "0")
        own = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
        exec(CONNECT.format(address=own.address))
        yield own
        ray.shutdown()
        own.shutdown()


@pytest.fixture(autouse=True)
def no_wish() -> Iterator[None]:
    yield
    stopping.forget()


def on_ray(workers: int, *more: str) -> Recipe:
    return small("executor=ray", f"executor.workers={workers}", *more)


def without(stages: Sequence[str], undisturbed: Undisturbed, run: Path) -> Path:
    """A copy of the run that lacks these stages."""
    shutil.copytree(undisturbed.run, run)
    for name in stages:
        shutil.rmtree(run / name)
    return run


def planned(recipe: Recipe, run: Path, stage: str) -> Planned:
    (found,) = [p for p in locate(recipe, run) if p.stage.name == stage]
    return found


def records(run: Path, stages: Sequence[str]) -> dict[str, bytes]:
    """Every file of records and every mark, byte for byte."""
    return {
        str(p.relative_to(run)): p.read_bytes()
        for stage in stages
        for pattern in ("*.parquet", "shards/*.json")
        for p in sorted((run / stage).glob(pattern))
    }


def workers(node: Any) -> list[int]:
    """Process ids of a node's workers that live, the raylet's own first."""
    (raylet,) = [p.process.pid for p in node.all_processes["raylet"]]
    below = psutil.Process(raylet).children(recursive=True)
    return [raylet, *(p.pid for p in below if "StageWorker" in command(p))]


def command(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:  # it has ended
        return ""


class Acts(Told):
    """Does something in the middle of a stage: when some of its workers have begun a shard."""

    def __init__(self, run: Path, acts: Mapping[str, Callable[[list[int]], bool]]) -> None:
        """`acts`: by stage, from process ids that wait in a shard, whether it was done."""
        super().__init__()
        self.run, self.acts, self.did = run, acts, list[str]()
        self.thread: Thread | None = None

    def begins(self, stage: Stage, number: int, of: int) -> None:
        super().begins(stage, number, of)
        if stage.name in self.acts:
            (self.run / "pause").touch()
            self.thread = Thread(target=self.act, args=[stage.name])
            self.thread.start()

    def act(self, stage: str) -> None:
        try:
            while not self.acts[stage](paused(self.run)):
                time.sleep(0.1)
            self.did.append(stage)
        finally:
            (self.run / "pause").unlink()
            for pid in paused(self.run):
                (self.run / f"paused-{pid}").unlink()

    def ends(self, stage: Stage, stats: Mapping[str, Any], seconds: float) -> None:
        super().ends(stage, stats, seconds)
        if self.thread is not None:
            self.thread.join()


def paused(run: Path) -> list[int]:
    return [int(p.name.removeprefix("paused-")) for p in run.glob("paused-*")]


def kill(*pids: int) -> bool:
    """Kill these processes, the first one first."""
    for pid in pids:
        with suppress(ProcessLookupError):  # it went with the first
            os.kill(pid, signal.SIGKILL)
    assert all(gone(pid) for pid in pids)
    return True


def gone(pid: int) -> bool:
    """Whether a process has ended, within a minute."""
    until = time.monotonic() + 60
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        if time.monotonic() > until:
            return False
        time.sleep(0.05)
    return True


@pytest.fixture(scope="module")
def one(
    cluster: Cluster, undisturbed: Undisturbed, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The run as a single worker makes it."""
    run = without(SPREAD, undisturbed, tmp_path_factory.mktemp("one") / "run")
    recipe, told = on_ray(1), Told()
    execute(recipe, run, told)
    assert told.ended == [n for n in undisturbed.told.ended if n in SPREAD]
    for stage in SPREAD:
        assert planned(recipe, run, stage).stage.spread == "workers"
        assert len(list((run / stage / "shards").iterdir())) > 1, stage
    return run


def test_records_are_those_of_the_local_executor(undisturbed: Undisturbed, one: Path) -> None:
    assert outcome(on_ray(1), one) == undisturbed.outcome


def test_three_workers_of_which_one_is_killed_and_a_node_make_the_same_bytes(
    cluster: Cluster, undisturbed: Undisturbed, one: Path, tmp_path: Path
) -> None:
    run = without(SPREAD, undisturbed, tmp_path / "run")
    node = cluster.add_node(num_cpus=2)
    cluster.wait_for_nodes()

    def kill_node(busy: list[int]) -> bool:
        raylet, *own = workers(node)
        return bool(set(own) & set(busy)) and kill(raylet, *own)

    def kill_worker(busy: list[int]) -> bool:
        return bool(busy) and kill(busy[0])

    recipe = on_ray(3)
    told = Acts(run, {"iter-2/candidates": kill_worker, "eval/iter-2": kill_node})
    execute(recipe, run, told)
    assert told.did == ["iter-2/candidates", "eval/iter-2"]
    assert sum(n["Alive"] for n in ray.nodes()) == 1
    cluster.remove_node(node, allow_graceful=False)  # what is left of it
    assert records(run, SPREAD) == records(one, SPREAD)
    assert outcome(recipe, run) == undisturbed.outcome


CHILD = f"""
import sys
from pathlib import Path
from e2e.runs import Told, small, small_shards
from selfcal.pipeline import execute

small_shards()
{CONNECT}
execute(small("executor=ray", "executor.workers=1"), Path(sys.argv[1]), Told())
"""


def test_a_run_that_is_stopped_and_whose_driver_is_killed_then_goes_on_to_the_same_end(
    cluster: Cluster,
    undisturbed: Undisturbed,
    one: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stage = "iter-2/judgments"
    run = without([stage], undisturbed, tmp_path / "run")
    heard, asked = list[bool](), stopping.asked

    def hearing() -> bool:
        """Who watches for the wish has passed it on when he asks for the second time."""
        if current_thread().name == "foreman" and asked():
            heard.append(True)
        return asked()

    def stop(busy: list[int]) -> bool:
        if busy:
            stopping.ask()
        return len(heard) > 1

    told = Acts(run, {stage: stop})
    with monkeypatch.context() as patch, pytest.raises(stopping.Stopped):
        patch.setattr(stopping, "asked", hearing)
        execute(on_ray(1), run, told)
    stopping.forget()
    marks = run / stage / "shards"
    assert len(list(marks.iterdir())) == 1  # of three: the one in work was finished
    assert not (run / stage / "manifest.json").exists()

    (run / "pause").touch()
    code = CHILD.format(address=cluster.address)
    with (tmp_path / "log").open("w") as log:
        environment = {**os.environ, "PYTHONPATH": TESTS}
        child = subprocess.Popen([sys.executable, "-c", code, run], env=environment, stderr=log)
    while not paused(run):
        assert child.poll() is None, (tmp_path / "log").read_text()[-3000:]
        time.sleep(0.1)
    (worker,) = paused(run)
    assert "StageWorker" in command(psutil.Process(worker))
    child.kill()
    assert child.wait() == -signal.SIGKILL
    assert gone(worker)  # it dies with its driver
    (run / "pause").unlink()
    (run / f"paused-{worker}").unlink()
    assert len(list(marks.iterdir())) == 1

    execute(on_ray(1), run, again := Told())
    assert again.begun == [stage]
    assert records(run, [stage]) == records(one, [stage])
    assert outcome(on_ray(1), run) == undisturbed.outcome


def test_an_error_in_a_worker_is_the_same_error_here(
    cluster: Cluster, undisturbed: Undisturbed, tmp_path: Path
) -> None:
    run = without(["eval/iter-2"], undisturbed, tmp_path / "run")
    weights = run / "iter-2/dpo/checkpoint/model.safetensors"
    recipe = on_ray(1)
    data = weights.read_bytes()

    class Spoils(Told):
        def begins(self, stage: Stage, number: int, of: int) -> None:
            weights.write_bytes(data[: len(data) // 2])

    from selfcal.policy import ModelError

    with pytest.raises(ModelError) as error:
        execute(recipe, run, Spoils())
    assert str(weights.parent) in str(error.value)
    assert "\n" not in str(error.value)
    assert not (run / ".lock-holder").exists()


def test_more_workers_than_fit_are_refused_before_anything_is_begun(
    cluster: Cluster, tmp_path: Path
) -> None:
    told = Told()
    with pytest.raises(ClusterError, match=r"has \d CPUs and 0 GPUs on \d nodes, room for 0"):
        execute(on_ray(1, "executor.gpus=0.5"), tmp_path / "run", told)
    assert not told.begun


def test_a_guided_search_and_rewards_are_the_same_on_workers(
    cluster: Cluster, tmp_path: Path
) -> None:
    """CSR: a model beside the policy, whose memory of sentences must not carry over."""
    node = cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    own = ("reward/start", "iter-1/candidates")
    settings = (
        "method=csr",
        "search.keep=top_bottom",
        "rft=null",
        "iterations=1",
        "evaluate.splits=[dev]",
    )
    found = []
    for workers in (0, 1, 2):
        more = ["executor=ray", f"executor.workers={workers}"] if workers else []
        recipe, run = small(*settings, *more), tmp_path / str(workers)
        if workers == 2:
            shutil.copytree(tmp_path / "1", run)
            for stage in own:
                shutil.rmtree(run / stage)

        class Enough(Told):
            def begins(self, stage: Stage, number: int, of: int) -> None:
                super().begins(stage, number, of)
                if stage.name == "iter-1/pairs":
                    raise stopping.Stopped

        with pytest.raises(stopping.Stopped):
            execute(recipe, run, Enough())
        folders = [planned(recipe, run, s).folder for s in own]
        found.append([near(_table(f.path)) for f in folders])
        stats: Mapping[str, Any] = folders[0].manifest()["stats"]
        assert stats["responses"] and stats["relevance"] > 0
    cluster.remove_node(node)
    assert found[0] == found[1]
    assert records(tmp_path / "1", own) == records(tmp_path / "2", own)


class UpTo(Told):
    """Stops before another stage than this one is begun; may ask to stop when this one is."""

    def __init__(self, stage: str, ask: bool = False) -> None:
        super().__init__()
        self.stage, self.ask = stage, ask

    def begins(self, stage: Stage, number: int, of: int) -> None:
        super().begins(stage, number, of)
        if stage.name != self.stage:
            raise stopping.Stopped
        if self.ask:
            stopping.ask()


def test_two_ranks_heed_a_stop_and_go_on_to_the_weights_of_one_process(
    cluster: Cluster, undisturbed: Undisturbed, tmp_path: Path
) -> None:
    from safetensors.numpy import load_file

    # whole batches of the rows: where an epoch's last one is ragged, ranks fill it up
    whole, alone = "rft.batch_size=16", tmp_path / "alone"
    run = without(["rft"], undisturbed, tmp_path / "run")
    shutil.copytree(run, alone)
    with pytest.raises(stopping.Stopped):
        execute(small(whole), alone, UpTo("rft"))
    node = cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    recipe = on_ray(1, "executor.ranks=2", "dpo.micro_batch_size=2", whole)
    for told in (UpTo("rft", ask=True), UpTo("rft")):
        stopping.forget()
        with pytest.raises(stopping.Stopped):
            execute(recipe, run, told)
        assert told.begun[0] == "rft"
        assert told.ended == ([] if told.ask else ["rft"])
    cluster.remove_node(node)
    assert not list((run / "rft").glob("outcome.json"))
    weights = "rft/checkpoint/model.safetensors"
    own, other = load_file(run / weights), load_file(alone / weights)
    assert own.keys() == other.keys()
    assert max(float(abs(own[name] - other[name]).max()) for name in own) < 1e-5
    (rft,) = [p.folder for p in locate(recipe, run) if p.stage.name == "rft"]
    assert rft.manifest()["stats"]["ranks"] == 2


def test_what_a_training_has_reserved_is_given_back_however_it_ends(cluster: Cluster) -> None:
    from ray.util.placement_group import placement_group, placement_group_table

    own = placement_group([{"CPU": 0.5}])
    with pytest.raises(stopping.Stopped), _room_given_back():
        group = placement_group([{"CPU": 0.5}])
        assert own.wait(60) and group.wait(60)
        raise stopping.Stopped
    assert placement_group_table(group)["state"] == "REMOVED"
    assert placement_group_table(own)["state"] == "CREATED"
    ray.util.remove_placement_group(own)


def test_more_ranks_than_fit_are_refused_before_anything_is_begun(cluster: Cluster) -> None:
    said = r"executor.ranks: 64 with 1 CPUs each do not fit: .*; set executor.ranks=\d"
    with pytest.raises(ClusterError, match=said), open_cluster(RayExecutor(ranks=64)):
        pass


def test_a_stop_is_heeded_while_workers_wait_for_room(cluster: Cluster, tmp_path: Path) -> None:
    class Hog:
        def is_there(self) -> bool:
            return True

    cores = int(ray.cluster_resources()["CPU"])
    hogs = [ray.remote(Hog).options(num_cpus=1).remote() for _ in range(cores)]
    assert all(ray.get([hog.is_there.remote() for hog in hogs]))

    def run(work: Work) -> Mapping[str, Any]:
        work.map(list("ab"), 1, lambda part: {"drops": (Drop, [])})
        return {}

    stage = Stage("s", (), {}, run, 1, "items", "x", "workers")
    folder = StageDir(tmp_path / "s", "f")
    folder.open()
    work = Work(tmp_path, stage, folder, {}, 1)
    stopping.ask()
    recipe = on_ray(1)
    with pytest.raises(stopping.Stopped), open_cluster(RayExecutor()) as executor:
        executor.run(recipe, work)
    for hog in hogs:
        ray.kill(hog)


def _table(folder: Path) -> dict[str, Any]:
    import pyarrow.parquet as pq

    return {p.name: pq.read_table(p).to_pylist() for p in sorted(folder.glob("*.parquet"))}


def test_a_shard_is_begun_so_often_and_never_once_all_shall_stop() -> None:
    foreman = Foreman()
    assert [foreman.begins(i) for i in (3, 4, 3, 3)] == [1, 1, 2, 3]
    assert not foreman.stop()  # two are in work
    assert [foreman.begins(i) for i in (3, 5)] == [0, 0]
    foreman.ends(3)
    foreman.ends(4)
    assert foreman.stop()


def test_a_shard_whose_workers_all_die_over_it_is_given_up(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    foreman = ray.remote(Foreman).options(num_cpus=0).remote()
    for _ in range(10):
        ray.get(foreman.begins.remote(0))
    share = Share("no run", ".", "iter-1/candidates", "fingerprint", (1,), 1)
    monkeypatch.setattr("selfcal.executor.ray.hush", lambda: None)
    said = StageWorker(share, foreman)({"shard": [0]})
    assert list(said["items"]) == [-1]
    error = _told(said["error"][0])
    assert type(error) is ClusterError
    assert "iter-1/candidates, shard 0: its worker died 10 times" in str(error)


GUARDED = """
from ray.cluster_utils import Cluster
from selfcal.executor.ray import open_cluster
from selfcal.recipe import RayExecutor

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
with open_cluster(RayExecutor(address=cluster.address)):
    print("in")
cluster.shutdown()
"""


def test_a_cluster_that_wants_a_token_lets_in_who_has_it() -> None:
    """In a process of its own: Ray reads once whether there is one."""
    told = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "a" * 64, "RAY_USAGE_STATS_ENABLED": "0"}
    done = subprocess.run(
        [sys.executable, "-c", GUARDED],
        env=os.environ | told, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.stdout.splitlines()[-1:] == ["in"], done.stderr[-3000:]


def test_no_cluster_is_waited_for_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    for address, why in [
        ("127.0.0.1:1", "Connection refused"),
        ("ray://127.0.0.1:1", "on a machine of the cluster"),
    ]:
        settings = RayExecutor(address=address)
        with pytest.raises(ClusterError, match=why) as error, open_cluster(settings):
            pass
        assert address in str(error.value)
