"""A real server in a thread of the test process, and a device that can be made to wait."""

from __future__ import annotations

import asyncio
import io
import threading
from concurrent.futures import Future
from contextlib import contextmanager

import httpx
import numpy as np
from PIL import Image

from infer.backends.base import Outputs
from infer.serve.options import ServeOptions
from infer.serve.run import Server
from infer.serve.sockets import Address


class Running:
    """A server that answers."""

    def __init__(self, server: Server) -> None:
        self.server, self.service, self.url, self.grpc = server, server.service, server.url, server.grpc_address
        self.port = int(self.url.rpartition(":")[2]) if "://" in self.url else 0

    def client(self, **options) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=20, **options)

    def in_loop(self, call, *arguments):
        """Call a function in the server's event loop."""
        done: Future = Future()

        def run():
            try:
                done.set_result(call(*arguments))
            except BaseException as error:
                done.set_exception(error)

        self.server._loop.call_soon_threadsafe(run)
        return done.result(10)

    def model(self, name=None, version=None):
        return self.in_loop(self.service.models.find, name, version)


@contextmanager
def running(options: ServeOptions, address: Address | None = None, *, ready=True, early=None):
    """A server on free ports; ended as by SIGTERM."""
    server = Server(options, address or Address(port=0, grpc_port=0), drain_timeout=10)
    server.service.early = early
    started = threading.Event()
    begin = server.startup

    async def startup(sockets=None):
        await begin(sockets)
        started.set()
        if ready and server.service._loader is not None:
            await asyncio.wait([server.service._loader])
        loaded.set()

    loaded = threading.Event()
    server.startup = startup
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        assert started.wait(30) and loaded.wait(60)
        yield Running(server)
    finally:
        server.should_exit = True
        thread.join(30)
        assert not thread.is_alive()


class Gate:
    """What a device waits for. Open at first."""

    def __init__(self) -> None:
        self._open = threading.Event()
        self._open.set()
        self.reached = threading.Semaphore(0)
        self.sizes: list[int] = []

    def shut(self):
        self._open.clear()
        while self.reached.acquire(blocking=False):
            pass

    def open(self):
        self._open.set()

    def wait(self, rows):
        self.sizes.append(rows)
        self.reached.release()
        assert self._open.wait(30)

    def wait_until_reached(self):
        assert self.reached.acquire(timeout=10)


class HandBackend:
    """A device whose batches a test finishes by hand. A row's logit is the sum of its pixels."""

    target, device, compiled_batches, notes, flags, on_device, instruction_set = "hand", "hand", (), [], {}, None, ""

    def __init__(self, max_batch=4, in_flight=1, compiled=()):
        self.max_batch, self.in_flight, self.compiled_batches = max_batch, in_flight, compiled
        self.batches: list[tuple[np.ndarray, Future]] = []
        self.came = threading.Semaphore(0)

    def submit(self, batch):
        future: Future = Future()
        self.batches.append((batch.copy(), future))
        self.came.release()
        return future

    def try_acquire(self, rows):
        return None

    def next(self):
        """Rows of the next batch that was sent."""
        assert self.came.acquire(timeout=5)
        return len(self.batches[-1][0])

    def nothing(self, seconds=0.05):
        return not self.came.acquire(timeout=seconds)

    def finish(self, number, error=None):
        batch, future = self.batches[number]
        if error is not None:
            future.set_exception(error)
            return
        sums = batch.reshape(len(batch), -1).astype(np.float32).sum(axis=1, keepdims=True)
        future.set_result(Outputs(sums, sums, sums.astype(np.int32)))


def encoded(seed: int, kind: str = "JPEG", size: tuple[int, int] = (50, 40)) -> bytes:
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (5, 4, 3)).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(small).resize(size, Image.Resampling.BICUBIC).save(file, kind)
    return file.getvalue()
