"""Files to answers: decoding ahead of the device, several batches under way on it, results in order, bounded memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future
from contextlib import AbstractContextManager, closing, nullcontext
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from infer.backends.base import Backend, Outputs
from infer.bundle.preprocessing import Preprocessing
from infer.errors import ImageError, InputError
from infer.pipeline.host import Batch, Failure, load_batches
from infer.sources import Record

if TYPE_CHECKING:
    from infer.pipeline.device import DeviceAnswer, DeviceBatch

#: What decodes JPEG files: :mod:`infer.images.jpeg`, or :mod:`infer.pipeline.dali` on the GPU.
DecoderName: TypeAlias = Literal["host", "dali"]
Stage: TypeAlias = Literal["decode", "infer"]
#: Entered while the pipeline waits for a stage, to measure what it waits for.
Waiting: TypeAlias = Callable[[Stage], AbstractContextManager[object]]


class Answers(NamedTuple):
    """What came out for consecutive records.

    Attributes:
        records: the n that were decoded, in order.
        indices: int64 ``[n]``, their places among all records, from 0.
        failures: those that could not be decoded, in order.
        outputs: n rows, of ``records``; None when n is 0.
    """

    records: list[Record]
    indices: NDArray[np.int64]
    failures: list[Failure]
    outputs: Outputs | None


def run_records(
    backend: Backend,
    spec: Preprocessing,
    records: Iterable[Record],
    *,
    workers: int | None = None,
    strict: bool = False,
    fast: bool = False,
    decoder: DecoderName = "host",
    waiting: Waiting = nullcontext,
) -> Iterator[Answers]:
    """Decode, pre-process and run a stream of records.

    Pixels are decoded straight into the memory that the device reads from, where the backend has such.

    Args:
        backend: what runs the batches.
        spec: pre-processing.
        records: see :func:`infer.sources.iter_records`; may be endless.
        workers: decoding threads; None takes one for each usable CPU.
        strict: raise at the first record that cannot be decoded, after the answers of the batches before it.
        fast: decode large JPEG files at a reduced size; see :func:`infer.images.jpeg.load_input`.
        decoder: ``dali`` decodes plain JPEG files on the GPU of a TensorRT target; see :mod:`infer.pipeline.device`.
        waiting: see :data:`Waiting`.

    Yields:
        :class:`Answers` for every ``backend.max_batch`` records, in order.

    Raises:
        ImageError: under ``strict``.
        InputError: ``workers`` below 1, an unknown ``decoder``, or one that cannot do this.
        TargetUnavailableError: ``decoder`` is ``dali`` and the target is not TensorRT, or DALI is not installed.
    """
    batches: Generator[Batch | DeviceBatch, None, None]
    if decoder == "host":
        batches = load_batches(
            records, spec, backend.max_batch, workers=workers, strict=strict, fast=fast, acquire=backend.try_acquire
        )
    elif decoder == "dali":
        from infer.pipeline.device import load_device_batches, require_device

        require_device(backend, spec, fast=fast)
        batches = load_device_batches(records, spec, backend, workers=workers, strict=strict)
    else:
        raise InputError(f"decoder: expected host or dali, found {decoder!r}")
    pending: deque[tuple[Batch | DeviceBatch, Future[Outputs] | DeviceAnswer | None]] = deque()

    def answers() -> Answers:
        batch, future = pending.popleft()
        with waiting("infer"):
            outputs = None if future is None else future.result()
        return Answers(batch.records, batch.indices, batch.failures, outputs)

    stopped: ImageError | None = None
    with closing(batches):
        while True:
            try:
                with waiting("decode"):
                    batch = next(batches, None)
            except ImageError as error:
                stopped = error
                break
            if batch is None:
                break
            while len(pending) > backend.in_flight:
                yield answers()
            with waiting("infer"):  # blocks while the device is busy
                pending.append((batch, batch.submit(backend)))
            del batch  # its images need not live until the next batch is there
        while pending:
            yield answers()
    if stopped is not None:
        raise stopped
