"""What is inside the wheel and the source distribution."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """``(wheel, sdist)``, of a copy of the files that git knows."""
    listing = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listing.returncode:
        pytest.skip("not a git checkout")
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    for name in listing.stdout.splitlines():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes((ROOT / name).read_bytes())
    code = "import setuptools.build_meta as b, sys; out = sys.argv[1]; b.build_wheel(out); b.build_sdist(out)"
    environment = {**os.environ, "SOURCE_DATE_EPOCH": "1700000000"}
    subprocess.run([sys.executable, "-c", code, str(out)], cwd=source, env=environment, check=True, capture_output=True)
    return next(out.glob("*.whl")), next(out.glob("*.tar.gz"))


def test_the_wheel_has_what_runs_and_no_more(made):
    names = zipfile.ZipFile(made[0]).namelist()
    for needed in (
        "engine_build/shipped/iresnet50_fashion/weights.safetensors", "infer/py.typed", "infer/bench/gpus.tsv",
        "engine_build/shipped/iresnet50_fashion/calibration.tar.gz", "infer/datasets/imagenet1k.tsv",
        "infer/verify/report/page.css", "infer/export/deepstream.mk", "engine_build/quantise/qdq.py",
        "infer/serve/page.html", "infer/embed/library.c", "infer/embed/iresnet_infer.hpp",
        "infer/embed/example/classify.cpp",
    ):  # fmt: skip
        assert needed in names
    assert not [name for name in names if name.endswith("test.tar.gz") or name.startswith(("tests", "docs"))]
    assert made[0].stat().st_size < 4.5e6
    assert {name.rpartition("/")[2] for name in names if "/licenses/" in name} >= {"LICENSE", "NOTICE"}


def test_a_wheel_is_enough_for_the_c_library(made, tmp_path):
    """Built and opened with nothing of the checkout in reach."""
    with zipfile.ZipFile(made[0]) as wheel:
        wheel.extractall(tmp_path / "wheel")
    place = {**os.environ, "PYTHONPATH": str(tmp_path / "wheel")}
    command = [sys.executable, "-m", "infer.embed", "--prefix", str(tmp_path / "prefix")]
    done = subprocess.run(command, env=place, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (tmp_path / "one.rgb").write_bytes(bytes(3))
    program = [tmp_path / "prefix/bin/iresnet-classify", tmp_path, tmp_path / "one.rgb", "1", "1"]
    opened = subprocess.run(program, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert opened.stderr.startswith(f"error: {tmp_path} is not a bundle"), opened.stderr


def test_the_metadata_says_who_may_do_what(made):
    with zipfile.ZipFile(made[0]) as wheel:
        (name,) = (name for name in wheel.namelist() if name.endswith("METADATA"))
        found = Parser().parsestr(wheel.read(name).decode())
    assert (found["Name"], found["License-Expression"]) == ("iresnet-trt", "Apache-2.0")
    base = [text.partition(">")[0] for text in found.get_all("Requires-Dist") if "extra ==" not in text]
    assert sorted(base) == ["msgspec", "numpy", "pillow", "rich", "typer"]
    assert "](docs/" not in found.get_payload()  # an index has no such files


def test_the_source_distribution_has_tests_and_docs(made):
    with tarfile.open(made[1]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    for needed in (
        "tests/conftest.py", "tests/cuda_emulator/src/core.cpp", "docs/int8.md", "benchmarks/gates.py", "Makefile",
        "engine_build/shipped/iresnet50_fashion/test.tar.gz", "infer/embed/library.c", "constraints.txt",
        "CHANGELOG.md", "infer/images/native/jpeg.h", "examples/classify.py",
    ):  # fmt: skip
        assert needed in names
