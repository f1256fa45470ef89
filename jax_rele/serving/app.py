"""The routes: ours, and those that clients of text-embeddings-inference, Cohere and OpenAI ask."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import re
import sys
import threading
import time
import uuid
from collections.abc import AsyncIterator, Sequence, Set
from contextlib import asynccontextmanager
from importlib import resources
from typing import Any

import numpy as np
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

import jax_rele
from jax_rele.deployment.scorer import Scores
from jax_rele.errors import UserError
from jax_rele.serving import bodies
from jax_rele.serving.batcher import Closed, Overloaded
from jax_rele.serving.refusals import BadRequest
from jax_rele.serving.service import Served, Service, Trace, log_odds, source_text, take, tier
from jax_rele.types import VERDICTS, Pair

OPEN = ("/", "/health", "/ready")
"""Paths that need no key."""

_OPENAI = ("/v1/models", "/v1/embeddings")
"""Paths whose refusals have OpenAI's form: its clients show no other."""

_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": bodies.ErrorBody} for status in (400, 401, 413, 422, 429, 503, 504)
}


def create_app(service: Service, *, api_key: str = "", log_texts: bool = False) -> FastAPI:
    """The application; `service` is closed when it ends.

    Args:
      service: the models.
      api_key: what requests must bear as `Authorization: Bearer KEY`; empty for none.
      log_texts: whether the log holds the texts of requests.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        threading.Thread(target=service.warm_up, name="warm-up", daemon=True).start()
        yield
        await asyncio.to_thread(service.close)

    app = FastAPI(title="jax_rele", version=jax_rele.__version__, lifespan=lifespan, responses=_ERRORS)
    app.state.service = service
    routes: set[str] = set()
    app.add_middleware(_Guard, service=service, routes=routes, api_key=api_key, log_texts=log_texts)
    _handle_errors(app)
    _add_probes(app, service)
    _add_tei(app, service)
    _add_cohere(app, service)
    _add_openai(app, service)
    _add_ours(app, service)
    _add_page(app, service)
    routes.update(getattr(route, "path", "") for route in app.routes)
    return app


def _add_probes(app: FastAPI, service: Service) -> None:
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


def _add_tei(app: FastAPI, service: Service) -> None:
    @app.post("/rerank", response_model_exclude_none=True)
    async def rerank(body: bodies.TeiRerank, request: Request) -> list[bodies.Ranked]:
        """Texts by relevance, as text-embeddings-inference. `raw_scores` gives log-odds of the score."""
        pairs = [Pair("", body.query, bodies.as_item(text)) for text in body.texts]
        whole = body.truncate is False
        scores = (await service.predict(service.model(), pairs, _trace(request, body), whole=whole)).scores
        shown = log_odds(scores) if body.raw_scores else scores
        return [
            bodies.Ranked(
                index=int(index),
                score=float(shown[index]),
                text=body.texts[index] if body.return_text else None,
            )
            for index in np.argsort(-scores, kind="stable")
        ]

    @app.post("/embed")
    async def embed(body: bodies.TeiEmbed, request: Request) -> list[list[float]]:
        """Embeddings, as text-embeddings-inference; of unit length unless `normalize` is false."""
        if body.side and body.prompt_name and bodies.SIDES[body.side] != bodies.SIDES[body.prompt_name]:
            raise BadRequest("side and prompt_name differ; give one of them")
        served = service.model(kind="two_tower")
        side = _side(body.side or body.prompt_name, "prompt_name")
        _check_width(body.dimensions, served)
        texts = [body.inputs] if isinstance(body.inputs, str) else body.inputs
        whole = body.truncate is False
        vectors, _ = await service.embed(served, texts, side, _trace(request, body), whole=whole)
        if body.normalize:
            vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)
        return vectors.tolist()

    @app.post("/predict")
    async def predict(
        body: bodies.TeiPredict, request: Request
    ) -> list[list[bodies.Prediction]] | list[bodies.Prediction]:
        """Labels with probabilities, as text-embeddings-inference; `raw_scores` gives their logarithms."""
        is_single = isinstance(body.inputs, tuple)
        inputs: Sequence = [body.inputs] if is_single else body.inputs
        pairs = [Pair("", query, bodies.as_item(text)) for query, text in inputs]
        served = service.model()
        whole = body.truncate is False
        probs = (await service.predict(served, pairs, _trace(request, body), whole=whole)).label_probs
        if body.raw_scores:
            probs = np.log(np.maximum(probs, 1e-30))
        answers = [
            [
                bodies.Prediction(label=served.scorer.schema.names[index], score=float(row[index]))
                for index in np.argsort(-row, kind="stable")
            ]
            for row in probs
        ]
        return answers[0] if is_single else answers


def _add_cohere(app: FastAPI, service: Service) -> None:
    async def rerank(body: bodies.CohereRerank, request: Request) -> bodies.CohereAnswer:
        """Documents by relevance, as Cohere. A document is a text, {text}, or an item's fields."""
        served = service.model(body.model)
        pairs = [bodies.as_pair(body.query, document) for document in body.documents]
        tokens = body.max_tokens_per_doc or 0
        scores = (await service.predict(served, pairs, _trace(request, body), item_tokens=tokens)).scores
        results = []
        for index in np.argsort(-scores, kind="stable")[: body.top_n]:
            document_body = body.documents[index]
            document = (
                {"text": document_body}
                if isinstance(document_body, str)
                else document_body.model_dump(exclude_none=True)
            )
            results.append(
                bodies.CohereResult(
                    index=int(index),
                    relevance_score=float(scores[index]),
                    document=document if body.return_documents else None,
                )
            )
        version = "2" if request.url.path.startswith("/v2") else "1"
        meta = {"api_version": {"version": version}, "billed_units": {"search_units": 1}}
        return bodies.CohereAnswer(id=str(uuid.uuid4()), results=results, meta=meta)

    for version in (1, 2):
        app.post(f"/v{version}/rerank", response_model_exclude_none=True, operation_id=f"cohere_rerank_v{version}")(
            rerank
        )


def _add_openai(app: FastAPI, service: Service) -> None:
    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        """What is served, as OpenAI lists it."""
        data = [
            {"id": name, "object": "model", "created": 0, "owned_by": served.manifest.source.get("run", "")}
            for name, served in service.models.items()
        ]
        return {"object": "list", "data": data}

    @app.post("/v1/embeddings")
    async def embeddings(body: bodies.OpenAIEmbeddings, request: Request) -> bodies.Embeddings:
        """Embeddings as they are, as OpenAI. Query and item are read differently, so the side must be given."""
        name, _, suffix = body.model.partition(":")
        if suffix and suffix not in bodies.SIDES:
            raise BadRequest(f"model: the side {suffix!r:.40} is none; end the name by :query or :item")
        if suffix and body.input_type and bodies.SIDES[suffix] != bodies.SIDES[body.input_type]:
            raise BadRequest("input_type and the end of model differ; give one of them")
        served = service.model(name, "two_tower")
        side = _side(body.input_type or suffix or None, "input_type")
        _check_width(body.dimensions, served)
        texts = [body.input] if isinstance(body.input, str) else body.input
        vectors, tokens = await service.embed(served, texts, side, _trace(request, body))
        data = [
            bodies.Embedding(
                index=index,
                embedding=base64.b64encode(vector.astype("<f4").tobytes()).decode()
                if body.encoding_format == "base64"
                else vector.tolist(),
            )
            for index, vector in enumerate(vectors)
        ]
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        return bodies.Embeddings(data=data, model=body.model or served.name, usage=usage)


def _add_ours(app: FastAPI, service: Service) -> None:
    @app.post("/score")
    async def score(body: bodies.ScoreBody, request: Request) -> bodies.ScoreAnswer:
        """Score, labels, verdicts and evidence of pairs, in order. Texts lose white space at their ends first."""
        if (body.pairs is None) == (body.items is None) or (body.items is None) != (body.query is None):
            raise BadRequest("give either query and items, or pairs")
        if body.pairs is not None:
            pairs = [bodies.as_pair(pair.query, pair.item) for pair in body.pairs]
        else:
            pairs = [bodies.as_pair(body.query or "", item) for item in body.items or ()]
        served = service.model(body.model)
        scores = await service.predict(served, pairs, _trace(request, body), evidence=True)
        return bodies.ScoreAnswer(model=served.name, results=judged(served, pairs, scores))

    @app.post("/search")
    async def search(body: bodies.SearchBody, request: Request) -> bodies.SearchAnswer:
        """Items for a query, best first."""
        trace = _trace(request, body)
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


def _add_page(app: FastAPI, service: Service) -> None:
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
        return await compare_rankers(service, body.query, body.k, _trace(request, body))

    @app.get("/judgements")
    async def read_grades(judge: str | None = None) -> list[dict[str, Any]]:
        """The grades of a judge, or of all."""
        return service.grades.rows(judge) if service.grades else []

    @app.post("/judgements")
    async def keep_grade(body: bodies.JudgementBody) -> dict[str, Any]:
        """Keeps a grade, or with the label null takes it back."""
        if service.grades is None:
            raise BadRequest("grades are not kept; start the service with --judgements FILE", 404, "no_judgements")
        item = bodies.item_object(bodies.as_item(body.item))
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
        "version": jax_rele.__version__,
        "models": models,
        "max_client_batch_size": limits.request_rows,
        "max_batch_tokens": limits.batch_tokens,
        "max_queue_rows": limits.queue_rows,
        "max_body_bytes": limits.body_bytes,
        "timeout_seconds": limits.seconds,
        "searches": service.search_index is not None,
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
                tier=tier(manifest, score),
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


def _side(name: str | None, field: str) -> str:
    if name is None:
        raise BadRequest(f"{field}: is needed, as query and item are read differently; give query or item")
    return bodies.SIDES[name]


def _check_width(dimensions: int | None, served: Served) -> None:
    width = served.manifest.embedding_width
    if dimensions not in (None, width):
        raise BadRequest(f"dimensions: embeddings have {width} and cannot be cut; leave it out")


def _trace(request: Request, body: Any) -> Trace:
    """What the request costs, for the log; it also keeps the body for `--log-texts`."""
    request.scope["jax_rele.body"] = body
    return request.scope["jax_rele.trace"]


class _Guard:
    """Around every request: key, size, draining, log and metrics."""

    def __init__(self, app: ASGIApp, service: Service, routes: Set[str], api_key: str, log_texts: bool):
        self.app, self.service, self.routes = app, service, routes
        self.api_key, self.log_texts = api_key, log_texts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start, status, trace = time.perf_counter(), 500, Trace()
        scope["jax_rele.trace"] = trace
        read = 0

        async def limited() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > self.service.limits.body_bytes:
                raise HTTPException(413, self._too_large)
            return message

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        refusal = self._refusal(scope)
        try:
            await (refusal or self.app)(scope, limited, watched)
        finally:
            self._record(scope, status, time.perf_counter() - start, trace)

    @property
    def _too_large(self) -> str:
        return f"the body has more than {self.service.limits.body_bytes} bytes; send several requests"

    def _refusal(self, scope: Scope) -> Response | None:
        headers = dict(scope["headers"])
        answer = None
        if self.api_key and scope["path"] not in OPEN:
            scheme, _, key = headers.get(b"authorization", b"").partition(b" ")
            if scheme.lower() != b"bearer" or not hmac.compare_digest(key.strip(), self.api_key.encode()):
                answer = _error(scope, 401, "give the right key as Authorization: Bearer KEY", "unauthorized")
                answer.headers["WWW-Authenticate"] = "Bearer"
        length = headers.get(b"content-length", b"0")
        if answer is None and length.isdigit() and int(length) > self.service.limits.body_bytes:
            answer = _error(scope, 413, self._too_large, "too_large")
        if answer is None and self.service.draining and scope["path"] not in OPEN:
            answer = _error(scope, 503, "the service is shutting down; ask another", "closed")
        if answer is not None:
            # What is left of the body would be read as the next request.
            answer.headers["Connection"] = "close"
        return answer

    def _record(self, scope: Scope, status: int, seconds: float, trace: Trace) -> None:
        # Nothing else of a path is counted: anybody could make any number of series.
        route = scope["path"] if scope["path"] in self.routes else "unknown"
        error_type = scope.get("jax_rele.error_type", "" if status < 400 else "backend")
        self.service.metrics.request(route, status, seconds, trace.seconds, trace.rows, error_type)
        self.service.metrics.text_loss(trace.text_loss)
        line: dict[str, Any] = {
            "time": round(time.time(), 3),
            "method": scope["method"],
            "route": route,
            "status": status,
            "rows": trace.rows,
            "ms": {"all": round(1000 * seconds, 2), **trace.ms},
        }
        if error_type:
            line["error_type"] = error_type
        if self.log_texts and (body := scope.get("jax_rele.body")) is not None:
            line["body"] = body.model_dump(mode="json", exclude_none=True)
        print(json.dumps(line, ensure_ascii=not self.log_texts), file=sys.stderr, flush=True)


def _error(scope: Scope, status: int, message: str, error_type: str) -> JSONResponse:
    scope["jax_rele.error_type"] = error_type
    # A lone surrogate of the request would be no JSON.
    text = " ".join(message.split()).encode("utf-8", "replace").decode()
    if scope["path"] in _OPENAI:
        return JSONResponse({"error": {"message": text, "type": error_type}}, status)
    return JSONResponse({"error": text, "error_type": error_type}, status)


_STATUS_TYPES = {400: "bad_request", 404: "not_found", 405: "method_not_allowed", 413: "too_large"}


def _handle_errors(app: FastAPI) -> None:
    @app.exception_handler(BadRequest)
    async def bad_request(request: Request, error: BadRequest) -> JSONResponse:
        return _error(request.scope, error.status, str(error), error.error_type)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        return _error(request.scope, *_validation(request, error.errors()))

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> JSONResponse:
        kind = _STATUS_TYPES.get(error.status_code, "other")
        answer = _error(request.scope, error.status_code, str(error.detail), kind)
        answer.headers.update(error.headers or {})
        if error.status_code == 413:
            answer.headers["Connection"] = "close"
        return answer

    @app.exception_handler(Overloaded)
    async def overloaded(request: Request, _: Overloaded) -> JSONResponse:
        answer = _error(request.scope, 429, "too many rows wait; ask again later", "overloaded")
        answer.headers["Retry-After"] = "1"
        return answer

    @app.exception_handler(Closed)
    async def closed(request: Request, _: Closed) -> JSONResponse:
        return _error(request.scope, 503, "the service is shutting down; ask another", "closed")

    @app.exception_handler(TimeoutError)
    async def late(request: Request, _: TimeoutError) -> JSONResponse:
        seconds = app.state.service.limits.seconds
        return _error(request.scope, 504, f"the models took more than {seconds:g} seconds; send fewer rows", "timeout")

    @app.exception_handler(UserError)
    async def unwritable(request: Request, error: UserError) -> JSONResponse:
        return _error(request.scope, 503, str(error), "unwritable")

    @app.exception_handler(Exception)
    async def failure(request: Request, error: Exception) -> JSONResponse:
        message = f"the model failed: {type(error).__name__}; the log of the service says more"
        return _error(request.scope, 500, message, "backend")


def _validation(request: Request, errors: Sequence[Any]) -> tuple[int, str, str]:
    """Status, one line and kind for what pydantic says of a body."""
    # A misspelt field is told before the one that is missing for it.
    first = next((each for each in errors if each["type"] == "extra_forbidden"), errors[0])
    if first["type"] == "json_invalid":
        reason = first.get("ctx", {}).get("error", "")
        return 400, f"the body is no valid JSON: {reason}", "bad_request"
    if "application/json" not in request.headers.get("content-type", "") and first["loc"] == ("body",):
        return 422, "the body must be a JSON object; send Content-Type: application/json", "validation"
    # Names of the branches of a union are no part of the body.
    path = ".".join(str(part) for part in first["loc"] if part not in ("body", *bodies.BRANCHES))
    message = {"extra_forbidden": "there is no such field", "missing": "is missing"}.get(first["type"], first["msg"])
    message = message.removeprefix("Value error, ")
    return 422, f"{path}: {message}" if path else message, "validation"
