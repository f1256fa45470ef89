"""The commands on trained models, one function each: predictions, exports, and what is done with an exported bundle.

What a command needs is imported where it runs, so that help comes at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jax_rele.cli.parser import argument, command, positive_number
from jax_rele.names import FORMATS, MODELS

_RUN = argument("run", type=Path, metavar="RUN", help="folder of a finished run, e.g. runs/demo")
_READING = (
    argument(
        "--fields",
        nargs="+",
        action="extend",
        default=[],
        metavar="FIELD=NAME",
        help="field of a pair = its name in the file, e.g. item.title=name",
    ),
    argument("--encoding", metavar="NAME", help="of text files; utf-8"),
    argument("--delimiter", metavar="CHARACTER", help="between cells of CSV and TSV; by default as the header says"),
    argument("--quoting", choices=("auto", "none", "standard", "backslash"), help="of CSV and TSV; auto"),
    argument("--html", choices=("keep", "text"), help="keep HTML in texts, or make plain text of it; keep"),
    argument("--max-characters", type=positive_number, metavar="N", help="a row with a longer text is bad; 100000"),
)
"""How files are read that no run's config describes; docs/data.md explains the values."""


@command(
    argument("run", type=Path, metavar="RUN", help="folder of a finished run, or of a bundle that `export` wrote"),
    argument("--model", choices=MODELS, help="which model of the run; a bundle has one"),
    argument("--recipe", metavar="RECIPE", help="the student's recipe; mkd, or the last one that the run trained"),
    argument("--input", required=True, metavar="PAIRS", help="JSONL, CSV, TSV or Parquet file of pairs"),
    argument("--output", type=Path, metavar="SCORES.parquet", help="file to write"),
    argument("--embeddings", action="store_true", help="write the two-tower's embeddings too"),
    argument(
        "--shards",
        metavar="FOLDER",
        help="folder to write instead, here or in a bucket, by any number of processes; resumes",
    ),
    argument("--process", metavar="N/M", help="with --shards: this is process N of M"),
    argument("--rows", type=positive_number, metavar="N", help="with --shards: rows of a shard (1024)"),
    argument("--ray", metavar="ADDRESS", help="with --shards: by the workers of a Ray cluster; `local` starts one"),
    argument("--workers", type=positive_number, metavar="N", help="with --ray: how many; by default one for each core"),
    argument(
        "--threads", type=positive_number, metavar="N", help="of a bundle's process; by default one for each core"
    ),
    argument(
        "--max-unknown",
        type=float,
        metavar="FRACTION",
        help="of a bundle: largest fraction of a shard's characters that its tokenizer may not know; 0.25",
    ),
    *_READING,
)
def predict(
    run: Path,
    model: str | None,
    recipe: str | None,
    input: str,
    output: Path | None,
    embeddings: bool,
    shards: str | None,
    process: str | None,
    rows: int | None,
    ray: str | None,
    workers: int | None,
    threads: int | None,
    max_unknown: float | None,
    **reading: Any,
) -> None:
    """Score a file of pairs.

    How the file is read is said by the config of a run, and by options for a bundle.
    """
    from jax_rele.cli import judge

    batch = judge.BatchOptions(shards, process, rows, ray, workers, threads, max_unknown)
    judge.predict(run, model, input, output, recipe=recipe, embeddings=embeddings, batch=batch, reading=reading)


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
    argument("run", type=Path, metavar="RUN", help="folder of a finished run; the teacher needs its own stages alone"),
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


@command(
    _BUNDLE,
    argument("items", nargs="?", metavar="ITEMS", help="JSONL, CSV, TSV or Parquet file of items, or of pairs"),
    argument("--output", required=True, type=Path, metavar="IDX", help="folder of the index"),
    argument("--vectors", choices=("float32", "float16", "int8"), help="how vectors are stored; float32"),
    argument("--exact", action="store_true", help="exact search; by default below 100,000 items"),
    argument("--hnsw", action="store_true", help="a graph; by default from 100,000 items on"),
    *_READING,
    argument("--shard", metavar="N/M", help="be the N-th of M processes that build the index"),
    argument("--update", action="store_true", help="add new items of ITEMS and replace changed ones"),
    argument("--sync", action="store_true", help="as --update, and delete the items that ITEMS lacks"),
    argument("--delete", type=Path, metavar="IDS.txt", help="delete items; one id a line"),
    argument("--compact", action="store_true", help="merge updates and deletions"),
    argument("--export", type=Path, metavar="ITEMS.parquet", help="write ids, vectors and fields as a table"),
    argument(
        "--max-unknown",
        type=float,
        metavar="FRACTION",
        help="largest fraction of the items' characters that the student's tokenizer may not know; 0.25",
    ),
)
def index(
    bundle: Path,
    items: str | None,
    output: Path,
    vectors: str | None,
    exact: bool,
    hnsw: bool,
    shard: str | None,
    update: bool,
    sync: bool,
    delete: Path | None,
    compact: bool,
    export: Path | None,
    max_unknown: float | None,
    **reading: Any,
) -> None:
    """Index items by a two-tower's vectors, or change an index.

    The same command resumes a build that was stopped. docs/search.md explains it.
    """
    from jax_rele.cli import search as searching
    from jax_rele.cli.options import read_options
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
        reading=read_options(**reading),
        shard=shard,
        update=update,
        sync=sync,
        delete=delete,
        compact=compact,
        export=export,
        max_unknown=max_unknown,
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
    *_READING,
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
    aliases: Sequence[str],
    **reading: Any,
) -> None:
    """Cut-offs of the score with a bound on irrelevant pairs.

    docs/thresholds.md says what is guaranteed, and when.
    """
    from jax_rele.cli import threshold as choosing
    from jax_rele.cli.options import read_options

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
        reading=read_options(**reading),
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
    *_READING,
)
def drift(bundle: Path, input: str, reference: str, by: str | None, output: Path | None, **reading: Any) -> None:
    """Compare scores, verdicts and texts of two files of pairs.

    Says whether they shifted, and what to do. docs/thresholds.md explains the tests.
    """
    from jax_rele.cli import drift as comparing
    from jax_rele.cli.options import read_options

    comparing.drift(bundle, input, reference, by=by, output=output, reading=read_options(**reading))


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
    argument("--threads", type=positive_number, default=0, metavar="N", help="of ONNX Runtime; one for each core"),
    argument("--max-batch-tokens", type=positive_number, default=8192, metavar="N", help="of a batch; 8192"),
    argument("--max-queue-rows", type=positive_number, default=4096, metavar="N", help="that wait, then 429; 4096"),
    argument("--max-rows", type=positive_number, default=1000, metavar="N", help="of a request; 1000"),
    argument("--max-body-bytes", type=positive_number, default=4_000_000, metavar="N", help="of a request; 4000000"),
    argument("--timeout", type=positive_number, default=30, metavar="SECONDS", help="of a request, then 504; 30"),
    argument("--log-texts", action="store_true", help="write the texts of requests to the log"),
    *_READING,
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
    **reading: Any,
) -> None:
    """Serve exported students over HTTP, with a page to compare rankers and to grade items.

    Takes a cross-encoder, a two-tower, or both. Answers as text-embeddings-inference, Cohere and OpenAI do, and by
    routes of its own. Where JAX_RELE_API_KEY is set, requests must bear it. Needs the extra `deploy`; docs/serving.md.
    """
    from jax_rele.cli.options import read_options
    from jax_rele.serving import command as serving

    serving.serve(
        bundles,
        items=items,
        index=index,
        reading=read_options(**reading),
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
