"""One slot: a stream with everything that batches need on the device."""

from __future__ import annotations

import contextlib
import threading
import time
from typing import Any

from infer.backends.cuda import driver
from infer.backends.cuda.buffers import PinnedBuffer
from infer.backends.cuda.engine import Engine, Execution
from infer.backends.cuda.graphs import NetworkGraph
from infer.backends.cuda.staging import Staging
from infer.errors import DeviceError, IResNetError

_QUEUED = 2  # batches in a slot's stream at a time


class Slot:
    """A non-blocking stream, an execution, device buffers, two staging buffers, and the graphs captured on it.

    Thread-safe: launches and :meth:`enqueue` may come from any thread; work on the same device buffers is kept in
    order on the device, by the stream and by events. The CUDA context must be current in every method.

    Args:
        engine: makes the executions.
        max_batch: rows the buffers hold.
        spin: see :class:`~infer.backends.cuda.staging.Staging`.

    Attributes:
        staging: two buffers for batches in host memory.
        scratch_bytes: scratch memory to be given with :meth:`use_scratch`.
    """

    def __init__(self, engine: Engine, max_batch: int, *, spin: bool) -> None:
        import pycuda.driver as cuda

        self._cuda, self._engine, self._layout, self._max_batch = cuda, engine, engine.layout, max_batch
        self._lock = threading.Lock()  # the executions' bindings and the order of launches
        self._graphs: dict[int, NetworkGraph] = {}
        self._device: list[int] = []
        self._last = 0  # event behind the last launch
        self._foreign = False  # work of a caller's stream may use the execution
        self._foreign_event = 0  # behind that work
        self.staging: list[Staging] = []
        try:
            self._stream: Any = cuda.Stream(driver.STREAM_NON_BLOCKING)
            self._handle: int = self._stream.handle
            self._foreign_event = driver.create_event()
            for size in (max_batch * self._layout.image_bytes, self._layout.place(max_batch).total):
                self._device.append(driver.allocate(size))
            self._images, self._outputs = self._device
            for _ in range(_QUEUED):
                self.staging.append(Staging(self, self._layout, max_batch, spin=spin))
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

    def launch(self, staging: Staging, rows: int, marks: tuple[Any, ...] = ()) -> None:
        """Enqueue the first ``rows`` images of a staging buffer: copy in, network, copy out. Waits for nothing.

        After an error the stream is idle: whatever part of the batch was enqueued has ended.

        Args:
            staging: one of :attr:`staging`.
            rows: images.
            marks: four pycuda events to record around the stages; no graph is used then.
        """
        at, cuda = self._layout.place(rows), self._cuda
        # No local name for the stream: the traceback of an error would keep it beyond its context.
        with self._lock:
            try:
                if self._foreign:
                    driver.wait_event(self._handle, self._foreign_event)
                    self._foreign = False
                self._record(marks, 0)
                cuda.memcpy_htod_async(self._images, staging.flat[: rows * self._layout.image_bytes], self._stream)
                self._record(marks, 1)
                graph = None if marks else self._graphs.get(rows)
                if graph is not None:
                    graph.launch(self._handle)
                else:
                    self._execution.bind_block(rows, self._images, self._outputs, at)
                    self._execution.enqueue(self._handle)
                self._record(marks, 2)
                cuda.memcpy_dtoh_async(staging.outputs[: at.total], self._outputs, self._stream)
                self._record(marks, 3)
                driver.record_event(staging.done, self._handle)
                self._last = staging.done
            except BaseException:
                self.settle()
                raise

    def _record(self, marks: tuple[Any, ...], index: int) -> None:
        if marks:
            marks[index].record(self._stream)

    def settle(self) -> None:
        """Wait until the stream is idle; the stream of a broken context is."""
        with contextlib.suppress(self._cuda.Error):
            self._stream.synchronize()

    def enqueue(
        self, rows: int, images: int, outputs: tuple[int, int, int], stream: int, event: int, *, block: bool = False
    ) -> None:
        """Run on device memory of the caller, on the caller's stream; the host never waits.

        TensorRT synchronises the device when it is given a default stream. In place of such a one, the slot's own
        stream is used, and events keep the two in order.

        Args:
            rows: images, at most ``max_batch``.
            images: address of the input.
            outputs: addresses of logits, scores and classes.
            stream: handle of a stream of the same context.
            event: handle of an event, recorded behind the work.
            block: ``outputs`` are those of :meth:`Layout.place` in one block. A captured graph, which knows only the
                slot's own memory, may then be used: two copies within the device cost less than hundreds of launches.
        """
        default = stream <= driver.PER_THREAD_STREAM
        target = self._handle if default else stream
        graph = self._graphs.get(rows) if block else None
        with self._lock:
            if default:
                driver.record_event(event, stream)
                driver.wait_event(target, event)
            # The slot's own batches and the last one of a caller use the same memory.
            if self._last:
                driver.wait_event(target, self._last)
            if self._foreign:
                driver.wait_event(target, self._foreign_event)
            self._foreign = True
            try:
                if graph is not None:
                    self._launch_between_copies(graph, rows, images, outputs, target)
                else:
                    self._execution.bind(rows, images, *outputs)
                    self._execution.enqueue(target)
                driver.record_event(self._foreign_event, target)
            except BaseException:
                self._settle_caller(target)
                raise
            driver.record_event(event, target)
            if default:
                driver.wait_event(stream, event)

    def _launch_between_copies(
        self, graph: NetworkGraph, rows: int, images: int, outputs: tuple[int, int, int], target: int
    ) -> None:
        at = self._layout.place(rows)
        driver.copy(self._images, images, rows * self._layout.image_bytes, target)
        graph.launch(target)
        driver.copy(outputs[2] - at.classes, self._outputs, at.total, target)

    def _settle_caller(self, target: int) -> None:
        """Part of a batch that failed may be in the caller's stream: behind this it reads and writes nothing."""
        with contextlib.suppress(DeviceError):
            driver.record_event(self._foreign_event, target)
            driver.synchronize_event(self._foreign_event)

    def warm_up(self, rows: int) -> None:
        """Run ``rows`` images once and wait; the first run of a shape is slow and cannot be captured."""
        staging = self.staging[0]
        self.launch(staging, rows)
        staging.wait()

    def capture(self, rows: int) -> str | None:
        """Capture a graph for batches of ``rows``; None, or why there is none: such batches then run without."""
        execution: Execution | None = None
        try:
            execution = self._engine.make_execution()
            if size := self._engine.scratch_bytes(execution, self._max_batch):
                execution.use_scratch(self._scratch, size)
            execution.bind_block(rows, self._images, self._outputs, self._layout.place(rows))
            self._graphs[rows] = NetworkGraph(execution, self._handle, self.settle)
        except (IResNetError, self._cuda.Error) as error:
            self.settle()
            if execution is not None:
                execution.close()
            return f"no CUDA graph for batches of {rows}: {error}"
        return None

    @property
    def graph_sizes(self) -> tuple[int, ...]:
        """Batch sizes that are launched as a graph."""
        return tuple(self._graphs)

    def drop_graph(self, rows: int) -> None:
        """Launch batches of ``rows`` without a graph from now on. The stream must be idle."""
        if (graph := self._graphs.pop(rows, None)) is not None:
            graph.close()

    def profile(self, staging: Staging, rows: int) -> tuple[float, float, float, float]:
        """Run one batch without a graph and wait; ms of copy in, network, copy out, and of the host to enqueue it."""
        marks = tuple(self._cuda.Event() for _ in range(4))
        start = time.perf_counter()
        self.launch(staging, rows, marks)
        enqueue = 1e3 * (time.perf_counter() - start)
        staging.wait()
        h2d, compute, d2h = (float(marks[n + 1].time_since(marks[n])) for n in range(3))
        return h2d, compute, d2h, enqueue

    def settle_foreign(self) -> None:
        """Wait until the work of :meth:`enqueue` is done."""
        if self._foreign:
            driver.synchronize_event(self._foreign_event)

    def close(self, *, broken: bool = False) -> list[PinnedBuffer]:
        """Release everything, in any state.

        Args:
            broken: nothing can be freed one by one any more; the memory and the stream are kept for :meth:`forget`,
                which must come when the context is released, and the events go with it.

        Returns:
            Pinned memory that arrays of the caller still show, which stays.
        """
        if hasattr(self, "_stream"):
            self.settle()  # after an error, part of a batch may still be under way
        for graph in self._graphs.values():
            graph.close()
        self._graphs.clear()
        if hasattr(self, "_execution"):
            self._execution.close()
        shown = [buffer for staging in self.staging for buffer in staging.close(broken=broken)]
        if not broken:
            for memory in self._device:
                driver.free(memory)
            if self._foreign_event:
                driver.destroy_event(self._foreign_event)
            self.forget()
        return shown

    def forget(self) -> None:
        """Drop what pycuda owns."""
        for staging in self.staging:
            staging.forget()
        self.staging.clear()
        self._device.clear()
        self.__dict__.pop("_stream", None)
