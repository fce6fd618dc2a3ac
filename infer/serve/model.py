"""One loaded bundle: its runner, its queue, and the way of a request through both."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from infer.errors import DeviceError, ImageError
from infer.images.jpeg import load_input
from infer.serve.batcher import Batcher
from infer.serve.decoders import Decoders
from infer.serve.limits import Budget, Limits
from infer.serve.metrics import ModelMetrics
from infer.serve.refusal import Refusal
from infer.serve.ticket import Piece, Ticket, deliver

if TYPE_CHECKING:
    from infer.runner import Runner

_LOG = logging.getLogger(__name__)
#: Batches that fail one after the other before the model counts as broken. A sticky CUDA error does at once.
MOST_FAILURES = 3


@dataclass(frozen=True)
class Shape:
    """What a request must look like: side of the images, classes, best classes that the graph gives."""

    side: int
    classes: int
    best: int


class Model:
    """A version of a model that is loaded. Made in a thread, used in one event loop.

    Args:
        name: of the model.
        version: a number, as text.
        runner: opened; it is closed with the model.
        limits: of the server.
        decoders: threads that decode.
        metrics: of this model.
        max_delay: seconds; see :class:`infer.serve.batcher.Batcher`.
        on_broken: called once, from any thread, with what broke the model for good.

    Attributes:
        memory: bytes that the loading took.
    """

    def __init__(
        self,
        name: str,
        version: str,
        runner: Runner,
        limits: Limits,
        decoders: Decoders,
        metrics: ModelMetrics,
        max_delay: float,
        on_broken: Callable[[Exception], None],
    ) -> None:
        self.name, self.version, self.runner, self.metrics = name, version, runner, metrics
        self._limits, self._decoders, self._on_broken = limits, decoders, on_broken
        backend = runner.backend
        size = limits.queue or max(256, 4 * backend.max_batch * (backend.in_flight + 1))
        self.queue = Budget(size, "queue (images)")
        manifest = runner.manifest
        self.shape = Shape(runner.preprocessing.crop, manifest.model.num_classes, manifest.outputs[1].shape[1])
        self.memory = 0
        self._idle: asyncio.Event | None = None
        self._failures = 0
        self._rate = 0.0  # images a second that the device computes
        self._batcher = Batcher(backend, max_delay, self, f"{name} {version}")

    @property
    def labels(self) -> list[str]:
        """Class names in the order of the logits."""
        return self.runner.labels

    def pixels(self, images: NDArray[np.uint8]) -> Ticket:
        """Queue ready-made inputs.

        Args:
            images: uint8 ``[n, side, side, 3]``, 1 <= n <= ``max_images``, checked; not to be changed. Split into
                batches where n is larger than one.

        Raises:
            Refusal: 429, the queue is full; 413, it is never so long.
        """
        ticket = self._ticket(len(images))
        self._batcher.put(ticket, 0, images)
        return ticket

    def files(self, files: Sequence[bytes | memoryview], names: Sequence[str]) -> Ticket:
        """Queue encoded images: each is decoded and looked at before it comes near a batch.

        Args:
            files: 1 to ``max_images`` of them.
            names: what errors call them.

        Raises:
            Refusal: 429, the queue is full; 413, it is never so long.
        """
        ticket = self._ticket(len(files))
        for number, (data, name) in enumerate(zip(files, names, strict=True)):
            self._decoders.put(partial(self._decode, ticket, number, data, name))
        return ticket

    def _ticket(self, rows: int) -> Ticket:
        if rows > self.queue.total:
            raise Refusal(413, f"images: {rows} are more than the queue takes, {self.queue.total}; send fewer")
        self.queue.take(rows, self.retry_after)
        self.metrics.queue.set(self.queue.used)
        ticket = Ticket(asyncio.get_running_loop(), rows, self._release)
        return ticket

    def _release(self, rows: int) -> None:
        self.queue.give_back(rows)
        self.metrics.queue.set(self.queue.used)
        if self.queue.used == 0 and self._idle is not None:
            self._idle.set()

    @property
    def retry_after(self) -> int:
        """Seconds after which the queue, at its latest speed, is empty; at least 1, at most 30."""
        return min(30, max(1, math.ceil(self.queue.used / self._rate))) if self._rate else 1

    def _decode(self, ticket: Ticket, number: int, data: bytes | memoryview, name: str) -> None:
        if ticket.abandoned:
            deliver([(ticket, Piece(number, 1, None))])
            return
        started = time.perf_counter()
        side = self.shape.side
        image = np.empty((1, side, side, 3), np.uint8)
        try:
            load_input(data, self.runner.preprocessing, image[0], name, max_pixels=self._limits.max_pixels)
        except ImageError as error:
            self.metrics.bad.inc()
            deliver([(ticket, Piece(number, 1, error.with_traceback(None)))])
            return
        except Exception as error:  # a MemoryError, say: it costs this image
            _LOG.exception("decoding failed")
            deliver([(ticket, Piece(number, 1, error))])
            return
        took = time.perf_counter() - started
        ticket.decode = max(ticket.decode, took)
        self.metrics.decode.observe(took)
        self._batcher.put(ticket, number, image)

    def batch(self, rows: int, waits: Sequence[float], seconds: float) -> None:
        """See :class:`infer.serve.batcher.Watcher`."""
        self._failures = 0
        rate = rows / max(seconds, 1e-6) * self.runner.backend.in_flight
        self._rate = 0.9 * self._rate + 0.1 * rate if self._rate else rate
        self.metrics.batch(rows, waits, seconds)

    def failed(self, error: Exception) -> None:
        """See :class:`infer.serve.batcher.Watcher`."""
        self.metrics.failures.inc()
        # As text: a kept record would keep the error's frames, and with them memory of the device.
        _LOG.error("a batch of %s %s failed: %s", self.name, self.version, f"{type(error).__name__}: {error}")
        self._failures += 1
        if self._failures >= MOST_FAILURES or (isinstance(error, DeviceError) and error.sticky):
            self.broken(error)

    def broken(self, error: Exception) -> None:
        """See :class:`infer.serve.batcher.Watcher`."""
        self._on_broken(error)

    async def idle(self) -> None:
        """Wait until no request is under way."""
        while self.queue.used:
            self._idle = asyncio.Event()
            await self._idle.wait()

    def close(self) -> None:
        """Finish what is queued, then release the device. Waits; not for the event loop's thread."""
        self._batcher.close()
        self.runner.close()


def refusal_of(error: Exception) -> Refusal:
    """What a client is told when its batch failed: nothing of the machine."""
    if isinstance(error, DeviceError) and not error.sticky:
        return Refusal(503, "the device could not take this batch; try again", retry_after=1)
    return Refusal(500, "the model failed; the server's log says more")
