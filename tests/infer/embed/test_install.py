"""The C library is found like any other: pkg-config, CMake, its name and version; and a prefix may be moved."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from c_library import pictures
from cpp_example import example, lines

import infer
from infer.embed.__main__ import main
from infer.embed.compile import abi_version
from infer.embed.install import install
from infer.errors import InputError, MissingDependencyError, UnsupportedError
from infer.interop.c_api import ABI

ROOT = Path(__file__).resolve().parents[3]
EXAMPLE = ROOT / "infer/embed/example"


def needs(program):
    return pytest.mark.skipif(shutil.which(program) is None, reason=f"{program} is not installed")


@pytest.fixture
def answers(built, tiny, tmp_path):
    """``answers(program)``: what it prints for two pictures must be what the installed example prints."""
    pictures(2).tofile(tmp_path / "two.rgb")
    arguments = [str(tiny), str(tmp_path / "two.rgb"), "32", "32"]
    expected = lines(example(built, *arguments).stdout)

    def check(program):
        done = subprocess.run([program, *arguments], capture_output=True, text=True, check=True, cwd="/", timeout=60)
        assert lines(done.stdout) == expected and len(expected) == 2

    return check


@needs("pkg-config")
def test_the_example_is_built_by_pkg_config(built, answers, tmp_path):
    search = os.environ | {"PKG_CONFIG_PATH": str(built / "lib/pkgconfig"), "CXXFLAGS": "-Werror"}
    subprocess.run(["make", "-s", "-C", EXAMPLE, f"OUT={tmp_path}/classify"], check=True, env=search)
    answers(tmp_path / "classify")
    version = subprocess.run(
        ["pkg-config", "--modversion", "iresnet-infer"], env=search, capture_output=True, text=True, check=True
    )
    assert version.stdout.strip() == infer.__version__


@needs("cmake")
def test_the_example_is_built_by_cmake(built, answers, tmp_path):
    configure = ["cmake", "-S", EXAMPLE, "-B", tmp_path / "build", f"-DCMAKE_PREFIX_PATH={built}"]
    subprocess.run(configure, check=True, capture_output=True)
    subprocess.run(["cmake", "--build", tmp_path / "build"], check=True, capture_output=True)
    answers(tmp_path / "build/classify")


@needs("cmake")
def test_cmake_refuses_a_version_that_is_too_old(built, tmp_path):
    project = "cmake_minimum_required(VERSION 3.16)\nproject(x NONE)\nfind_package(iresnet-infer 99.0 REQUIRED)\n"
    (tmp_path / "CMakeLists.txt").write_text(project)
    done = subprocess.run(
        ["cmake", "-S", tmp_path, "-B", tmp_path / "build", f"-DCMAKE_PREFIX_PATH={built}"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode != 0 and f"version: {infer.__version__}" in done.stderr


def test_a_prefix_may_be_moved(built, answers, tmp_path):
    moved = shutil.copytree(built, tmp_path / "moved", symlinks=True)
    answers(moved / "bin/iresnet-classify")


def test_nothing_of_the_build_tree_stays_inside(built):
    library = built / "lib" / f"libiresnet_infer.so.{ABI}"
    data = library.read_bytes()
    assert str(ROOT).encode() not in data and str(ROOT.parent).encode() + b"/" not in data
    assert (built / "lib/libiresnet_infer.so").readlink() == Path(library.name)
    texts = [*built.rglob("*.pc"), *built.rglob("*.cmake")]
    assert len(texts) == 3 and not [path for path in texts if str(built.parent) in path.read_text()]
    assert (built / "lib/iresnet-infer/environment").read_text().endswith(f"python = {sys.executable}\n")


@needs("readelf")
def test_the_name_carries_the_interfaces_version(built):
    found = subprocess.run(
        ["readelf", "-d", built / "lib/libiresnet_infer.so"], capture_output=True, text=True, check=True
    ).stdout
    assert re.search(r"SONAME.*\[(.+)\]", found)[1] == f"libiresnet_infer.so.{ABI}"
    assert abi_version() == ABI


STRICT = ["-Wall", "-Wextra", "-Wconversion", "-Wsign-conversion", "-pedantic", "-Werror", "-fsyntax-only"]
USE_C = '#include "iresnet_infer.h"\n#include "iresnet_infer.h"\n'
USE_CPP = """
#include "iresnet_infer.hpp"
iresnet::Outputs use(iresnet::Runner &runner, const uint8_t *images)
{
    runner.preprocess(images, 1, 1, 3, nullptr);
    runner.infer_device(images, 1, nullptr, nullptr, nullptr, nullptr);
    iresnet::Runner other = std::move(runner);
    return other.info().trained ? other.infer(images, 1) : iresnet::Outputs{};
}
"""


@pytest.mark.parametrize(
    ("compiler", "source", "flags"),
    [
        ("cc", USE_C, ["-xc", "-std=c99"]),
        ("cc", USE_C, ["-xc", "-std=c11"]),
        ("c++", USE_C, ["-xc++", "-std=c++17"]),
        ("c++", USE_C, ["-xc++", "-std=c++17", "-fno-exceptions"]),
        ("c++", USE_CPP, ["-xc++", "-std=c++17"]),
        ("c++", USE_CPP, ["-xc++", "-std=c++20"]),
        ("c++", USE_CPP, ["-xc++", "-std=c++17", "-fno-exceptions"]),
    ],
)
def test_the_headers_compile_without_a_warning(built, compiler, source, flags):
    command = [compiler, *flags, *STRICT, f"-I{built / 'include'}", "-"]
    done = subprocess.run(command, input=source, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_without_exceptions_an_error_ends_the_program(compiled, tmp_path):
    source = '#include "iresnet_infer.hpp"\nint main() { iresnet::Runner runner("/nowhere"); }\n'
    done = subprocess.run(
        [compiled(source, tmp_path / "plain", "-fno-exceptions")], capture_output=True, text=True, check=False
    )
    assert done.returncode == -6 and done.stderr.startswith("iresnet: status 2: /nowhere is not a bundle")


def test_the_command_says_what_is_wrong(tmp_path, capfd, monkeypatch):
    monkeypatch.setenv("CC", "no-such-compiler")
    assert main(["--prefix", str(tmp_path / "out")]) == 1
    assert capfd.readouterr().err == "error: the compiler 'no-such-compiler' is not installed; set CC and CXX\n"
    assert not (tmp_path / "out").exists()
    with pytest.raises(InputError, match="expected the absolute path of a python executable, found 'python'"):
        install(tmp_path / "out", python=Path("python"))
    with pytest.raises(MissingDependencyError):
        install(tmp_path / "out", python=Path(sys.executable))
    monkeypatch.setenv("CC", "false")
    with pytest.raises(UnsupportedError, match="false failed with exit code 1"):
        install(tmp_path / "out", python=Path(sys.executable))
    assert not (tmp_path / "out").exists()
