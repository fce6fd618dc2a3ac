"""One slot: a stream with everything a batch in flight needs."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
from numpy.typing import NDArray

from infer.backends.base import Outputs
from infer.cuda import driver
from infer.cuda.buffers import PinnedBuffer
from infer.cuda.engine import Engine, Execution
from infer.cuda.graphs import BatchGraph
from infer.errors import IResNetError


class Slot:
    """A non-blocking stream, an execution, pinned and device buffers, events, and the graphs captured on it.

    A slot belongs to one thread at a time, which fills :attr:`images`, launches, waits and collects; the ring sees to
    that. Only :meth:`enqueue` may come from any thread at any time: it uses the execution and its scratch memory on a
    stream of the caller, in an order that events keep on the device. The CUDA context must be current in every method.

    Args:
        engine: makes the executions.
        max_batch: rows the buffers hold.
        spin: let waiting threads spin (lowest latency, one busy core) instead of block.

    Attributes:
        images: pinned uint8 ``[max_batch, H, W, 3]``, the input of the next launch.
    """

    def __init__(self, engine: Engine, max_batch: int, *, spin: bool) -> None:
        import pycuda.driver as cuda

        self._cuda, self._engine, self._layout, self._max_batch = cuda, engine, engine.layout, max_batch
        self._lock = threading.Lock()  # the executions' bindings and the order of launches
        self._graphs: dict[int, BatchGraph] = {}
        self._foreign = False
        self._pinned: list[PinnedBuffer] = []
        self._device: list[Any] = []
        try:
            self._stream: Any = cuda.Stream(driver.STREAM_NON_BLOCKING)
            self._handle: int = self._stream.handle
            flags = cuda.event_flags.DISABLE_TIMING
            self._event: Any = cuda.Event(flags if spin else flags | cuda.event_flags.BLOCKING_SYNC)
            self._foreign_event: Any = cuda.Event(flags)
            inputs, outputs = max_batch * self._layout.image_bytes, self._layout.place(max_batch).total
            for size in (inputs, outputs):
                self._device.append(cuda.mem_alloc(size))
            for size in (inputs, outputs):
                self._pinned.append(PinnedBuffer(size))
            self._device_images, self._device_outputs = (int(memory) for memory in self._device)
            self._host_outputs = self._pinned[1].array
            self._flat_images = self._pinned[0].array
            self.images: NDArray[np.uint8] = self._flat_images.reshape(max_batch, *self._layout.image)
            self._execution = engine.make_execution()
            self.scratch_bytes = engine.scratch_bytes(self._execution, max_batch)
        except BaseException:
            self.close()
            raise

    def use_scratch(self, pointer: int) -> None:
        """Give the slot :attr:`scratch_bytes` of device memory, before its first launch."""
        self._scratch = pointer
        if self.scratch_bytes:
            self._execution.use_scratch(pointer, self.scratch_bytes)

    def launch(self, rows: int) -> None:
        """Enqueue the first ``rows`` of :attr:`images`: copy in, network, copy out. Waits for nothing."""
        with self._lock:
            if self._foreign:
                self._stream.wait_for_event(self._foreign_event)
                self._foreign = False
            if (graph := self._graphs.get(rows)) is not None:
                graph.launch()
            else:
                self._enqueue_batch(self._execution, rows)
            self._event.record(self._stream)

    def _enqueue_batch(self, execution: Execution, rows: int, marks: tuple[Any, ...] = ()) -> None:
        at, cuda, stream = self._layout.place(rows), self._cuda, self._stream
        _record(marks, 0, stream)
        cuda.memcpy_htod_async(self._device_images, self._flat_images[: rows * self._layout.image_bytes], stream)
        _record(marks, 1, stream)
        execution.bind_block(rows, self._device_images, self._device_outputs, at)
        execution.enqueue(self._handle)
        _record(marks, 2, stream)
        cuda.memcpy_dtoh_async(self._host_outputs[: at.total], self._device_outputs, stream)
        _record(marks, 3, stream)

    def wait(self) -> None:
        """Wait until the last launch is done; the GIL is free meanwhile."""
        self._event.synchronize()

    def collect(self, rows: int) -> Outputs:
        """Copies of the outputs of the last launch, after :meth:`wait`."""
        return self._layout.outputs(self._host_outputs[: self._layout.place(rows).total].copy(), rows)

    def settle(self) -> None:
        """Wait until the stream is idle, after a launch that failed half-way."""
        self._stream.synchronize()

    def enqueue(self, rows: int, images: int, outputs: tuple[int, int, int], stream: int, event: int) -> None:
        """Run on device memory of the caller, on the caller's stream; nothing is copied and the host never waits.

        Args:
            rows: images, at most ``max_batch``.
            images: address of the input.
            outputs: addresses of logits, scores and classes.
            stream: handle of a stream of the same context.
            event: handle of an event, recorded behind the work.
        """
        with self._lock:
            # The slot's own batch and the last one of a caller use the same execution and scratch memory.
            driver.wait_event(stream, self._event.handle)
            if self._foreign:
                driver.wait_event(stream, self._foreign_event.handle)
            try:
                self._execution.bind(rows, images, *outputs)
                self._execution.enqueue(stream)
            finally:
                # Also after an error, for part of the work may be in the stream.
                self._foreign = True
                driver.record_event(self._foreign_event.handle, stream)
            driver.record_event(event, stream)

    def warm_up(self, rows: int) -> None:
        """Run ``rows`` images once and wait; the first run of a shape is slow and cannot be captured."""
        self.launch(rows)
        self.wait()

    def capture(self, rows: int) -> str | None:
        """Capture a graph for batches of ``rows``; None, or why there is none: such batches then run without."""
        execution = None
        try:
            execution = self._engine.make_execution()
            size = self._engine.scratch_bytes(execution, self._max_batch)
            if size:
                execution.use_scratch(self._scratch, size)
            self._enqueue_batch(execution, rows)
            self.settle()
            bound = execution
            self._graphs[rows] = BatchGraph(execution, self._handle, lambda: self._enqueue_batch(bound, rows))
        except (IResNetError, self._cuda.Error) as error:
            self.settle()
            if execution is not None:
                execution.close()
            return f"no CUDA graph for batches of {rows}: {error}"
        return None

    def profile(self, rows: int) -> tuple[float, float, float]:
        """Run the first ``rows`` of :attr:`images` without a graph; ms of copy in, network and copy out."""
        marks = tuple(self._cuda.Event() for _ in range(4))
        with self._lock:
            if self._foreign:
                self._stream.wait_for_event(self._foreign_event)
                self._foreign = False
            self._enqueue_batch(self._execution, rows, marks)
            self._event.record(self._stream)
        self.wait()
        h2d, compute, d2h = (marks[n + 1].time_since(marks[n]) for n in range(3))
        return h2d, compute, d2h

    def settle_foreign(self) -> None:
        """Wait until the work of :meth:`enqueue` is done."""
        if self._foreign:
            self._foreign_event.synchronize()

    def close(self, *, broken: bool = False) -> bool:
        """Release everything, in any state.

        Args:
            broken: nothing can be freed one by one any more; the memory, events and the stream are kept for
                :meth:`forget`, which must come when the context is released.

        Returns:
            False when the caller still holds a view of the pinned memory, which then stays.
        """
        for graph in self._graphs.values():
            graph.close()
        self._graphs.clear()
        if hasattr(self, "_execution"):
            self._execution.close()
        for name in ("images", "_flat_images", "_host_outputs"):
            self.__dict__.pop(name, None)
        if broken:
            return True
        freed = [buffer.free() for buffer in self._pinned]
        for memory in self._device:
            memory.free()
        self.forget()
        return all(freed)

    def forget(self) -> None:
        """Drop what pycuda owns."""
        self._pinned.clear()
        self._device.clear()
        for name in ("_event", "_foreign_event", "_stream"):
            self.__dict__.pop(name, None)


def _record(marks: tuple[Any, ...], index: int, stream: Any) -> None:
    if marks:
        marks[index].record(stream)
