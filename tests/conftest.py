"""Before anything touches JAX: eight devices on the CPU, so that every test can shard. And one whole tiny run."""

import json
import os
import tempfile
from contextlib import contextmanager
from pathlib import Path

# Tests and the processes that they start compile many of the same programs: each is compiled once, for later runs of
# the tests too. Before JAX is imported, which reads the variables.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(tempfile.gettempdir()) / f"jax_rele_tests_{os.getuid()}"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")
# Compilation takes most of the time of these small models. `make parity`, `make plan-tpu` and `make demo` optimize as
# users do.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")

import hypothesis
import jax
import pytest

jax.config.update("jax_num_cpu_devices", 8)

SAMPLE = Path(__file__).parent.parent / "jax_rele" / "data" / "sample" / "esci_tiny_us.jsonl"

# The first example of a property often compiles.
hypothesis.settings.register_profile("jax_rele", deadline=None)
hypothesis.settings.load_profile("jax_rele")

TINY = """
name: tiny
labels:
  aliases: {E: Exact, S: Substitute, C: Complement, I: Irrelevant}
  gain_maps: {paper: [1.0, 0.1, 0.01, 0.0], esci_data: [1.0, 0.01, 0.1, 0.0]}
data: {candidates: {per_query: 1}}
rules: [{when: {brand: mismatch}, labels: [Substitute, Complement, Irrelevant]}]
teacher:
  random: {vocab_size: 600, layers: 1, width: 32, heads: 2, kv_heads: 1, mlp_width: 32}
  prompt_length: 48
adapt:
  crossed_per_query: 1
  recombined_pairs: 20
  optimization: {steps: 6, batch_size: 8, checkpoint_every: 2, log_every: 2}
finetune: {optimization: {steps: 4, batch_size: 8, checkpoint_every: 2, log_every: 2}}
prefer:
  enabled: true
  samples: 2
  max_pairs: 40
  optimization: {steps: 4, batch_size: 8, learning_rate: 1.0e-4, checkpoint_every: 2, log_every: 2}
student: {random: {vocab_size: 600, layers: 1, width: 32, heads: 2, mlp_width: 32}, query_length: 12, item_length: 20}
distill: {group_size: 2, optimization: {steps: 6, batch_size: 16, checkpoint_every: 2, log_every: 2}}
evaluate: {bootstrap_samples: 50, report_pairs: 20}
"""


def pytest_collection_modifyitems(items):
    """A test that needs the whole tiny run is slow. The order of files keeps every worker busy.

    First a file that makes the tiny run, then those that do without it, while it is made.
    """
    of_tiny = {item.path for item in items if {"tiny", "student_run"} & set(item.fixturenames)}
    first = min(of_tiny, default=None)
    items.sort(key=lambda item: (item.path != first, item.path in of_tiny, item.path.parent.name != "scripts"))
    for item in items:
        if {"tiny", "student_run"} & set(item.fixturenames):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory, worker_id):
    """(config file, run folder) of a finished run on the first 150 pairs of the sample, three of a query among them.

    It is made once for all workers of a test run.
    """
    from jax_rele.io import lock

    base = tmp_path_factory.getbasetemp()
    shared = base if worker_id == "master" else base.parent
    folder = shared / "tiny"
    with lock(shared / "tiny.lock"):
        if not (folder / "finished").exists():
            _run_tiny(folder)
            (folder / "finished").touch()
    return folder / "tiny.yaml", folder / "runs" / "tiny"


@contextmanager
def without_optimizations():
    """Whole runs are compiled fast also where the tests around them compile as users do."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    try:
        yield
    finally:
        jax.config.update("jax_disable_most_optimizations", before)


STUDENTS = {
    "pooled": ["--student.verdict_pooling", "pooled"],
    "projected": [
        *("--student.verdict_pooling", "pooled", "--student.two_tower.embedding_width", "16"),
        *("--student.two_tower.towers", "separate", "--student.two_tower.pooling", "first"),
    ],
    "latent": ["--student.cross_encoder.latent_width", "8", "--student.two_tower.head", "mlp"],
    "maxsim": ["--student.two_tower.head", "maxsim"],
}


@pytest.fixture(scope="session")
def student_run(tiny):
    """Name -> the folder of `tiny`, or of a run whose students have another form and learn from its signals."""
    from jax_rele import cli
    from jax_rele.io import lock

    def train(name):
        config, run = tiny
        if name == "tiny":
            return run
        with lock(run.parent / f"{name}.lock"):
            if not (run.parent / name / "evaluate" / "metrics.json").exists():
                options = ["--name", name, "--score.signals", str(run), "--distill.recipes", "mkd", *STUDENTS[name]]
                with without_optimizations():
                    assert cli.main(["run", str(config), *options]) == 0
        return run.parent / name

    return train


def _run_tiny(folder):
    from jax_rele import cli

    folder.mkdir(exist_ok=True)
    lines = SAMPLE.read_text("utf-8").splitlines()[:150]
    again = json.loads(lines[0])
    # One query with several items, so that nDCG is defined.
    for number, other in enumerate(lines[1:4]):
        lines.append(json.dumps({**again, "pair_id": f"more-{number}", "product": json.loads(other)["product"]}))
    split_of = {again["query"]: "test"}
    for number, line in enumerate(lines):
        row = json.loads(line)
        split = split_of.setdefault(row["query"], ("train", "train", "validation", "test")[number % 4])
        lines[number] = json.dumps({**row, "split": split})
    (folder / "pairs.jsonl").write_text("\n".join(lines), "utf-8")
    file = folder / "tiny.yaml"
    file.write_text(
        TINY.replace(
            "data: {",
            f"run_root: {folder / 'runs'}\n"
            f"data: {{path: {folder / 'pairs.jsonl'}, fields: {{item: product, query_tags: queryner}}, ",
        )
    )
    with without_optimizations():
        assert cli.main(["run", str(file)]) == 0
