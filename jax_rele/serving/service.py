"""What a request asks of the models: tokens in threads of their own, graphs through the batchers, answers as arrays."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
from scipy.special import logit

from jax_rele.data.tokens.text_loss import TextLoss, summarize
from jax_rele.deployment.bundle import Manifest
from jax_rele.deployment.scorer import Scorer, Scores
from jax_rele.serving.batcher import Batcher, Closed, Outcome
from jax_rele.serving.catalogue import Bm25, Filters, Nearest, Search
from jax_rele.serving.grades import GradeFile
from jax_rele.serving.metrics import Metrics
from jax_rele.serving.refusals import BadRequest
from jax_rele.serving.tokens import Where, cross_tokens, distinct_names, tower_tokens
from jax_rele.types import QUERY, Item, Pair


@dataclass(frozen=True)
class Limits:
    """What a request may ask.

    Attributes:
      batch_tokens: most tokens of a batch, padding included.
      queue_rows: most rows that wait, per bundle; beyond it 429.
      request_rows: most rows of a request.
      body_bytes: most bytes of a request.
      seconds: most time that a request waits for the models; beyond it 504.
    """

    batch_tokens: int = 8192
    queue_rows: int = 4096
    request_rows: int = 1000
    body_bytes: int = 4_000_000
    seconds: float = 30.0


@dataclass
class Trace:
    """What a request cost: rows, and seconds by stage; and what of its texts was not read.

    Of stages that ran side by side the longest counts.
    """

    rows: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    losses: list[np.ndarray] = field(default_factory=list)

    def add(self, stage: str, seconds: float) -> None:
        """Adds seconds to a stage."""
        self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds

    @property
    def text_loss(self) -> TextLoss:
        """What of the texts was not read."""
        return summarize(self.losses)

    @property
    def ms(self) -> dict[str, float]:
        """Milliseconds by stage."""
        return {stage: round(1000 * seconds, 2) for stage, seconds in self.seconds.items()}


@dataclass(frozen=True)
class Served:
    """A bundle that is served.

    Attributes:
      scorer: its student.
      batcher: runs its graphs.
    """

    scorer: Scorer
    batcher: Batcher

    @property
    def manifest(self) -> Manifest:
        """What the bundle holds."""
        return self.scorer.manifest

    @property
    def name(self) -> str:
        """`cross_encoder` or `two_tower`."""
        return self.manifest.model


class Service:
    """The models behind the routes.

    Args:
      scorers: one or two bundles' students, of different kinds.
      limits: what a request may ask.
      search: finds items by the two-tower's embeddings; None where nothing can be searched.
      bm25: finds items by words, for the page.
      queries: sample queries of the page.
      grades: where they are kept.

    Raises:
      ValueError: there is no student, or two of one kind.
    """

    def __init__(
        self,
        scorers: Sequence[Scorer],
        limits: Limits | None = None,
        *,
        search: Search | None = None,
        bm25: Bm25 | None = None,
        queries: Sequence[str] = (),
        grades: GradeFile | None = None,
    ):
        kinds = [scorer.manifest.model for scorer in scorers]
        if not kinds or len(set(kinds)) < len(kinds):
            raise ValueError(f"a service has bundles of different kinds, got {kinds}")
        self.limits, self.metrics = limits or Limits(), Metrics()
        self.search_index, self.bm25, self.queries, self.grades = search, bm25, tuple(queries), grades
        self.draining = False
        self.ready = False
        self.models: dict[str, Served] = {}
        for scorer in scorers:
            name = scorer.manifest.model
            batcher = Batcher(
                scorer.run,
                batch_tokens=self.limits.batch_tokens,
                queue_rows=self.limits.queue_rows,
                on_batch=self.metrics.batch_observer(name),
            )
            self.metrics.watch_queue(name, batcher)
            self.models[name] = Served(scorer, batcher)
        self._threads = ThreadPoolExecutor(max(2, min(8, os.cpu_count() or 2)), "texts")

    def warm_up(self) -> None:
        """Runs a few shapes, so that the first request does not wait for memory to be laid out; then is ready."""
        for served in self.models.values():
            scorer = served.scorer
            for words, rows in ((1, 1), (8, 8), (max(1, scorer.manifest.item_length), 4)):
                scorer.predict([("warm up", Item("", "warm " * words))] * rows)
        self.ready = True

    def close(self) -> None:
        """Takes nothing more and finishes what was taken."""
        self.draining = True
        for served in self.models.values():
            served.batcher.close()
        self._threads.shutdown()

    def model(self, name: str = "", kind: str = "") -> Served:
        """The bundle that a request names: its kind, or the run that it is of. By default the cross-encoder.

        Args:
          name: of the request; empty for any.
          kind: which kind the route needs; empty for any.

        Raises:
          BadRequest: there is no such bundle.
        """
        if kind and kind not in self.models:
            raise BadRequest(f"this service has no {kind}; start it with a {kind} bundle", 404, "no_model")
        suited = [served for served in self.models.values() if kind in ("", served.name)]
        suited.sort(key=lambda served: served.name)
        for served in suited:
            if name in ("", served.name, served.manifest.source.get("run")):
                return served
        known = ", ".join(served.name for served in suited)
        raise BadRequest(f"model: there is no {name!r:.80}; there is {known}", 404, "no_model")

    def check_rows(self, rows: int) -> None:
        """Raises BadRequest where a request holds too many rows."""
        if rows > self.limits.request_rows:
            raise BadRequest(f"{rows} rows are more than {self.limits.request_rows}; send several requests")

    async def in_thread(self, function: Callable, *arguments):
        """Runs a function on texts in a thread, so that other requests go on."""
        try:
            work = asyncio.get_running_loop().run_in_executor(self._threads, function, *arguments)
        except RuntimeError:  # `close` was called
            raise Closed from None
        return await work

    async def predict(
        self,
        served: Served,
        pairs: Sequence[Pair],
        trace: Trace,
        *,
        item_tokens: int = 0,
        whole: bool = False,
        evidence: bool = False,
        where: Where | None = None,
    ) -> Scores:
        """Judges pairs, in order.

        Args:
          served: by which bundle.
          pairs: at least one.
          trace: what the request cost so far.
          item_tokens: most tokens that are read of an item; 0 for what the bundle reads.
          whole: whether to refuse texts that are longer than what the bundle reads.
          evidence: whether to find the spans of evidence, where the bundle has any; that reads the texts again.
          where: names a text of the request, to refuse those of which the student knows nothing; None for items of
            the catalogue, of which queries alone are refused.

        Raises:
          BadRequest: too many rows, a text that the student cannot read, or that is too long.
          Overloaded, Closed, TimeoutError: of the queue.
        """
        self.check_rows(len(pairs))
        trace.rows += len(pairs)
        if served.scorer.embeds:
            return await self._predict_towers(served, pairs, trace, item_tokens, whole, where)
        scorer = served.scorer
        start = time.perf_counter()
        rows, types = await self.in_thread(cross_tokens, scorer, pairs, item_tokens, whole, where, trace.losses)
        trace.add("tokenise", time.perf_counter() - start)
        (result,) = await self._finished(trace, served.batcher.submit("model.onnx", rows, types))
        outputs = {name: value for name, value in result.outputs.items() if evidence or name != "evidence_logits"}
        return await self.in_thread(scorer.decode, outputs, pairs)

    async def _predict_towers(
        self,
        served: Served,
        pairs: Sequence[Pair],
        trace: Trace,
        item_tokens: int,
        whole: bool,
        where: Where | None,
    ) -> Scores:
        scorer = served.scorer
        queries, query_of = _distinct([pair.query for pair in pairs])
        items, item_of = _distinct([scorer.item_text(pair.item) for pair in pairs])
        start = time.perf_counter()
        name_query, name_item = distinct_names(where, query_of, item_of)
        query_rows = await self.in_thread(tower_tokens, scorer, queries, "query", 0, whole, name_query, trace.losses)
        item_rows = await self.in_thread(
            tower_tokens, scorer, items, "item", item_tokens, whole, name_item, trace.losses
        )
        trace.add("tokenise", time.perf_counter() - start)
        asked = served.batcher.submit("query.onnx", query_rows)
        try:
            offered = served.batcher.submit("item.onnx", item_rows)
        except Exception:
            asked.cancel()
            raise
        results = await self._finished(trace, asked, offered)
        query, item = (next(iter(result.outputs.values())) for result in results)
        return await self.in_thread(scorer.compare, query[query_of], item[item_of])

    async def embed(
        self,
        served: Served,
        texts: Sequence[str],
        side: str,
        trace: Trace,
        *,
        whole: bool = False,
        where: Callable[[int], str] = lambda index: "query",
    ) -> tuple[np.ndarray, int]:
        """[N, E] embeddings of texts, in order, and the number of tokens read; `where` names a text.

        Raises as `predict`.
        """
        if served.manifest.head == "maxsim":
            raise BadRequest("the two-tower has one embedding per token (head maxsim), not one per text", 422)
        self.check_rows(len(texts))
        trace.rows += len(texts)
        start = time.perf_counter()
        rows = await self.in_thread(tower_tokens, served.scorer, texts, side, 0, whole, where, trace.losses)
        trace.add("tokenise", time.perf_counter() - start)
        (result,) = await self._finished(trace, served.batcher.submit(f"{side}.onnx", rows))
        return next(iter(result.outputs.values())), sum(map(len, rows))

    async def find(self, query: str, k: int, filters: Filters, trace: Trace) -> tuple[Nearest, Scores]:
        """At most `k` items by the two-tower, best score first, and their predictions.

        Raises:
          BadRequest: nothing can be searched; and as `predict`.
        """
        served = self.model(kind="two_tower")
        if self.search_index is None:
            raise BadRequest("nothing can be searched; start the service with --items or --index", 404, "no_items")
        vectors, _ = await self.embed(served, [query], "query", trace)
        start = time.perf_counter()
        # Where the score need not rise with the inner product, more candidates are compared.
        wide = k if served.manifest.score_rises else 4 * k
        hits = await self.in_thread(self.search_index.nearest, vectors[0], wide, filters)
        if not hits.items:
            return hits, Scores(np.zeros(0), np.zeros((0, len(served.scorer.schema))))
        asked = np.repeat(vectors, len(hits.items), axis=0)
        scores = await self.in_thread(served.scorer.compare, asked, np.asarray(hits.vectors, np.float32))
        trace.add("search", time.perf_counter() - start)
        order = np.argsort(-scores.scores, kind="stable")[:k]
        items = [hits.items[row] for row in order]
        return Nearest(items, hits.products[order], hits.vectors[order]), take(scores, order)

    async def _finished(self, trace: Trace, *futures) -> list[Outcome]:
        waiting = asyncio.gather(*map(asyncio.wrap_future, futures))
        results = await asyncio.wait_for(waiting, self.limits.seconds)
        trace.add("queue", max(result.queue_seconds for result in results))
        trace.add("infer", sum(result.infer_seconds for result in results))
        return results


def take(scores: Scores, indices: np.ndarray | Sequence[int]) -> Scores:
    """The predictions of some pairs."""
    indices = np.asarray(indices, int)
    return Scores(
        scores.scores[indices],
        scores.label_probs[indices],
        None if scores.verdict_probs is None else scores.verdict_probs[indices],
        None if scores.evidence is None else tuple(scores.evidence[index] for index in indices),
    )


def log_odds(scores: np.ndarray) -> np.ndarray:
    """Scores as the one logit that `logits` of the graph holds."""
    return logit(np.clip(scores, 1e-6, 1 - 1e-6))


def source_text(pair: Pair, source: str) -> str:
    """The text that a span's source names."""
    return pair.query if source == QUERY else getattr(pair.item, source)


def _distinct(texts: Sequence[str]) -> tuple[list[str], np.ndarray]:
    index = {text: number for number, text in enumerate(dict.fromkeys(texts))}
    return list(index), np.array([index[text] for text in texts])
