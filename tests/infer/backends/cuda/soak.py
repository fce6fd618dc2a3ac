"""Many batches from many threads with random sizes, a quarter of them in device memory, failing calls, and the runner
closed and opened anew meanwhile; a test runs a short one.

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
from device_user import Device, Interface

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).resolve().parents[4])]

from infer.backends.cuda import dlpack, driver
from infer.errors import DeviceError, InputError

PLAIN = ("cuMemcpyHtoDAsync_v2", "emu_launch", "cuMemcpyDtoHAsync_v2", "cuEventRecord", "cuEventSynchronize")
"""The driver calls of a batch without a graph; ``emu_launch`` is the network."""


class Swapped:
    """The backend that all threads use; now and then another one is opened in its place and it is closed."""

    def __init__(self, stack: Any, path: Path) -> None:
        self._stack, self._path, self._lock = stack, path, threading.Lock()
        self.swaps = 0
        self.now = self._open()

    def _open(self) -> Any:
        return self._stack.open(self._path, slots=3)

    def swap(self) -> None:
        """Raises DeviceError where the opening met a failure; the old one then stays."""
        with self._lock:
            old, self.now = self.now, self._open()
            self.swaps += 1
        old.close()


class Reader:
    """A thread that runs batches in device memory and reads results late, on a stream of its own.

    Args:
        device: a user of the same context, current on the thread that makes this.
        pool: images on the device, as many on the host, and what they give.
    """

    def __init__(self, device: Device, pool: list[tuple[Interface, Any]]) -> None:
        self.device, self.pool = device, pool
        self.stream, self.reader = device.stream(), device.stream()
        self.hosts = [device.cuda.pagelocked_empty((8, 10), np.float32) for _ in range(3)]
        self.late: list[tuple[Any, Any]] = []

    def run(self, backend: Any, number: int) -> None:
        """Enqueue a batch and the copy of its logits, and give the results up."""
        array, want = self.pool[number]
        host = self.hosts[len(self.late)][: len(want)]
        results = backend.infer_device(array, stream=self.stream.handle)
        foreign = dlpack.read_capsule(results.logits.__dlpack__(stream=self.reader.handle))
        self.device.cuda.memcpy_dtoh_async(host, foreign.pointer, self.reader)
        self.late.append((host, want))

    def right(self) -> bool:
        """Wait for what is under way; whether it is as expected. Called when no host buffer is free, and at the end."""
        self.reader.synchronize()
        right = all(np.array_equal(host, want) for host, want in self.late)
        self.late.clear()
        return right


def soak(stack: Any, *, batches: int, threads: int, seed: int) -> tuple[int, int, int]:
    """Good batches, failed ones, and how often the backend was opened anew while batches were under way.

    Raises:
        AssertionError: a wrong answer, a hanging thread, a batch that got lost, or something left on the device.
    """
    good, bad, wrong, lost = [0] * threads, [0] * threads, [], []
    emulator, before = stack.emulator, stack.emulator.live()
    device = Device()
    shared = Swapped(stack, stack.write())
    pool = [(images, stack.expected(images)) for images in (stack.images(n % 8 + 1, n) for n in range(32))]
    on_device = [(Interface(device.upload(images), images.shape), want[0]) for images, want in pool]
    readers = [Reader(device, on_device) for _ in range(threads)]
    context = driver.current_context()

    def batch(rng: random.Random, reader: Reader) -> bool:
        """Run one in one of four ways; whether the answer is right."""
        backend, number, way = shared.now, rng.randrange(len(pool)), rng.randrange(4)
        images, want = pool[number]
        if way == 0:
            reader.run(backend, number)
            return len(reader.late) < len(reader.hosts) or reader.right()
        if way == 1:
            outputs = backend.infer(images)
        elif way == 2:
            outputs = backend.submit(images).result(60)
        else:
            with backend.acquire(len(images), timeout=60) as pinned:
                pinned.images[:] = images
                outputs = pinned.submit().result(60)
        return all(np.array_equal(a, b) for a, b in zip(outputs, want, strict=True))

    def work(number: int) -> None:
        rng, reader = random.Random(seed * 1000 + number), readers[number]
        assert driver.push_context(context) == 0
        done = 0
        while done < batches // threads:
            try:
                if rng.random() < 0.03:
                    emulator.fail(rng.choice((*PLAIN, "cuGraphLaunch")), skip=rng.randrange(3))
                if rng.random() < 0.004:
                    shared.swap()
                if batch(rng, reader):
                    good[number] += 1
                else:
                    wrong.append(number)
            except InputError as error:  # closed by another thread: the next one is there
                if "closed" not in str(error):
                    lost.append(error)
                    return
                continue
            except (DeviceError, device.cuda.Error):
                bad[number] += 1
            done += 1
        if not reader.right():
            wrong.append(number)
        driver.pop_context()

    workers = [threading.Thread(target=work, args=(n,), daemon=True) for n in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(600)
        assert not worker.is_alive(), "a thread hangs"
    emulator.fail_clear()
    shared.now.close()
    assert (wrong, lost) == ([], [])
    assert sum(good) + sum(bad) == threads * (batches // threads), "a thread died"
    readers.clear()  # their streams and memory go before the context
    device.close()
    assert emulator.live() == before
    return sum(good), sum(bad), shared.swaps


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
            good, bad, swaps = soak(stack, batches=options.batches, threads=options.threads, seed=options.seed)
            grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory
            left = {name: count for name, count in emulator.live().items() if count}
            print(
                f"{key}: {good} batches right, {bad} failed as asked, none wrong, opened {swaps} times meanwhile, "
                f"{time.perf_counter() - start:.1f} s, "
                f"grew by {grown} KiB, left on the device: {left or 'nothing'}, hazards: {emulator.hazards() or 'none'}"
            )


if __name__ == "__main__":
    main()
