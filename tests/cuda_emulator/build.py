"""Builds the emulated CUDA driver, and pycuda against it; quick when both are there.

    python tests/cuda_emulator/build.py            # emulator and pycuda, into the running Python
    python tests/cuda_emulator/build.py --emulator # only libcuda.so.1

pycuda has no wheel for any platform. Compiled once, the wheel is kept in ``.cache/pycuda`` (or the folder named
by ``CUDA_EMULATOR_CACHE``) under the versions of Python and pycuda, and beside it pycuda's own tests of the driver,
which its wheel lacks. An installed pycuda is left alone, whoever built it.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import zipfile
from pathlib import Path

PYCUDA = "2026.1"
OWN_TESTS = "test_driver.py"
# The headers of CUDA and nothing else; pycuda 2026.1 compiles against CUDA 13.
HEADERS = ("nvidia-cuda-runtime==13.0.*", "nvidia-cuda-profiler-api==13.0.*")
HERE = Path(__file__).resolve().parent
CACHE = Path(os.environ.get("CUDA_EMULATOR_CACHE") or HERE.parents[1] / ".cache")


def say(text: str) -> None:
    """Print a line at once, also into a pipe."""
    print(f"cuda_emulator: {text}", flush=True)


def run(command: list[str], **kwargs: object) -> None:
    """Run a command quietly; its output is shown when it fails."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, **kwargs)  # type: ignore[call-overload]
    if done.returncode:
        print(done.stdout[-8000:])
        raise SystemExit(f"cuda_emulator: failed ({done.returncode}): {' '.join(command)}")


def build_emulator() -> Path:
    """``libcuda.so.1`` in the cache, compiled anew when a source file has changed."""
    sources = sorted((HERE / "src").glob("*"))
    key = hashlib.sha256(b"".join(path.name.encode() + path.read_bytes() for path in sources)).hexdigest()[:16]
    folder = CACHE / "cuda_emulator" / key
    library = folder / "libcuda.so.1"
    if library.exists():
        return library
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("c++")
    if compiler is None:
        raise SystemExit("cuda_emulator: expected a C++17 compiler, found none; install g++ or set CXX")
    say(f"compiling the emulated CUDA driver into {folder}")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        partial = Path(scratch, "build")
        partial.mkdir()
        flags = ["-std=c++17", "-O1", "-Wall", "-fPIC", "-fvisibility=hidden", "-shared", "-pthread"]
        flags += ["-Wl,-soname,libcuda.so.1", "-o", str(partial / "libcuda.so.1")]
        run([compiler, *flags, *(str(path) for path in sources if path.suffix == ".cpp"), "-ldl"])
        (partial / "libcuda.so").symlink_to("libcuda.so.1")
        try:
            partial.replace(folder)
        except OSError:  # another process was faster
            if not library.exists():
                raise
    return library


def pycuda_folder() -> Path:
    """Where :func:`pycuda_wheel` keeps the wheel and :data:`OWN_TESTS`."""
    return CACHE / "pycuda" / f"{PYCUDA}-{sys.implementation.cache_tag}-{sysconfig.get_platform()}"


def pycuda_wheel(emulator: Path) -> Path:
    """The cached wheel of pycuda, compiled on the first call (about two minutes on two cores)."""
    folder = pycuda_folder()
    if (folder / OWN_TESTS).exists():
        return next(folder.glob("pycuda-*.whl"))
    say(f"compiling pycuda {PYCUDA} once into {folder} (about two minutes)")
    folder.parent.mkdir(parents=True, exist_ok=True)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        headers, wheels = Path(scratch, "headers"), Path(scratch, "wheels")
        run([*pip, "download", "--no-deps", "-d", str(headers), *HEADERS])
        for wheel in headers.glob("*.whl"):
            zipfile.ZipFile(wheel).extractall(headers)
        include = headers / "nvidia" / "cu13" / "include"
        # aksetup, pycuda's configuration tool, takes Python literals and needs these characters escaped.
        settings = [
            "CUDA_ENABLE_CURAND=False",
            f"CUDA_INC_DIR=[\\'{include}\\']",
            f"CUDADRV_LIB_DIR=[\\'{emulator.parent}\\']",
        ]
        option = "--global-option=--conf:" + "\\;".join(settings)
        flags = "-O1 -g0 -w"
        environment = {**os.environ, "CFLAGS": flags, "CXXFLAGS": flags}
        # From the sources: a wheel in pip's own cache may have been linked against something else.
        source = ["--no-binary", "pycuda", f"pycuda=={PYCUDA}"]
        run([*pip, "download", "--no-deps", "-d", scratch, *source])
        archive = next(Path(scratch).glob("pycuda-*.tar.gz"))
        run(
            [*pip, "wheel", "--no-cache-dir", "--no-deps", "-w", str(wheels), f"-C{option}", str(archive)],
            env=environment,
        )
        with tarfile.open(archive) as tar:
            tests = tar.extractfile(f"pycuda-{PYCUDA}/test/{OWN_TESTS}")
            assert tests is not None
            (wheels / OWN_TESTS).write_bytes(tests.read())
        shutil.rmtree(folder, ignore_errors=True)
        wheels.replace(folder)
    return next(folder.glob("pycuda-*.whl"))


def installed_pycuda() -> str | None:
    """Version of the installed pycuda, or None."""
    try:
        return importlib.metadata.version("pycuda")
    except importlib.metadata.PackageNotFoundError:
        return None


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--emulator", action="store_true", help="only the driver, not pycuda")
    arguments = parser.parse_args()
    library = build_emulator()
    say(f"driver {library}")
    if arguments.emulator:
        return
    version = installed_pycuda()
    if version is None or (version == PYCUDA and not (pycuda_folder() / OWN_TESTS).exists()):
        wheel = pycuda_wheel(library)
        say(f"installing {wheel.name}")
        run([sys.executable, "-m", "pip", "--disable-pip-version-check", "install", str(wheel)])
        version = installed_pycuda()
    say(f"pycuda {version}")


if __name__ == "__main__":
    main()
