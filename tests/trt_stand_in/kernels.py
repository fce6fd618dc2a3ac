"""What the stand-in launches on a stream: the emulator's own kernel, or ONNX Runtime on the "device" memory."""

from __future__ import annotations

import ctypes
import functools
import itertools
import traceback
from dataclasses import dataclass
from typing import Any

import numpy as np
from cuda_emulator.emulator import KERNEL, Access, Emulator, RowKernel
from numpy.typing import NDArray


@dataclass(frozen=True)
class Launch:
    """Addresses and shapes of one execution, as they were when it was enqueued."""

    emulator: Emulator
    graph: str | None
    rows: int
    image: tuple[int, int, int]
    num_classes: int
    top_k: int
    images: int
    logits: int
    scores: int
    classes: int
    scratch: int
    scratch_bytes: int

    def sizes(self) -> dict[str, int]:
        """Bytes of each tensor."""
        small = 4 * self.rows * self.top_k
        images = self.rows * int(np.prod(self.image))
        return {"images": images, "logits": 4 * self.rows * self.num_classes, "scores": small, "classes": small}


def launch(call: Launch, stream: int, *, captured: bool) -> int:
    """Enqueue, or add to the graph under capture; the status code of the driver."""
    return _launch_rows(call, stream) if call.graph is None else _launch_graph(call, stream, captured)


def _launch_rows(call: Launch, stream: int) -> int:
    kernel = RowKernel(
        *(call.images, call.logits, call.scores, call.classes, call.scratch),
        *(call.rows, int(np.prod(call.image)), call.num_classes, call.top_k, call.scratch_bytes),
    )
    return int(call.emulator.lib.emu_launch_row_kernel(stream, 0, ctypes.byref(kernel)))


def _launch_graph(call: Launch, stream: int, captured: bool) -> int:
    sizes = call.sizes()
    access = [Access(getattr(call, name), size, int(name != "images"), 0) for name, size in sizes.items()]
    if call.scratch_bytes:
        access.append(Access(call.scratch, call.scratch_bytes, 1, 0))
    number = next(_numbers)
    _running[number] = _GraphRun(call, captured)
    array = (Access * len(access))(*access)
    return int(call.emulator.lib.emu_launch(stream, b"network", 0, array, len(access), _CALLBACK, number))


class _GraphRun:
    def __init__(self, call: Launch, captured: bool) -> None:
        self.call, self.captured = call, captured
        self.before: bytes = b""
        self.results: list[NDArray[Any]] = []

    def view(self, name: str) -> NDArray[np.uint8]:
        size = self.call.sizes()[name]
        return np.frombuffer(self.call.emulator.host_view(getattr(self.call, name), size), np.uint8)

    def begin(self) -> None:
        for name in ("logits", "scores", "classes"):
            self.view(name)[:] = 0xCB
        if self.call.scratch_bytes:
            np.frombuffer(self.call.emulator.host_view(self.call.scratch, self.call.scratch_bytes), np.uint8)[:] = 0x5C
        self.before = self.view("images").tobytes()
        self.results = self.compute(self.before)

    def end(self) -> None:
        if self.view("images").tobytes() != self.before:
            self.call.emulator.report("the input changed while the network ran")
            self.results = self.compute(self.view("images").tobytes())
        for name, result in zip(("logits", "scores", "classes"), self.results, strict=True):
            self.view(name)[:] = np.frombuffer(result.tobytes(), np.uint8)

    def compute(self, data: bytes) -> list[NDArray[Any]]:
        """Row by row, because ONNX Runtime's last bits depend on the batch."""
        assert self.call.graph is not None
        images = np.frombuffer(data, np.uint8).reshape(self.call.rows, *self.call.image)
        return run_graph(self.call.graph, images)


@functools.cache
def _session(graph: str) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def run_graph(graph: str, images: NDArray[np.uint8]) -> list[NDArray[Any]]:
    """Logits, scores and classes of an ONNX graph, one image at a time."""
    session = _session(graph)
    rows = [session.run(["logits", "scores", "classes"], {"images": image[None]}) for image in images]
    return [np.concatenate(arrays) for arrays in zip(*rows, strict=True)]


_numbers = itertools.count(1)
_running: dict[int, _GraphRun] = {}


@KERNEL
def _CALLBACK(number: int, phase: int) -> None:
    run = _running[number]
    try:
        if phase == 0:
            run.begin()
        elif phase == 1:
            run.end()
    except Exception:
        run.call.emulator.report("the stand-in's kernel failed: " + traceback.format_exc(limit=-2))
    if phase and not run.captured:  # what was captured runs again
        del _running[number]
