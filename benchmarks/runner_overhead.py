"""What the runner's host code costs a batch, beside a loop in the style of Polygraphy's TrtRunner.

    python benchmarks/runner_overhead.py [--batch 32] [--side 224] [--repeats 200]

Runs without a GPU, on the emulated CUDA driver of the tests, whose copies and network take fixed times (1, 4 and 1 ms).
Overhead of a batch is its wall time less those times: the calls, the wake-ups, the copy of the results. The time inside
the Python stand-in for TensorRT, which is C++ in reality, is taken off the loop's, where the device waits for it; in
the runner it is hidden behind the copy to the device. The methods take turns, and medians are printed. ``infer`` copies
the input into pinned memory, once; that copy is also timed alone.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
STAGES = (1.0, 4.0, 1.0)  # ms
LOOP, COPY = "TrtRunner-style loop", "copy of the input alone"


class TrtRunnerLoop:
    """One stream, one context, pageable memory; shapes, addresses and buffers are looked at for every batch."""

    def __init__(self, trt: Any, plan: Path) -> None:
        import pycuda.driver as cuda

        class Logger(trt.ILogger):  # type: ignore[misc]
            def log(self, severity: Any, msg: str) -> None:
                raise RuntimeError(msg)

        self.cuda, self.trt = cuda, trt
        cuda.init()
        self.context = cuda.Device(0).retain_primary_context()
        self.context.push()
        self.engine = trt.Runtime(Logger()).deserialize_cuda_engine(plan.read_bytes())
        self.execution = self.engine.create_execution_context(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        size = self.engine.device_memory_size_v2
        self.scratch = cuda.mem_alloc(size)
        self.execution.set_device_memory(int(self.scratch), size)
        self.stream = cuda.Stream()
        self.buffers: dict[str, Any] = {}

    def infer(self, feed: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """A batch by name of its input; outputs in new arrays."""
        engine, execution, outputs = self.engine, self.execution, {}
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        for name in names:
            if engine.get_tensor_mode(name) == self.trt.TensorIOMode.INPUT:
                array = np.ascontiguousarray(feed[name])
                execution.set_input_shape(name, array.shape)
                self.cuda.memcpy_htod_async(self._buffer(name, array.nbytes), array, self.stream)
        rows = len(feed[names[0]])
        for name in names:
            if engine.get_tensor_mode(name) == self.trt.TensorIOMode.OUTPUT:
                dtype = np.int32 if engine.get_tensor_dtype(name) == self.trt.DataType.INT32 else np.float32
                outputs[name] = np.empty((rows, *engine.get_tensor_shape(name)[1:]), dtype)
                self._buffer(name, outputs[name].nbytes)
            execution.set_tensor_address(name, int(self.buffers[name][0]))
        if not execution.execute_async_v3(self.stream.handle):
            raise RuntimeError("not enqueued")
        for name, array in outputs.items():
            self.cuda.memcpy_dtoh_async(array, self.buffers[name][0], self.stream)
        self.stream.synchronize()
        return outputs

    def _buffer(self, name: str, size: int) -> Any:
        if name not in self.buffers or self.buffers[name][1] < size:
            self.buffers[name] = (self.cuda.mem_alloc(size), size)
        return self.buffers[name][0]

    def close(self) -> None:
        """Free everything."""
        self.execution = self.engine = None
        self.buffers.clear()
        del self.scratch, self.stream
        from infer.backends.cuda import driver

        driver.pop_context()
        self.context.detach()


def cpu_seconds(thread: threading.Thread) -> float:
    """Processor time that a thread has used."""
    return time.clock_gettime(time.pthread_getcpuclockid(thread.ident or 0))


class Bench:
    """The methods, on one plan.

    Args:
        plan: of the stand-in.
        images: a batch.
    """

    def __init__(self, trt: Any, emulator: Any, plan: Path, images: NDArray[np.uint8]) -> None:
        from infer.backends.base import GpuOptions
        from infer.backends.tensorrt import TensorRTBackend

        self.emulator, self.images = emulator, images
        self.inside = 0.0
        original = trt.IExecutionContext._execute

        def timed(execution: Any, stream: int) -> bool:
            start = time.perf_counter()
            try:
                return bool(original(execution, stream))
            finally:
                self.inside += time.perf_counter() - start

        trt.IExecutionContext._execute = timed
        self.plain = TensorRTBackend(plan, "tensorrt", options=GpuOptions(cuda_graphs=False))
        self.graphs = TensorRTBackend(plan, "tensorrt")
        self.loop = TrtRunnerLoop(trt, plan)
        self.spare = np.empty_like(images)

    def methods(self) -> dict[str, Callable[[], object]]:
        """What to time; the first two copy the input."""
        return {
            "infer, CUDA graph": lambda: self.graphs.infer(self.images),
            "infer": lambda: self.plain.infer(self.images),
            "acquire and submit, CUDA graph": lambda: self._in_place(self.graphs),
            "acquire and submit": lambda: self._in_place(self.plain),
            LOOP: lambda: self.loop.infer({"images": self.images}),
            COPY: lambda: np.copyto(self.spare, self.images),
        }

    def _in_place(self, backend: Any) -> object:
        with backend.acquire(len(self.images)) as pinned:
            return pinned.submit().result()

    def overheads(self, repeats: int) -> dict[str, list[float]]:
        """Overhead of each run in us."""
        methods = self.methods()
        results: dict[str, list[float]] = {name: [] for name in methods}
        self.emulator.delays(*STAGES)
        for number in range(repeats + 5):
            for name, method in methods.items():
                self.inside = 0.0
                start = time.perf_counter()
                method()
                wall = time.perf_counter() - start
                device = 0.0 if name == COPY else STAGES[0] + STAGES[1] + (3 if name == LOOP else 1) * STAGES[2]
                if number >= 5:
                    results[name].append(1e6 * (wall - (self.inside if name == LOOP else 0.0)) - 1e3 * device)
        return results

    def processor_time(self, rows: int, repeats: int) -> tuple[float, float]:
        """Processor time a batch in us of the caller of ``stream`` and of the thread that finishes batches."""
        finisher = next(thread for thread in threading.enumerate() if thread is self.graphs._ring._finisher)
        before = time.thread_time(), cpu_seconds(finisher)
        for _ in self.graphs.stream([self.images[:rows]] * repeats):
            pass
        return 1e6 * (time.thread_time() - before[0]) / repeats, 1e6 * (cpu_seconds(finisher) - before[1]) / repeats

    def close(self) -> None:
        """Release everything."""
        self.emulator.delays(0, 0, 0)
        self.loop.close()
        self.plain.close()
        self.graphs.close()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--side", type=int, default=224)
    parser.add_argument("--repeats", type=int, default=200)
    options = parser.parse_args()
    from cuda_emulator.emulator import load
    from trt_stand_in.module import make_module
    from trt_stand_in.plan import write_plan

    emulator = load()
    emulator.enable()
    trt = sys.modules["tensorrt"] = make_module("tensorrt-11", emulator)
    shape = (options.side, options.side, 3)
    images = np.random.default_rng(0).integers(0, 256, (options.batch, *shape), np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        plan = Path(folder, "plan")
        write_plan(plan, "tensorrt-11", image=shape, num_classes=1000, top_k=5, max_batch=options.batch)
        bench = Bench(trt, emulator, plan, images)
        results = bench.overheads(options.repeats)
        print(f"batch {options.batch}, {options.side} px, {options.repeats} interleaved runs, overhead in us:")
        middle = {name: statistics.median(values) for name, values in results.items()}
        for name, values in results.items():
            low, _, high = statistics.quantiles(values, n=4)
            without = middle[name] - (middle[COPY] if name.startswith("infer") else 0)
            share = (
                f", without the copy {without:.0f}, {without / middle[LOOP]:.2f} of the loop" if name != COPY else ""
            )
            print(f"  {name:32} median {middle[name]:.0f}, quartiles {low:.0f} to {high:.0f}{share}")
        for rows, how in ((options.batch, "a graph"), (max(1, options.batch - 1), "no graph, so with the stand-in")):
            caller, finisher = bench.processor_time(rows, options.repeats)
            print(f"  stream of {rows} ({how}): CPU time a batch {caller:.0f} us calling, {finisher:.0f} us finishing")
        bench.close()
    print("left on the device:", {name: count for name, count in emulator.live().items() if count} or "nothing")


if __name__ == "__main__":
    main()
