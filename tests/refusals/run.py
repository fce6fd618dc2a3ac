"""Refuse every change of a file that the commands make, one after the other, and see how they end.

    python tests/refusals/run.py [--commands classify verify ...] [--every N] [--bundles engines]

The disk is full, permission is denied, memory is short, or SIGTERM comes: at the n-th opening, write, close, rename,
for every n (see refuse.c). Each time the command must end with one line and an exit code that says so, leave no
half-written file, and what it did not replace must be as before; an interrupted ``classify`` must give the very same
rows when it is resumed. Prints how many points were tried; the exit code is 1 where one was wrong. The test suite tries
some of them.

Each try is a fork of one process that has the modules loaded, so it costs what the command itself does.
"""

from __future__ import annotations

import argparse
import ctypes
import errno
import io
import os
import shutil
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).parent
KINDS = {"disk": errno.ENOSPC, "permission": errno.EACCES, "memory": errno.ENOMEM, "signal": 0}
MODEL = "iresnet50_fashion"
DONE = (1, 2, 3, 4, 143)
#: What may be missing or old after a command that says that it succeeded: it makes the next run faster.
CACHES = ("known_answers.passed", "openvino.cache", "tensorrt_rtx.jit")


@dataclass(frozen=True)
class Case:
    """A command.

    Attributes:
        words: with {bundles} for the folder of bundles, {data} for images and {out} for the folder of what it makes.
        codes: exit codes when nothing is refused.
        resumes: ``--resume`` goes on where it was interrupted.
    """

    words: tuple[str, ...]
    codes: tuple[int, ...] = (0,)
    resumes: bool = False


CASES = {
    "classify": Case(("classify", "{bundles}/B-fp32", "{data}", "-o", "{out}/rows.jsonl"), resumes=True),
    "classify-csv": Case(("classify", "{bundles}/B-fp32", "{data}", "-o", "{out}/rows.csv"), resumes=True),
    "classify-parquet": Case(("classify", "{bundles}/B-fp32", "{data}", "-o", "{out}/rows.parquet"), resumes=True),
    "verify": Case(
        ("verify", "{bundles}/B-fp16", "--data", "{data}", "--csv", "{out}/x.csv", "--report", "{out}/x.html"),
        codes=(4,),
    ),
    "bench": Case(
        ("bench", "{bundles}/B-fp32", "--duration", "0", "--iterations", "1", "--warm-up", "0", "--batch", "1",
         "--in-flight", "1", "--csv", "{out}/b.csv", "--plot", "{out}/b.svg"),
    ),
    "triton": Case(("export", "triton", "{bundles}/B-fp32", "{out}/repository", "--target", "onnxruntime")),
    "calibrate": Case(("calibrate", "-m", MODEL, "--limit", "8", "-o", "{out}/x.calibration")),
    "build": Case(("build", "-m", MODEL, "-p", "fp16", "-t", "openvino", "-o", "{out}/bundle")),
}  # fmt: skip


@dataclass
class Result:
    """How one try ended."""

    code: int
    err: str
    count: int
    wrong: list[str] = field(default_factory=list)


def compile_shim(folder: Path) -> Path:
    """refuse.so, compiled."""
    shim = folder / "refuse.so"
    command = ["cc", "-O1", "-shared", "-fPIC", "-o", str(shim), str(HERE / "refuse.c"), "-ldl"]
    subprocess.run(command, check=True)
    return shim


class Bench:
    """Tries commands in forks of this process, which must run under the shim.

    Args:
        bundles: folder with fp32 and fp16 bundles of :data:`MODEL`.
        data: images in class folders.
    """

    def __init__(self, bundles: Path, data: Path) -> None:
        self.bundles, self.data = bundles, data
        self.shim = ctypes.CDLL(os.environ["LD_PRELOAD"])
        self.shim.refuse_count.restype = ctypes.c_long
        preload()

    def attempt(self, case: Case, n: int, kind: str, folder: Path, *more: str) -> Result:
        """Run ``case`` with the n-th change refused, -1 for none, in ``folder``, which is made if it is not there."""
        if not folder.exists():
            for precision in ("fp32", "fp16"):
                shutil.copytree(self.bundles / f"{MODEL}-{precision}", folder / f"bundles/B-{precision}")
            (folder / "bundles" / f"{MODEL}-fp32").symlink_to("B-fp32")
            (folder / "out").mkdir()
        places = {"bundles": folder / "bundles", "data": self.data, "out": folder / "out"}
        words = [word.format(**places) for word in case.words]
        read, write = os.pipe()
        with tempfile.TemporaryFile() as log:
            if (child := os.fork()) == 0:
                code = 99
                try:
                    os.chdir(folder)
                    os.environ["IRESNET_CACHE"] = str(folder / "cache")
                    os.dup2(log.fileno(), 2)
                    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
                    sys.stdout = os.fdopen(1, "w", closefd=False)
                    self.shim.refuse_set(os.fsencode(folder.resolve()), ctypes.c_long(n), KINDS[kind])
                    code = run_words([*words, *more])
                finally:
                    os.write(write, str(self.shim.refuse_count()).encode())
                    os._exit(code)
            os.close(write)
            _, status = os.waitpid(child, 0)
            with os.fdopen(read) as pipe:
                count = int(pipe.read() or -1)
            log.seek(0)
            return Result(os.waitstatus_to_exitcode(status), log.read().decode(), count)

    def check(self, name: str, n: int, kind: str, folder: Path, whole: Path) -> Result:
        """:meth:`attempt`, and everything that is wrong with how it ended; ``whole`` is what nothing was refused in."""
        case = CASES[name]
        found = self.attempt(case, n, kind, folder)
        err = [line for line in found.err.splitlines() if line]
        if "Traceback" in found.err or "Exception ignored" in found.err:
            found.wrong.append("a traceback")
        half = [str(path.relative_to(folder)) for path in folder.rglob("*") if is_half(path)]
        if half:
            found.wrong.append(f"half-written files stay: {half}")
        before, after = listing(whole / "out"), listing(folder / "out")
        if found.code in case.codes and kind != "signal":
            if after != before:  # it went on without a cache, so nothing else may be missing
                found.wrong.append(f"it succeeded, but there is {sorted(after)}, expected {sorted(before)}")
        elif found.code not in (*DONE, *case.codes):
            found.wrong.append(f"exit code {found.code}")
        elif found.code not in case.codes:
            lines = [line for line in err if line.startswith("error: ") or line in ("terminated", "cancelled")]
            if len(lines) != 1:
                found.wrong.append(f"{len(lines)} lines that say why")
            if kind == "signal" and found.code != 143:
                found.wrong.append(f"exit code {found.code} after SIGTERM")
            partial = {part for part in after if ".partial/" in part}
            if case.resumes and not partial and after and after != before:
                found.wrong.append(f"neither rows to resume nor all of them: {sorted(after)}")
            if not case.resumes and not after <= before:
                found.wrong.append(f"other files: {sorted(after - before)}")
        if case.resumes and not found.wrong and found.code not in case.codes:
            again = self.attempt(case, -1, kind, folder, "--resume")
            same = again.code == 0 and contents(folder / "out") == contents(whole / "out")
            if not same:
                found.wrong.append(f"resumed: code {again.code}, other rows; {again.err[-300:]}")
        return found


def run_words(words: list[str]) -> int:
    """Run a command as its door does; its exit code."""
    from engine_build.command import app
    from infer.entry import run_app

    sys.argv = ["iresnet", *words]
    try:
        run_app(app, "iresnet")
    except SystemExit as end:
        sys.stderr.flush()
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        return 98


def preload() -> None:
    """Load what every command loads, but start no engine: threads do not survive a fork."""
    import matplotlib.figure  # noqa: F401
    import onnx  # noqa: F401
    import onnxruntime  # noqa: F401
    import pyarrow.parquet  # noqa: F401
    import torch  # noqa: F401

    import infer.cli  # noqa: F401


def is_half(path: Path) -> bool:
    """Whether a file has a temporary name; those of a partial output are there to be resumed."""
    return path.name.endswith((".tmp", ".old")) and not any(part.endswith(".partial") for part in path.parts)


def listing(folder: Path) -> set[str]:
    """Files below ``folder``, without caches."""
    names = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return {str(name) for name in names if not set(CACHES) & set(name.parts)}


def contents(folder: Path) -> dict[str, bytes]:
    """Files and what is in them."""
    return {name: (folder / name).read_bytes() for name in listing(folder)}


def sweep(bench: Bench, names: list[str], every: int, say: Callable[[str], None]) -> tuple[int, int]:
    """Try the commands at every ``every``-th change for every kind; how many points, and how many were wrong."""
    tried = wrong = 0
    for name in names:
        with tempfile.TemporaryDirectory() as scratch:
            whole = Path(scratch, "whole")
            calm = bench.attempt(CASES[name], -1, "disk", whole)
            if calm.code not in CASES[name].codes:
                raise SystemExit(f"{name} fails by itself: {calm.err}")
            here = 0
            for kind in KINDS:
                for n in range((list(KINDS).index(kind) * 7) % every, calm.count, every):
                    folder = Path(scratch, "try")
                    found = bench.check(name, n, kind, folder, whole)
                    shutil.rmtree(folder)
                    here += 1
                    if found.wrong:
                        wrong += 1
                        say(f"WRONG {name} {kind} {n} of {calm.count}: {'; '.join(found.wrong)}\n{found.err[-800:]}")
            tried += here
            say(f"{name}: {calm.count} changes, {here} points tried")
    return tried, wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--commands", nargs="*", default=list(CASES), choices=list(CASES))
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--bundles", type=Path, default=Path("engines"))
    parser.add_argument("--data", type=Path, required=True, help="some images in class folders")
    arguments = parser.parse_args()
    if "refuse.so" not in os.environ.get("LD_PRELOAD", ""):
        folder = Path(tempfile.mkdtemp())
        os.environ["LD_PRELOAD"] = str(compile_shim(folder))
        os.execv(sys.executable, [sys.executable, *sys.argv])
    bench = Bench(arguments.bundles.resolve(), arguments.data.resolve())
    tried, wrong = sweep(bench, arguments.commands, arguments.every, lambda line: print(line, flush=True))
    print(f"{tried} points tried, {wrong} wrong")
    sys.exit(wrong > 0)


if __name__ == "__main__":
    sys.stdout = io.TextIOWrapper(os.fdopen(os.dup(1), "wb"), "utf-8", line_buffering=True)
    main()
