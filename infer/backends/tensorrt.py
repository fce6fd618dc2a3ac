"""The NVIDIA targets: a TensorRT plan on a ring of CUDA streams, through pycuda.

    with TensorRTBackend(Path("tensorrt.plan"), "tensorrt") as backend:
        outputs = backend.infer(batch)                      # uint8 [N, H, W, 3] in host memory
        future = backend.submit(batch)                      # the same, in the background
        for outputs in backend.stream(batches): ...         # many, in order
        with backend.acquire(32) as pinned:                 # decode straight into pinned memory
            pinned.images[:] = ...
            future = pinned.submit()
        results = backend.infer_device(torch_tensor)        # device memory in, device memory out, no copies
        event = backend.enqueue(ptr, 32, (p, q, r), stream) # raw device pointers on your stream

Every slot has its own non-blocking stream, execution context, pinned and device buffers; copies to the device, the
network and copies back of different slots overlap, so the rate is that of the slowest of them. Each slot takes two
batches, so that one waits in the stream while the host still deals with the other. The rows of a result depend on
their images and on what TensorRT's kernels make of the batch size: not on slot, thread or neighbours.
"""

from __future__ import annotations

import importlib
import time
import weakref
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from infer.backends.base import GpuOptions, Outputs, StageTimes
from infer.backends.cuda.arrays import DeviceArray, DeviceOutputs, check_pointer, import_images, require_no_capture
from infer.backends.cuda.driver import LEGACY_STREAM, PER_THREAD_STREAM
from infer.backends.cuda.events import Event
from infer.backends.cuda.gpus import find_gpus
from infer.backends.cuda.pinned import PinnedBatch
from infer.backends.cuda.session import Session
from infer.bundle.tensors import INPUT, OUTPUTS
from infer.errors import BundleError, InputError, TargetUnavailableError

_INSTALL = {"tensorrt": "pip install tensorrt", "tensorrt_rtx": "pip install tensorrt-rtx-cu13"}
_SPECIALIZATIONS = ("eager", "none")


def why_unavailable(target: str, device: int = 0) -> str | None:
    """None when ``target`` runs on this machine, else one sentence that says what is missing and what to do.

    The driver is asked first: TensorRT's runtimes crash or return None where there is none.

    Raises:
        InputError: unknown target.
    """
    if target not in _INSTALL:
        raise InputError(f"target: expected one of {', '.join(_INSTALL)}, found {target!r}")
    gpus, missing = find_gpus()
    if missing:
        return missing
    if not 0 <= device < len(gpus):
        return f"expected CUDA device {device}, found {len(gpus)} device(s); check CUDA_VISIBLE_DEVICES"
    for module, install in (("pycuda.driver", "pip install pycuda"), (target, _INSTALL[target])):
        try:
            importlib.import_module(module)
        except ModuleNotFoundError as error:
            return f"the Python module {error.name} is not installed: {install}"
        except Exception as error:  # bindings without their libraries fail in many ways
            return f"the Python module {module} does not load ({error}): {install} adds its libraries"
    return None


class TensorRTBackend:
    """A TensorRT plan on an NVIDIA GPU; see :class:`infer.backends.base.Backend` for the common part.

    Every method may be called from any thread, with any CUDA context current or none; none is left current.

    Args:
        plan: TensorRT's serialised engine.
        target: ``tensorrt`` (10 or 11) or ``tensorrt_rtx``.
        options: see :class:`~infer.backends.base.GpuOptions`; None for the defaults.
        input_shape: expected ``(H, W, 3)``; None takes the plan's. Likewise ``num_classes`` and ``top_k``.
        num_classes: expected columns of the logits.
        top_k: expected columns of scores and classes.
        runtime_cache: TensorRT for RTX: file that keeps the kernels compiled for this GPU, made when missing.

    Raises:
        TargetUnavailableError: driver, device, module or the right version is missing.
        BundleError: the plan is not what was expected.
        DeviceMemoryError: it does not fit; names the needed and the free bytes.
        InputError: an argument out of range.

    Attributes:
        notes: what the user should know: fewer slots or a smaller batch because memory was short, no graphs.
        flags: what decides how fast it is: graphs, waiting, streams.
        ordinal: of the GPU, among those that CUDA_VISIBLE_DEVICES leaves.
        image_shape: ``(H, W, 3)``.
        num_classes: columns of the logits.
        top_k: columns of scores and classes.
    """

    compiled_batches: tuple[int, ...] = ()
    instruction_set = ""

    def __init__(
        self,
        plan: Path,
        target: str,
        *,
        options: GpuOptions | None = None,
        input_shape: Sequence[int] | None = None,
        num_classes: int | None = None,
        top_k: int | None = None,
        runtime_cache: Path | None = None,
    ) -> None:
        options = options or GpuOptions()
        if options.slots < 1:
            raise InputError(f"slots: expected at least 1, found {options.slots}")
        if options.specialization not in _SPECIALIZATIONS:
            raise InputError(
                f"specialization: expected one of {', '.join(_SPECIALIZATIONS)}, found {options.specialization!r}"
            )
        if (missing := why_unavailable(target, options.device)) is not None:
            raise TargetUnavailableError(missing)
        self._session = session = Session(plan, target, options, runtime_cache)
        # Also at the end of the interpreter, while threads still run.
        self._finalizer = weakref.finalize(self, session.close)
        assert session.engine is not None and session.ring is not None
        self._ring, self._layout = session.ring, session.engine.layout
        found = (self._layout.image, self._layout.num_classes, self._layout.top_k)
        wanted = (None if input_shape is None else tuple(input_shape), num_classes, top_k)
        if any(want is not None and want != have for want, have in zip(wanted, found, strict=True)):
            self.close()
            raise BundleError(f"{plan}: expected image, classes and k {wanted}, found {found}; build it again")
        self.target, self.ordinal = target, options.device
        self.device = f"GPU {options.device} ({session.context.name}, {session.streams} streams)"
        self.max_batch, self.in_flight = session.max_batch, session.in_flight
        self.notes, self.flags = session.notes, session.flags
        self.image_shape, self.num_classes, self.top_k = found

    @property
    def on_device(self) -> TensorRTBackend:
        """Itself; see :class:`infer.backends.base.DeviceBackend`."""
        return self

    def submit(self, batch: NDArray[np.uint8]) -> Future[Outputs]:
        """Start a batch; see :meth:`infer.backends.base.Backend.submit`.

        Args:
            batch: uint8 ``[N, H, W, 3]``, 1 <= N <= ``max_batch``, any strides. It is copied once, into pinned memory,
                before this returns.

        Returns:
            A future; a callback added to it runs on the runner's own thread and should be short.

        Raises:
            InputError: wrong array, or the runner is closed.
            DeviceError: an earlier batch broke the context. Errors of this batch come through the future.
        """
        rows = self._check(batch)
        return self._ring.submit(self._ring.acquire(), rows, lambda staging: np.copyto(staging.images[:rows], batch))

    def infer(self, batch: NDArray[np.uint8]) -> Outputs:
        """``submit(batch).result()``, without a change of thread."""
        rows = self._check(batch)
        return self._ring.run(self._ring.acquire(), rows, lambda staging: np.copyto(staging.images[:rows], batch))

    def stream(self, batches: Iterable[NDArray[np.uint8]], look_ahead: int | None = None) -> Iterator[Outputs]:
        """Run many batches; results in the order of the input.

        Args:
            batches: as for :meth:`submit`; taken from the iterator when there is room.
            look_ahead: batches submitted beyond the one whose result is due; None for ``in_flight``.
        """
        limit = self.in_flight if look_ahead is None else look_ahead
        pending: deque[Future[Outputs]] = deque()
        for batch in batches:
            pending.append(self.submit(batch))
            if len(pending) > limit:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()

    def acquire(self, rows: int, timeout: float | None = None) -> PinnedBatch:
        """Pinned memory for ``rows`` images, to be filled in place; waits while all buffers are in use.

        The buffer is taken until it is submitted or released: use it as a context manager.

        Raises:
            InputError: ``rows`` out of range, closed, or no buffer within ``timeout`` seconds.
            DeviceError: an earlier batch broke the context.
        """
        self._check_rows(rows)
        return PinnedBatch(self._ring, self._ring.acquire(timeout), rows)

    def try_acquire(self, rows: int) -> PinnedBatch | None:
        """As :meth:`acquire`, but None where it would wait, and where callers hold half of the buffers already.

        The other half is for :meth:`submit`, so a loop that holds buffers ahead never waits for itself.
        """
        self._check_rows(rows)
        staging = self._ring.try_acquire()
        return None if staging is None else PinnedBatch(self._ring, staging, rows)

    def enqueue(
        self, input_ptr: int, batch: int, output_ptrs: Mapping[str, int] | Sequence[int], stream_handle: int
    ) -> Event:
        """Run on device memory and on a stream of the caller. Copies nothing; neither host nor device is synchronised.

        Args:
            input_ptr: address of uint8 ``[batch, H, W, 3]``, on a multiple of 256 bytes.
            batch: images, at most ``max_batch``.
            output_ptrs: addresses of logits float32 ``[batch, C]``, scores float32 ``[batch, k]`` and classes int32
                ``[batch, k]``, by name or in this order, on multiples of 256 bytes.
            stream_handle: ``CUstream`` of the device's primary context; 0 for the default stream. The memory must stay
                until the work is done there.

        Returns:
            An event behind the work.

        Raises:
            InputError: an argument out of range, or memory that is not on this device.
            DeviceError: CUDA or TensorRT refused.
        """
        self._check_rows(batch)
        pointers = [output_ptrs[name] for name in OUTPUTS] if isinstance(output_ptrs, Mapping) else list(output_ptrs)
        if len(pointers) != len(OUTPUTS):
            raise InputError(f"output_ptrs: expected {', '.join(OUTPUTS)}, found {len(pointers)} addresses")
        stream = stream_handle or LEGACY_STREAM
        with self._session.working(f"enqueueing a batch of {batch}"):
            require_no_capture(stream)
            for name, pointer in zip((INPUT, *OUTPUTS), (input_ptr, *pointers), strict=True):
                check_pointer(name, pointer, self.ordinal)
            return self._session.enqueue(batch, input_ptr, (pointers[0], pointers[1], pointers[2]), stream)

    def infer_device(self, images: Any, *, stream: int = 0) -> DeviceOutputs:
        """Classify images that are in device memory; the results stay there. Nothing is copied or synchronised.

        Args:
            images: uint8 ``[N, H, W, 3]``, C-contiguous, with ``__cuda_array_interface__`` or DLPack: a torch or CuPy
                array on this device. Kept alive by the result, and must not be changed before that is ready.
            stream: ``CUstream`` that the results are in order with, such as
                ``torch.cuda.current_stream().cuda_stream``; 0 for the default stream.

        Raises:
            InputError: not such an array.
            DeviceError: CUDA or TensorRT refused.
        """
        caller = stream or LEGACY_STREAM
        if caller == PER_THREAD_STREAM:
            raise InputError(
                "stream: handle 2 means another stream in each thread; expected a stream of your own, or 0 for the "
                "default stream"
            )
        session, layout = self._session, self._layout
        with session.working("classifying images in device memory"):
            require_no_capture(caller)
            found = import_images(images, layout, self.ordinal, caller)
            self._check_rows(found.rows)
            at = layout.place(found.rows)
            block = session.results.take(at.total, caller)
            if found.stream is not None and found.stream != caller:
                session.order(found.stream, caller)
            pointers = (block.pointer + at.logits, block.pointer + at.scores, block.pointer + at.classes)
            ready = session.enqueue(found.rows, found.pointer, pointers, caller, block=True)
            session.keep(found.owner, ready)
            logits, scores, classes = (
                DeviceArray(session, block, offset, (found.rows, columns), dtype, stream=caller, ready=ready)
                for offset, columns, dtype in (
                    (at.logits, layout.num_classes, "<f4"),
                    (at.scores, layout.top_k, "<f4"),
                    (at.classes, layout.top_k, "<i4"),
                )
            )
            return DeviceOutputs(logits, scores, classes, ready, found.owner)

    def own_stream(self) -> int:
        """A stream of the runner for :meth:`infer_device`: results come in order, and none waits for later batches.

        (Copies to the host from results on the default stream wait for everything that was put there meanwhile.)

        Raises:
            InputError: the runner is closed.
        """
        return self._session.own_stream()

    def profile(self, batch: NDArray[np.uint8]) -> StageTimes:
        """Run one batch alone, without a graph, and time its stages with events on the device.

        Raises:
            InputError: as :meth:`submit`.
            DeviceError: the batch failed.
        """
        rows = self._check(batch)
        staging = self._ring.acquire()
        try:
            np.copyto(staging.images[:rows], batch)
            with self._session.context as context:
                try:
                    start = time.perf_counter()
                    stages = staging.slot.profile(staging, rows)
                    staging.collect(rows)
                    return StageTimes(*stages, total=1e3 * (time.perf_counter() - start))
                except Exception as error:
                    raise context.explain(error, f"profiling a batch of {rows}") from error
        finally:
            self._ring.release(staging)

    def close(self) -> None:
        """Finish what is under way and release everything, in any state; harmless when called twice.

        Results in device memory and events are unusable afterwards. Batches acquired and not submitted are lost.
        """
        self._session.close()
        self._finalizer.detach()

    def __enter__(self) -> TensorRTBackend:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _check_rows(self, rows: int) -> None:
        if not 1 <= rows <= self.max_batch:
            raise InputError(f"expected a batch of 1 to {self.max_batch} images, found {rows}")

    def _check(self, batch: NDArray[np.uint8]) -> int:
        if not isinstance(batch, np.ndarray) or batch.dtype != np.uint8 or batch.shape[1:] != self.image_shape:
            found = f"{batch.dtype} {list(batch.shape)}" if isinstance(batch, np.ndarray) else type(batch).__name__
            height, width, channels = self.image_shape
            raise InputError(f"expected a uint8 array [N, {height}, {width}, {channels}], found {found}")
        self._check_rows(len(batch))
        return len(batch)
