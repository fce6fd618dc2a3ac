"""The runner checked on whatever device there is, in a process of its own.

    python tests/infer/backends/cuda/gpu_check.py tensorrt | tensorrt_rtx       # a real GPU and the installed TensorRT
    python tests/infer/backends/cuda/gpu_check.py --stand-in tensorrt-10 | ...  # the emulated driver and the stand-in

The same checks either way, against ONNX Runtime on the same graph. Only the plan is made differently. Prints each check
that passed, and ends with an error at the first that does not.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[4]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
IMAGE, BATCH = (32, 32, 3), 16


class Checks:
    """All checks on one opened plan."""

    def __init__(self, backend: Any, graph: Path) -> None:
        from trt_stand_in.kernels import run_graph

        self.backend = backend
        rng = np.random.default_rng(3)
        self.batches = [
            rng.integers(0, 256, (rows, *IMAGE), np.uint8) for rows in (1, 2, 7, BATCH, BATCH - 1, 1, 3, BATCH)
        ]
        self.expected = [run_graph(str(graph), batch) for batch in self.batches]

    def close_to(self, number: int, outputs: Any) -> None:
        """The outputs of a batch are those of ONNX Runtime, but for rounding."""
        logits, scores, classes = self.expected[number]
        np.testing.assert_allclose(outputs.logits, logits, rtol=1e-3, atol=1e-3)
        np.testing.assert_allclose(outputs.scores, scores, rtol=1e-3, atol=1e-4)
        clear = logits[:, None, :] - np.take_along_axis(logits, classes.astype(np.int64), 1)[:, :, None]
        sure = (np.abs(clear) > 1e-2).sum(2) >= logits.shape[1] - 1  # no other class is as near as rounding
        np.testing.assert_array_equal(outputs.classes[sure], classes[sure])

    def infer(self) -> None:
        """One after the other, of different sizes."""
        for number, batch in enumerate(self.batches):
            self.close_to(number, self.backend.infer(batch))

    def stream(self) -> None:
        """In the background, in order."""
        for number, outputs in enumerate(self.backend.stream(self.batches)):
            self.close_to(number, outputs)

    def same_whatever_the_slot(self) -> None:
        """The same batch gives the same bits in every slot, thread and buffer."""
        batch = self.batches[3]
        first = self.backend.infer(batch)
        with ThreadPoolExecutor(8) as pool:
            for outputs in pool.map(lambda _: self.backend.infer(batch), range(64)):
                for a, b in zip(first, outputs, strict=True):
                    np.testing.assert_array_equal(a, b)

    def pinned(self) -> None:
        """Filled in place."""
        with self.backend.acquire(7) as pinned:
            pinned.images[:] = self.batches[2]
            self.close_to(2, pinned.submit().result())

    def device_memory(self) -> None:
        """Device pointers on a stream of another user of the context, and arrays in place."""
        import pycuda.driver as cuda

        from infer.backends.base import Outputs

        with device_user() as device:
            stream = cuda.Stream(1)
            for number, batch in enumerate(self.batches):
                images = cuda.mem_alloc(batch.nbytes)
                cuda.memcpy_htod(images, batch)
                cuda.Context.synchronize()  # from pageable memory, the call may return before the device has the bytes
                want = self.expected[number]
                memory = [cuda.mem_alloc(array.nbytes) for array in want]
                pointers = [int(one) for one in memory]
                self.backend.enqueue(int(images), len(batch), pointers, stream.handle).synchronize()
                host = [np.empty_like(array) for array in want]
                for array, one in zip(host, memory, strict=True):
                    cuda.memcpy_dtoh(array, one)
                self.close_to(number, Outputs(*host))
                array = CudaArray(int(images), batch.shape)
                for handle in (stream.handle, 0):
                    results = self.backend.infer_device(array, stream=handle)
                    self.close_to(number, Outputs(results.logits.get(), results.scores.get(), results.classes.get()))
                for one in (images, *memory):
                    one.free()
            del stream
            assert device is not None

    def profile(self) -> None:
        """Times are positive and add up."""
        times = self.backend.profile(self.batches[3])
        assert min(times) > 0 and times.h2d + times.compute + times.d2h <= times.total + 0.1, times


class CudaArray:
    """An array with ``__cuda_array_interface__``."""

    def __init__(self, pointer: int, shape: tuple[int, ...]) -> None:
        self.__cuda_array_interface__ = {"shape": shape, "typestr": "|u1", "data": (pointer, True), "version": 3}


class device_user:
    """Another user of the device's primary context, current in the block."""

    def __enter__(self) -> Any:
        import pycuda.driver as cuda

        self.context = cuda.Device(0).retain_primary_context()
        self.context.push()
        return self.context

    def __exit__(self, *_: object) -> None:
        from infer.backends.cuda import driver

        driver.pop_context()
        self.context.detach()


def make_plan(arguments: argparse.Namespace, folder: Path, graph: Path) -> tuple[Path, str]:
    """A plan for ``graph``, and its target."""
    plan = folder / "network.plan"
    if arguments.stand_in is not None:
        from cuda_emulator.emulator import load
        from trt_stand_in.api import VERSIONS
        from trt_stand_in.module import make_module
        from trt_stand_in.plan import write_plan

        emulator = load()
        emulator.enable()
        target = VERSIONS[arguments.stand_in][0]
        sys.modules[target] = make_module(arguments.stand_in, emulator)
        write_plan(plan, arguments.stand_in, graph=str(graph), image=IMAGE, num_classes=20, top_k=5, max_batch=BATCH)
        return plan, target
    from engine_build.targets.tensorrt import BatchProfile, PlanRequest, build_plan

    build_plan(
        arguments.target, PlanRequest(graph, plan, BatchProfile(1, BATCH // 2, BATCH), tf32=False), progress=False
    )
    return plan, arguments.target


def checks(plan: Path, target: str, graph: Path) -> Iterator[str]:
    """Run every check with and without CUDA graphs; the names of those that passed."""
    from infer.backends.base import GpuOptions
    from infer.backends.tensorrt import TensorRTBackend

    for cuda_graphs in (True, False):
        options = GpuOptions(cuda_graphs=cuda_graphs, specialization="eager")
        with TensorRTBackend(plan, target, options=options, runtime_cache=plan.with_suffix(".jit")) as backend:
            suite = Checks(backend, graph)
            for name in [name for name in vars(Checks) if not name.startswith("_") and name != "close_to"]:
                getattr(suite, name)()
                yield f"{name}, {'graphs' if cuda_graphs else 'no graphs'}, {backend.device}"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("target", nargs="?", default="tensorrt")
    parser.add_argument("--stand-in")
    arguments = parser.parse_args()
    from trt_stand_in.graph import write_graph

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        graph = folder / "small.onnx"
        write_graph(graph, IMAGE, num_classes=20, top_k=5)
        for passed in checks(*make_plan(arguments, folder, graph), graph):
            print("ok:", passed, flush=True)


if __name__ == "__main__":
    main()
