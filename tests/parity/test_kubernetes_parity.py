"""The manifests, checked strictly against the schema that Kubernetes publishes; they were not run on a cluster."""

import copy
import shlex
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from jax_rele.cli import student_commands  # noqa: F401  # registers the commands
from jax_rele.cli.parser import find_command

LAUNCH = Path(__file__).resolve().parents[2] / "scripts" / "launch"
VERSION = "1.33"
MANIFESTS = {"serve.yaml": ["Deployment", "Service"], "predict_job.yaml": ["Job"]}


def documents(name):
    return list(yaml.safe_load_all((LAUNCH / name).read_text("utf-8")))


def container_command(document):
    """The command that the container runs, with the pod's number put in."""
    (container,) = document["spec"]["template"]["spec"]["containers"]
    words = [*container.get("command", ()), *container["args"]]
    if words[:2] == ["sh", "-c"]:
        words = shlex.split(words[2].removeprefix("exec ").replace("$((JOB_COMPLETION_INDEX + 1))", "3"))
    return words


@pytest.mark.parametrize("name", MANIFESTS)
def test_manifests_follow_the_schema(name):
    assert [document["kind"] for document in documents(name)] == MANIFESTS[name]
    for document in documents(name):
        assert kubernetes_validate.validate(document, VERSION, strict=True) == VERSION


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("serve.yaml", ("spec", "template", "spec")),
        ("serve.yaml", ("spec", "template", "spec", "containers", 0, "readinessProbe")),
        ("predict_job.yaml", ("spec",)),
        ("predict_job.yaml", ("spec", "podFailurePolicy", "rules", 0, "onExitCodes")),
    ],
)
def test_a_misspelt_field_is_no_manifest(name, path):
    document = copy.deepcopy(documents(name)[0])
    inner = document
    for key in path:
        inner = inner[key]
    field = next(iter(inner))
    inner[f"{field}s"] = inner.pop(field)
    with pytest.raises(kubernetes_validate.ValidationError, match=rf"{field}s?."):
        kubernetes_validate.validate(document, VERSION, strict=True)


@pytest.mark.parametrize("name", MANIFESTS)
def test_the_commands_in_them_are_commands_of_ours(name):
    program, *words = container_command(documents(name)[0])
    assert program == "jax-rele"
    command, rest = find_command(words)
    parsed = vars(command.parser().parse_args(rest))
    if name == "predict_job.yaml":
        completions = documents(name)[0]["spec"]["completions"]
        assert parsed["process"] == f"3/{completions}"
