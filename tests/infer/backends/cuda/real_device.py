"""The runner's use of memory, streams, events and graphs on a real GPU, with torch beside it.

    python tests/infer/backends/cuda/real_device.py [--key tensorrt-10] [--rounds 300] [--cycles 200000]

No TensorRT is needed: the stand-in launches a kernel of its own on the runner's real streams, slow enough that whoever
reads too early, or writes too early, is found out. Each result is compared, bit for bit, with numpy. Prints each check
with its figures; the exit code is 1 where one failed. Under ``compute-sanitizer`` take few rounds.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[4]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
IMAGE, CLASSES, TOP, BATCH = (64, 64, 3), 20, 5, 16


class Checks:
    """All checks on one opened plan."""

    def __init__(self, backend: Any, device: Any, rounds: int) -> None:
        import torch
        from trt_stand_in.rows import hash_rows

        self.torch, self.backend, self.device, self.rounds = torch, backend, device, rounds
        rng = np.random.default_rng(3)
        self.batches = [rng.integers(0, 256, (rows, *IMAGE), np.uint8) for rows in (1, 2, 7, 16, 15, 1, 3, 16)]
        self.expected = [hash_rows(batch, CLASSES, TOP) for batch in self.batches]

    def same(self, number: int, outputs: Any) -> None:
        """Logits, scores and classes of a batch, bit for bit."""
        for found, wanted in zip(outputs, self.expected[number], strict=True):
            np.testing.assert_array_equal(np.asarray(found), wanted)

    def host_batches(self) -> str:
        """Batches from host memory, eight threads at once."""
        failures: list[BaseException] = []

        def work(seed: int) -> None:
            rng = np.random.default_rng(seed)
            try:
                for number in rng.integers(0, len(self.batches), self.rounds):
                    self.same(number, self.backend.infer(self.batches[number]))
            except BaseException as error:
                failures.append(error)

        _together(work, 8)
        if failures:
            raise failures[0]
        return f"{8 * self.rounds} batches from 8 threads"

    def device_batches_on_side_streams(self) -> str:
        """torch tensors in, DLPack out, each thread on a stream of its own."""
        torch, failures = self.torch, []

        def work(seed: int) -> None:
            rng, stream = np.random.default_rng(seed), torch.cuda.Stream()
            try:
                with torch.cuda.stream(stream):
                    for number in rng.integers(0, len(self.batches), self.rounds):
                        images = torch.from_numpy(self.batches[number]).to("cuda", non_blocking=True)
                        results = self.backend.infer_device(images, stream=stream.cuda_stream)
                        del images  # the runner keeps it as long as it is read
                        found = [torch.from_dlpack(a) for a in (results.logits, results.scores, results.classes)]
                        del results
                        self.same(number, [tensor.cpu().numpy() for tensor in found])
            except BaseException as error:
                failures.append(error)

        _together(work, 4)
        if failures:
            raise failures[0]
        return f"{4 * self.rounds} batches on 4 streams"

    def results_outlive_late_readers(self) -> str:
        """A consumer on another stream reads long after it was handed the result, and the result was dropped."""
        torch = self.torch
        reader, own = torch.cuda.Stream(), self.backend.own_stream()
        inputs = [torch.from_numpy(batch).cuda() for batch in self.batches]
        torch.cuda.synchronize()
        waiting: list[tuple[int, Any]] = []
        for turn in range(self.rounds):
            number = turn % len(inputs)
            results = self.backend.infer_device(inputs[number], stream=own)
            with torch.cuda.stream(reader):
                logits = torch.from_dlpack(results.logits)
                torch.cuda._sleep(300_000)  # the read comes late
                waiting.append((number, logits.clone()))
                del logits, results  # the block may be used again, but not before the clone
        torch.cuda.synchronize()
        for number, copy in waiting:
            np.testing.assert_array_equal(copy.cpu().numpy(), self.expected[number][0])
        return f"{len(waiting)} late reads"

    def inputs_outlive_their_owner(self) -> str:
        """The caller drops its input at once, and torch gives that memory to others."""
        torch, own = self.torch, self.backend.own_stream()
        wrong = 0
        for turn in range(self.rounds):
            number = turn % len(self.batches)
            images = torch.from_numpy(self.batches[number]).cuda()
            torch.cuda.current_stream().synchronize()
            results = self.backend.infer_device(images, stream=own)
            del images
            classes = results.classes
            del results
            spoiled = torch.full((BATCH, *IMAGE), 255, dtype=torch.uint8, device="cuda")
            found = torch.from_dlpack(classes).cpu().numpy()
            wrong += not np.array_equal(found, self.expected[number][2])
            del spoiled
        assert not wrong, f"{wrong} of {self.rounds} results of overwritten inputs"
        return f"{self.rounds} dropped inputs"

    def enqueue_on_a_callers_stream(self) -> str:
        """Device addresses and a stream of the caller's, an event back; with torch's allocator around it."""
        torch, stream = self.torch, self.torch.cuda.Stream()
        for turn in range(self.rounds):
            number = turn % len(self.batches)
            rows = len(self.batches[number])
            with torch.cuda.stream(stream):
                images = torch.from_numpy(self.batches[number]).cuda()
                outputs = [
                    torch.empty((rows, CLASSES), device="cuda"),
                    torch.empty((rows, TOP), device="cuda"),
                    torch.empty((rows, TOP), device="cuda", dtype=torch.int32),
                ]
                pointers = [tensor.data_ptr() for tensor in outputs]
                event = self.backend.enqueue(images.data_ptr(), rows, pointers, stream.cuda_stream)
            event.synchronize()
            self.same(number, [tensor.cpu().numpy() for tensor in outputs])
        return f"{self.rounds} batches"

    def a_fork_touches_nothing(self) -> str:
        """A child drops the inherited engine and ends; the parent goes on."""
        from infer.forks import Owner

        owner = Owner(self.backend)
        if (child := os.fork()) == 0:
            code = 1
            try:
                code = 0 if not owner.is_here else 2
                del self.backend
            finally:
                os._exit(code)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 0
        self.same(3, self.backend.infer(self.batches[3]))
        return "one child"

    def latency_of_one_image(self) -> str:
        """Medians in us, on the host, of a call at batch 1; the kernel's waiting taken out."""
        torch, before = self.torch, self.device.cycles
        self.device.cycles = 0
        try:
            image = self.batches[0]
            stream = torch.cuda.Stream()
            tensor = torch.from_numpy(image).cuda()
            torch.cuda.synchronize()

            def on_device() -> None:
                self.backend.infer_device(tensor, stream=stream.cuda_stream)

            def with_results() -> None:
                on_device()
                stream.synchronize()

            calls = {"infer": lambda: self.backend.infer(image), "infer_device": on_device, "and waited": with_results}
            return ", ".join(f"{name} {_median(call):.1f} us" for name, call in calls.items())
        finally:
            self.device.cycles = before


def _together(work: Callable[[int], None], count: int) -> None:
    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _median(call: Callable[[], object], runs: int = 500) -> float:
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        call()
        times.append(1e6 * (time.perf_counter() - start))
    return statistics.median(times)


def closing_while_others_call(open_backend: Callable[[], Any], checks: Checks) -> str:
    """``close`` while threads use the device path: errors of ours or right results, and the context stays sound."""
    from infer.errors import IResNetError

    torch = checks.torch
    done = refused = 0
    for _ in range(5):
        backend = open_backend()
        counts = [0, 0]
        wrong: list[BaseException] = []

        def work(
            seed: int, backend: Any = backend, counts: list[int] = counts, wrong: list[BaseException] = wrong
        ) -> None:
            stream = torch.cuda.Stream()
            tensor = torch.from_numpy(checks.batches[seed]).cuda()
            torch.cuda.synchronize()
            while True:
                try:
                    results = backend.infer_device(tensor, stream=stream.cuda_stream)
                    with torch.cuda.stream(stream):
                        found = torch.from_dlpack(results.classes).cpu().numpy()
                    np.testing.assert_array_equal(found, checks.expected[seed][2])
                    counts[0] += 1
                except IResNetError:
                    counts[1] += 1
                    return
                except BaseException as error:
                    wrong.append(error)
                    return

        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        time.sleep(0.05)
        backend.close()
        for thread in threads:
            thread.join(30)
        if wrong:
            raise wrong[0]
        assert not any(thread.is_alive() for thread in threads), "a thread hangs"
        done, refused = done + counts[0], refused + counts[1]
    torch.cuda.synchronize()  # the context would be broken by a use after free
    return f"{done} right results, {refused} refused calls over five closings"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--key", default="tensorrt-10")
    parser.add_argument("--rounds", type=int, default=300)
    parser.add_argument("--cycles", type=int, default=200_000)
    arguments = parser.parse_args()
    import torch
    from trt_stand_in.api import VERSIONS
    from trt_stand_in.on_gpu import install
    from trt_stand_in.plan import write_plan

    torch.zeros(1, device="cuda")
    device = install(arguments.key, arguments.cycles)
    from infer.backends.base import GpuOptions
    from infer.backends.tensorrt import TensorRTBackend

    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        plan = Path(folder, "network.plan")
        sizes: dict[str, Any] = {"image": IMAGE, "num_classes": CLASSES, "top_k": TOP, "max_batch": BATCH}
        write_plan(plan, arguments.key, **sizes)
        for graphs in (True, False):
            options = GpuOptions(cuda_graphs=graphs, specialization="eager")

            def open_backend(options: GpuOptions = options) -> Any:
                return TensorRTBackend(plan, VERSIONS[arguments.key][0], options=options)

            with open_backend() as backend:
                checks = Checks(backend, device, arguments.rounds)
                names = [n for n in vars(Checks) if not n.startswith("_") and n != "same"]
                todo: list[tuple[str, Callable[[], str]]] = [(name, getattr(checks, name)) for name in names]
                todo.append(
                    ("closing_while_others_call", lambda c=checks, o=open_backend: closing_while_others_call(o, c))
                )
                for name, check in todo:
                    start = time.perf_counter()
                    try:
                        said = check()
                    except Exception:
                        failed += 1
                        print(f"FAILED {name}, graphs {graphs}:\n{traceback.format_exc(limit=-4)}", flush=True)
                    else:
                        seconds = time.perf_counter() - start
                        print(f"ok: {name}, graphs {graphs}: {said} ({seconds:.1f} s)", flush=True)
    for text in sorted(set(device.reports)):
        failed += 1
        print(f"FAILED the stand-in reports: {text}")
    print(f"{arguments.key}: {failed} failed on {torch.cuda.get_device_name()}")
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
