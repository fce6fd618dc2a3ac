"""Build the C library, its headers and the C++ example: ``python embed/build.py [--output build/embed]``.

The library embeds the interpreter that runs this script, through cffi's embedding mode, and finds the same packages
as it. Needs a C and a C++17 compiler (``CC``, ``CXX``), cffi, and a Python built with its shared library.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
HEADERS = ("iresnet_infer.h", "iresnet_infer.hpp")
LIBRARY = "libiresnet_infer.so"

# What infer/interop/c_api.py implements. Each ends with a buffer for the message of an error.
EXTERNS = """
int _iresnet_start(char *, size_t);
int _iresnet_open(const char *, const char *, int, int, int, int, int, uint64_t *, char *, size_t);
int _iresnet_info(uint64_t, iresnet_info *, char *, size_t);
int _iresnet_label(uint64_t, int32_t, const char **, char *, size_t);
int _iresnet_preprocess(uint64_t, const uint8_t *, int32_t, int32_t, size_t, uint8_t *, size_t, char *, size_t);
int _iresnet_infer(uint64_t, const uint8_t *, size_t, int32_t, const iresnet_outputs *, char *, size_t);
int _iresnet_infer_device(uint64_t, uint64_t, size_t, int32_t, const iresnet_outputs *, uint64_t, char *, size_t);
int _iresnet_close(uint64_t, char *, size_t);
"""

START = """
from _iresnet_infer import ffi
from infer.interop.c_api import ABI, Library
if ABI != {abi}:
    raise ImportError(f"libiresnet_infer speaks ABI {abi}, the package infer speaks {{ABI}}; build the library again")
Library(ffi).register()
"""


def main() -> None:
    """Build everything into ``--output``."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--output", type=Path, default=Path("build/embed"), help="folder for library, headers, example")
    parser.add_argument("--no-example", action="store_true", help="leave out the C++ example")
    options = parser.parse_args()
    build(options.output, example=not options.no_example)


def build(output: Path, *, example: bool = True) -> Path:
    """Build the library, and the example beside it.

    Returns:
        The library.

    Raises:
        SystemExit: cffi, a compiler or Python's shared library is missing, or something does not compile.
    """
    try:
        import cffi
    except ImportError:
        sys.exit("error: cffi is not installed; pip install cffi")
    folder, name = sysconfig.get_config_var("LIBDIR"), sysconfig.get_config_var("INSTSONAME")
    if not sysconfig.get_config_var("Py_ENABLE_SHARED"):
        sys.exit(f"error: {sys.executable} has no shared library to embed; use a Python built with --enable-shared")
    header = (HERE / "iresnet_infer.h").read_text()
    abi = re.search(r"#define IRESNET_ABI_VERSION (\d+)", header)
    assert abi is not None
    ffi = cffi.FFI()
    ffi.cdef(_structures(header))
    ffi.embedding_api(EXTERNS)
    ffi.embedding_init_code(START.format(abi=abi[1]))
    # embedding_api makes the functions exported ones; library.c is compiled with them, behind their declarations.
    ffi.set_source("_iresnet_infer", f'#include <stdio.h>\n#include "iresnet_infer.h"\n{EXTERNS}#include "library.c"\n')
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as work:
        source, exports = Path(work, "_iresnet_infer.c"), Path(work, "exports.map")
        with contextlib.redirect_stdout(None):
            ffi.emit_c_code(str(source))
        exports.write_text("{ global: iresnet_*; local: *; };\n")
        _compile(
            [
                *os.environ.get("CC", "cc").split(), "-std=gnu11", "-O2", "-Wall", "-fPIC", "-shared", "-pthread",
                *(f"-D{key}={json.dumps(value)}" for key, value in _constants(name).items()),
                f"-I{HERE}", f"-I{sysconfig.get_path('include')}", str(source), "-o", str(output / LIBRARY),
                f"-L{folder}", f"-l{name.removeprefix('lib').split('.so')[0]}", f"-Wl,-rpath,{folder}", "-ldl",
                f"-Wl,--version-script={exports}", f"-Wl,-soname,{LIBRARY}", "-Wl,-z,nodelete", "-Wl,-z,defs",
            ]
        )  # fmt: skip
    for file in HEADERS:
        shutil.copyfile(HERE / file, output / file)
    if example:
        _compile(
            [
                *os.environ.get("CXX", "c++").split(), "-std=c++17", "-O2", "-Wall", "-Wextra", "-pthread",
                f"-I{output}", str(HERE / "example/classify.cpp"), "-o", str(output / "classify"),
                f"-L{output}", "-liresnet_infer", "-Wl,-rpath,$ORIGIN",
            ]
        )  # fmt: skip
    print(f"built {output / LIBRARY}" + (f" and {output / 'classify'}" if example else ""))
    return output / LIBRARY


def _structures(header: str) -> str:
    """The structures of the header that the functions above use, without comments."""
    plain = re.sub(r"/\*.*?\*/", "", header, flags=re.DOTALL)
    return "\n".join(
        f"typedef struct {name} {{{body}}} {name};"
        for name, body in re.findall(r"typedef struct (\w+) \{(.*?)\} \1;", plain, re.DOTALL)
    )


def _constants(libpython: str) -> dict[str, str]:
    """What the library knows of the Python that builds it."""
    version = re.search(r'__version__ = "(.+)"', (HERE.parent / "infer/__init__.py").read_text())
    assert version is not None
    return {
        "IRESNET_VERSION": version[1],
        "IRESNET_PYTHON": sys.executable,
        "IRESNET_LIBPYTHON": libpython,
        # Looked in last, so that an installed package goes before this checkout.
        "IRESNET_PACKAGE_PATH": str(HERE.parent),
    }


def _compile(command: list[str]) -> None:
    try:
        done = subprocess.run(command, check=False)
    except FileNotFoundError:
        sys.exit(f"error: the compiler {command[0]!r} is not installed; set CC and CXX")
    if done.returncode:
        sys.exit(f"error: {command[0]} failed with exit code {done.returncode}")


if __name__ == "__main__":
    main()
