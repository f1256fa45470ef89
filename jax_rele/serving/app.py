"""The application: every route behind one guard."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI

import jax_rele
from jax_rele.serving import bodies
from jax_rele.serving.guard import Guard, StrictRoute, handle_errors
from jax_rele.serving.protocols import add_cohere, add_openai, add_tei
from jax_rele.serving.routes import add_ours, add_page, add_probes
from jax_rele.serving.service import Service

_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": bodies.ErrorBody} for status in (400, 401, 408, 413, 422, 429, 503, 504)
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
    app.router.route_class = StrictRoute
    routes: set[str] = set()
    app.add_middleware(Guard, service=service, routes=routes, api_key=api_key, log_texts=log_texts)
    handle_errors(app)
    add_probes(app, service)
    add_tei(app, service)
    add_cohere(app, service)
    add_openai(app, service)
    add_ours(app, service)
    add_page(app, service)
    routes.update(getattr(route, "path", "") for route in app.routes)
    return app
