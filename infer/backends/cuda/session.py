"""Everything a runner owns on one device: opened with as many slots as fit, warmed up, and released in any state."""

from __future__ import annotations

import contextlib
import itertools
import logging
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from infer.backends.base import GpuOptions
from infer.backends.cuda import driver
from infer.backends.cuda.arrays import ResultPool
from infer.backends.cuda.context import PrimaryContext
from infer.backends.cuda.engine import Engine
from infer.backends.cuda.events import Event, EventPool
from infer.backends.cuda.ring import Ring
from infer.backends.cuda.slots import Slot
from infer.backends.cuda.staging import Staging
from infer.errors import DeviceMemoryError, InputError

_LOG = logging.getLogger(__name__)


class Session:
    """Context, engine, slots and ring.

    Args:
        plan: the plan.
        target: ``tensorrt`` or ``tensorrt_rtx``.
        options: see :class:`~infer.backends.base.GpuOptions`; slots and batch get smaller when memory is short.
        runtime_cache: see :class:`~infer.backends.cuda.engine.Engine`.

    Raises:
        DeviceMemoryError: not even one slot with a batch of one fits; names the needed and the free bytes.
        TargetUnavailableError, BundleError, InputError: see :class:`~infer.backends.cuda.engine.Engine`.

    Attributes:
        notes: what a user should be told: fewer slots, no graphs.
    """

    def __init__(self, plan: Path, target: str, options: GpuOptions, runtime_cache: Path | None) -> None:
        self._lock, self._closed = threading.Lock(), False
        self._turn = itertools.count()
        self._slots: list[Slot] = []
        self._scratch: Any = None
        self._stream: Any = None
        self._options = options
        graph_batches = options.graph_batches if options.cuda_graphs else ()
        self.notes: list[str] = []
        self.ring: Ring | None = None
        self.engine: Engine | None = None
        self.context = PrimaryContext(options.device)
        self._events = EventPool(self.context)
        self.results = ResultPool(self.context)
        try:
            with self.context:
                try:
                    graphs = graph_batches is None or len(graph_batches) > 0
                    self.engine = Engine(
                        plan,
                        target,
                        cuda_graphs=graphs,
                        runtime_cache=runtime_cache,
                        specialization=options.specialization,
                        host_code=options.host_code_allowed,
                    )
                except DeviceMemoryError as error:
                    raise self._does_not_fit(plan, "the weights", plan.stat().st_size, error) from error
                try:
                    self._open(plan, self._batch(plan, self.engine, options.max_batch), graph_batches)
                except Exception as error:
                    raise self.context.explain(error, f"opening {plan}") from error
                self.engine.save_runtime_cache()
            # All slots once, then all again: neighbours in the ring are on different streams.
            self.ring = Ring(self.context, [one for turn in zip(*self._staging(), strict=True) for one in turn])
        except BaseException:
            self.close()
            raise

    @staticmethod
    def _batch(plan: Path, engine: Engine, max_batch: int | None) -> int:
        if max_batch is not None and not 1 <= max_batch <= engine.largest_batch:
            raise InputError(f"{plan}: expected a batch from 1 to {engine.largest_batch}, found {max_batch}")
        return max_batch or engine.largest_batch

    def _open(self, plan: Path, batch: int, graph_batches: tuple[int, ...] | None) -> None:
        import pycuda.driver as cuda

        slots = self._options.slots
        for count, rows in _ladder(slots, batch):
            try:
                self._allocate(count, rows)
                break
            except (cuda.MemoryError, DeviceMemoryError) as error:
                needed = self._needed
                self._free_slots(broken=False)
                last = error
                _LOG.info("%d slots of %d images need %d bytes: %s", count, rows, needed, error)
        else:
            raise self._does_not_fit(plan, "one slot with a batch of 1", needed, last) from last
        self.max_batch = rows
        if (count, rows) != (slots, batch):
            self.notes.append(
                f"device memory is short: {count} slots of {rows} images instead of {slots} slots of {batch}"
            )
        self._capture(rows, graph_batches)
        for note in self.notes:
            _LOG.warning("%s: %s", plan, note)

    def _allocate(self, count: int, rows: int) -> None:
        import pycuda.driver as cuda

        assert self.engine is not None
        layout = self.engine.layout
        self._needed = count * (rows * layout.image_bytes + layout.place(rows).total)
        for _ in range(count):
            self._slots.append(Slot(self.engine, rows, spin=self._options.spin))
        size = max(slot.scratch_bytes for slot in self._slots)
        self._needed += count * size
        if size:
            self._scratch = cuda.mem_alloc(count * size)
        for number, slot in enumerate(self._slots):
            slot.use_scratch(int(self._scratch) + number * size if size else 0)
        for slot in self._slots:
            slot.staging[0].images[:] = 0
            for warm in sorted({1, rows}, reverse=True):
                slot.warm_up(warm)

    def _capture(self, rows: int, graph_batches: tuple[int, ...] | None) -> None:
        assert self.engine is not None
        if self.engine.graphs_inside:
            return
        sizes = {1, rows} if graph_batches is None else {size for size in graph_batches if 1 <= size <= rows}
        for size in sorted(sizes):
            for slot in self._slots:
                if (problem := slot.capture(size)) is not None:
                    self.notes.append(problem)
                    for other in self._slots:  # so that batches of one size all run the same way
                        other.drop_graph(size)
                    break

    def _does_not_fit(self, plan: Path, what: str, needed: int, error: Exception) -> DeviceMemoryError:
        free, total = self.context.free_memory()
        return DeviceMemoryError(
            f"{plan}: {what} need about {needed:,} bytes of memory on {self.context.name}, and {free:,} of {total:,} "
            f"bytes are free ({error}). Close other programs on the GPU, or build the plan with a smaller batch"
        )

    def _free_slots(self, *, broken: bool) -> bool:
        freed = [slot.close(broken=broken) for slot in self._slots]
        if not broken:
            self._slots.clear()
            if self._scratch is not None:
                self._scratch.free()
            self._scratch = None
        return all(freed)

    def _staging(self) -> list[list[Staging]]:
        return [slot.staging for slot in self._slots]

    @property
    def flags(self) -> dict[str, str]:
        """What decides how fast it is, name to value, for benchmarks."""
        assert self.engine is not None
        captured = sorted({size for slot in self._slots for size in slot.graph_sizes})
        graphs = f"batches of {', '.join(map(str, captured))}" if captured else "off"
        found = {
            "CUDA graphs": "TensorRT's own" if self.engine.graphs_inside else graphs,
            "waiting": "spinning" if self._options.spin else "blocking",
            "streams": f"{self.streams}, {self.in_flight} batches in flight",
        }
        if self.engine.specialized:
            found["kernels of each batch size"] = self._options.specialization
        return found

    @property
    def streams(self) -> int:
        """Slots in use."""
        return len(self._slots)

    @property
    def in_flight(self) -> int:
        """Batches that can be under way."""
        return sum(len(staging) for staging in self._staging())

    def own_stream(self) -> int:
        """Handle of a non-blocking stream for batches in device memory; lives until the close. The context is current.

        Unlike the default stream, it does not make a copy of one result wait for the batches behind it.
        """
        import pycuda.driver as cuda

        with self._lock:
            if self._closed:
                raise InputError("this runner is closed; open the bundle again")
            if self._stream is None:
                self._stream = cuda.Stream(driver.STREAM_NON_BLOCKING)
            return int(self._stream.handle)

    def enqueue(self, rows: int, images: int, outputs: tuple[int, int, int], stream: int) -> Event:
        """See :meth:`~infer.backends.cuda.slots.Slot.enqueue`; the slots take turns. The context must be current.

        Raises:
            DeviceError: CUDA or TensorRT refused, or an earlier batch broke the context.
        """
        slot = self._slots[next(self._turn) % len(self._slots)]
        event = self._events.take()
        try:
            slot.enqueue(rows, images, outputs, stream, event.handle)
        except Exception as error:
            raise self.context.explain(error, f"enqueueing a batch of {rows}") from error
        return event

    def order(self, first: int, second: int) -> None:
        """Let what comes into stream ``second`` wait for what is in stream ``first`` now."""
        event = self._events.take()
        try:
            driver.record_event(event.handle, first)
            driver.wait_event(second, event.handle)
        except Exception as error:
            raise self.context.explain(error, "ordering two streams") from error

    def close(self) -> None:
        """Finish what is under way and release everything; harmless when called twice, from several threads too."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        if self.ring is not None:
            self.ring.close()
        whole = True
        with _reported(), self.context:
            if self.context.failure is None:
                with _reported():
                    for slot in self._slots:
                        slot.settle_foreign()
            if self.engine is not None and self.context.failure is None:
                with _reported():
                    self.engine.save_runtime_cache()
            broken = self.context.failure is not None
            self.results.close(broken=broken)
            self._events.close()
            if not broken:
                self._stream = None
            whole = self._free_slots(broken=broken)
            if self.engine is not None:
                self.engine.close()
        if not whole:
            _LOG.warning("an array still shows pinned memory of the closed runner; that memory and the context stay")
            return
        with _reported():
            self.context.release()
        # Of a broken context only now: pycuda then knows that there is nothing left to free.
        for slot in self._slots:
            slot.forget()
        self._slots.clear()
        self._scratch = self._stream = None
        self.results.forget()


def _ladder(slots: int, batch: int) -> Iterator[tuple[int, int]]:
    """What to try when memory is short: two slots keep copies and network overlapped, so the batch shrinks before the
    last but one slot goes."""
    for count in range(slots, 2, -1):
        yield count, batch
    count = min(slots, 2)
    while batch > 1:
        yield count, batch
        batch //= 2
    for last in range(count, 0, -1):
        yield last, 1


@contextlib.contextmanager
def _reported() -> Iterator[None]:
    """Go on with the release when a step of it fails."""
    try:
        yield
    except Exception as error:
        _LOG.debug("while closing: %s", error)
