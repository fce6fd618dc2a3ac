"""An opened bundle: images in, classes out.

from infer import open_bundle

with open_bundle("engines/iresnet101-fp16") as runner:
    for prediction in runner.classify(["cat.jpg", "dog.png"]):
        print(prediction.name, prediction.top[0].label)
"""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import numpy as np

from infer.backends.base import Backend, DeviceBackend, GpuOptions, Outputs
from infer.bundle import Manifest, newest_accuracy, read_labels, read_manifest
from infer.bundle.accuracy_record import Accuracy
from infer.bundle.preprocessing import Preprocessing
from infer.checks.self_test import SelfTest
from infer.errors import AccuracyError, InputError, ProcessError, TargetUnavailableError, UntrainedError
from infer.forks import Owner
from infer.predictions import Prediction, rank

if TYPE_CHECKING:
    from types import TracebackType

    from numpy.typing import NDArray

    from infer.backends.cuda.arrays import DeviceOutputs
    from infer.backends.cuda.events import Event
    from infer.pipeline import Answers, DecoderName, Waiting
    from infer.sources import Record

T = TypeVar("T")


_LOG = logging.getLogger(__name__)


class Runner:
    """A bundle with a backend; every method is safe to call from several threads.

    Made by :func:`open_bundle`.

    Attributes:
        folder: of the bundle.
        manifest: its manifest.
        labels: class names in the order of the logits.
        preprocessing: from a decoded image to the input.
        self_test: what the known answers said; batch sizes that are compiled later are added to it.
    """

    def __init__(
        self,
        folder: Path,
        manifest: Manifest,
        labels: list[str],
        backend: Backend,
        allow_untrained: bool,
        test: SelfTest | None = None,
    ) -> None:
        self.folder, self.manifest, self.labels, self._backend = folder, manifest, labels, backend
        self._owner = Owner(backend)
        self.preprocessing: Preprocessing = manifest.preprocessing
        self._allow_untrained = allow_untrained
        self.self_test = test

    @property
    def backend(self) -> Backend:
        """What runs the bundle.

        Raises:
            ProcessError: this process is a fork of the one that opened the runner.
        """
        self._owner.require(f"the runner of {self.folder}")
        return self._backend

    @property
    def target(self) -> str:
        """Name of the target that runs."""
        return self._backend.target

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

    @property
    def verified(self) -> Accuracy | None:
        """The newest measurement of the plan that runs, with its outcome; None where it was never verified."""
        return newest_accuracy(self.manifest, self.target)

    def require_verified(self) -> None:
        """Refuse a plan that was not verified, or that did not pass.

        Raises:
            AccuracyError: says what the newest verification found.
        """
        found = self.verified
        if found is None or found.outcome != "passed":
            what = "was never verified" if found is None else f"has the verdict {found.outcome}: {found.verdict}"
            raise AccuracyError(f"{self.folder} on {self.target} {what}. Run: iresnet verify {self.folder} --data ...")

    def infer(self, images: NDArray[np.uint8]) -> Outputs:
        """Run ready-made inputs.

        Args:
            images: uint8 ``[N, crop, crop, 3]``, RGB, pre-processed but not normalised; any N, also 0.

        Returns:
            :class:`Outputs` with N rows, arrays of the caller's own.

        Raises:
            InputError: wrong dtype or shape.
        """
        self._check(images)
        images = np.ascontiguousarray(images)
        step = self.backend.max_batch
        parts = [self.backend.submit(images[at : at + step]) for at in range(0, len(images), step)]
        results = [part.result() for part in parts]
        if len(results) == 1:
            return results[0]
        return Outputs(*(np.concatenate(arrays) for arrays in zip(self._no_outputs(), *results, strict=True)))

    def submit(self, images: NDArray[np.uint8]) -> Future[Outputs]:
        """Start a batch and go on; blocks only while ``backend.in_flight`` batches are under way.

        Args:
            images: as for :meth:`infer`, 1 to ``backend.max_batch`` of them, not to be changed until the result is out.

        Raises:
            InputError: wrong dtype, shape or number. What fails later comes through the future.
        """
        return self.backend.submit(self._one_batch(images))

    def stream(self, batches: Iterable[NDArray[np.uint8]]) -> Iterator[Outputs]:
        """Run a stream of batches with a bounded look-ahead; results come in the order of the input.

        Args:
            batches: as for :meth:`submit`; taken when there is room.

        Raises:
            InputError: wrong dtype, shape or number.
        """
        for _, outputs in self.stream_pairs((None, self._one_batch(images)) for images in batches):
            yield outputs

    def stream_pairs(self, batches: Iterable[tuple[T, NDArray[np.uint8]]]) -> Iterator[tuple[T, Outputs]]:
        """The same for ``(key, images)``, where the key comes back with the result; empty batches are left out.

        The arrays are not checked.
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

    def enqueue(
        self, input_ptr: int, batch: int, output_ptrs: Mapping[str, int] | Sequence[int], stream_handle: int
    ) -> Event:
        """Run on device memory and a CUDA stream of the caller's; no copies, no synchronisation, returns an event.

        See :meth:`infer.backends.tensorrt.TensorRTBackend.enqueue` for the arguments and their lifetimes.

        Raises:
            TargetUnavailableError: the bundle was opened on a CPU target.
        """
        return self._device("enqueue").enqueue(input_ptr, batch, output_ptrs, stream_handle)

    def infer_device(self, images: Any, *, stream: int = 0) -> DeviceOutputs:
        """Classify a torch, CuPy or other array in device memory where it is; the results stay there.

        See :meth:`infer.backends.tensorrt.TensorRTBackend.infer_device`.

        Raises:
            TargetUnavailableError: the bundle was opened on a CPU target.
        """
        return self._device("infer_device").infer_device(images, stream=stream)

    def _device(self, what: str) -> DeviceBackend:
        if (backend := self.backend.on_device) is None:
            raise TargetUnavailableError(f"{what} needs a TensorRT target, this bundle runs on {self.target}")
        return backend

    def _one_batch(self, images: NDArray[np.uint8]) -> NDArray[np.uint8]:
        self._check(images)
        if not 1 <= len(images) <= self.backend.max_batch:
            raise InputError(f"expected a batch of 1 to {self.backend.max_batch} images, found {len(images)}")
        return np.ascontiguousarray(images)

    def _check(self, images: object) -> None:
        side = self.preprocessing.crop
        if not isinstance(images, np.ndarray) or images.dtype != np.uint8 or images.shape[1:] != (side, side, 3):
            found = f"{images.dtype} {list(images.shape)}" if isinstance(images, np.ndarray) else type(images).__name__
            raise InputError(f"expected a uint8 array [N, {side}, {side}, 3], found {found}")

    def classify(
        self, images: Any, *, top: int | None = None, strict: bool = False, fast: bool = False
    ) -> list[Prediction]:
        """Classify images of any kind.

        Args:
            images: one image, or a list, tuple or iterator of them, of any kinds: a path, encoded bytes, a binary file,
                a PIL image, or a uint8 RGB or grey array of its own size; or a uint8 array ``[N, H, W, C]``.
            top: classes an image, at least 1; at most the ``k`` of the graph come, None for all ``k``.
            strict: raise at the first image that cannot be read; otherwise its prediction carries ``error``.
            fast: decode large JPEG files at a reduced size; see :func:`infer.images.jpeg.load_input`.

        Raises:
            UntrainedError: see :meth:`require_trained`.
            ImageError: an image cannot be read and ``strict`` is set.
            InputError: not an image at all, or ``top`` is below 1.
            ProcessError: see :attr:`backend`.
        """
        from infer.pictures import iter_pictures
        from infer.sources import Record

        self.require_trained()
        if top is not None and top < 1:
            raise InputError(f"top: expected at least 1, found {top}")
        # A record's bytes may be anything that decode_image takes.
        records = (Record(name, Path(), "", partial(_itself, item)) for name, item in iter_pictures(images))
        results: dict[int, Prediction] = {}
        for answers in self.run(records, strict=strict, fast=fast):
            for failure in answers.failures:
                results[failure.index] = Prediction(failure.record.name, error=str(failure.error))
            if answers.outputs is not None:
                predictions = rank([record.name for record in answers.records], answers.outputs, self.labels, top)
                results.update(zip(answers.indices.tolist(), predictions, strict=True))
        return [results[number] for number in sorted(results)]

    def run(
        self,
        records: Iterable[Record],
        *,
        workers: int | None = None,
        strict: bool = False,
        fast: bool = False,
        decoder: DecoderName = "host",
        waiting: Waiting = nullcontext,
    ) -> Iterator[Answers]:
        """Decode, pre-process and run a stream of records; see :func:`infer.pipeline.run_records`."""
        from infer.pipeline import run_records

        return run_records(
            self.backend,
            self.preprocessing,
            records,
            workers=workers,
            strict=strict,
            fast=fast,
            decoder=decoder,
            waiting=waiting,
        )

    def _no_outputs(self) -> Outputs:
        classes, k = self.manifest.model.num_classes, self.manifest.outputs[1].shape[1]
        return Outputs(np.empty((0, classes), np.float32), np.empty((0, k), np.float32), np.empty((0, k), np.int32))

    def close(self) -> None:
        """Release the backend; harmless when called twice, and in a fork, where the engine stays the parent's."""
        if self._owner.is_here:
            self._backend.close()

    def __repr__(self) -> str:
        return f"<Runner of {self.folder} on {self.target}: {self._backend.device}>"

    def __reduce__(self) -> NoReturn:
        raise ProcessError(
            f"the runner of {self.folder} cannot be sent to another process: its engine lives in this one. Send the "
            "folder and call open_bundle there; see docs/runner.md, Processes"
        )

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
    gpu: GpuOptions | None = None,
    self_test: str | None = None,
) -> Runner:
    """Open a bundle on the fastest target that this machine can run.

    The manifest, the hashes of the files and the version and GPU of the plan are checked before a backend is asked, and
    the bundle's known answers before the first answer, where they have not passed on this machine already.

    Args:
        folder: the bundle.
        target: ``tensorrt``, ``tensorrt_rtx``, ``openvino`` or ``onnxruntime`` (the reference, runs ``model.onnx``);
            None for the fastest that is built and runs here.
        allow_untrained: let :meth:`Runner.classify` answer although the weights are random.
        threads: CPU threads of a CPU target; None for its own choice.
        gpu: which GPU a TensorRT target takes, how many streams, graphs, waiting; None for the defaults.
        self_test: the known answers are checked ``always``, where they are ``new`` on this machine, or ``never``; None
            for what the environment's ``IRESNET_SELF_TEST`` says, and without it ``new``.

    Raises:
        BundleError: the bundle is damaged, of an unknown version, or lacks the target.
        TargetUnavailableError: no target of the bundle runs here; says why for each.
        KnownAnswersError: ``target``, or every target that runs here, computes something else than the graph.
        InputError: ``self_test`` or ``IRESNET_SELF_TEST`` says something else.
    """
    from infer.backends import open_backend

    path = Path(folder)
    manifest = read_manifest(path)
    test = SelfTest(path, manifest, self_test)
    labels = read_labels(path, manifest)
    backend = open_backend(path, manifest, test, target, threads, gpu)
    runner = Runner(path, manifest, labels, backend, allow_untrained, test)
    if (found := runner.verified) is not None and found.outcome == "failed":
        _LOG.warning("%s on %s FAILED its newest verification: %s", path, runner.target, found.verdict)
    return runner


def _itself(item: Any) -> Any:
    return item
