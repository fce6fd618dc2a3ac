"""Compiling the C library and the example with the compilers of this machine."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import sysconfig
from pathlib import Path

import infer
from infer.errors import MissingDependencyError, UnsupportedError

HERE = Path(__file__).resolve().parent
HEADERS = ("iresnet_infer.h", "iresnet_infer.hpp")
SOURCES = ("library.c", "interpreter.c", "environment.c", "runners.c")
LIBRARY = "libiresnet_infer.so"


def abi_version() -> int:
    """Of the header."""
    found = re.search(r"#define IRESNET_ABI_VERSION (\d+)", (HERE / HEADERS[0]).read_text(encoding="utf-8"))
    assert found is not None
    return int(found[1])


def compile_library(target: Path) -> None:
    """Compile the library against the Python that runs this.

    Raises:
        MissingDependencyError: no C compiler, or no headers of Python.
        UnsupportedError: this Python has no shared library, or the sources do not compile.
    """
    folder, name = sysconfig.get_config_var("LIBDIR"), sysconfig.get_config_var("INSTSONAME")
    if not sysconfig.get_config_var("Py_ENABLE_SHARED"):
        raise UnsupportedError(f"{sys.executable} has no shared library to embed; use a Python built --enable-shared")
    include = sysconfig.get_path("include")
    if not Path(include, "Python.h").is_file():
        raise MissingDependencyError(f"{include}: expected Python.h; install the headers of Python (python3-dev)")
    constants = {"IRESNET_VERSION": infer.__version__, "IRESNET_LIBPYTHON": name}
    exports = target.with_suffix(".map")
    exports.write_text("{ global: iresnet_*; local: *; };\n", encoding="utf-8")
    _run(
        [
            *os.environ.get("CC", "cc").split(), "-std=gnu11", "-O2", "-Wall", "-Wextra", "-fPIC", "-shared",
            "-pthread", f"-ffile-prefix-map={HERE}=.",
            *(f"-D{key}={json.dumps(value)}" for key, value in constants.items()),
            f"-I{HERE}", f"-I{include}", *(str(HERE / source) for source in SOURCES), "-o", str(target),
            f"-L{folder}", f"-l{name.removeprefix('lib').split('.so')[0]}", f"-Wl,-rpath,{folder}", "-ldl",
            f"-Wl,--version-script={exports}", f"-Wl,-soname,{LIBRARY}.{abi_version()}", "-Wl,-z,nodelete",
            "-Wl,-z,defs",
        ]
    )  # fmt: skip
    exports.unlink()


def compile_example(prefix: Path, target: Path) -> None:
    """Compile the C++ example against what is installed in ``prefix``.

    Raises:
        MissingDependencyError: no C++ compiler.
        UnsupportedError: it does not compile.
    """
    _run(
        [
            *os.environ.get("CXX", "c++").split(), "-std=c++17", "-O2", "-Wall", "-Wextra", "-pthread",
            f"-I{prefix / 'include'}", str(HERE / "example/classify.cpp"), "-o", str(target),
            f"-L{prefix / 'lib'}", "-liresnet_infer", "-Wl,-rpath,$ORIGIN/../lib",
        ]
    )  # fmt: skip


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(command, check=False)
    except FileNotFoundError:
        raise MissingDependencyError(f"the compiler {command[0]!r} is not installed; set CC and CXX") from None
    if done.returncode:
        raise UnsupportedError(f"{command[0]} failed with exit code {done.returncode}")
