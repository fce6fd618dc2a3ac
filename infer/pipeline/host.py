"""Records to uint8 batches on several threads, in order, with a bounded number of images in memory.

Threads, not processes: decoding and resizing run without the GIL, and the pixels stay where the runner reads them. They
may be written straight into memory of the consumer (:class:`infer.backends.base.InputBuffer`).
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from infer.backends.base import Backend, InputBuffer, Outputs
from infer.bundle.preprocessing import Preprocessing
from infer.errors import ImageError, InputError
from infer.images.jpeg import load_input
from infer.sources import Record


@dataclass(frozen=True)
class Failure:
    """A record that gave no image.

    Attributes:
        index: its place among all records, from 0.
        record: which one.
        error: why; the message starts with the record's name.
    """

    index: int
    record: Record
    error: ImageError


#: Gives memory for so many rows, or None where there is none just now. Never waits: the loop might wait for itself.
Acquire: TypeAlias = Callable[[int], InputBuffer | None]


class Batch(NamedTuple):
    """Consecutive records: those that were decoded, and those that could not be.

    Attributes:
        records: the n decoded ones, in order.
        images: uint8 ``[n, crop, crop, 3]``, RGB, C-contiguous, row i of ``records[i]``; the receiver's to keep. n is
            the batch size asked for, less the failures, less what is missing at the end: **it can be 0**. With a
            ``buffer``, its first n rows.
        indices: int64 ``[n]``, rising: the places of ``records`` among all records, from 0.
        failures: the others, in order.
        buffer: what holds ``images``, the receiver's to submit or release; None for an array of their own.
    """

    records: list[Record]
    images: NDArray[np.uint8]
    indices: NDArray[np.int64]
    failures: list[Failure]
    buffer: InputBuffer | None = None

    def submit(self, backend: Backend) -> Future[Outputs] | None:
        """Start the n images on ``backend``; None when there are none."""
        rows = len(self.images)
        if self.buffer is None:
            return backend.submit(self.images) if rows else None
        if rows:
            return self.buffer.submit(rows)
        self.buffer.release()
        return None


def read_ahead(workers: int, batch: int) -> int:
    """Batches to have under way so that all ``workers`` are busy."""
    return 1 + -(-2 * workers // batch)


def usable_cpus() -> int:
    """CPUs this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def load_batches(
    records: Iterable[Record],
    spec: Preprocessing,
    batch: int,
    *,
    workers: int | None = None,
    strict: bool = False,
    fast: bool = False,
    acquire: Acquire | None = None,
) -> Generator[Batch, None, None]:
    """Decode and pre-process ``records`` into batches, ahead of the consumer.

    At most ``1 + ceil(2 * workers / batch)`` batches exist beside the one handed out. ``records`` is advanced in the
    calling thread. Leaving the loop early, by an exception too, ends the threads.

    Args:
        records: what to load; may be endless.
        spec: the model's pre-processing.
        batch: records a batch, at least 1.
        workers: threads; None takes one for each usable CPU, the fastest in measurements (docs/pre-processing.md).
        strict: raise on the first record, in order, that cannot be decoded, instead of reporting it.
        fast: see :func:`infer.images.jpeg.load_input`.
        acquire: where the batches are written; asked once a batch, in order, in the calling thread. Buffers that were
            not handed out when the loop ends are released. None, and where it gives None: new arrays.

    Yields:
        One :class:`Batch` for every ``batch`` records, in order; none for no records.

    Raises:
        InputError: ``batch`` or ``workers`` is below 1, or ``IRESNET_DECODER`` names no decoder of this machine.
        ImageError: under ``strict``.
    """
    if batch < 1:
        raise InputError(f"batch: expected at least 1, found {batch}")
    workers = usable_cpus() if workers is None else workers
    if workers < 1:
        raise InputError(f"workers: expected at least 1, found {workers}")
    load = partial(load_input, spec=spec, fast=fast)
    return _load_batches(enumerate(records), spec.crop, batch, workers, strict, load, acquire or _no_buffer)


class _Pending(NamedTuple):
    """A batch that is being decoded."""

    chunk: list[tuple[int, Record]]
    images: NDArray[np.uint8]
    buffer: InputBuffer | None
    jobs: list[Future[ImageError | None]]


def _load_batches(
    numbered: Iterator[tuple[int, Record]],
    side: int,
    batch: int,
    workers: int,
    strict: bool,
    load: Callable[..., None],
    acquire: Acquire,
) -> Generator[Batch, None, None]:
    ahead = read_ahead(workers, batch)
    pool = ThreadPoolExecutor(workers, thread_name_prefix="decode")
    pending: deque[_Pending] = deque()
    try:
        while True:
            while len(pending) < ahead and (chunk := list(islice(numbered, batch))):
                buffer = acquire(len(chunk))
                images = np.empty((len(chunk), side, side, 3), np.uint8) if buffer is None else buffer.images
                pending.append(_Pending(chunk, images, buffer, []))
                pending[-1].jobs.extend(
                    submit(pool, record, partial(_load, record, load, images[row]))
                    for row, (_, record) in enumerate(chunk)
                )
            if not pending:
                return
            done = _collect(pending[0], strict)
            pending.popleft()
            yield done
            del done  # its images need not live until the next batch is there
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        for left in pending:
            if left.buffer is not None:
                left.buffer.release()


def _no_buffer(rows: int) -> None:
    return None


def submit(pool: ThreadPoolExecutor, record: Record, job: Callable[[bytes | None], Any]) -> Future[Any]:
    """Start ``job``, with None, or with the bytes of ``record`` where reading in order is cheap: those are read here.

    Call it in the order of the records. The future gives what ``job`` returns, or the ImageError of that reading.
    """
    if not record.sequential:
        return pool.submit(job, None)
    try:
        return pool.submit(job, record.load())
    except ImageError as error:
        failed: Future[Any] = Future()
        failed.set_result(error)
        return failed


def _load(record: Record, load: Callable[..., None], out: NDArray[np.uint8], data: bytes | None) -> ImageError | None:
    try:
        load(record.load() if data is None else data, out=out, name=record.name)
    except ImageError as error:
        return without_frames(error)
    return None


def without_frames(error: ImageError) -> ImageError:
    """A kept traceback keeps ``out`` alive, which may be memory that the consumer wants to free."""
    link: BaseException | None = error
    while link is not None:
        link.__traceback__ = None
        link = link.__cause__ or link.__context__
    return error


def _collect(batch: _Pending, strict: bool) -> Batch:
    good: list[int] = []
    failures: list[Failure] = []
    for row, ((index, record), job) in enumerate(zip(batch.chunk, batch.jobs, strict=True)):
        error = job.result()
        if error is None:
            good.append(row)
        elif strict:
            raise error
        else:
            failures.append(Failure(index, record, error))
    images = batch.images
    if failures:
        for to, row in enumerate(good):  # in place: a copy would not be where the consumer wants it
            if to != row:
                images[to] = images[row]
        images = images[: len(good)]
    indices = np.array([batch.chunk[row][0] for row in good], np.int64)
    return Batch([batch.chunk[row][1] for row in good], images, indices, failures, batch.buffer)
