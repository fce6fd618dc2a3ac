"""Records to batches in the memory of an NVIDIA GPU: read on the host, decoded there by DALI.

As :func:`infer.pipeline.host.load_batches`: in order, ahead of the consumer, with bounded memory, and a bad image costs
one image. What DALI does not take is decoded on the host (:func:`infer.images.jpeg.load_input`), beside the others.
"""

from __future__ import annotations

import contextlib
import weakref
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from infer.backends.base import Backend, Outputs
from infer.bundle.preprocessing import Preprocessing
from infer.errors import ImageError, InputError, IResNetError, TargetUnavailableError
from infer.images.jpeg import load_input
from infer.pipeline.dali import Decoder, PlannedFile, plan_file, require_dali
from infer.pipeline.host import Failure, read_ahead, submit, usable_cpus, without_frames
from infer.sources import Record

if TYPE_CHECKING:
    from infer.backends.cuda.arrays import DeviceOutputs

#: Batches in DALI at once: while one is on the GPU, the CPU prepares the next.
_IN_DALI = 2

#: A file for DALI, pixels from the host (uint8 ``[crop, crop, 3]``), or why there are none.
_Item: TypeAlias = "PlannedFile | NDArray[np.uint8] | ImageError"


class DeviceAnswer:
    """Results of a batch that are still on their way.

    Args:
        device: what runs on pixels in device memory, and its places in the batch.
        host: what runs on pixels that the host decoded, likewise.
    """

    def __init__(
        self, device: tuple[list[int], DeviceOutputs] | None, host: tuple[list[int], Future[Outputs]] | None
    ) -> None:
        self._device, self._host = device, host

    def result(self) -> Outputs:
        """Wait for the rows of both parts and put them in order. Call it once: the memory of the batch goes with it.

        Raises:
            DeviceError: the network failed.
        """
        parts: list[tuple[list[int], Any]] = []
        if self._device is not None:
            rows, found = self._device
            parts.append((rows, Outputs(found.logits.get(), found.scores.get(), found.classes.get())))
            self._device = None
        if self._host is not None:
            parts.append((self._host[0], self._host[1].result()))
        if len(parts) == 1:
            return parts[0][1]
        count = sum(len(rows) for rows, _ in parts)
        merged = Outputs(*(np.empty((count, array.shape[1]), array.dtype) for array in parts[0][1]))
        for rows, outputs in parts:
            for to, array in zip(merged, outputs, strict=True):
                to[rows] = array
        return merged

    def settle(self) -> None:
        """Wait until nothing reads the batch any more."""
        if self._device is not None:
            self._device[1].ready.synchronize()


class DeviceBatch(NamedTuple):
    """Consecutive records, as :class:`infer.pipeline.host.Batch`: n that were decoded, and those that could not be.

    Attributes:
        records: the n decoded ones, in order.
        indices: int64 ``[n]``, their places among all records, from 0.
        failures: the others, in order.
        decoded: uint8 ``[m, crop, crop, 3]`` in device memory, row i of ``records[rows[i]]``; None when m is 0.
        rows: see ``decoded``.
        pixels: those that the host decoded, uint8 ``[crop, crop, 3]`` each, by place in ``records``.
        under_way: remembers answers for who frees the memory.
    """

    records: list[Record]
    indices: NDArray[np.int64]
    failures: list[Failure]
    decoded: Any
    rows: list[int]
    pixels: dict[int, NDArray[np.uint8]]
    under_way: weakref.WeakSet[DeviceAnswer]

    def submit(self, backend: Backend) -> DeviceAnswer | None:
        """Start the n images on a TensorRT backend; None when there are none."""
        if not self.records:
            return None
        device_backend = backend.on_device
        assert device_backend is not None
        host = None
        if self.pixels:  # first: this may wait, or fail, before anything reads device memory
            host = list(self.pixels), backend.submit(np.stack(list(self.pixels.values())))
        device = None
        if self.rows:
            device = self.rows, device_backend.infer_device(self.decoded, stream=device_backend.own_stream())
        answer = DeviceAnswer(device, host)
        self.under_way.add(answer)
        return answer


def require_device(backend: Backend, spec: Preprocessing, *, fast: bool = False) -> str:
    """Refuse what DALI's decoder cannot serve; the version of DALI where it can.

    Raises:
        TargetUnavailableError: not a TensorRT target, or no DALI.
        InputError: ``fast``, or see :func:`infer.pipeline.dali.require_dali`.
    """
    if backend.on_device is None:
        raise TargetUnavailableError(
            f"decoding on the GPU needs a TensorRT target, this bundle runs on {backend.target}; decode on the host"
        )
    if fast:
        raise InputError("decoding on the GPU is always at full size; leave fast decoding out, or decode on the host")
    return require_dali(spec)


def load_device_batches(
    records: Iterable[Record],
    spec: Preprocessing,
    backend: Backend,
    *,
    workers: int | None = None,
    strict: bool = False,
) -> Generator[DeviceBatch, None, None]:
    """Read and decode ``records`` into batches on the GPU of ``backend``, ahead of the consumer.

    ``records`` is advanced in the calling thread. Leaving the loop early, by an exception too, ends the threads and
    waits for what still reads the batches.

    Args:
        records: what to load; may be endless.
        spec: the model's pre-processing, bilinear.
        backend: a TensorRT backend.
        workers: threads on the host, and as many of DALI's own; None takes one for each usable CPU.
        strict: raise on the first record, in order, that cannot be decoded, instead of reporting it.

    Yields:
        One :class:`DeviceBatch` for every ``backend.max_batch`` records, in order; none for no records.

    Raises:
        TargetUnavailableError, InputError: see :func:`require_device`; ``workers`` is below 1.
        ImageError: under ``strict``.
    """
    require_device(backend, spec)
    assert backend.on_device is not None
    workers = usable_cpus() if workers is None else workers
    if workers < 1:
        raise InputError(f"workers: expected at least 1, found {workers}")
    decoder = Decoder(spec, backend.max_batch, device=backend.on_device.ordinal, threads=workers)
    return _load(enumerate(records), spec, backend.max_batch, workers, strict, decoder)


class _Chunk(NamedTuple):
    """Records that become a batch, and what is read of them."""

    records: list[tuple[int, Record]]
    jobs: list[Future[_Item]]

    def files(self) -> dict[int, PlannedFile]:
        """Those that DALI gets, by place; waits for all to be read."""
        items = ((place, job.result()) for place, job in enumerate(self.jobs))
        return {place: item for place, item in items if isinstance(item, PlannedFile)}


def _load(
    numbered: Iterator[tuple[int, Record]],
    spec: Preprocessing,
    batch: int,
    workers: int,
    strict: bool,
    decoder: Decoder,
) -> Generator[DeviceBatch, None, None]:
    pool = ThreadPoolExecutor(workers, thread_name_prefix="read")
    reading: deque[_Chunk] = deque()
    started: deque[_Chunk] = deque()
    under_way: weakref.WeakSet[DeviceAnswer] = weakref.WeakSet()
    try:
        while True:
            while len(reading) < read_ahead(workers, batch) and (records := list(islice(numbered, batch))):
                jobs: list[Future[_Item]] = [
                    submit(pool, record, partial(_read, record, spec)) for _, record in records
                ]
                reading.append(_Chunk(records, jobs))
            while reading and len(started) < _IN_DALI:
                started.append(reading.popleft())
                if files := started[-1].files():
                    decoder.start(list(files.values()))
            if not started:
                return
            chunk = started.popleft()
            files = chunk.files()
            decoded = decoder.finish() if files else None
            items = {place: job.result() for place, job in enumerate(chunk.jobs)}
            if decoded is None:
                again = partial(_on_host, spec=spec)
                names = [chunk.records[place][1].name for place in files]
                items.update(zip(files, pool.map(again, [file.data for file in files.values()], names), strict=True))
            done = _collect(chunk, items, decoded, under_way, strict)
            del decoded, items, chunk
            yield done
            del done  # its images need not live until the next batch is there
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        for answer in list(under_way):
            with contextlib.suppress(IResNetError):  # the device failed, or the runner was closed: nothing reads it
                answer.settle()
        decoder.close()


def _read(record: Record, spec: Preprocessing, data: bytes | None) -> _Item:
    try:
        source = record.load() if data is None else data
        planned = plan_file(source, spec, record.name)
    except ImageError as error:
        return without_frames(error)
    return _on_host(source, record.name, spec) if planned is None else planned


def _on_host(source: bytes, name: str, spec: Preprocessing) -> _Item:
    pixels = np.empty((spec.crop, spec.crop, 3), np.uint8)
    try:
        load_input(source, spec, pixels, name)
    except ImageError as error:
        return without_frames(error)
    return pixels


def _collect(
    chunk: _Chunk, items: dict[int, _Item], decoded: Any, under_way: weakref.WeakSet[DeviceAnswer], strict: bool
) -> DeviceBatch:
    batch = DeviceBatch([], np.array([], np.int64), [], decoded, [], {}, under_way)
    indices: list[int] = []
    for place, (index, record) in enumerate(chunk.records):
        item = items[place]
        if isinstance(item, ImageError):
            if strict:
                raise item
            batch.failures.append(Failure(index, record, item))
            continue
        if isinstance(item, PlannedFile):
            batch.rows.append(len(batch.records))
        else:
            batch.pixels[len(batch.records)] = item
        batch.records.append(record)
        indices.append(index)
    return batch._replace(indices=np.array(indices, np.int64))
