"""Deliberate faults in the runner, and proof that the tests catch every one of them.

    python tests/infer/backends/cuda/mutations.py            # all, some minutes; exits non-zero when one survives
    python tests/infer/backends/cuda/mutations.py wait graph # those whose name holds one of the words

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

ROOT = Path(__file__).resolve().parents[4]
SECONDS = 1200  # for all tests on a busy machine; one that hangs is ended after 40
TESTS = (
    "device_order",
    "handing_over",
    "networks_of_all_kinds",
    "tensorrt_backend",
    "device_memory",
    "graphs_and_memory",
)
TESTS += ("failures", "availability", "overlap")


@dataclass(frozen=True)
class Mutation:
    """A fault: in ``file``, the first text of each of ``changes`` (found exactly once) becomes the second."""

    name: str
    file: str
    changes: tuple[tuple[str, str], ...]


def read_mutations(text: str) -> list[Mutation]:
    """The faults of ``mutations.txt``, whose head says how it is written."""
    found = []
    for block in re.split(r"^# ", text, flags=re.M)[1:]:
        name, file = re.match(r"(.*)\n@ (.*)\n", block).groups()  # type: ignore[union-attr]
        changes = re.findall(r"^<<<\n(.*?)\n===\n(.*?)>>>$", block, flags=re.M | re.S)
        found.append(Mutation(name, f"infer/{file}", tuple((old, new.removesuffix("\n")) for old, new in changes)))
    return found


MUTATIONS = read_mutations(Path(__file__).with_suffix(".txt").read_text())


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
    """The first test that fails with the fault, or None; a mutation without changes shows that the tests pass."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        ignore = shutil.ignore_patterns("__pycache__")
        for part in (
            "infer",
            "tests/cuda_emulator",
            "tests/trt_stand_in",
            "tests/trt_api",
            "tests/infer/backends/cuda",
        ):
            shutil.copytree(ROOT / part, root / part, ignore=ignore)
        for name in ("pyproject.toml", "tests/specs.py"):
            shutil.copy(ROOT / name, root / name)
        apply(mutant, root)
        cache = os.environ.get("CUDA_EMULATOR_CACHE") or str(ROOT / ".cache")
        environment = {**os.environ, "CUDA_EMULATOR_CACHE": cache, "PYTHONPATH": str(root)}
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "--timeout=40"]
        command += ["--timeout-method=thread", *(f"tests/infer/backends/cuda/test_{name}.py" for name in TESTS)]
        process = subprocess.run(
            command, cwd=root, env=environment, capture_output=True, text=True, timeout=SECONDS, check=False
        )
    if process.returncode == 0:
        return None
    found = re.search(r"^(?:FAILED|ERROR) (\S+)", process.stdout, re.M)
    if found:
        return found.group(1).removeprefix("tests/infer/backends/cuda/")
    frames = re.findall(
        r"tests/infer/backends/cuda/test_\w+\.py\", line \d+ in test_(\w+)", process.stdout + process.stderr
    )
    if frames:
        return f"{frames[-1]} (hangs or crashes)"
    if "Fatal Python error" in process.stderr + process.stdout or "Timeout" in process.stdout + process.stderr:
        return "the whole run (hangs or crashes)"
    raise RuntimeError(f"{mutant.name}: the tests could not run\n{process.stdout[-2000:]}{process.stderr[-2000:]}")


def main() -> int:
    """Run all mutations, or those named by words."""
    if (failure := caught_by(Mutation("no fault", "infer/__init__.py", ()))) is not None:
        raise SystemExit(f"the tests fail without any fault: {failure}")
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
