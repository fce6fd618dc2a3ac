"""An opened bundle: images in, classes out.

from infer import open_bundle

with open_bundle("engines/iresnet101-fp16") as runner:
    for prediction in runner.classify(["cat.jpg", "dog.png"]):
        print(prediction.name, prediction.top[0].label)
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np

from infer.backends.base import Backend, Outputs
from infer.bundle import Manifest, read_labels, read_manifest
from infer.errors import InputError, UntrainedError
from infer.predictions import Prediction, rank
from infer.preprocess import Preprocessing

if TYPE_CHECKING:
    from types import TracebackType

    from numpy.typing import NDArray

    from infer.decode_pool import Batch, Failure
    from infer.sources import Record

T = TypeVar("T")


class Answers(NamedTuple):
    """What :meth:`Runner.run` found out about consecutive records.

    Attributes:
        records: the n that were decoded, in order.
        indices: int64 ``[n]``, their places among all records, from 0.
        failures: those that could not be decoded, in order.
        outputs: n rows, of ``records``; n may be 0.
    """

    records: list[Record]
    indices: NDArray[np.int64]
    failures: list[Failure]
    outputs: Outputs


class Runner:
    """A bundle with a backend; every method is safe to call from several threads.

    Made by :func:`open_bundle`.

    Attributes:
        folder: of the bundle.
        manifest: its manifest.
        labels: class names in the order of the logits.
        preprocessing: from a decoded image to the input.
        backend: what runs it.
    """

    def __init__(
        self, folder: Path, manifest: Manifest, labels: list[str], backend: Backend, allow_untrained: bool
    ) -> None:
        self.folder, self.manifest, self.labels, self.backend = folder, manifest, labels, backend
        self.preprocessing = Preprocessing.from_json(manifest.preprocessing)
        self._allow_untrained = allow_untrained

    @property
    def target(self) -> str:
        """Name of the target that runs."""
        return self.backend.target

    def require_trained(self) -> None:
        """Refuse to present predictions of random weights as answers.

        Raises:
            UntrainedError: the bundle is untrained and was not opened with ``allow_untrained``.
        """
        if not self.manifest.model.trained and not self._allow_untrained:
            raise UntrainedError(
                f"{self.folder} was built from random weights, its predictions mean nothing. Build it with trained "
                "weights (WEIGHTS=path), or pass --allow-untrained"
            )

    def infer(self, images: NDArray[np.uint8]) -> Outputs:
        """Run ready-made inputs.

        Args:
            images: uint8 ``[N, crop, crop, 3]``, RGB, pre-processed but not normalised; any N, also 0.

        Returns:
            :class:`Outputs` with N rows, arrays of the caller's own.

        Raises:
            InputError: wrong dtype or shape.
        """
        side = self.preprocessing.crop
        if not isinstance(images, np.ndarray) or images.dtype != np.uint8 or images.shape[1:] != (side, side, 3):
            found = f"{images.dtype} {list(images.shape)}" if isinstance(images, np.ndarray) else type(images).__name__
            raise InputError(f"expected a uint8 array [N, {side}, {side}, 3], found {found}")
        images = np.ascontiguousarray(images)
        step = self.backend.max_batch
        parts = [self.backend.submit(images[at : at + step]) for at in range(0, len(images), step)]
        results = [part.result() for part in parts]
        if len(results) == 1:
            return results[0]
        return Outputs(*(np.concatenate(arrays) for arrays in zip(self._no_outputs(), *results, strict=True)))

    def stream(self, batches: Iterable[tuple[T, NDArray[np.uint8]]]) -> Iterator[tuple[T, Outputs]]:
        """Run a stream of ``(key, images)`` with a bounded look-ahead; results come in the order of the input.

        Each array has at most ``backend.max_batch`` images and must not be changed until its result is out.
        """
        pending: deque[tuple[T, Future[Outputs]]] = deque()
        for key, images in batches:
            if len(images) == 0:
                continue
            while len(pending) > self.backend.in_flight:
                done, future = pending.popleft()
                yield done, future.result()
            pending.append((key, self.backend.submit(images)))
        for done, future in pending:
            yield done, future.result()

    def classify(
        self, images: Any, *, top: int | None = None, strict: bool = False, fast: bool = False
    ) -> list[Prediction]:
        """Classify images of any kind.

        Args:
            images: one image or a sequence of them: a path, encoded bytes, a PIL image, or a uint8 RGB or grey array
                of its own size. A list may mix them.
            top: classes an image, at most the ``k`` of the graph; None for all ``k``.
            strict: raise at the first image that cannot be read; otherwise its prediction carries ``error``.
            fast: decode large JPEG files at a reduced size; see :func:`infer.jpeg.load_input`.

        Raises:
            UntrainedError: see :meth:`require_trained`.
            ImageError: an image cannot be read and ``strict`` is set.
            InputError: not an image at all.
        """
        from infer.sources import Record

        self.require_trained()
        items: Sequence[Any] = images if isinstance(images, (list, tuple)) else [images]
        # A record's bytes may be anything that decode_image takes.
        records = [Record(_name(item, n), Path(), "", partial(_itself, item)) for n, item in enumerate(items)]
        results: dict[int, Prediction] = {}
        for answers in self.run(records, strict=strict, fast=fast):
            for failure in answers.failures:
                results[failure.index] = Prediction(failure.record.name, error=str(failure.error))
            predictions = rank([record.name for record in answers.records], answers.outputs, self.labels, top)
            results.update(zip(answers.indices.tolist(), predictions, strict=True))
        return [results[number] for number in sorted(results)]

    def run(
        self, records: Iterable[Record], *, workers: int | None = None, strict: bool = False, fast: bool = False
    ) -> Iterator[Answers]:
        """Decode, pre-process and run a stream of records, each stage ahead of the next, with bounded memory.

        Pixels are decoded straight into the memory that the device reads from, where the backend has such.

        Args:
            records: see :func:`infer.sources.iter_records`; may be endless.
            workers: decoding threads; None takes one for each usable CPU.
            strict: raise at the first record that cannot be decoded.
            fast: decode large JPEG files at a reduced size; see :func:`infer.jpeg.load_input`.

        Yields:
            :class:`Answers` for every ``backend.max_batch`` records, in order.

        Raises:
            ImageError: under ``strict``.
            InputError: ``workers`` below 1.
        """
        from infer.decode_pool import load_batches

        backend = self.backend
        batches = load_batches(
            records, self.preprocessing, backend.max_batch,
            workers=workers, strict=strict, fast=fast, acquire=backend.try_acquire,
        )  # fmt: skip
        pending: deque[tuple[Batch, Future[Outputs] | None]] = deque()
        with closing(batches):
            for batch in batches:
                while len(pending) > backend.in_flight:
                    yield self._answers(*pending.popleft())
                rows, buffer = len(batch.images), batch.buffer
                if rows == 0:
                    future = None
                    if buffer is not None:
                        buffer.release()
                else:
                    future = backend.submit(batch.images) if buffer is None else buffer.submit(rows)
                pending.append((batch, future))
                del batch
            while pending:
                yield self._answers(*pending.popleft())

    def _answers(self, batch: Batch, future: Future[Outputs] | None) -> Answers:
        outputs = self._no_outputs() if future is None else future.result()
        return Answers(batch.records, batch.indices, batch.failures, outputs)

    def _no_outputs(self) -> Outputs:
        classes, k = self.manifest.model.num_classes, self.manifest.outputs[1].shape[1]
        return Outputs(np.empty((0, classes), np.float32), np.empty((0, k), np.float32), np.empty((0, k), np.int32))

    def close(self) -> None:
        """Release the backend; harmless when called twice."""
        self.backend.close()

    def __enter__(self) -> Runner:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_bundle(
    folder: str | os.PathLike[str],
    *,
    target: str | None = None,
    allow_untrained: bool = False,
    threads: int | None = None,
) -> Runner:
    """Open a bundle on the fastest target that this machine can run.

    The manifest, the hashes of the files and the version and GPU of the plan are checked before a backend is asked.

    Args:
        folder: the bundle.
        target: ``tensorrt``, ``tensorrt_rtx``, ``openvino`` or ``onnxruntime`` (the reference, runs ``model.onnx``);
            None for the fastest that is built and runs here.
        allow_untrained: let :meth:`Runner.classify` answer although the weights are random.
        threads: CPU threads of a CPU target; None for its own choice.

    Raises:
        BundleError: the bundle is damaged, of an unknown version, or lacks the target.
        TargetUnavailableError: no target of the bundle runs here; says why for each.
    """
    from infer.backends import open_backend

    path = Path(folder)
    manifest = read_manifest(path)
    labels = read_labels(path, manifest)
    backend = open_backend(path, manifest, target, threads)
    return Runner(path, manifest, labels, backend, allow_untrained)


def _itself(item: Any) -> Any:
    return item


def _name(item: object, number: int) -> str:
    if isinstance(item, (str, os.PathLike)):
        return os.fspath(item) if isinstance(os.fspath(item), str) else os.fsdecode(os.fspath(item))
    return f"image {number}"
