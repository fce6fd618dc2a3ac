"""One HTTP request from its headers to the end of its answer: its body, its time, its id, and its line in the log."""

from __future__ import annotations

import asyncio
import re
import secrets
import time
import zlib
from typing import TYPE_CHECKING, Any

from infer.serve.limits import Limits
from infer.serve.refusal import Gone, Refusal
from infer.serve.ticket import Ticket

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from infer.serve.service import Service

KEY = "iresnet"
_ID = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")
#: What is read of a body that was refused before the connection is closed, so that the client sees the answer.
#: Seconds after which a waiting request looks whether its client is still there.
_WATCH_AFTER = 0.02
_LINGER_SECONDS, _LINGER_BYTES = 1.0, 64 << 20


class Exchange:
    """What the routes know of their request, as ``scope["iresnet"]``.

    Attributes:
        id: of the request: the client's ``X-Request-ID``, or one of ours.
        deadline: of the answer, in the loop's time.
        route: for metrics, without names that a client chooses.
        notes: for the line in the log.
        headers: of the request, names in lower case.
        status: of the answer; 0 before it.
    """

    __slots__ = ("_body_left", "_receive", "_send", "_service", "_taken", "deadline", "headers", "id", "notes", "route",
                 "started", "status")  # fmt: skip

    def __init__(self, service: Service, scope: Scope, receive: Receive, send: Send) -> None:
        self._service, self._receive, self._send = service, receive, send
        self.headers: dict[bytes, bytes] = dict(scope["headers"])
        given = self.headers.get(b"x-request-id", b"").decode("latin-1")
        self.id = given if is_request_id(given) else secrets.token_hex(8)
        self.started = time.perf_counter()
        self.deadline = asyncio.get_running_loop().time() + service.limits.timeout
        self.route, self.status = "other", 0
        self.notes: dict[str, Any] = {}
        self._taken = 0
        length = self.headers.get(b"content-length", b"0")
        self._body_left = b"transfer-encoding" in self.headers or length != b"0"

    async def body(self) -> bytes:
        """The whole body, decompressed.

        Raises:
            Refusal: 413 too long, 429 too many bodies in memory, 408 too slow, 400 cut or not of its coding, 415 of
                an unknown coding.
            Gone: the client left.
        """
        limits, budget = self._service.limits, self._service.bodies
        announced = _length(self.headers, limits)
        budget.take(announced)
        self._taken += announced
        parts: list[bytes] = []
        total = 0
        try:
            async with asyncio.timeout_at(self.deadline):
                while True:
                    message = await self._receive()
                    if message["type"] == "http.disconnect":
                        raise Gone
                    part = message.get("body", b"")
                    total += len(part)
                    if total > limits.max_body:
                        raise _too_long(limits)
                    if total > self._taken:
                        budget.take(total - self._taken)
                        self._taken = total
                    if part:
                        parts.append(part)
                    if not message.get("more_body", False):
                        break
        except TimeoutError:
            raise Refusal(408, f"body: not whole after {limits.timeout:g} seconds") from None
        self._body_left = False
        self.notes["bytes"] = total
        data = parts[0] if len(parts) == 1 else b"".join(parts)
        return await self._decompressed(data)

    async def _decompressed(self, data: bytes) -> bytes:
        coding = self.headers.get(b"content-encoding", b"identity").strip().lower()
        if coding == b"identity":
            return data
        if coding not in (b"gzip", b"deflate"):
            raise Refusal(415, "content-encoding: expected identity, gzip or deflate")
        most = self._service.limits.max_body
        self._service.bodies.take(most)
        self._taken += most
        plain = await asyncio.to_thread(_decompress, data, most)
        self._service.bodies.give_back(most - len(plain))
        self._taken -= most - len(plain)
        return plain

    async def wait(self, ticket: Ticket) -> None:
        """Wait until ``ticket`` is done; after its body was read.

        Raises:
            Refusal: 504, the time of the request is over.
            Gone: the client left; what has not been started is not.
        """
        loop = asyncio.get_running_loop()
        watch: asyncio.Task[None] | None = None

        def begin_watching() -> None:
            nonlocal watch
            watch = loop.create_task(self._left())
            watch.add_done_callback(lambda _: ticket.give_up())

        # Most answers are there before it is worth a task to see whether the client is.
        timers = [loop.call_later(_WATCH_AFTER, begin_watching), loop.call_at(self.deadline, ticket.give_up)]
        try:
            await ticket.settled
        finally:
            for timer in timers:
                timer.cancel()
            ticket.give_up()
            left = watch is not None and watch.done()
            if watch is not None:
                watch.cancel()
        if ticket.abandoned:
            if left:
                raise Gone
            raise Refusal(504, f"no answer within {self._service.limits.timeout:g} seconds", retry_after=1)

    async def _left(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass

    async def send(self, message: Message) -> None:
        """Pass the answer on; ends the connection where the body of its request was not read."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message["headers"] = [*message["headers"], (b"x-request-id", self.id.encode())]
            if self._body_left:
                message["headers"].append((b"connection", b"close"))
        elif self._body_left and not message.get("more_body", False):
            await self._send({**message, "more_body": True})
            await self._linger()
            message = {"type": "http.response.body", "body": b"", "more_body": False}
        await self._send(message)

    async def _linger(self) -> None:
        left = _LINGER_BYTES
        try:
            async with asyncio.timeout(_LINGER_SECONDS):
                while left > 0:
                    message = await self._receive()
                    if message["type"] == "http.disconnect" or not message.get("more_body", False):
                        return
                    left -= len(message.get("body", b""))
        except TimeoutError:
            pass

    def end(self) -> None:
        """Give the memory back."""
        self._service.bodies.give_back(self._taken)
        self._taken = 0


def is_request_id(text: str) -> bool:
    """Whether a client's id is taken over: it stands in a header and in the log."""
    return _ID.fullmatch(text) is not None


def _length(headers: dict[bytes, bytes], limits: Limits) -> int:
    text = headers.get(b"content-length", b"0")
    if not text.isdigit():
        raise Refusal(400, "content-length: expected a number")
    length = int(text) if len(text) < 20 else limits.max_body + 1
    if length > limits.max_body:
        raise _too_long(limits)
    return length


def _too_long(limits: Limits) -> Refusal:
    return Refusal(413, f"body: longer than {limits.max_body} bytes, the limit of this server")


def _decompress(data: bytes, most: int) -> bytes:
    decoder = zlib.decompressobj(wbits=47)  # the header says whether gzip or zlib
    try:
        plain = decoder.decompress(data, most + 1)
    except zlib.error:
        raise Refusal(400, "body: not of the content-encoding that its header says") from None
    if len(plain) > most:
        raise Refusal(413, f"body: decompressed, longer than {most} bytes, the limit of this server")
    if not decoder.eof:
        raise Refusal(400, "body: ends before its compressed data does")
    return plain


class Exchanges:
    """ASGI middleware around the whole application: makes the exchange, answers refusals, counts and logs."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self.app, self.service = app, service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run one request; other kinds of connections are passed on."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return
        exchange = scope[KEY] = Exchange(self.service, scope, receive, send)
        try:
            # Twice the time: what a client does not read must not keep its connection for ever.
            async with asyncio.timeout(2 * self.service.limits.timeout):
                await self.app(scope, receive, exchange.send)
        except TimeoutError:
            exchange.notes["error"] = "the client did not read its answer"
        finally:
            exchange.end()
            self._note(scope, exchange)

    def _note(self, scope: Scope, exchange: Exchange) -> None:
        seconds = time.perf_counter() - exchange.started
        status = exchange.status or 499
        self.service.metrics.request("http", exchange.route, str(status), seconds)
        if self.service.log.on:
            client = scope.get("client")
            self.service.log.write(
                {
                    "id": exchange.id,
                    "protocol": "http",
                    "client": client[0] if client else "",
                    "method": scope["method"],
                    "path": scope["path"][:256],
                    "status": status,
                    "ms": round(1e3 * seconds, 2),
                    **exchange.notes,
                }
            )
