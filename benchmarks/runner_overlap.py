"""How near the runner comes to the rate of the slowest stage, for 1 to 4 slots, beside one batch at a time.

    python benchmarks/runner_overlap.py [--batches 50]

Runs without a GPU, on the emulated CUDA driver of the tests, whose copies and network take the times given. The ideal
is the fill of the pipeline and then one batch each time the slowest stage is done.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
STAGES = ((20.0, 20.0, 20.0), (6.0, 20.0, 2.0), (20.0, 8.0, 2.0), (2.0, 5.0, 20.0))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batches", type=int, default=50)
    count = parser.parse_args().batches
    from cuda_emulator.emulator import load
    from trt_stand_in.module import make_module
    from trt_stand_in.plan import write_plan

    emulator = load()
    emulator.enable()
    sys.modules["tensorrt"] = make_module("tensorrt-11", emulator)
    from infer.backends.base import GpuOptions
    from infer.backends.tensorrt import TensorRTBackend

    images = np.zeros((32, 64, 64, 3), np.uint8)
    print(f"{count} batches; seconds, and share of the ideal rate")
    with tempfile.TemporaryDirectory() as folder:
        plan = Path(folder, "plan")
        write_plan(plan, "tensorrt-11", image=images.shape[1:], num_classes=1000, top_k=5, max_batch=len(images))
        for stages in STAGES:
            ideal = (sum(stages) + (count - 1) * max(stages)) / 1e3
            print(
                f"copy in {stages[0]:.0f}, network {stages[1]:.0f}, copy back {stages[2]:.0f} ms: ideal {ideal:.3f} s"
            )
            for slots in (0, 1, 2, 3, 4):
                with TensorRTBackend(plan, "tensorrt", options=GpuOptions(slots=max(1, slots))) as backend:
                    emulator.delays(*stages)
                    start = time.perf_counter()
                    if slots == 0:
                        for _ in range(count):
                            backend.infer(images)
                    else:
                        for _ in backend.stream(images for _ in range(count)):
                            pass
                    seconds = time.perf_counter() - start
                    emulator.delays(0, 0, 0)
                name = "one batch at a time" if slots == 0 else f"{slots} slot{'s' if slots > 1 else ''}"
                print(f"  {name:20} {seconds:.3f} s  {100 * ideal / seconds:5.1f} %")


if __name__ == "__main__":
    main()
