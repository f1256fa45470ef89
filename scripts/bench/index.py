"""recall@10 and the time of a search of `jax_rele.deployment.index`, by storage and kind.

    python scripts/bench/index.py [--items 100000] [--width 384] [--bundle DIR | --unstructured] [--output FILE.md]

Without a bundle, vectors are made: unit vectors around 2,000 centres, in 32 directions and noise; or with
--unstructured unit vectors without any structure, the hardest case. With the bundle of a two-tower they are those of
item texts made by recombining the bundled sample's, and the sample's queries ask. Recall is of 10 neighbours against
exact search over float32 vectors, over half of 500 queries, of which the other half chose efSearch; times are of single
queries, one thread, after a warm-up.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import faiss
import numpy as np

from jax_rele.deployment.index import graph
from jax_rele.deployment.index.files import restore, store

QUERIES = 500


def clustered(items: int, width: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """[N, E] items and [Q, E] queries: unit vectors around shared centres."""
    rng = np.random.default_rng(seed)
    directions = rng.standard_normal((32, width)) / np.sqrt(width)
    centres = rng.standard_normal((2000, 32))

    def draw(count: int) -> np.ndarray:
        inner = centres[rng.integers(len(centres), size=count)] + 0.5 * rng.standard_normal((count, 32))
        return unit(inner @ directions + 0.4 * rng.standard_normal((count, width)) / np.sqrt(width))

    return draw(items), draw(QUERIES)


def unstructured(items: int, width: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return unit(rng.standard_normal((items, width))), unit(rng.standard_normal((QUERIES, width)))


def encoded(items: int, bundle: str) -> tuple[np.ndarray, np.ndarray]:
    """Vectors of a bundle for titles that exchange their halves, and for the sample's queries."""
    from jax_rele.data import read_pairs
    from jax_rele.deployment import load_bundle

    pairs, _ = read_pairs("sample", label_names=("Exact", "Substitute", "Complement", "Irrelevant"))
    rng = np.random.default_rng(0)
    titles = [pair.item.title.split() for pair in pairs]
    chosen = rng.integers(len(titles), size=(items, 2))
    texts = [" ".join(titles[a][: len(titles[a]) // 2] + titles[b][len(titles[b]) // 2 :]) for a, b in chosen]
    scorer = load_bundle(bundle)
    vectors = [scorer.embed(texts[start : start + 1024], "item") for start in range(0, items, 1024)]
    queries = list(dict.fromkeys(pair.query for pair in pairs))[:QUERIES]
    return np.concatenate(vectors), scorer.embed(queries, "query")


def unit(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def milliseconds(search: Callable[[np.ndarray], object], queries: np.ndarray) -> tuple[float, float]:
    """p50 and p95 of a single search."""
    for query in queries[:20]:
        search(query[None])
    seconds = []
    for query in queries:
        start = time.perf_counter()
        search(query[None])
        seconds.append(time.perf_counter() - start)
    return float(np.percentile(seconds, 50) * 1e3), float(np.percentile(seconds, 95) * 1e3)


def measure(vectors: np.ndarray, queries: np.ndarray, calibration: np.ndarray) -> list[str]:
    """Lines of a table. `calibration` are the queries by which efSearch is chosen; others are measured."""
    exact, threads = graph.flat(vectors).search(queries, 10)[1], faiss.omp_get_max_threads()
    lines = [
        "| storage | kind | build, s | efSearch | recall@10 | p50, ms | p95, ms | vectors, MB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for storage in ("float32", "float16", "int8"):
        stored, scale = store(vectors, storage)
        restored = restore(stored, scale)
        flat = graph.flat(restored)
        for kind in ("exact", "hnsw"):
            start, links, ef = time.perf_counter(), None, 0
            if kind == "hnsw":
                links = graph.build(restored)
                ef, _ = graph.choose_ef(links, restored, calibration)
            seconds = time.perf_counter() - start
            faiss.omp_set_num_threads(1)

            def search(query: np.ndarray, links=links, flat=flat, ef=ef) -> np.ndarray:
                return graph.search(links, flat, query, 10, ef, None)[1]

            p50, p95 = milliseconds(search, queries)
            faiss.omp_set_num_threads(threads)
            rows = search(queries)
            recall = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(rows, exact)])
            size = stored.nbytes / 1e6
            lines.append(
                f"| {storage} | {kind} | {seconds:.1f} | {ef or ''} | {recall:.3f} | {p50:.2f} | {p95:.2f} "
                f"| {size:.1f} |"
            )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--bundle", help="of a two-tower; by default vectors are made")
    parser.add_argument("--unstructured", action="store_true")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    if arguments.bundle:
        name, (vectors, queries) = "vectors of the bundle", encoded(arguments.items, arguments.bundle)
    elif arguments.unstructured:
        name, (vectors, queries) = "without structure", unstructured(arguments.items, arguments.width)
    else:
        name, (vectors, queries) = "clustered", clustered(arguments.items, arguments.width)
    cores = faiss.omp_get_max_threads()
    lines = [f"{len(vectors)} x {vectors.shape[1]}, {name}; faiss-cpu {faiss.__version__}, {cores} cores.", ""]
    # Half of the queries choose efSearch, the others measure it.
    text = "\n".join(lines + measure(vectors, queries[1::2], queries[::2]))
    print(text)
    if arguments.output:
        arguments.output.write_text(text + "\n", "utf-8")


if __name__ == "__main__":
    main()
