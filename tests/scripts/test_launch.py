"""The launchers: what they run, what they say to wrong settings, and whether a cluster would take their files."""

import os
import shlex
import shutil
import signal
import stat
import subprocess
import time
from pathlib import Path

import pytest
import yaml

pytestmark = pytest.mark.slow

LAUNCH = Path(__file__).resolve().parents[2] / "scripts" / "launch"
GKE = {
    "NAME": "run1",
    "IMAGE": "registry.test/team/jax-rele:1",
    "CLAIM": "shared",
    "ACCELERATOR": "tpu-v5-lite-podslice",
    "TOPOLOGY": "4x4",
    "HOSTS": "4",
    "CHIPS": "4",
    "KUBECTL": "cat",
}
TPU = {"TPU_NAME": "pod", "ZONE": "zone-a", "FOLDER": "/mnt/shared"}


def launch(file: str, *arguments: str, timeout: float = 60, **variables: str) -> subprocess.CompletedProcess:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("JAX_", "SLURM_"))}
    command = [shutil.which("bash"), str(LAUNCH / file), *arguments]
    return subprocess.run(command, env=clean | variables, text=True, capture_output=True, timeout=timeout)


def stand_in(folder: Path, name: str, script: str) -> str:
    """A program of that name in front of the path; returns the path."""
    file = folder / name
    file.write_text(f"#!/usr/bin/env bash\n{script}\n")
    file.chmod(file.stat().st_mode | stat.S_IXUSR)
    return f"{folder}:{os.environ['PATH']}"


# ---- local.sh


def local(script: str, count: int = 3, **variables: str) -> subprocess.CompletedProcess:
    return launch("local.sh", str(count), "--", "bash", "-c", script, **variables)


def test_every_process_is_told_its_place_and_its_lines_are_marked():
    done = local('echo "$JAX_PROCESS_ID of $JAX_NUM_PROCESSES at $JAX_COORDINATOR_ADDRESS $JAX_PLATFORMS"; echo hm >&2')
    assert done.returncode == 0
    lines = sorted(done.stdout.splitlines())
    address = lines[0].split()[-2]
    assert lines == [f"[{process}] {process} of 3 at {address} cpu" for process in range(3)]
    assert sorted(done.stderr.splitlines()) == ["[0] hm", "[1] hm", "[2] hm"]
    host, port = address.split(":")
    assert host == "127.0.0.1"
    assert 49152 <= int(port) < 65536


def test_on_gpus_every_process_has_one():
    done = local("echo $JAX_LOCAL_DEVICE_IDS", count=2, JAX_PLATFORMS="cuda")
    assert sorted(done.stdout.splitlines()) == ["[0] 0", "[1] 1"]


def test_the_worst_status_is_the_launchers():
    assert local("exit $((JAX_PROCESS_ID * 2))", GRACE="60").returncode == 4


def test_when_one_fails_the_others_and_what_they_started_are_killed(tmp_path):
    """Even those that do not listen; their status is not taken for their own."""
    script = f"""
        if [ $JAX_PROCESS_ID = 1 ]; then exit 3; fi
        if [ $JAX_PROCESS_ID = 2 ]; then trap 'echo no' TERM; fi
        sleep 300 & echo $! > {tmp_path}/$JAX_PROCESS_ID
        while :; do sleep 0.1; done
    """
    start = time.monotonic()
    done = local(script, GRACE="1")
    assert done.returncode == 3
    assert time.monotonic() - start < 30
    assert "[2] no" in done.stdout
    for process in (0, 2):
        with pytest.raises(ProcessLookupError):
            os.kill(int((tmp_path / str(process)).read_text()), 0)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_reaches_every_process(tmp_path, number, status):
    script = f"trap 'echo told; exit {status}' INT TERM; echo ready; while :; do sleep 0.1; done"
    command = ["bash", str(LAUNCH / "local.sh"), "2", "--", "bash", "-c", script]
    # A shell cannot trap what was ignored when it started, as SIGINT is in the background of another shell.
    options = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}
    with subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, **options) as process:
        ready = [process.stdout.readline() for _ in range(2)]
        assert sorted(ready) == ["[0] ready\n", "[1] ready\n"]
        process.send_signal(number)
        assert sorted(process.stdout.read().splitlines()) == ["[0] told", "[1] told"]
        assert process.wait(timeout=30) == status


# ---- TPU VMs


def test_every_host_of_a_tpu_runs_the_command_in_the_shared_folder(tmp_path):
    work = tmp_path / "a folder"
    (work / ".venv" / "bin").mkdir(parents=True)
    stand_in(work / ".venv" / "bin", "jax-rele", 'echo "$JAX_RELE_DISTRIBUTED in $PWD:"; printf "<%s>" "$@"')
    path = stand_in(tmp_path, "gcloud", 'printf "%s\\n" "$@"')
    value = '{item: "it\'s", x: $HOME `ls` \\}'
    settings = TPU | {"FOLDER": str(work), "PROJECT": "p", "PATH": path}
    done = launch("tpu_vm.sh", "run", "c.yaml", "--data.fields", value, **settings)
    assert done.returncode == 0, done.stderr
    *options, command = done.stdout.splitlines()
    assert options == ["compute", "tpus", "tpu-vm", "ssh", "pod", "--zone=zone-a", "--project=p", "--worker=all"]
    remote = subprocess.run(
        ["sh", "-c", command.removeprefix("--command=")], text=True, capture_output=True, check=True
    )
    assert remote.stdout == f"1 in {work}:\n<run><c.yaml><--data.fields><{value}>"


# ---- SLURM


@pytest.mark.parametrize(
    ("variables", "devices"),
    [
        ({"SLURM_NTASKS_PER_NODE": "1", "SLURM_GPUS_ON_NODE": "4"}, "0,1,2,3"),
        ({"SLURM_NTASKS_PER_NODE": "4", "SLURM_GPUS_ON_NODE": "4"}, ""),
        ({"SLURM_NTASKS_PER_NODE": "1"}, ""),
    ],
)
def test_slurm_tasks_get_their_gpus(tmp_path, variables, devices):
    program = 'echo "$JAX_RELE_DISTRIBUTED <$JAX_LOCAL_DEVICE_IDS>"; printf "<%s>" "$@"'
    stand_in(tmp_path, "jax-rele", program)
    # Options of srun begin with two dashes.
    path = stand_in(tmp_path, "srun", 'echo "$1 $2 $3"; shift 3; "$@"')
    settings = {"SLURM_JOB_ID": "7", "FOLDER": str(tmp_path), "JAX_RELE": "jax-rele", "PATH": path}
    done = launch("slurm.sbatch", "run", "c.yaml", **settings, **variables)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        f"--gpu-bind=none --kill-on-bad-exit=1 --chdir={tmp_path}",
        f"1 <{devices}>",
        "<run><c.yaml>",
    ]


def test_slurm_reads_the_options_at_the_top():
    lines = (LAUNCH / "slurm.sbatch").read_text().splitlines()
    assert lines[0].startswith("#!")
    options = [line.split()[1] for line in lines if line.startswith("#SBATCH")]
    assert "--ntasks-per-node=1" in options
    first_command = next(number for number, line in enumerate(lines) if line and not line.startswith("#"))
    assert all(number < first_command for number, line in enumerate(lines) if line.startswith("#SBATCH"))


# ---- GKE


def filled(*arguments: str, **variables: str) -> dict:
    done = launch("gke.sh", *(arguments or ("run", "c.yaml")), **GKE | variables)
    assert done.returncode == 0, done.stderr
    assert "${" not in done.stdout.split("spec:", 1)[1].replace("${HOME}", "")
    return yaml.safe_load(done.stdout)


def check_fields(value: dict, required: set[str], optional: set[str] = frozenset()) -> None:
    assert required <= value.keys() <= required | optional, value.keys()


def test_the_jobset_has_the_structure_that_its_controller_requires():
    """Fields of jobset.x-k8s.io/v1alpha2, and of the Job and Pod templates in it; no other may appear."""
    jobset = filled()
    check_fields(jobset, {"apiVersion", "kind", "metadata", "spec"})
    assert (jobset["apiVersion"], jobset["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    check_fields(jobset["metadata"], {"name"}, {"annotations", "labels", "namespace"})
    assert jobset["metadata"]["name"] == "run1"
    exclusive = {"alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"}
    assert jobset["metadata"]["annotations"] == exclusive
    check_fields(jobset["spec"], {"replicatedJobs"}, {"failurePolicy", "successPolicy", "network", "suspend"})
    # A failed run starts again, unless the Job's policy says that it was a user's mistake.
    check_fields(jobset["spec"]["failurePolicy"], {"maxRestarts", "rules"})
    assert jobset["spec"]["failurePolicy"]["maxRestarts"] == 3
    (rule,) = jobset["spec"]["failurePolicy"]["rules"]
    assert rule == {"name": "mistake", "action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}
    (job,) = jobset["spec"]["replicatedJobs"]
    check_fields(job, {"name", "template"}, {"replicas"})
    assert job["replicas"] == 1
    check_fields(job["template"], {"spec"}, {"metadata"})
    spec = job["template"]["spec"]
    check_fields(
        spec, {"template"}, {"parallelism", "completions", "completionMode", "backoffLimit", "podFailurePolicy"}
    )
    # One pod a host, each with an index of its own; a failure is the JobSet's to handle.
    assert (spec["parallelism"], spec["completions"], spec["completionMode"]) == (4, 4, "Indexed")
    assert spec["backoffLimit"] == 0
    (rule,) = spec["podFailurePolicy"]["rules"]
    check_fields(rule, {"action", "onExitCodes"})
    assert (rule["action"], rule["onExitCodes"]["operator"], rule["onExitCodes"]["values"]) == ("FailJob", "In", [2])
    pod = spec["template"]["spec"]
    check_fields(pod, {"containers", "restartPolicy", "nodeSelector", "volumes"})
    assert pod["restartPolicy"] == "Never"
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5-lite-podslice",
        "cloud.google.com/gke-tpu-topology": "4x4",
    }
    (container,) = pod["containers"]
    check_fields(
        container, {"name", "image", "command", "args", "env", "resources", "volumeMounts"}, {"workingDir", "ports"}
    )
    assert container["image"] == GKE["IMAGE"]
    assert container["name"] == rule["onExitCodes"]["containerName"]
    assert container["command"] + container["args"] == ["jax-rele", "run", "c.yaml"]
    assert {"name": "JAX_RELE_DISTRIBUTED", "value": "1"} in container["env"]
    assert container["resources"]["limits"] == container["resources"]["requests"] == {"google.com/tpu": 4}
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    claims = {volume["name"]: volume["persistentVolumeClaim"]["claimName"] for volume in pod["volumes"]}
    assert mounts == {"shared": container["workingDir"]}
    assert claims == {"shared": "shared"}


def test_arguments_reach_the_container_as_they_are():
    arguments = ["run", "c.yaml", "--data.fields", "{item: \"a\\b\", x: '#'}", "${HOME}", "a: b", "-1", "[", "&", "\\1"]
    container = filled(*arguments)["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]["containers"][0]
    assert container["args"] == arguments
    # Kubernetes reads $$(X) as the text $(X).
    assert '"$$(X)"' in launch("gke.sh", "run", "$(X)", **GKE).stdout


# ---- wrong settings


@pytest.mark.parametrize(
    ("file", "arguments", "settings", "message"),
    [
        ("local.sh", ["2", "jax-rele"], {}, "usage: local.sh N -- COMMAND"),
        ("local.sh", ["two", "--", "true"], {}, "N is 'two'; it must be a number of processes"),
        ("local.sh", ["0", "--", "true"], {}, "N is '0'"),
        ("local.sh", ["2", "--", "no-such-program"], {}, "no such command: no-such-program"),
        ("local.sh", ["2", "--", "true"], {"GRACE": "x"}, "GRACE is 'x'"),
        ("tpu_vm.sh", [], TPU, "usage: TPU_NAME="),
        ("tpu_vm.sh", ["run"], TPU | {"TPU_NAME": ""}, "TPU_NAME is not set"),
        ("tpu_vm.sh", ["run"], TPU | {"ZONE": ""}, "ZONE is not set"),
        ("tpu_vm.sh", ["run"], TPU | {"FOLDER": "here"}, "FOLDER is 'here'; give the absolute path"),
        ("tpu_vm.sh", ["run"], TPU | {"PATH": "/nowhere"}, "gcloud is not installed"),
        ("slurm.sbatch", [], {}, "usage: FOLDER="),
        ("slurm.sbatch", ["run"], {}, "not in a SLURM job; start this file by sbatch"),
        ("slurm.sbatch", ["run"], {"SLURM_JOB_ID": "1"}, "FOLDER is ''; give the absolute path"),
        ("slurm.sbatch", ["run"], {"SLURM_JOB_ID": "1", "FOLDER": "/"}, ".venv/bin/jax-rele: no such program in /"),
        ("gke.sh", [], GKE, "usage: NAME="),
        ("gke.sh", ["run"], GKE | {"IMAGE": ""}, "IMAGE is not set"),
        ("gke.sh", ["run"], GKE | {"CLAIM": "a b"}, "CLAIM is 'a b'"),
        ("gke.sh", ["run"], GKE | {"HOSTS": "four"}, "HOSTS is 'four'; it must be a whole number"),
        ("gke.sh", ["run"], GKE | {"TOPOLOGY": "16"}, "TOPOLOGY is '16'; it looks like 4x4"),
        ("gke.sh", ["run"], GKE | {"CHIPS": "8"}, "HOSTS 4 x CHIPS 8 are not the chips of TOPOLOGY 4x4"),
        ("gke.sh", ["run", "a\nb"], GKE, "an argument has a line break"),
    ],
)
def test_a_wrong_setting_gives_one_line_and_status_two(file, arguments, settings, message):
    done = launch(file, *arguments, **settings)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith(f"{file}: ")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


def test_every_launcher_says_how_to_use_it():
    for file in LAUNCH.iterdir():
        head = file.read_text().split("set -euo", 1)[0]
        assert head.count("\n# ") + head.startswith("# ") >= 2, file
        assert shlex.split(head.splitlines()[0].removeprefix("#!"))[0] in ("/usr/bin/env", "#"), file
