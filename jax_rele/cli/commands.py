"""Every command, one function each. What a command needs is imported where it runs, so that help comes at once."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from jax_rele.cli.parser import argument, command
from jax_rele.names import FORMATS, MODELS, PLANNED_STEPS
from jax_rele.runs.stages import STAGES

"""Steps that `plan` knows; `distill` stands for each student's."""

_RUN = argument("run", type=Path, metavar="RUN", help="folder of a finished run, e.g. runs/demo")


def positive_number(text: str) -> int:
    if not text.isdecimal() or (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return number


def _run_stages(config: str, overrides: Sequence[str], names: Sequence[str]) -> None:
    from jax_rele.training import distributed, preemption

    # Joined before anything else, so that a mistake which one process alone finds ends the others too.
    with preemption.end_on_sigterm(), distributed.join_processes():
        from jax_rele.cli.overrides import read_config
        from jax_rele.runs import pipeline

        pipeline.run(read_config(config, overrides), names)


@command(reads_config=True)
def run(config: str, overrides: Sequence[str]) -> None:
    """All stages of a config, in order.

    Finished stages are skipped; the same command resumes an interrupted run.
    """
    _run_stages(config, overrides, tuple(STAGES))


def _add_stage(name: str, text: str) -> None:
    def run_stage(config: str, overrides: Sequence[str]) -> None:
        _run_stages(config, overrides, (name,))

    run_stage.__doc__ = f"{text[0].upper()}{text[1:]}."
    command(name=name, reads_config=True)(run_stage)


for _stage in STAGES.values():
    _add_stage(_stage.name, _stage.help)


@command(
    argument("pair_id", nargs="?", default="", metavar="PAIR_ID", help="a labelled training pair; the first"),
    name="annotate show-prompt",
    reads_config=True,
)
def show_prompt(config: str, pair_id: str, overrides: Sequence[str]) -> None:
    """What a chat model is asked about a pair, and the schema of its answer."""
    from jax_rele.cli import annotation
    from jax_rele.cli.overrides import read_config

    annotation.show_prompt(read_config(config, overrides), pair_id)


@command(name="annotate work", reads_config=True)
def annotate_work(config: str, overrides: Sequence[str]) -> None:
    """Ask for answers beside other processes that do; `annotate` then decides."""
    from jax_rele.cli import annotation
    from jax_rele.cli.overrides import read_config

    annotation.annotate_worker(read_config(config, overrides))


@command(
    argument("endpoint", metavar="ENDPOINT", help="its name in annotate.endpoints"),
    argument("file", metavar="FILE", help="JSONL file to write; large batches become several files"),
    name="annotate batch write",
    reads_config=True,
)
def write_batch(config: str, endpoint: str, file: str, overrides: Sequence[str]) -> None:
    """Write the requests that have no answer yet, for an offline batch."""
    from jax_rele.cli import annotation
    from jax_rele.cli.overrides import read_config

    annotation.write_batch(read_config(config, overrides), endpoint, file)


@command(argument("files", nargs="+", metavar="FILE", help="results"), name="annotate batch read", reads_config=True)
def read_batch(config: str, files: Sequence[str], overrides: Sequence[str]) -> None:
    """Store the answers of an offline batch."""
    from jax_rele.cli import annotation
    from jax_rele.cli.overrides import read_config

    annotation.read_batch(read_config(config, overrides), files)


@command(
    argument("--recipes", nargs="+", metavar="RECIPE", help="in place of distill.recipes"),
    argument("--students", nargs="+", metavar="STUDENT", help="in place of distill.students"),
    argument("--seeds", type=positive_number, default=5, metavar="N", help="number of training seeds; 5"),
    argument("--reference", metavar="RECIPE", help="the recipe that the others are compared with; label_only"),
    argument("--labelled", nargs="+", type=int, default=(), metavar="N", help="numbers of labelled pairs, for a curve"),
    argument(
        "--teacher-labelled", nargs="+", type=int, default=(), metavar="N", help="numbers of unlabelled pairs, likewise"
    ),
    argument("--folds", type=int, metavar="K", help="cross-validation in K folds of queries, in place of the splits"),
    reads_config=True,
)
def compare(
    config: str,
    recipes: Sequence[str] | None,
    students: Sequence[str] | None,
    seeds: int,
    reference: str | None,
    labelled: Sequence[int],
    teacher_labelled: Sequence[int],
    folds: int | None,
    overrides: Sequence[str],
) -> None:
    """Recipes side by side, over several seeds.

    Trains every student by every recipe with every seed and compares them on the evaluated split; resumable. With
    --folds every labelled pair is judged once, by models and a teacher that saw no pair of its query.
    """
    from jax_rele.cli.overrides import read_config
    from jax_rele.compare import command as comparing

    selected = {"--distill.recipes": recipes, "--distill.students": students}
    options = [word for option, values in selected.items() if values for word in (option, *values)]
    settings = read_config(config, [*options, *overrides])
    default = "label_only" if "label_only" in settings.distill.recipes else settings.distill.recipes[0]
    comparing.run(
        settings,
        seeds=seeds,
        labelled=labelled,
        teacher_labelled=teacher_labelled,
        reference=reference or default,
        folds=folds,
    )


@command(
    argument("--trials", type=positive_number, required=True, metavar="N", help="trials, with those that have run"),
    argument("--student", metavar="STUDENT", help="which student; the first of distill.students"),
    argument("--recipe", metavar="RECIPE", help="recipe or objective; mkd, or the last of distill.recipes"),
    argument("--seeds", type=positive_number, default=2, metavar="N", help="training seeds of a trial; 2"),
    argument("--metric", default="auc", metavar="METRIC", help="what is to become better: auc, log_loss, ...; auc"),
    reads_config=True,
)
def tune(
    config: str,
    trials: int,
    student: str | None,
    recipe: str | None,
    seeds: int,
    metric: str,
    overrides: Sequence[str],
) -> None:
    """Search term weights, temperatures and learning rate of a student's recipe.

    By Optuna, on the validation split alone; resumable. Needs the extra `tune`.
    """
    from jax_rele.cli.overrides import read_config
    from jax_rele.runs.load import main_recipe
    from jax_rele.tune import command as tuning

    settings = read_config(config, overrides)
    tuning.run(
        settings,
        student or settings.distill.students[0],
        recipe or main_recipe(settings),
        trials=trials,
        seeds=seeds,
        metric=metric,
    )


@command(argument("file", metavar="FILE", help="JSONL or Parquet file of signals"), reads_config=True)
def check_signals(config: str, file: str, overrides: Sequence[str]) -> None:
    """Check a file of another teacher's signals against the pairs of a run that has finished prepare.

    docs/signals.md describes the file.
    """
    from jax_rele.cli import signals
    from jax_rele.cli.overrides import read_config

    signals.check_signals(read_config(config, overrides), file)


@command(
    argument("run", type=Path, metavar="RUN", help="folder of a finished run, or of a bundle that `export` wrote"),
    argument("--model", choices=MODELS, help="which model of the run; a bundle has one"),
    argument("--recipe", metavar="RECIPE", help="the student's recipe; mkd, or the last one that the run trained"),
    argument("--input", required=True, metavar="PAIRS", help="JSONL, CSV, TSV or Parquet file of pairs"),
    argument("--output", type=Path, metavar="SCORES.parquet", help="file to write"),
    argument("--embeddings", action="store_true", help="write the two-tower's embeddings too"),
    argument(
        "--shards", type=Path, metavar="FOLDER", help="folder to write instead, by any number of processes; resumes"
    ),
    argument("--process", metavar="N/M", help="with --shards: this is process N of M"),
    argument("--rows", type=positive_number, metavar="N", help="with --shards: rows of a shard (1024)"),
    argument("--ray", metavar="ADDRESS", help="with --shards: by the workers of a Ray cluster; `local` starts one"),
    argument("--workers", type=positive_number, metavar="N", help="with --ray: how many; by default one for each core"),
    argument(
        "--threads", type=positive_number, metavar="N", help="of a bundle's process; by default one for each core"
    ),
    argument(
        "--fields",
        nargs="+",
        default=[],
        metavar="NAME=COLUMN",
        help="of a bundle: the file's names, e.g. item=product",
    ),
)
def predict(
    run: Path, model: str | None, recipe: str | None, input: str, output: Path | None, embeddings: bool, **batch
) -> None:
    """Score a file of pairs."""
    from jax_rele.cli import judge

    judge.predict(run, model, input, output, recipe=recipe, embeddings=embeddings, **batch)


_ITEM_TEXTS = ("title", "brand", "color", "category", "bullets", "description")


@command(
    _RUN,
    argument("--query", required=True, help="the query as typed"),
    *(argument(f"--{name}", required=name == "title", default="", help=f"the item's {name}") for name in _ITEM_TEXTS),
)
def explain(run: Path, query: str, **texts: str) -> None:
    """Explain one pair: rationale, verdicts and every model's distribution."""
    from jax_rele.cli import judge
    from jax_rele.types import Item

    judge.explain(run, query, Item("", **texts))  # type: ignore[arg-type]  # the texts are all strings


@command(
    argument("run", type=Path, metavar="RUN", help="folder of a finished run; the teacher needs finetune alone"),
    argument("--output", required=True, type=Path, metavar="FOLDER", help="new folder to write"),
    argument("--model", choices=MODELS, default="teacher", help="by default the teacher"),
    argument("--recipe", help="of the student; by default mkd, or the last one that the run trained"),
    argument(
        "--format",
        choices=FORMATS,
        help="of the student: onnx (by default; what jax-rele serves, indexes and scores), sentence-transformers, tei "
        "(text-embeddings-inference), stablehlo (jax.export), hf (transformers' AutoModel)",
    ),
    argument("--int8", choices=("any", "vnni"), help="8-bit weights for CPUs, if they pass a test on held-out pairs"),
    argument("--labels", action="store_true", help="in sentence-transformers: label logits instead of one score"),
    argument(
        "--adapters", action="store_true", help="the teacher's adapters alone, for PEFT, instead of merged weights"
    ),
)
def export(
    run: Path,
    output: Path,
    model: str,
    recipe: str | None,
    format: str | None,
    int8: str | None,
    labels: bool,
    adapters: bool,
) -> None:
    """Write a trained student, or the teacher, for other programs.

    The teacher is written with its tokenizer in the Hugging Face form. A student is written in one of several formats
    and compared with the student in JAX; what a format cannot express exactly is refused.
    """
    from jax_rele.cli import export as exporting

    exporting.export(run, output, model, recipe=recipe, form=format, int8=int8 or "", labels=labels, adapters=adapters)


_BUNDLE = argument("bundle", type=Path, metavar="DIR", help="bundle of a student, as `jax-rele export` writes it")
_FIELDS = argument(
    "--fields",
    nargs="+",
    action="extend",
    default=[],
    metavar="FIELD=NAME",
    help="field of a pair = its name in the file, as data.fields",
)


@command(
    _BUNDLE,
    argument("items", nargs="?", metavar="ITEMS", help="JSONL, CSV, TSV or Parquet file of items, or of pairs"),
    argument("--output", required=True, type=Path, metavar="IDX", help="folder of the index"),
    argument("--vectors", choices=("float32", "float16", "int8"), help="how vectors are stored; float32"),
    argument("--exact", action="store_true", help="exact search; by default below 100,000 items"),
    argument("--hnsw", action="store_true", help="a graph; by default from 100,000 items on"),
    _FIELDS,
    argument("--shard", metavar="N/M", help="be the N-th of M processes that build the index"),
    argument("--update", action="store_true", help="add new items of ITEMS and replace changed ones"),
    argument("--sync", action="store_true", help="as --update, and delete the items that ITEMS lacks"),
    argument("--delete", type=Path, metavar="IDS.txt", help="delete items; one id a line"),
    argument("--compact", action="store_true", help="merge updates and deletions"),
    argument("--export", type=Path, metavar="ITEMS.parquet", help="write ids, vectors and fields as a table"),
)
def index(
    bundle: Path,
    items: str | None,
    output: Path,
    vectors: str | None,
    exact: bool,
    hnsw: bool,
    fields: Sequence[str],
    shard: str | None,
    update: bool,
    sync: bool,
    delete: Path | None,
    compact: bool,
    export: Path | None,
) -> None:
    """Index items by a two-tower's vectors, or change an index.

    The same command resumes a build that was stopped. docs/search.md explains it.
    """
    from jax_rele.cli import search as searching
    from jax_rele.errors import UserError

    if exact and hnsw:
        raise UserError("--exact and --hnsw: give one of them")
    kind = "exact" if exact else "hnsw" if hnsw else None
    searching.index(
        bundle,
        items,
        output,
        vectors=vectors,
        kind=kind,
        fields=fields,
        shard=shard,
        update=update,
        sync=sync,
        delete=delete,
        compact=compact,
        export=export,
    )


@command(
    argument("index", type=Path, metavar="IDX", help="folder of an index"),
    argument("query", metavar="QUERY", help="the query as typed"),
    argument("-k", type=int, default=20, metavar="N", help="at most this many items; 20"),
    argument(
        "--filter",
        nargs="+",
        action="extend",
        default=[],
        metavar="FIELD=VALUE",
        help="items with this brand, color, category, ... or attributes.NAME; all of them",
    ),
    argument("--rerank", type=Path, metavar="CROSS_DIR", help="bundle of a cross-encoder, which orders the candidates"),
    argument("--candidates", type=positive_number, metavar="N", help="for --rerank; 50"),
    argument("--bundle", type=Path, metavar="DIR", help="the bundle that built the index, where it was moved"),
    argument("--json", action="store_true", help="one JSON object a line"),
)
def search(
    index: Path,
    query: str,
    k: int,
    filter: Sequence[str],
    rerank: Path | None,
    candidates: int | None,
    bundle: Path | None,
    json: bool,
) -> None:
    """The best items of an index for a query."""
    from jax_rele.cli import search as searching

    searching.search(index, query, k=k, filters=filter, rerank=rerank, candidates=candidates, bundle=bundle, json=json)


_ALIASES = argument(
    "--aliases",
    nargs="+",
    action="extend",
    default=[],
    metavar="NAME=LABEL",
    help="label in the file = label of the model",
)


@command(
    _BUNDLE,
    argument("pairs", metavar="PAIRS", help="labelled pairs that training did not see"),
    argument(
        "--at-most-irrelevant", type=float, metavar="SHARE", help="of the pairs at or above the cut-off, e.g. 0.02"
    ),
    argument(
        "--tier",
        nargs="+",
        action="extend",
        default=[],
        metavar="NAME=SHARE",
        help="several cut-offs, each with its share",
    ),
    argument("--confidence", type=float, default=0.95, help="that the share holds for new pairs; 0.95"),
    argument(
        "--irrelevant",
        nargs="+",
        action="extend",
        default=[],
        metavar="LABEL",
        help="what counts as irrelevant; the lowest grade",
    ),
    argument("--by", choices=("locale", "category", "long_tail"), help="figures of groups of pairs too"),
    argument("--per-query", action="store_true", help="one pair of each query, for a bound that is exact"),
    argument("--write", action="store_true", help="store the tiers in the bundle"),
    _FIELDS,
    _ALIASES,
)
def threshold(
    bundle: Path,
    pairs: str,
    at_most_irrelevant: float | None,
    tier: Sequence[str],
    confidence: float,
    irrelevant: Sequence[str],
    by: str | None,
    per_query: bool,
    write: bool,
    fields: Sequence[str],
    aliases: Sequence[str],
) -> None:
    """Cut-offs of the score with a bound on irrelevant pairs.

    docs/thresholds.md says what is guaranteed, and when.
    """
    from jax_rele.cli import threshold as choosing

    choosing.threshold(
        bundle,
        pairs,
        at_most=at_most_irrelevant,
        tiers=tier,
        confidence=confidence,
        irrelevant=irrelevant,
        by=by,
        per_query=per_query,
        write=write,
        fields=fields,
        aliases=aliases,
    )


@command(
    _BUNDLE,
    argument("--input", required=True, metavar="PAIRS", help="pairs of now, e.g. of yesterday; any form that is read"),
    argument(
        "--reference", required=True, metavar="PAIRS", help="pairs of then, e.g. those that cut-offs were chosen on"
    ),
    argument("--by", choices=("locale", "category"), help="each group by itself too, and the mix of groups"),
    argument("--output", type=Path, metavar="REPORT.html", help="page to write, with JSON beside it"),
    _FIELDS,
)
def drift(bundle: Path, input: str, reference: str, by: str | None, output: Path | None, fields: Sequence[str]) -> None:
    """Compare scores, verdicts and texts of two files of pairs.

    Says whether they shifted, and what to do. docs/thresholds.md explains the tests.
    """
    from jax_rele.cli import drift as comparing

    comparing.drift(bundle, input, reference, by=by, output=output, fields=fields)


@command(
    argument("bundles", nargs="+", type=Path, metavar="DIR", help="one or two bundles that export wrote"),
    argument("--items", metavar="ITEMS", help="file of items, or of pairs, to search; or sample"),
    argument(
        "--index", type=Path, metavar="IDX", help="index of the two-tower's embeddings, in place of a search of all"
    ),
    argument("--queries", type=Path, metavar="FILE", help="sample queries of the page, one a line; those of --items"),
    argument(
        "--judgements", dest="grades", type=Path, metavar="FILE", help="JSON lines file of the grades given on the page"
    ),
    argument("--host", default="127.0.0.1", help="address to listen at; 127.0.0.1, this machine alone"),
    argument("--port", type=int, default=8080, help="8080; 0 for any that is free"),
    argument("--threads", type=int, default=0, metavar="N", help="of ONNX Runtime; one for each core"),
    argument("--max-batch-tokens", type=positive_number, default=8192, metavar="N", help="of a batch; 8192"),
    argument("--max-queue-rows", type=positive_number, default=4096, metavar="N", help="that wait, then 429; 4096"),
    argument("--max-rows", type=positive_number, default=1000, metavar="N", help="of a request; 1000"),
    argument("--max-body-bytes", type=positive_number, default=4_000_000, metavar="N", help="of a request; 4000000"),
    argument("--timeout", type=positive_number, default=30, metavar="SECONDS", help="of a request, then 504; 30"),
    argument("--log-texts", action="store_true", help="write the texts of requests to the log"),
)
def serve(
    bundles: Sequence[Path],
    items: str | None,
    index: Path | None,
    queries: Path | None,
    grades: Path | None,
    host: str,
    port: int,
    threads: int,
    max_batch_tokens: int,
    max_queue_rows: int,
    max_rows: int,
    max_body_bytes: int,
    timeout: int,
    log_texts: bool,
) -> None:
    """Serve exported students over HTTP, with a page to compare rankers and to grade items.

    Takes a cross-encoder, a two-tower, or both. Answers as text-embeddings-inference, Cohere and OpenAI do, and by
    routes of its own. Where JAX_RELE_API_KEY is set, requests must bear it. Needs the extra `deploy`; docs/serving.md.
    """
    from jax_rele.serving import command as serving

    serving.serve(
        bundles,
        items=items,
        index=index,
        queries=queries,
        grades=grades,
        host=host,
        port=port,
        threads=threads,
        max_batch_tokens=max_batch_tokens,
        max_queue_rows=max_queue_rows,
        max_rows=max_rows,
        max_body_bytes=max_body_bytes,
        timeout=timeout,
        log_texts=log_texts,
    )


@command(
    argument("--topology", required=True, help="e.g. v5e:4x4, v6e:2x4, v5p:2x2x2, gpu:8xH100"),
    argument(
        "--steps",
        nargs="+",
        choices=PLANNED_STEPS,
        default=PLANNED_STEPS,
        metavar="STEP",
        help=f"which steps, of {', '.join(PLANNED_STEPS)}; by default all",
    ),
    argument("--json", type=Path, metavar="FILE", help="file to write the plan to as well"),
    reads_config=True,
)
def plan(config: str, topology: str, steps: Sequence[str], json: Path | None, overrides: Sequence[str]) -> None:
    """The cost of every step on a TPU slice or on GPUs that are not here.

    Compiles every step of a run for a topology; prints memory, operations, communication and time.
    """
    from jax_rele.cli.overrides import read_config
    from jax_rele.plan import command as planning

    planning.plan(config, read_config(config, overrides), topology, names=steps, json_path=json)


@command(argument("shell", choices=("bash", "zsh", "fish"), help="which shell"))
def completion(shell: str) -> None:
    """Print a completion script: `eval "$(jax-rele completion bash)"`."""
    from jax_rele.cli.completion import completion_script

    print(completion_script(shell))
