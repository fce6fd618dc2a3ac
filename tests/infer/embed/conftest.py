"""The library, its headers and the example, built once for the run."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest
from c_library import Library

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="session")
def built(shared_folder):
    """Prefix with the library, its headers and the example."""
    folder = shared_folder / "embed"
    with (shared_folder / "embed.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            command = [sys.executable, "-m", "infer.embed", "--prefix", shared_folder / "embed.part"]
            strict = os.environ | {"CC": "cc -Werror", "CXX": "c++ -Werror"}
            done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, env=strict)
            assert done.returncode == 0, done.stderr
            (shared_folder / "embed.part").rename(folder)
    return folder


@pytest.fixture(scope="session")
def library(built):
    """In this process, and thus in this interpreter."""
    return Library(built / "lib/libiresnet_infer.so.2")


@pytest.fixture(scope="session")
def compiled(built):
    """Compile C, or C++, against the installed headers and link it; the program."""

    def build(source, target, *flags, link=True):
        target.parent.mkdir(parents=True, exist_ok=True)
        path = target.with_suffix(".cpp" if "iresnet_infer.hpp" in source else ".c")
        path.write_text(source)
        plus = path.suffix == ".cpp"
        compiler = ("c++", "-std=c++17") if plus else ("cc", "-std=c11")
        strict = ["-pedantic", "-Wall", "-Wextra", "-Werror", "-pthread", "-D_GNU_SOURCE"]
        command = [*compiler, *strict, f"-I{built / 'include'}", path, "-o", target, *flags]
        libraries = [f"-L{built / 'lib'}", "-liresnet_infer", f"-Wl,-rpath,{built / 'lib'}"] if link else []
        subprocess.run([*command, *libraries, "-ldl"], check=True)
        return target

    return build
