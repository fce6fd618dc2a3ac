"""Records to uint8 batches on several threads, in order, with a bounded number of images in memory.

Threads, not processes: Pillow decodes and resizes without the GIL, and the pixels stay where the runner reads them.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from infer.errors import ImageError, InputError
from infer.images import decode_image
from infer.preprocess import Preprocessing, preprocess
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


class Batch(NamedTuple):
    """Consecutive records: those that were decoded, and those that could not be.

    Attributes:
        records: the n decoded ones, in order.
        images: uint8 ``[n, crop, crop, 3]``, RGB, C-contiguous, row i of ``records[i]``; the receiver's to keep. n is
            the batch size asked for, less the failures, less what is missing at the end: **it can be 0**.
        indices: int64 ``[n]``, rising: the places of ``records`` among all records, from 0.
        failures: the others, in order.
    """

    records: list[Record]
    images: NDArray[np.uint8]
    indices: NDArray[np.int64]
    failures: list[Failure]


def usable_cpus() -> int:
    """CPUs this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def load_batches(
    records: Iterable[Record], spec: Preprocessing, batch: int, *, workers: int | None = None, strict: bool = False
) -> Iterator[Batch]:
    """Decode and pre-process ``records`` into batches, ahead of the consumer.

    At most ``1 + ceil(2 * workers / batch)`` batches exist beside the one handed out. ``records`` is advanced in the
    calling thread. Leaving the loop early, by an exception too, ends the threads.

    Args:
        records: what to load; may be endless.
        spec: the model's pre-processing.
        batch: records a batch, at least 1.
        workers: threads; None takes one for each usable CPU.
        strict: raise on the first record, in order, that cannot be decoded, instead of reporting it.

    Yields:
        One :class:`Batch` for every ``batch`` records, in order; none for no records.

    Raises:
        InputError: ``batch`` or ``workers`` is below 1.
        ImageError: under ``strict``.
    """
    if batch < 1:
        raise InputError(f"batch: expected at least 1, found {batch}")
    workers = usable_cpus() if workers is None else workers
    if workers < 1:
        raise InputError(f"workers: expected at least 1, found {workers}")
    return _load_batches(enumerate(records), spec, batch, workers, strict)


def _load_batches(
    numbered: Iterator[tuple[int, Record]], spec: Preprocessing, batch: int, workers: int, strict: bool
) -> Iterator[Batch]:
    ahead = 1 + -(-2 * workers // batch)
    pool = ThreadPoolExecutor(workers, thread_name_prefix="decode")
    pending: deque[tuple[list[tuple[int, Record]], NDArray[np.uint8], list[Future[ImageError | None]]]] = deque()
    try:
        while True:
            while len(pending) < ahead and (chunk := list(islice(numbered, batch))):
                images = np.empty((len(chunk), spec.crop, spec.crop, 3), np.uint8)
                jobs = [_submit(pool, record, spec, images[row]) for row, (_, record) in enumerate(chunk)]
                pending.append((chunk, images, jobs))
            if not pending:
                return
            yield _collect(*pending.popleft(), strict)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _submit(
    pool: ThreadPoolExecutor, record: Record, spec: Preprocessing, out: NDArray[np.uint8]
) -> Future[ImageError | None]:
    if not record.sequential:
        return pool.submit(_load, record, None, spec, out)
    try:
        data = record.load()  # here, because here they come in order
    except ImageError as error:
        failed: Future[ImageError | None] = Future()
        failed.set_result(error)
        return failed
    return pool.submit(_load, record, data, spec, out)


def _load(record: Record, data: bytes | None, spec: Preprocessing, out: NDArray[np.uint8]) -> ImageError | None:
    try:
        image = decode_image(record.load() if data is None else data, record.name)
    except ImageError as error:
        return error
    preprocess(image, spec, out)
    return None


def _collect(
    chunk: list[tuple[int, Record]],
    images: NDArray[np.uint8],
    jobs: list[Future[ImageError | None]],
    strict: bool,
) -> Batch:
    good: list[int] = []
    failures: list[Failure] = []
    for row, ((index, record), job) in enumerate(zip(chunk, jobs, strict=True)):
        error = job.result()
        if error is None:
            good.append(row)
        elif strict:
            raise error
        else:
            failures.append(Failure(index, record, error))
    if failures:
        images = images[good]
    indices = np.array([chunk[row][0] for row in good], np.int64)
    return Batch([chunk[row][1] for row in good], images, indices, failures)
