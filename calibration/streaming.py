"""One pass over the images: activation ranges and histograms of many tensors, for every calibration method."""

from __future__ import annotations

import contextlib
import os
import queue
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from calibration.observers import InputObserver, TensorObserver
from calibration.sanity import image_warnings, tensor_warnings
from calibration.session import ActivationSession
from calibration.statistics import Statistics
from infer.errors import InputError

if TYPE_CHECKING:
    import onnx

_MOST_THREADS = 8


def collect(
    graph: Path | onnx.ModelProto,
    batches: Iterable[NDArray[Any]],
    tensors: Sequence[str],
    *,
    progress: Callable[[int], None] | None = None,
    threads: int | None = None,
    histograms: bool = True,
) -> Statistics:
    """Stream images through a float graph and collect statistics of its activations.

    The result is the same, bit for bit, for the same images in any order, in batches of any size and on any number
    of threads. Memory does not grow with the number of images: it is that of the weights plus, for each thread, the
    named tensors of one image.

    Args:
        graph: an ONNX file or model with one input and a free batch (or a batch of 1).
        batches: arrays ``[N, ...]`` of the input's type, uint8 ``[N, H, W, 3]`` for the graphs of this project; any
            N, empty ones too. An array may be reused once the next one is asked for.
        tensors: names of float32 or float16 activations; the input's name is allowed, repeats are dropped.
        progress: called in this thread with the number of images done, after each.
        threads: images in flight at once; None takes one a CPU, at most 8.
        histograms: False collects ranges only, enough for ``minmax``.

    Raises:
        InputError: no image at all, or an array that does not fit the input.
        GraphError: the graph cannot be used or lacks a tensor, or an activation is NaN or infinite (named).
    """
    workers = default_threads() if threads is None else threads
    if workers < 1:
        raise InputError(f"threads must be at least 1, found {threads}")
    with ActivationSession(graph, tensors) as session:
        # As many sets of observers as threads; a thread takes one for each image, so none needs a lock.
        sets: queue.SimpleQueue[_Observers] = queue.SimpleQueue()
        for _ in range(workers):
            sets.put(_Observers(session.tensors, histograms))

        def observe(image: NDArray[Any]) -> None:
            observers = sets.get()
            try:
                observers.observe(session, image)
            finally:
                sets.put(observers)

        _run_all(observe, _single_images(session, batches), workers, progress or (lambda done: None))
        total = sets.get()
        for _ in range(workers - 1):
            total.merge(sets.get())
    if not total.images.images:
        raise InputError("no calibration images: expected at least one batch with an image, found none; check the data")
    return Statistics(
        tensors=total.tensors,
        images=total.images.images,
        data_hash=total.images.data_hash(),
        warnings=image_warnings(total.images) + tensor_warnings(total.tensors),
    )


class _Observers:
    """One observer a tensor, and one of the images."""

    def __init__(self, names: Iterable[str], histograms: bool) -> None:
        self.images = InputObserver()
        self.tensors = {name: TensorObserver() if histograms else TensorObserver(histogram=None) for name in names}

    def observe(self, session: ActivationSession, image: NDArray[Any]) -> None:
        self.images.observe(image[0])
        arrays = session.run(image)
        for name, observer in self.tensors.items():
            observer.observe(name, arrays.pop(name))

    def merge(self, other: _Observers) -> None:
        self.images.merge(other.images)
        for name, observer in self.tensors.items():
            observer.merge(other.tensors[name])


def _single_images(session: ActivationSession, batches: Iterable[NDArray[Any]]) -> Iterator[NDArray[Any]]:
    for batch in batches:
        session.check(batch)
        for index in range(len(batch)):
            # A copy: it is still under way when the caller's generator fills its buffer again.
            yield np.array(batch[index : index + 1], order="C")


def _run_all(
    work: Callable[[NDArray[Any]], None],
    images: Iterator[NDArray[Any]],
    workers: int,
    progress: Callable[[int], None],
) -> None:
    """Run ``work`` on every image; the error of the earliest failing image is raised and no work is left behind."""
    done = 0
    pending: deque[Future[None]] = deque()

    def finish_one() -> None:
        nonlocal done
        pending.popleft().result()
        done += 1
        progress(done)

    executor = ThreadPoolExecutor(workers, thread_name_prefix="calibration")
    with contextlib.ExitStack() as stack:
        stack.callback(executor.shutdown, wait=True, cancel_futures=True)
        for image in images:
            pending.append(executor.submit(work, image))
            # One more than there are threads, so that none waits for this one.
            while len(pending) > workers:
                finish_one()
        while pending:
            finish_one()


def default_threads() -> int:
    """One a CPU, at most 8: each holds the activations of one image."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cpus, _MOST_THREADS)
