"""Our own routes: what is served, scores with reasons, search, and what the page asks."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Sequence
from importlib import resources
from typing import Any

import numpy as np
from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, Response

import jax_rele
from jax_rele.deployment.scorer import Scores
from jax_rele.serving import bodies
from jax_rele.serving.guard import trace_of
from jax_rele.serving.refusals import BadRequest
from jax_rele.serving.service import Served, Service, Trace, source_text, take
from jax_rele.serving.tokens import query_and
from jax_rele.types import VERDICTS, Pair


def add_probes(app: FastAPI, service: Service) -> None:
    """`/health`, `/ready`, `/metrics` and `/info`."""

    @app.get("/health")
    async def health() -> dict[str, str]:
        """Whether the process answers."""
        return {"status": "ok"}

    @app.get("/ready")
    async def ready() -> dict[str, str]:
        """Whether the models are warm and requests are taken."""
        if service.draining or not service.ready:
            state = "shutting down" if service.draining else "warming up"
            raise BadRequest(f"the service is {state}", 503, "not_ready")
        return {"status": "ready"}

    @app.get("/metrics", response_class=Response)
    async def metrics() -> Response:
        """Prometheus' text format."""
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/info")
    async def info() -> dict[str, Any]:
        """What is served, and its limits."""
        return describe(service)


def add_ours(app: FastAPI, service: Service) -> None:
    """`/score` and `/search`."""

    @app.post("/score")
    async def score(body: bodies.ScoreBody, request: Request) -> bodies.ScoreAnswer:
        """Score, labels, verdicts and evidence of pairs, in order. Texts lose white space at their ends first."""
        if (body.pairs is None) == (body.items is None) or (body.items is None) != (body.query is None):
            raise BadRequest("give either query and items, or pairs")
        if body.pairs is not None:
            each = enumerate(body.pairs)
            pairs = [bodies.as_pair(pair.query, pair.item, f"pairs.{index}.item") for index, pair in each]
        else:
            items = enumerate(body.items or ())
            pairs = [bodies.as_pair(body.query or "", item, f"items.{index}") for index, item in items]
        served = service.model(body.model)

        def where(index: int, side: str) -> str:
            return query_and("items")(index, side) if body.pairs is None else f"pairs.{index}.{side}"

        scores = await service.predict(served, pairs, trace_of(request, body), evidence=True, where=where)
        return bodies.ScoreAnswer(model=served.name, results=judged(served, pairs, scores))

    @app.post("/search")
    async def search(body: bodies.SearchBody, request: Request) -> bodies.SearchAnswer:
        """Items for a query, best first."""
        trace = trace_of(request, body)
        rerank = "cross_encoder" in service.models if body.rerank is None else body.rerank
        served = service.model(kind="cross_encoder" if rerank else "two_tower")
        wide = max(body.k, body.candidates or (50 if rerank else 0))
        hits, scores = await service.find(body.query, wide, body.filters, trace)
        pairs = [Pair("", body.query, item) for item in hits.items]
        if rerank and pairs:
            scores = await service.predict(served, pairs, trace, evidence=True)
        best = np.argsort(-scores.scores, kind="stable")[: body.k]
        answers = judged(served, [pairs[index] for index in best], take(scores, best))
        results = [
            bodies.Hit(
                **answer.model_dump(),
                item=bodies.item_object(hits.items[index]),
                inner_product=float(hits.products[index]),
            )
            for answer, index in zip(answers, best)
        ]
        return bodies.SearchAnswer(model=served.name, query=body.query, results=results, ms=trace.ms)


def add_page(app: FastAPI, service: Service) -> None:
    """`/`, and what the page asks: `/page`, `/compare` and `/judgements`."""

    page = resources.files("jax_rele.serving").joinpath("page.html").read_text("utf-8")
    # The one script and the one style of the page, and nothing else, whatever a text of a seller holds.
    hashes = {
        tag: base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()
        for tag, inside in re.findall(r"<(script|style)>(.*?)</\1>", page, re.DOTALL)
    }
    policy = (
        f"default-src 'none'; script-src 'sha256-{hashes['script']}'; style-src 'sha256-{hashes['style']}'; "
        "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    headers = {"Content-Security-Policy": policy, "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}

    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    async def index() -> HTMLResponse:
        return HTMLResponse(page, headers=headers)

    @app.get("/page", include_in_schema=False)
    async def page_data() -> dict[str, Any]:
        return describe(service) | {
            "queries": list(service.queries),
            "rankers": rankers(service),
            "keeps_grades": service.grades is not None,
        }

    @app.post("/compare")
    async def compare(body: bodies.CompareBody, request: Request) -> bodies.CompareAnswer:
        """Every ranker's order of the items that any of them found, for the page."""
        return await compare_rankers(service, body.query, body.k, trace_of(request, body))

    @app.get("/judgements")
    async def read_grades(judge: str | None = None) -> list[dict[str, Any]]:
        """The grades of a judge, or of all."""
        return service.grades.rows(judge) if service.grades else []

    @app.post("/judgements")
    async def keep_grade(body: bodies.JudgementBody) -> dict[str, Any]:
        """Keeps a grade, or with the label null takes it back."""
        if service.grades is None:
            raise BadRequest("grades are not kept; start the service with --judgements FILE", 404, "no_judgements")
        item = bodies.item_object(bodies.as_item(body.item, "item"))
        return await service.in_thread(service.grades.add, body.judge.strip(), body.query, item, body.label)


def describe(service: Service) -> dict[str, Any]:
    """What is served, as `/info` tells it."""
    models = {}
    for name, served in service.models.items():
        manifest = served.manifest
        models[name] = {
            "run": manifest.source.get("run", ""),
            "recipe": manifest.recipe,
            "identity": manifest.identity,
            "labels": dict(zip(manifest.labels.names, manifest.labels.gains)),
            "dimensions": list(manifest.dimensions) if manifest.has_verdicts else [],
            "evidence": manifest.has_evidence and not served.scorer.embeds,
            "fields": list(manifest.fields),
            "query_length": manifest.query_length,
            "item_length": manifest.item_length,
            "head": manifest.head,
            "embedding_width": manifest.embedding_width,
            "int8": manifest.int8,
            "tiers": [{"name": each.name, "least": each.least} for each in manifest.tiers],
        }
    limits = service.limits
    return {
        **_as_tei(service),
        "version": jax_rele.__version__,
        "models": models,
        "max_client_batch_size": limits.request_rows,
        "max_batch_tokens": limits.batch_tokens,
        "max_queue_rows": limits.queue_rows,
        "max_body_bytes": limits.body_bytes,
        "timeout_seconds": limits.seconds,
        "searches": service.search_index is not None,
    }


def _as_tei(service: Service) -> dict[str, Any]:
    """What clients of text-embeddings-inference read in `/info`, of the model that answers by default."""
    manifest = service.model().manifest
    is_tower = manifest.model == "two_tower"
    reranker = {"reranker": {"id2label": {"0": "score"}, "label2id": {"score": 0}}}
    return {
        "model_id": manifest.source.get("run", ""),
        "model_sha": manifest.identity,
        "model_dtype": "int8" if manifest.int8 else "float32",
        "model_type": {"embedding": {"pooling": "none"}} if is_tower else reranker,
        "max_input_length": manifest.item_length + (1 if is_tower else manifest.query_length),
        "auto_truncate": True,
    }


def judged(served: Served, pairs: Sequence[Pair], scores: Scores) -> list[bodies.Judged]:
    """Predictions as JSON, in order."""
    manifest, schema = served.manifest, served.scorer.schema
    answers = []
    for index, pair in enumerate(pairs):
        probs, score = scores.label_probs[index], float(scores.scores[index])
        verdicts = evidence = None
        if scores.verdict_probs is not None:
            verdicts = {
                name: bodies.Verdict(verdict=VERDICTS[int(row.argmax())], probability=float(row.max()))
                for name, row in zip(manifest.dimensions, scores.verdict_probs[index])
            }
        if scores.evidence is not None:
            evidence = [
                bodies.Evidence(
                    source=span.source,
                    start=span.start,
                    end=span.end,
                    dimension=span.dimension,
                    text=source_text(pair, span.source)[span.start : span.end],
                )
                for span in scores.evidence[index]
            ]
        answers.append(
            bodies.Judged(
                index=index,
                score=score,
                label=schema.names[int(probs.argmax())],
                labels=dict(zip(schema.names, map(float, probs))),
                verdicts=verdicts,
                evidence=evidence,
                tier=manifest.tier_of(score),
            )
        )
    return answers


def rankers(service: Service) -> list[str]:
    """The columns of the page."""
    names = ["two_tower"] if service.search_index is not None else []
    names += ["cross_encoder"] if "cross_encoder" in service.models else []
    return [*names, "bm25"] if service.bm25 is not None else []


async def compare_rankers(service: Service, query: str, k: int, trace: Trace) -> bodies.CompareAnswer:
    """The `k` best items of each ranker. The cross-encoder orders what the two-tower and BM25 found.

    Raises:
      BadRequest: nothing can be searched; and as `Service.predict`.
    """
    if service.bm25 is None:
        raise BadRequest("the page has no items; start the service with --items", 404, "no_items")
    by_words = await service.in_thread(service.bm25.search, query, k)
    items = {item.id: item for item, _ in by_words}
    columns = []
    tower_scores: dict[str, float] = {}
    if service.search_index is not None:
        hits, scores = await service.find(query, k, {}, trace)
        items = {item.id: item for item in hits.items} | items
        tower_scores = {item.id: float(score) for item, score in zip(hits.items, scores.scores)}
    numbers = {key: number for number, key in enumerate(items)}
    if tower_scores:
        order = [numbers[key] for key in tower_scores]
        columns.append(bodies.Column(name="two_tower", order=order, scores=list(tower_scores.values())))
    answers: list[bodies.Judged] = []
    if items:
        served = service.model()
        pairs = [Pair("", query, item) for item in items.values()]
        scores = await service.predict(served, pairs, trace, evidence=True)
        answers = judged(served, pairs, scores)
        if not served.scorer.embeds:
            best = np.argsort(-scores.scores, kind="stable")[:k]
            shown = [float(scores.scores[index]) for index in best]
            columns.append(bodies.Column(name="cross_encoder", order=best.tolist(), scores=shown))
    order = [numbers[item.id] for item, _ in by_words]
    columns.append(bodies.Column(name="bm25", order=order, scores=[score for _, score in by_words]))
    shown_items = [bodies.item_object(item) for item in items.values()]
    return bodies.CompareAnswer(query=query, items=shown_items, judged=answers, columns=columns, ms=trace.ms)
