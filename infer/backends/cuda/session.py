"""Everything a runner owns on one device: opened with as many slots as fit, warmed up, and released in any state."""

from __future__ import annotations

import contextlib
import itertools
import logging
import threading
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from infer.backends.base import GpuOptions
from infer.backends.cuda import driver
from infer.backends.cuda.buffers import PinnedBuffer
from infer.backends.cuda.context import PrimaryContext
from infer.backends.cuda.engine import Engine
from infer.backends.cuda.events import Event, EventPool
from infer.backends.cuda.results import ResultPool
from infer.backends.cuda.ring import Ring
from infer.backends.cuda.slots import Slot
from infer.backends.cuda.staging import Staging
from infer.backends.cuda.usage import Usage
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
        usage: the calls under way that do not go through the ring.
    """

    def __init__(self, plan: Path, target: str, options: GpuOptions, runtime_cache: Path | None) -> None:
        self._lock = threading.Lock()
        self.usage = Usage(self._release)
        self._turn = itertools.count()
        self._slots: list[Slot] = []
        self._scratch = self._stream = 0
        self._kept: deque[tuple[Event, Any]] = deque()
        self._options = options
        graph_batches = options.graph_batches if options.cuda_graphs else ()
        self.notes: list[str] = []
        self.ring: Ring | None = None
        self.engine: Engine | None = None
        self.context = PrimaryContext(options.device)
        self._events = EventPool(self.context, self.usage)
        self.results = ResultPool(self.context, self._events)
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
        slots = self._options.slots
        for count, rows in _ladder(slots, batch):
            try:
                self._allocate(count, rows)
                break
            except Exception as failed:
                error = self.context.explain(failed, f"opening {plan}")
                if not isinstance(error, DeviceMemoryError):
                    raise
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
        assert self.engine is not None
        layout = self.engine.layout
        self._needed = count * (rows * layout.image_bytes + layout.place(rows).total)
        for _ in range(count):
            self._slots.append(Slot(self.engine, rows, spin=self._options.spin))
        size = max(slot.scratch_bytes for slot in self._slots)
        self._needed += count * size
        if size:
            self._scratch = driver.allocate(count * size)
        for number, slot in enumerate(self._slots):
            slot.use_scratch(self._scratch + number * size if size else 0)
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

    def _free_slots(self, *, broken: bool) -> list[PinnedBuffer]:
        shown = [buffer for slot in self._slots for buffer in slot.close(broken=broken)]
        if not broken:
            self._slots.clear()
            if self._scratch:
                driver.free(self._scratch)
            self._scratch = 0
        return shown

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

    @contextlib.contextmanager
    def working(self, doing: str) -> Iterator[None]:
        """A call on device memory: the runner stays open and its context is current.

        Raises:
            DeviceError: what the block met, explained; or an earlier batch broke the context.
            InputError: the runner is closed.
        """
        with self.usage:
            if self.context.failure is not None:
                raise self.context.again()
            with self.context.explaining(doing):
                yield

    def own_stream(self) -> int:
        """Handle of a non-blocking stream for batches in device memory; lives until the close.

        Unlike the default stream, it does not make a copy of one result wait for the batches behind it.
        """
        with self.working("making a stream"), self._lock:
            if not self._stream:
                self._stream = driver.create_stream()
            return self._stream

    def enqueue(
        self, rows: int, images: int, outputs: tuple[int, int, int], stream: int, *, block: bool = False
    ) -> Event:
        """See :meth:`~infer.backends.cuda.slots.Slot.enqueue`; the slots take turns. To be called while working.

        Raises:
            DeviceError: CUDA or TensorRT refused.
        """
        slot = self._slots[next(self._turn) % len(self._slots)]
        event = self._events.take()
        slot.enqueue(rows, images, outputs, stream, event.handle, block=block)
        return event

    def order(self, first: int, second: int) -> None:
        """Let what comes into stream ``second`` wait for what is in ``first`` now. To be called while working."""
        event = self._events.take()
        driver.record_event(event.handle, first)
        driver.wait_event(second, event.handle)

    def keep(self, owner: Any, event: Event) -> None:
        """Keep ``owner`` until ``event`` has happened, and drop what was kept for those that have."""
        self._kept.append((event, owner))
        self.drop_kept()

    def drop_kept(self) -> None:
        """Drop what was kept for events that have happened. To be called while working."""
        with driver.unaffected_by_captures():
            for _ in range(len(self._kept)):
                try:
                    event, owner = self._kept.popleft()
                except IndexError:  # another thread looks at the rest
                    return
                if not driver.query_event(event.handle):
                    self._kept.append((event, owner))

    def close(self) -> None:
        """Finish what is under way and release everything; harmless when called twice, from several threads too."""
        self.usage.close()

    def _release(self) -> None:
        if self.ring is not None:
            self.ring.close()
        whole = True
        with _reported(), self.context, driver.unaffected_by_captures():
            if self.context.failure is None:
                with _reported(), self.context.explaining("waiting for what is under way"):
                    for slot in self._slots:
                        slot.settle_foreign()
            self._kept.clear()
            if self.engine is not None and self.context.failure is None:
                with _reported():
                    self.engine.save_runtime_cache()
            broken = self.context.failure is not None
            remains = None
            with _reported():
                remains = self.results.close()
            self._events.close()
            if not broken and self._stream:
                driver.destroy_stream(self._stream)
            shown = self._free_slots(broken=broken)
            if self.engine is not None:
                self.engine.close()
            if remains is not None:
                remains.add(shown)
                whole = remains.settle()
        if whole:  # else it goes with what is still held
            with _reported():
                self.context.release()
        # Of a broken context only now: pycuda then knows that there is nothing left to free.
        for slot in self._slots:
            slot.forget()
        self._slots.clear()


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
