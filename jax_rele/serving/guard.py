"""Around every request: key, sizes, times, log and metrics; and what is said where a request fails."""

from __future__ import annotations

import asyncio
import hmac
import json
import sys
import time
from collections.abc import Callable, Coroutine, Sequence, Set
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from jax_rele.data.rows import RowError, unique_keys
from jax_rele.errors import UserError
from jax_rele.serving import bodies
from jax_rele.serving.batcher import Closed, Overloaded
from jax_rele.serving.refusals import BadRequest
from jax_rele.serving.service import Limits, Service, Trace

DRAINED_BYTES = 32_000_000
"""Most bytes of a refused body that are read so that its client sees the answer."""

OPEN = ("/", "/health", "/ready")
"""Paths that need no key."""

_OPENAI = ("/v1/models", "/v1/embeddings")
"""Paths whose refusals have OpenAI's form: its clients show no other."""


def trace_of(request: Request, body: Any) -> Trace:
    """What the request costs, for the log; it also keeps the body for `--log-texts`."""
    request.scope["jax_rele.body"] = body
    return request.scope["jax_rele.trace"]


class StrictRoute(APIRoute):
    """A route that refuses bodies with a key twice in an object, as it is not known which value counts."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()

        async def handle(request: Request) -> Response:
            return await handler(_StrictRequest(request.scope, request.receive))

        return handle


class _StrictRequest(Request):
    async def json(self) -> Any:
        content = await self.body()
        try:
            return json.loads(content, object_pairs_hook=unique_keys)
        except json.JSONDecodeError:
            raise
        except RowError as error:
            raise HTTPException(400, f"the body is {error}") from None
        except RecursionError:
            raise HTTPException(400, "the body is no valid JSON: it is nested too deeply") from None
        except ValueError as error:  # bytes that are not UTF-8, a number with thousands of digits
            raise HTTPException(400, f"the body is no valid JSON: {error}") from None


class Guard:
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
        body = _Body(scope, receive, self.service.limits)

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                # A client that is still sending would have its connection reset before it reads the answer.
                await body.drain()
                if not body.is_whole:
                    # What is left of the body would be read as the next request.
                    message["headers"] = [*message["headers"], (b"connection", b"close")]
            await send(message)

        refusal = self._refusal(scope)
        try:
            await (refusal or self.app)(scope, body.receive, watched)
        finally:
            self._record(scope, status, time.perf_counter() - start, trace)

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
            answer = _error(scope, 413, _too_large(self.service.limits), "too_large")
        if answer is None and self.service.draining and scope["path"] not in OPEN:
            answer = _error(scope, 503, "the service is shutting down; ask another", "closed")
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


class _Body:
    """The body of a request as it is received, within the limits of the service."""

    def __init__(self, scope: Scope, receive: Receive, limits: Limits):
        self._receive, self._limits = receive, limits
        self._end = time.monotonic() + limits.seconds
        headers = dict(scope["headers"])
        length = headers.get(b"content-length", b"0")
        # A client that asks first, or has more than is read for it, is answered at once.
        self._is_drained = b"expect" not in headers and (not length.isdigit() or int(length) <= DRAINED_BYTES)
        self._read, self._head = 0, b""
        self.is_whole = False

    async def receive(self) -> Message:
        """The next part. Raises HTTPException for a body that is too large, too slow or not UTF-8."""
        message = await self._next()
        # JSON in UTF-16 or UTF-32 has a zero among its first bytes, or a byte order mark.
        if b"\0" in self._head or self._head[:2] in (b"\xff\xfe", b"\xfe\xff"):
            raise HTTPException(400, "the body is no UTF-8 text; send JSON in UTF-8")
        if self._read > self._limits.body_bytes:
            raise HTTPException(413, _too_large(self._limits))
        return message

    async def _next(self) -> Message:
        if self.is_whole:  # what comes is the end of the connection
            return await self._receive()
        try:
            message = await asyncio.wait_for(self._receive(), max(0.0, self._end - time.monotonic()))
        except TimeoutError:
            self._is_drained = False
            seconds = self._limits.seconds
            raise HTTPException(408, f"the body did not come within {seconds:g} seconds; send it faster") from None
        content = message.get("body", b"")
        self._read += len(content)
        self._head = (self._head + content[:4])[:4]
        self.is_whole = not message.get("more_body", False)
        return message

    async def drain(self) -> None:
        """Reads what is left, without keeping it, unless that is too much or takes too long."""
        try:
            while self._is_drained and not self.is_whole and self._read <= DRAINED_BYTES:
                await self._next()
        except HTTPException:
            return


def _too_large(limits: Limits) -> str:
    return f"the body has more than {limits.body_bytes} bytes; send several requests"


def _error(scope: Scope, status: int, message: str, error_type: str) -> JSONResponse:
    scope["jax_rele.error_type"] = error_type
    # A lone surrogate of the request would be no JSON.
    text = " ".join(message.split()).encode("utf-8", "replace").decode()
    if scope["path"] in _OPENAI:
        return JSONResponse({"error": {"message": text, "type": error_type}}, status)
    return JSONResponse({"error": text, "error_type": error_type}, status)


_STATUS_TYPES = {
    400: "bad_request",
    404: "not_found",
    405: "method_not_allowed",
    408: "timeout",
    413: "too_large",
}


def handle_errors(app: FastAPI) -> None:
    """Every failure is one line of JSON with its kind."""

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
    location = first["loc"]
    if location[-1] in bodies.TYPES:
        # Of a field that takes several types, each has an error: the one that got furthest tells most.
        *field, _ = location
        first = max(
            (each for each in errors if [*each["loc"][: len(field)]] == field), key=lambda each: len(each["loc"])
        )
        location = (*field, *(part for part in first["loc"][len(field) :] if isinstance(part, int)))
    path = ".".join(str(part) for part in location if part not in ("body", *bodies.BRANCHES))
    message = {"extra_forbidden": "there is no such field", "missing": "is missing"}.get(first["type"], first["msg"])
    message = message.removeprefix("Value error, ")
    return 422, f"{path or 'the body'}: {message}", "validation"
