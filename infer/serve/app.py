"""The ASGI application: under uvicorn by :mod:`infer.serve.run`, or under any other ASGI server.

    app = application(ServeOptions((Source(Path("engines/iresnet101-int8")),)))

Models are loaded when the server starts the application (ASGI's ``lifespan``), in the background: it is live at once
and ready (``/v2/health/ready``) when they are warmed up and gave their known answers.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response

from infer.serve.classify import Classify
from infer.serve.endpoint import answer_json, route
from infer.serve.exchange import Exchange, Exchanges
from infer.serve.openapi import description
from infer.serve.options import ServeOptions
from infer.serve.page import Page
from infer.serve.service import Service
from infer.serve.v2_http import V2Http


def application(options: ServeOptions) -> Starlette:
    """The application for some bundles.

    Returns:
        An ASGI application; its ``state.service`` is the :class:`infer.serve.service.Service`, which says whether it is
        ready and what made it fail. A failure does not end the process: whoever runs it looks at ``service.failure``,
        or sets ``service.on_failure``.

    Raises:
        InputError: an option cannot be used.
    """
    service = Service(options)

    async def metrics(exchange: Exchange, request: Request) -> Response:
        service.metrics.buffered.set(service.bodies.used)
        text, kind = service.metrics.text()
        return Response(text, headers={"content-type": kind})

    async def openapi(exchange: Exchange, request: Request) -> Response:
        return answer_json(description(options))

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        service.start()
        try:
            yield
        finally:
            await service.close()

    app = Starlette(
        routes=[
            *Classify(service).routes(),
            *V2Http(service).routes(),
            route(service, "GET", "/metrics", "metrics", metrics),
            route(service, "GET", "/openapi.json", "openapi", openapi),
            *Page(service).routes(),
        ],
        middleware=[Middleware(Exchanges, service=service)],
        exception_handlers={HTTPException: _not_found},
        lifespan=lifespan,
    )
    app.router.redirect_slashes = False
    app.state.service = service
    return app


async def _not_found(request: Request, error: Exception) -> Response:
    """404 and 405 of the router, as the protocol writes errors."""
    assert isinstance(error, HTTPException)
    what = {404: "path: nothing is here", 405: "method: not one of this path"}.get(error.status_code, error.detail)
    return answer_json({"error": what}, error.status_code, error.headers)
