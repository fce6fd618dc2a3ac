"""What the runner asks of a backend, the same for every target."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from infer.backends.cuda.arrays import DeviceOutputs
    from infer.backends.cuda.events import Event
    from infer.bundle import FileEntry

HOST_CODE_VARIABLE = "IRESNET_ALLOW_HOST_CODE"


class Outputs(NamedTuple):
    """Results of a batch of N images over C classes, best k first.

    Attributes:
        logits: float32 ``[N, C]``.
        scores: float32 ``[N, k]``, softmax probabilities, falling.
        classes: int32 ``[N, k]``, indices into the labels.
    """

    logits: NDArray[np.float32]
    scores: NDArray[np.float32]
    classes: NDArray[np.int32]


@dataclass(frozen=True)
class GpuOptions:
    """How a TensorRT target uses its GPU; CPU targets pass them over.

    Attributes:
        device: ordinal of the GPU among those that CUDA_VISIBLE_DEVICES leaves.
        slots: streams, with two batches in flight on each. Three keep copies and network of equal length busy.
        max_batch: largest batch; None for the plan's own. A smaller one needs less memory.
        cuda_graphs: launch batches as CUDA graphs where possible, plain where not. TensorRT for RTX captures its own.
        graph_batches: batch sizes to capture, a graph and an execution context each; None for 1 and the largest.
        specialization: TensorRT for RTX: kernels for each batch size are compiled before the first batch of that size
            runs (``eager``), or not at all, and general ones run (``none``). Its third way, compiling in the
            background, is not offered: answers would change while it works, those kernels would never be checked
            (docs/known-answers.md), and its threads log, for which they need the interpreter's lock, while TensorRT's
            destructors hold that lock.
        spin: let threads that wait for the GPU spin: some 10 us faster, and a core busy.
        host_code: load version-compatible plans of full TensorRT, which hold a runtime that is executed on the host:
            only for plans that you trust. None asks the environment, ``IRESNET_ALLOW_HOST_CODE=1``.
    """

    device: int = 0
    slots: int = 3
    max_batch: int | None = None
    cuda_graphs: bool = True
    graph_batches: tuple[int, ...] | None = None
    specialization: str = "eager"
    spin: bool = False
    host_code: bool | None = None

    @property
    def host_code_allowed(self) -> bool:
        """``host_code``, where it is None what the environment says."""
        return os.environ.get(HOST_CODE_VARIABLE) == "1" if self.host_code is None else self.host_code


class InputBuffer(Protocol):
    """Memory of a backend for one batch, to be filled by the caller: what is there is not copied again on the host.

    Such as :class:`infer.backends.cuda.pinned.PinnedBatch`.
    """

    @property
    def images(self) -> NDArray[np.uint8]:
        """uint8 ``[rows, H, W, 3]``, C-contiguous; not to be touched after :meth:`submit` or :meth:`release`."""
        ...

    def submit(self, rows: int | None = None) -> Future[Outputs]:
        """Start the first ``rows`` images, None for all; as :meth:`Backend.submit`."""
        ...

    def release(self) -> None:
        """Give the memory back unused; harmless after :meth:`submit`."""
        ...


class Backend(Protocol):
    """One opened engine. Every method is safe to call from several threads.

    Attributes:
        target: ``openvino``, ``tensorrt`` or ``tensorrt_rtx``.
        device: what runs it, for people: ``"CPU (AMD EPYC, 2 threads)"``.
        max_batch: the largest batch of one call.
        in_flight: how many submitted batches keep the device busy; more only wait.
        compiled_batches: sizes that kernels are compiled for, each when it is first needed; empty where one set of
            kernels serves all.
        notes: what a user should know: fewer streams because memory was short, no graphs.
        flags: what decides how fast it is, for a benchmark's header.
    """

    target: str
    device: str
    max_batch: int
    in_flight: int
    compiled_batches: tuple[int, ...]
    notes: list[str]
    flags: dict[str, str]

    @property
    def instruction_set(self) -> str:
        """What the multiplying kernels are made of, empty where that is not known or the device is no CPU."""
        ...

    @property
    def on_device(self) -> DeviceBackend | None:
        """The same backend with what it offers in the memory of its device; None for a CPU."""
        ...

    def submit(self, batch: NDArray[np.uint8]) -> Future[Outputs]:
        """Start ``batch`` (uint8 ``[N, H, W, 3]``, C-contiguous, 1 <= N <= ``max_batch``).

        Blocks while ``in_flight`` batches are under way. The array must not be changed until the future
        is done. The arrays of the result belong to the caller.
        """
        ...

    def infer(self, batch: NDArray[np.uint8]) -> Outputs:
        """``submit(batch).result()``."""
        ...

    def try_acquire(self, rows: int) -> InputBuffer | None:
        """Memory for ``rows`` images, without waiting; None where there is none, or none to spare just now."""
        ...

    def close(self) -> None:
        """Release everything; harmless when called twice."""
        ...


class StageTimes(NamedTuple):
    """Times of one batch in ms: copy to the device, network, copy back (by events), and the host's part of it.

    ``enqueue`` is the time the host took to hand the batch to the stream, ``total`` from before that to the results.
    """

    h2d: float
    compute: float
    d2h: float
    enqueue: float
    total: float


class DeviceBackend(Backend, Protocol):
    """A backend on an NVIDIA GPU, whose memory and streams callers may use themselves.

    See :class:`infer.backends.tensorrt.TensorRTBackend` for arguments and lifetimes.

    Attributes:
        ordinal: of the GPU, among those that CUDA_VISIBLE_DEVICES leaves.
    """

    ordinal: int

    def enqueue(
        self, input_ptr: int, batch: int, output_ptrs: Mapping[str, int] | Sequence[int], stream_handle: int
    ) -> Event:
        """Run on device memory and on a stream of the caller, without a copy or a synchronisation."""
        ...

    def infer_device(self, images: Any, *, stream: int = 0) -> DeviceOutputs:
        """Classify images that are in device memory; the results stay there."""
        ...

    def own_stream(self) -> int:
        """``CUstream`` of the backend's own, for callers without one."""
        ...

    def profile(self, batch: NDArray[np.uint8]) -> StageTimes:
        """Run ``batch`` alone and time its stages by events on the device."""
        ...


class HostBackend:
    """What backends on a CPU have in common."""

    on_device: DeviceBackend | None = None

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.flags: dict[str, str] = {}

    @property
    def instruction_set(self) -> str:
        """See :class:`Backend`; not known."""
        return ""


class PlanCheck(Protocol):
    """Checks what one target computes; a backend calls it for each batch size that it compiles."""

    def __call__(self, batch: int, infer: Callable[[NDArray[np.uint8]], Outputs], machine: Mapping[str, str]) -> None:
        """See :meth:`infer.checks.self_test.TargetTest.__call__`."""
        ...


class PlanChecks(Protocol):
    """The checks of one bundle; :class:`infer.checks.self_test.SelfTest` is one.

    Attributes:
        notes: what a user should be told of targets that failed.
    """

    notes: list[str]

    def of(self, target: str, files: Sequence[FileEntry]) -> PlanCheck:
        """The check of one target, whose plan is ``files``."""
        ...
