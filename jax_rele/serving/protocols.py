"""Routes of other services: text-embeddings-inference's, Cohere's and OpenAI's, as their clients ask them."""

from __future__ import annotations

import base64
import uuid
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from fastapi import FastAPI, Request

from jax_rele.serving import bodies
from jax_rele.serving.guard import trace_of
from jax_rele.serving.refusals import BadRequest
from jax_rele.serving.service import Served, Service, log_odds
from jax_rele.serving.tokens import query_and
from jax_rele.types import Item, Pair


def add_tei(app: FastAPI, service: Service) -> None:
    """`/rerank`, `/embed` and `/predict`."""

    @app.post("/rerank", response_model_exclude_none=True)
    async def rerank(body: bodies.TeiRerank, request: Request) -> list[bodies.Ranked]:
        """Texts by relevance, as text-embeddings-inference. `raw_scores` gives log-odds of the score."""
        pairs = [Pair("", body.query, Item("", text)) for text in body.texts]
        whole = body.truncate is False
        trace, where = trace_of(request, body), query_and("texts")
        scores = (await service.predict(service.model(), pairs, trace, whole=whole, where=where)).scores
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
        trace, where = trace_of(request, body), _text_of("inputs", body.inputs)
        vectors, _ = await service.embed(served, texts, side, trace, whole=whole, where=where)
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
        pairs = [Pair("", query, Item("", text)) for query, text in inputs]
        served = service.model()
        whole = body.truncate is False
        trace = trace_of(request, body)

        def where(index: int, side: str) -> str:
            return f"inputs{'' if is_single else f'.{index}'}.{('query', 'item').index(side)}"

        probs = (await service.predict(served, pairs, trace, whole=whole, where=where)).label_probs
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


def add_cohere(app: FastAPI, service: Service) -> None:
    """`/v1/rerank` and `/v2/rerank`."""

    async def rerank(body: bodies.CohereRerank, request: Request) -> bodies.CohereAnswer:
        """Documents by relevance, as Cohere. A document is a text, {text}, or an item's fields."""
        served = service.model(body.model)
        pairs = []
        for number, each in enumerate(body.documents):
            path, fields = f"documents.{number}", body.rank_fields
            item = bodies.as_ranked_item(each, fields, path) if fields else bodies.as_item(each, path)
            pairs.append(Pair("", body.query, item))
        tokens = body.max_tokens_per_doc or 0
        trace, where = trace_of(request, body), query_and("documents")
        scores = (await service.predict(served, pairs, trace, item_tokens=tokens, where=where)).scores
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


def add_openai(app: FastAPI, service: Service) -> None:
    """`/v1/models` and `/v1/embeddings`."""

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
        where = _text_of("input", body.input)
        vectors, tokens = await service.embed(served, texts, side, trace_of(request, body), where=where)
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


def _text_of(field: str, texts: str | Sequence[str]) -> Callable[[int], str]:
    """Names a text of a request, by the index of the text."""
    return lambda index: field if isinstance(texts, str) else f"{field}.{index}"


def _side(name: str | None, field: str) -> str:
    if name is None:
        raise BadRequest(f"{field}: is needed, as query and item are read differently; give query or item")
    return bodies.SIDES[name]


def _check_width(dimensions: int | None, served: Served) -> None:
    width = served.manifest.embedding_width
    if dimensions not in (None, width):
        raise BadRequest(f"dimensions: embeddings have {width} and cannot be cut; leave it out")
