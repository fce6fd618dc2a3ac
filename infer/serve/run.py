"""A server on one machine: uvicorn and gRPC in one event loop, and their end by a signal or by a failure."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

import uvicorn
from prometheus_client import disable_created_metrics

from infer.errors import IResNetError
from infer.names import printable
from infer.serve.app import application
from infer.serve.connections import LINGER, bounded
from infer.serve.opening import EarlyOpening
from infer.serve.options import ServeOptions
from infer.serve.service import Service
from infer.serve.sockets import Address, check_tls, listen_grpc, listen_http, url

#: Seconds for answers that are under way when a model is broken.
_AFTER_FAILURE = 1.0
_STEP = 0.02


def serve(
    options: ServeOptions, address: Address, drain_timeout: float = 30.0, early: EarlyOpening | None = None
) -> None:
    """Serve until a signal comes; ``early`` has begun to open what is served.

    SIGTERM: not ready at once, accepted work is finished for up to ``drain_timeout`` seconds, then this returns.
    Ctrl-C: the same, then KeyboardInterrupt; a second one does not wait. A model that is broken for good ends the
    process: the threads of its engine may never return.

    Raises:
        InputError: an option, an address or a certificate cannot be used.
        IResNetError: a bundle cannot be served, or work was left when the time was over.
    """
    disable_created_metrics()  # type: ignore[no-untyped-call]  # a time of creation beside each counter
    server = Server(options, address, drain_timeout)
    server.service.early = early
    server.run()
    if server.error is not None:
        raise server.error
    if server.signals[:1] == [signal.SIGINT]:
        raise KeyboardInterrupt


class Server(uvicorn.Server):
    """uvicorn's server, with gRPC beside it. It listens from the beginning; :meth:`run` answers.

    Args:
        options: what is served.
        address: where.
        drain_timeout: seconds to finish accepted work.

    Attributes:
        service: what is behind the application.
        url: of HTTP.
        grpc_address: of gRPC, from the start-up on; empty without.
        signals: that came, in order.
        error: why it ended, where it did not end by a signal.

    Raises:
        InputError: an option, an address or a certificate cannot be used.
    """

    def __init__(self, options: ServeOptions, address: Address, drain_timeout: float = 30.0) -> None:
        check_tls(address)
        app = application(options)
        self.service: Service = app.state.service
        self._protocol = bounded(options.limits)
        backlog = min(options.limits.max_connections, 2048)
        self._listener = listen_http(address, backlog)
        config = uvicorn.Config(
            app,
            http=self._protocol,
            ws="none",
            lifespan="on",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=options.limits.keep_alive,
            timeout_graceful_shutdown=1,  # for what is left when the time of our own is over
            backlog=backlog,
            ssl_certfile=address.certificate,
            ssl_keyfile=address.key,
        )
        # What it would say is in the access log, or is an answer.
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
        super().__init__(config)
        self.url, self.grpc_address = url(address, self._listener), ""
        self.signals: list[int] = []
        self.error: Exception | None = None
        self._address, self._drain_timeout = address, drain_timeout
        self._grpc: Any = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def run(self, sockets: list[socket.socket] | None = None) -> None:
        """Answer until the end; see :func:`serve`."""
        try:
            super().run(sockets or [self._listener])
        finally:
            self._listener.close()
            for path in (self._address.uds, self._address.grpc_uds):
                if path is not None:
                    path.unlink(missing_ok=True)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and say where."""
        self._loop = asyncio.get_running_loop()
        self.service.on_failure = self._end
        self.service.on_ready = self._say_ready
        await super().startup(sockets)
        address = self._address
        try:
            if address.grpc_port is not None or address.grpc_uds is not None:
                self._grpc, self.grpc_address = await listen_grpc(self.service, address)
        except IResNetError as error:
            self._end(error)
            return
        _say(f"HTTP on {self.url}" + (f", gRPC on {self.grpc_address}" if self._grpc is not None else ""))

    def _say_ready(self) -> None:
        names = ", ".join(
            f"{model.name} {model.version} ({model.runner.target})" for model in self.service.models.loaded()
        )
        _say(f"ready: {names or 'no model yet'}")

    def _end(self, error: Exception) -> None:
        self.error = self.error or error
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Not ready; what was accepted, and what comes while connections end, is done; then the models are closed."""
        service, loop = self.service, asyncio.get_running_loop()
        service.drain()
        if self.signals:
            _say("ending: finishing what was accepted")
        deadline = loop.time() + (self._drain_timeout if service.failure is None else _AFTER_FAILURE)
        self._protocol.ending = True  # every answer ends its connection
        for connection in list(self.server_state.connections):
            connection.shutdown()
        await self._wait(min(deadline, loop.time() + LINGER))  # those who connect just now are served as well
        await self._stop_listening()
        stopping = loop.create_task(self._stop_grpc(deadline - loop.time()))
        await self._wait(deadline)
        await stopping
        if any(not task.done() for task in self.server_state.tasks) and self.error is None:
            self.error = IResNetError(
                f"work was left after {self._drain_timeout:g} seconds; raise --drain-timeout, or lower --timeout"
            )
        if service.broken:
            _end_process(service.failure)
        await super().shutdown(sockets)

    async def _stop_listening(self) -> None:
        """Close the listening socket; who is connected to it but was not accepted yet would be reset by that."""
        waiting: list[socket.socket] = []
        with suppress(OSError):  # nobody is left
            while True:
                waiting.append(self._listener.accept()[0])
        for server in self.servers:
            server.close()
        self._listener.close()
        loop, config = asyncio.get_running_loop(), self.config
        for connection in waiting:
            with suppress(OSError):
                await loop.connect_accepted_socket(self._protocol_of_one, connection, ssl=config.ssl)

    def _protocol_of_one(self) -> asyncio.Protocol:
        return self._protocol(config=self.config, server_state=self.server_state, app_state=self.lifespan.state)

    async def _wait(self, deadline: float) -> None:
        loop, state = asyncio.get_running_loop(), self.server_state
        while (state.connections or state.tasks) and loop.time() < deadline and not self.force_exit:
            await asyncio.sleep(_STEP)

    async def _stop_grpc(self, grace: float) -> None:
        if self._grpc is not None:
            await self._grpc.stop(None if self.force_exit else max(0.0, grace))

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Take SIGTERM and Ctrl-C in the main thread; unlike uvicorn's own, this does not raise them again."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Note a signal: not ready from now on. A second Ctrl-C does not wait."""
        self.signals.append(sig)
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self.service.drain)
        super().handle_exit(sig, frame)


def _end_process(failure: Exception | None) -> None:
    """End at once: nothing of a broken engine can be waited for, not even its threads."""
    code = failure.exit_code if isinstance(failure, IResNetError) else 1
    _error(f"a model failed for good ({type(failure).__name__}: {failure}); start the server again")
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _error(text: str) -> None:
    print(f"error: {printable(' '.join(text.split()))}", file=sys.stderr, flush=True)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
