"""A route of the application: who may ask, what refusals and failures become, and JSON answers."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from infer.serve.exchange import KEY, Exchange
from infer.serve.refusal import Gone, Refusal
from infer.serve.service import Service

_LOG = logging.getLogger(__name__)
Handler = Callable[[Exchange, Request], Awaitable[Response]]


class Endpoint:
    """An ASGI application for one route.

    Args:
        service: whose tokens count.
        name: of the route, for metrics.
        handle: makes the answer; may raise Refusal.
        public: needs no token.
    """

    def __init__(self, service: Service, name: str, handle: Handler, *, public: bool = False) -> None:
        self._service, self._name, self._handle, self._public = service, name, handle, public

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, whatever happens."""
        exchange: Exchange = scope[KEY]
        exchange.route = self._name
        try:
            if not self._public:
                self._admit(exchange, scope)
            answer = await self._handle(exchange, Request(scope))
        except Gone:
            return
        except Refusal as refusal:
            exchange.notes["error"] = refusal.message
            answer = refuse(refusal)
        except Exception:
            _LOG.exception("request %s failed", exchange.id)
            exchange.notes["error"] = "internal error"
            answer = refuse(Refusal(500, f"internal error; the server's log has it under {exchange.id}"))
        await answer(scope, receive, send)

    def _admit(self, exchange: Exchange, scope: Scope) -> None:
        headers = exchange.headers
        self._service.tokens.check(_text(headers, b"authorization"), _text(headers, b"x-api-key"))
        # A page of another site may send simple requests to a server on this machine, though it cannot read the answer.
        origin = headers.get(b"origin")
        if origin is not None and scope["method"] != "GET":
            host = origin.partition(b"://")[2]
            if host.lower() != headers.get(b"host", b"").lower():
                raise Refusal(403, "origin: requests of pages of other sites are not taken")


def _text(headers: Mapping[bytes, bytes], name: bytes) -> str | None:
    value = headers.get(name)
    return None if value is None else value.decode("latin-1")


def route(service: Service, method: str, path: str, name: str, handle: Handler, *, public: bool = False) -> Route:
    """A route of one method."""
    return Route(path, Endpoint(service, name, handle, public=public), methods=[method])


def answer_json(content: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """A JSON answer; NaN and infinities become null."""
    return Response(msgspec.json.encode(content), status, headers, "application/json")


def refuse(refusal: Refusal) -> Response:
    """A refusal as the v2 protocol writes errors."""
    headers = {}
    if refusal.retry_after is not None:
        headers["retry-after"] = str(refusal.retry_after)
    if refusal.status == 401:
        headers["www-authenticate"] = "Bearer"
    if refusal.status in (408, 413):
        headers["connection"] = "close"
    return answer_json({"error": refusal.message}, refusal.status, headers)
