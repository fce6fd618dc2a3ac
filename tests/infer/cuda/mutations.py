"""Deliberate faults in the runner, and proof that the tests catch every one of them.

    python tests/infer/cuda/mutations.py            # all, some minutes; exits non-zero when one survives
    python tests/infer/cuda/mutations.py wait graph # those whose name holds one of the words

Each fault is put into a copy of the package, then the tests of this folder run on the copy until one fails.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
SECONDS = 300


@dataclass(frozen=True)
class Mutation:
    """A fault: in ``file``, each text of ``changes`` (found exactly once) becomes the other."""

    name: str
    file: str
    changes: tuple[tuple[str, str], ...]


def mutation(name: str, file: str, *changes: tuple[str, str]) -> Mutation:
    """A fault in a file below ``infer``."""
    return Mutation(name, f"infer/{file}", changes)


MUTATIONS = [
    # Waiting and reuse
    mutation("results read without a wait", "cuda/ring.py", ("                    staging.wait()\n", "")),
    mutation(
        "buffer given back before its batch has run",
        "cuda/ring.py",
        ("                    self._launched.put(", "                    self._free.append(staging)\n                    self._launched.put("),
    ),
    mutation(
        "end recorded before the copy back",
        "cuda/slots.py",
        ("                driver.record_event(staging.done, self._handle)\n", ""),
        ("                _record(marks, 2, stream)\n", "                driver.record_event(staging.done, self._handle)\n                _record(marks, 2, stream)\n"),
    ),
    mutation("results are views of pinned memory", "cuda/staging.py", (".total].copy(), rows)", ".total], rows)")),
    mutation("no settling after a failed launch", "cuda/slots.py", ("            except BaseException:\n                self.settle()\n                raise\n\n    def settle", "            finally:\n                pass\n\n    def settle")),
    mutation("memory freed while a batch may be under way", "cuda/slots.py", ("            self.settle()  # after an error", "            pass  # after an error")),
    # Memory
    mutation(
        "pageable buffers",
        "cuda/buffers.py",
        ("cuda.pagelocked_empty(size, np.uint8)", "np.empty(size, np.uint8)"),
        ("        self._allocation.free()\n", ""),
    ),
    mutation("pinned memory freed under a view of the caller", "cuda/buffers.py", ("            return False\n", "            pass\n")),
    mutation("device memory not freed", "cuda/slots.py", ("                memory.free()\n", "                pass\n")),
    mutation("events not destroyed", "cuda/staging.py", ("        driver.destroy_event(self.done)\n", "")),
    mutation("graphs not destroyed", "cuda/graphs.py", ("        driver.destroy_executable(self._executable)\n", "")),
    mutation("one scratch memory for all slots", "cuda/session.py", ("int(self._scratch) + number * size if", "int(self._scratch) if")),
    mutation("scratch memory of the largest batch only", "cuda/engine.py", ("        return align(execution.scratch_bytes(max_batch))", "        return align(int(self._engine.device_memory_size_v2) // 2)")),
    mutation("context not released", "cuda/session.py", ("            self.context.release()\n", "            pass\n")),
    # Rows
    mutation("always the largest batch", "cuda/engine.py", ("set_input_shape(INPUT, (rows, *", "set_input_shape(INPUT, (self._engine.largest_batch, *")),
    mutation("rows beyond the batch returned", "cuda/staging.py", ("return self._layout.outputs(self.outputs[: self._layout.place(rows).total].copy(), rows)", "return self._layout.outputs(self.outputs[: self._layout.place(len(self.images)).total].copy(), len(self.images))")),
    mutation("last image not copied", "cuda/slots.py", ("staging.flat[: rows * self._layout.image_bytes]", "staging.flat[: max(1, rows - 1) * self._layout.image_bytes]")),
    mutation("all rows of the buffer copied", "cuda/slots.py", ("staging.flat[: rows * self._layout.image_bytes]", "staging.flat")),
    mutation("shape set once", "cuda/engine.py", ("        if rows != self._rows:\n", "        if not self._rows:\n")),
    # Streams
    mutation("blocking streams", "cuda/slots.py", ("cuda.Stream(driver.STREAM_NON_BLOCKING)", "cuda.Stream()")),
    mutation("copy back on another stream", "cuda/slots.py", ("staging.outputs[: at.total], self._outputs, stream)", "staging.outputs[: at.total], self._outputs)")),
    mutation("copy to the device on another stream", "cuda/slots.py", ("staging.flat[: rows * self._layout.image_bytes], stream)", "staging.flat[: rows * self._layout.image_bytes])")),
    mutation("network on the default stream", "cuda/slots.py", ("self._execution.enqueue(self._handle)", "self._execution.enqueue(1)")),
    mutation("every batch is waited for", "cuda/ring.py", ("                    staging.launch(rows)\n", "                    staging.launch(rows)\n                    staging.wait()\n")),
    mutation("one batch a slot in flight, of one slot", "cuda/session.py", ("self.ring = Ring(self.context, [one for turn in zip(*self._staging(), strict=True) for one in turn])", "self.ring = Ring(self.context, self._slots[0].staging)")),
    # Pointers of the caller
    mutation("enqueue does not wait for the slot's batch", "cuda/slots.py", ("            if self._last:\n", "            if False:\n")),
    mutation("enqueue does not wait for another enqueue", "cuda/slots.py", ("            if self._foreign:\n                driver.wait_event(target", "            if False:\n                driver.wait_event(target")),
    mutation("a batch does not wait for an enqueue", "cuda/slots.py", ("                if self._foreign:\n", "                if False:\n")),
    mutation("addresses of the last caller kept", "cuda/engine.py", ("        if bound != self._bound:\n", "        if self._bound is None:\n")),
    mutation("default stream handed to TensorRT", "cuda/slots.py", ("        default = stream <= _LAST_DEFAULT_STREAM\n", "        default = False\n")),
    mutation("default stream does not wait for the results", "cuda/slots.py", ("                driver.wait_event(stream, event)\n", "                pass\n")),
    mutation("network does not wait for the default stream", "cuda/slots.py", ("                driver.wait_event(target, event)\n", "                pass\n")),
    mutation("producer's stream not waited for", "backends/tensorrt.py", ("                self._session.order(found.stream, caller)\n", "                pass\n")),
    mutation("consumer's stream does not wait", "cuda/arrays.py", ("                driver.wait_event(stream, self._ready.handle)\n", "                pass\n")),
    mutation("result memory given back while it is held", "cuda/arrays.py", ("        self._block, self._ready, self._device = block, ready, device\n", "        self._block, self._ready, self._device = block, ready, device\n        block._pool.give_back(block._memory, block._size, block.stream)\n")),
    mutation("pointers not checked", "cuda/arrays.py", ("    if pointer % ALIGNMENT:\n", "    return\n    if pointer % ALIGNMENT:\n")),
    mutation("events shared between callers", "cuda/events.py", ("        self._pool.give_back(self.handle)\n", "        pass\n")),
    # Graphs
    mutation("captured without a first run", "cuda/graphs.py", ("        execution.enqueue(stream)\n        settle()\n", "")),
    mutation("one graph for all batch sizes", "cuda/slots.py", ("self._graphs.get(rows)", "next(iter(self._graphs.values()), None)")),
    mutation("a capture that failed is not ended", "cuda/graphs.py", ("                driver.destroy_graph(driver.end_capture(stream))\n", "                pass\n")),
    mutation("graphs for TensorRT for RTX as well", "cuda/session.py", ("        if self.engine.graphs_inside:\n            return\n", "")),
    mutation("no graphs at all", "cuda/slots.py", ("None if marks else self._graphs.get(rows)", "None")),
    # Errors
    mutation("sticky errors forgotten", "cuda/context.py", ("        if broken is None:\n", "        if broken is not None:\n")),
    mutation("no failing fast", "cuda/ring.py", ("        if self._context.failure is not None:\n            raise", "        if False:\n            raise")),
    mutation("waiting threads not told of a broken context", "cuda/ring.py", ("                self._changed.notify_all()\n\n    def hold", "                self._changed.notify()\n\n    def hold"), ("return bool(self._free) or self._closing or self._context.failure is not None", "return bool(self._free) or self._closing")),
    mutation("buffer lost after an error", "cuda/ring.py", ("        except IResNetError as error:\n            self.release(staging)\n", "        except IResNetError as error:\n")),
    mutation("a broken context freed piece by piece", "cuda/session.py", ("            broken = self.context.failure is not None\n", "            broken = False\n")),
    mutation("close does not wait", "cuda/ring.py", ("            self._changed.wait_for(self._all_home)\n", "            pass\n")),
    mutation("nothing closes at exit", "backends/tensorrt.py", ("        self._finalizer = weakref.finalize(self, session.close)\n", "        self._finalizer = weakref.finalize(self, int)\n")),
    mutation("context left current", "cuda/context.py", ("        self._cuda.Context.pop()\n", "        pass\n")),
    mutation("a context of its own", "cuda/context.py", ("device.retain_primary_context()", "device.make_context()")),
    mutation("short memory is an error", "cuda/session.py", ("            except (cuda.MemoryError, DeviceMemoryError) as error:\n", "            except ZeroDivisionError as error:\n")),
    mutation("the driver is not asked first", "backends/tensorrt.py", ("    if (missing := driver.find_device(device)) is not None:\n        return missing\n", "")),
    mutation("kernels of TensorRT for RTX not kept", "cuda/engine.py", ("            config.set_runtime_cache(self._cache)\n", "")),
]  # fmt: skip


def apply(mutant: Mutation, root: Path) -> None:
    """Put the fault into the copy at ``root``; raises ValueError when the code has moved on."""
    path = root / mutant.file
    text = path.read_text()
    for old, new in mutant.changes:
        if text.count(old) != 1:
            raise ValueError(f"{mutant.name}: expected once in {mutant.file}, found {text.count(old)} times:\n{old}")
        text = text.replace(old, new)
    path.write_text(text)


def caught_by(mutant: Mutation) -> str | None:
    """The first test that fails with the fault, or None."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        ignore = shutil.ignore_patterns("__pycache__")
        for part in ("infer", "tests/cuda_emulator", "tests/trt_stand_in", "tests/trt_api", "tests/infer/cuda"):
            shutil.copytree(ROOT / part, root / part, ignore=ignore)
        shutil.copy(ROOT / "pyproject.toml", root)
        apply(mutant, root)
        cache = os.environ.get("CUDA_EMULATOR_CACHE") or str(ROOT / ".cache")
        environment = {**os.environ, "CUDA_EMULATOR_CACHE": cache, "PYTHONPATH": str(root)}
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-x",
            "-q",
            "-p",
            "no:cacheprovider",
            "--timeout=40",
            "tests/infer/cuda",
        ]
        command += ["--timeout-method=thread", "--deselect", "tests/infer/cuda/test_mutations.py"]
        process = subprocess.run(
            command, cwd=root, env=environment, capture_output=True, text=True, timeout=SECONDS, check=False
        )
    if process.returncode == 0:
        return None
    found = re.search(r"^(?:FAILED|ERROR) (\S+)", process.stdout, re.M)
    if found:
        return found.group(1).removeprefix("tests/infer/cuda/")
    frames = re.findall(r"tests/infer/cuda/test_\w+\.py\", line \d+ in test_(\w+)", process.stdout + process.stderr)
    if frames:
        return f"{frames[-1]} (hangs or crashes)"
    if "Fatal Python error" in process.stderr + process.stdout or "Timeout" in process.stdout + process.stderr:
        return "the whole run (hangs or crashes)"
    raise RuntimeError(f"{mutant.name}: the tests could not run\n{process.stdout[-2000:]}{process.stderr[-2000:]}")


def main() -> int:
    """Run all mutations, or those named by words."""
    words = sys.argv[1:]
    chosen = [one for one in MUTATIONS if not words or any(word in one.name for word in words)]
    survivors = []
    for one in chosen:
        start = time.perf_counter()
        test = caught_by(one)
        print(
            f"{'SURVIVED' if test is None else 'caught'}: {one.name}: {test} ({time.perf_counter() - start:.0f} s)",
            flush=True,
        )
        if test is None:
            survivors.append(one.name)
    print(f"{len(chosen) - len(survivors)} of {len(chosen)} caught")
    return 1 if survivors else 0


if __name__ == "__main__":
    raise SystemExit(main())
