"""uvicorn's HTTP protocol with bounds on what a client may do before its request reaches the application.

uvicorn bounds neither the length of headers (its fast parser keeps whatever comes) nor the time that they may take, and
closes idle connections at once when it ends, also one whose next request is on its way.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from infer.serve.limits import Limits

_TOO_LARGE = b"headers: longer than this server takes"
_TOO_MANY = b"connections: this server has as many as it takes; try again"
#: Seconds for which an idle connection stays open when the server ends.
LINGER = 1.0


class BoundedProtocol(HttpToolsProtocol):
    """One connection.

    A subclass of it, made by :func:`bounded`, has the limits.
    """

    limits: Limits
    #: Set on the class when the server ends: every answer ends its connection.
    ending = False

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._in_headers, self._headers_came, self._header_bytes = True, False, 0
        self._refused = False
        self._timer: asyncio.TimerHandle | None = None
        self._unread: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client came; refused where there are too many."""
        super().connection_made(transport)
        if len(self.connections) > self.limits.max_connections:
            self._refuse(b"503 Service Unavailable", _TOO_MANY, b"retry-after: 1\r\n")
        else:
            self._start_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        """It left."""
        self._stop_timer()
        self.resume_writing()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Bytes came; those of headers are counted."""
        if self._refused:
            return
        self._headers_came = not self._in_headers
        super().data_received(data)
        if self._in_headers:
            # Of bytes in which headers or a body end, what follows is counted with the next ones.
            self._header_bytes += 0 if self._headers_came else len(data)
            if self._header_bytes > self.limits.max_header:
                self._refuse(b"431 Request Header Fields Too Large", _TOO_LARGE)
            elif self._timer is None and not self._idle:
                self._start_timer()

    @property
    def _idle(self) -> bool:
        """Whether nothing of a next request has come, as far as it was counted."""
        return self._header_bytes == 0 and (self.cycle is None or self.cycle.response_complete)

    def on_message_begin(self) -> None:
        """A request begins."""
        self._in_headers = True
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header is there."""
        self._header_bytes += len(name) + len(value)
        if self._header_bytes > self.limits.max_header:
            self._refuse(b"431 Request Header Fields Too Large", _TOO_LARGE)
        if not self._refused:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """All headers are there."""
        self._in_headers, self._headers_came, self._header_bytes = False, True, 0
        self._stop_timer()
        if not self._refused:
            super().on_headers_complete()
            if self.ending and self.cycle is not None:
                self.cycle.keep_alive = False

    def on_body(self, body: bytes) -> None:
        """A piece of the body."""
        if not self._refused:
            super().on_body(body)

    def on_message_complete(self) -> None:
        """The request is whole."""
        self._in_headers = True
        if not self._refused:
            super().on_message_complete()

    def shutdown(self) -> None:
        """The server ends: an answer that is under way is finished; what is on its way has :data:`LINGER` seconds."""
        if self.cycle is not None and not self.cycle.response_complete:
            super().shutdown()
            for cycle, _ in self.pipeline:
                cycle.keep_alive = False
        else:
            self.loop.call_later(LINGER, self._close_idle)

    def pause_writing(self) -> None:
        """The client does not read; it has the time of a request to begin."""
        super().pause_writing()
        if self._unread is None:
            self._unread = self.loop.call_later(self.limits.timeout, self.transport.abort)

    def resume_writing(self) -> None:
        """It reads."""
        super().resume_writing()
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None

    def on_response_complete(self) -> None:
        """An answer was written, if not read."""
        super().on_response_complete()
        if self.pipeline:
            # uvicorn reads on after every answer, so that requests sent ahead would pile up without a bound.
            self.flow.pause_reading()
        if self.transport.is_closing():
            self._close()

    def timeout_keep_alive_handler(self) -> None:
        """Nothing came for long."""
        self._close()

    def send_400_response(self, msg: str) -> None:
        """What came is no HTTP."""
        self._refuse(b"400 Bad Request", b"request: expected HTTP/1.1")

    def _close(self) -> None:
        """Close; what the client does not read then, within the time of a request, is thrown away."""
        if self.transport.get_write_buffer_size():
            self.loop.call_later(self.limits.timeout, self.transport.abort)
        self.transport.close()

    def _close_idle(self) -> None:
        if self.cycle is None or self.cycle.response_complete:
            self._close()

    def _start_timer(self) -> None:
        self._stop_timer()
        self._timer = self.loop.call_later(self.limits.header_timeout, self._too_slow)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _too_slow(self) -> None:
        self._timer = None
        self._close()

    def _refuse(self, status: bytes, text: bytes, more: bytes = b"") -> None:
        if self._refused:
            return
        self._refused = True
        self._stop_timer()
        body = b'{"error":"' + text + b'"}'
        length = str(len(body)).encode()
        self.transport.write(
            b"HTTP/1.1 " + status + b"\r\ncontent-type: application/json\r\ncontent-length: " + length + b"\r\n" + more
            + b"connection: close\r\n\r\n" + body
        )  # fmt: skip
        self._close()


def bounded(limits: Limits) -> type[BoundedProtocol]:
    """The protocol for a server with these limits."""
    return type("Connection", (BoundedProtocol,), {"limits": limits})
