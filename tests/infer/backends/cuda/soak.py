"""Many batches from many threads with random sizes and failing calls; a test runs a short one.

    python tests/infer/backends/cuda/soak.py [--batches 10000] [--threads 8] [--seed 1]

Every answer is compared bit for bit with what numpy makes of the same images. Prints batches, failures, what is left on
the device and how much the process grew.
"""

from __future__ import annotations

import argparse
import random
import resource
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).resolve().parents[4])]

PLAIN = ("cuMemcpyHtoDAsync_v2", "emu_launch", "cuMemcpyDtoHAsync_v2", "cuEventRecord", "cuEventSynchronize")
"""The driver calls of a batch without a graph; ``emu_launch`` is the network."""


def soak(stack: Any, *, batches: int, threads: int, seed: int) -> tuple[int, int]:
    """Good and failed batches.

    Raises:
        AssertionError: a wrong answer, a hanging thread, a batch that got lost, or something left on the device.
    """
    from infer.errors import DeviceError

    good, bad, wrong = [0] * threads, [0] * threads, []
    emulator, before = stack.emulator, stack.emulator.live()
    with stack.open(stack.write(), slots=3) as backend:
        opened = emulator.live()
        pool = [(images, stack.expected(images)) for images in (stack.images(n % 8 + 1, n) for n in range(32))]

        def work(number: int) -> None:
            rng = random.Random(seed * 1000 + number)
            for _ in range(batches // threads):
                images, want = rng.choice(pool)
                if rng.random() < 0.03:
                    emulator.fail(rng.choice((*PLAIN, "cuGraphLaunch")), skip=rng.randrange(3))
                try:
                    way = rng.randrange(3)
                    if way == 0:
                        outputs = backend.infer(images)
                    elif way == 1:
                        outputs = backend.submit(images).result(60)
                    else:
                        with backend.acquire(len(images), timeout=60) as pinned:
                            pinned.images[:] = images
                            outputs = pinned.submit().result(60)
                except DeviceError:
                    bad[number] += 1
                    continue
                good[number] += 1
                if not all(np.array_equal(a, b) for a, b in zip(outputs, want, strict=True)):
                    wrong.append((number, len(images)))

        workers = [threading.Thread(target=work, args=(n,), daemon=True) for n in range(threads)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(600)
            assert not worker.is_alive(), "a thread hangs"
        emulator.fail_clear()
        assert wrong == []
        assert sum(good) + sum(bad) == threads * (batches // threads), "a thread died"
        assert emulator.live() == opened, "it grew"
    assert emulator.live() == before
    return sum(good), sum(bad)


def main() -> None:
    """Run under each version of TensorRT."""
    import pytest
    from conftest import VERSIONS, load, make_stack

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batches", type=int, default=10_000)
    parser.add_argument("--threads", type=int, default=8)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    emulator = load()
    emulator.enable()
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        for key in VERSIONS:
            stack = make_stack(key, emulator, Path(folder), patch)
            soak(stack, batches=options.threads, threads=options.threads, seed=0)  # first-time allocations
            memory, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
            good, bad = soak(stack, batches=options.batches, threads=options.threads, seed=options.seed)
            grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory
            left = {name: count for name, count in emulator.live().items() if count}
            print(
                f"{key}: {good} batches right, {bad} failed as asked, none wrong, {time.perf_counter() - start:.1f} s, "
                f"grew by {grown} KiB, left on the device: {left or 'nothing'}, hazards: {emulator.hazards() or 'none'}"
            )


if __name__ == "__main__":
    main()
