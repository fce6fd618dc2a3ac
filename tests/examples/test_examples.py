"""The example programs, run as a user would."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from infer import open_bundle

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"


def run(name, *arguments):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(EXAMPLES / name), *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def pictures(labelled):
    return sorted(labelled.rglob("*.png"))[:6]


@pytest.mark.parametrize("name", ["classify.py", "async_service.py"])
def test_it_says_what_the_runner_says(shipped, pictures, tmp_path, name):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    done = run(name, shipped("fp32"), *pictures, broken)
    assert done.returncode == 0, done.stderr
    *lines, last = done.stdout.splitlines()
    with open_bundle(shipped("fp32")) as runner:
        found = runner.classify(pictures)
    assert lines == [f"{p.name}: {p.top[0].label} {p.top[0].score:.1%}" for p in found]
    assert last.startswith(f"{broken}: ") and "image" in last


def test_workers_decode_and_the_parent_owns_the_runner(shipped, pictures):
    done = run("torch_dataloader.py", shipped("fp32"), *pictures)
    assert done.returncode == 0, done.stderr
    with open_bundle(shipped("fp32")) as runner:
        found = runner.classify(pictures)
    assert done.stdout.splitlines() == [f"{p.name}: {p.top[0].label}" for p in found]


def test_errors_of_the_package_are_one_line(tmp_path):
    done = run("classify.py", tmp_path, "x.png")
    assert done.returncode == 1 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1


@pytest.mark.parametrize("name", ["classify.py", "async_service.py", "torch_dataloader.py", "torch_gpu.py"])
def test_without_arguments_it_says_how_it_is_used(name):
    done = run(name)
    assert done.returncode == 1 and f"python examples/{name} engines/" in done.stderr


def test_torch_on_a_gpu_says_that_it_needs_one(shipped):
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    done = run("torch_gpu.py", shipped("fp32"))
    assert done.returncode == 1 and done.stderr.startswith("this example needs an NVIDIA GPU")


def test_torch_hands_its_stream_over():
    """The call on a runner that keeps it; tests/infer/backends/cuda has the real one on the emulated driver."""
    spec = importlib.util.spec_from_file_location("torch_gpu", EXAMPLES / "torch_gpu.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    calls = []

    def infer_device(images, *, stream):
        calls.append((images, stream))
        return SimpleNamespace(classes=np.array([[3, 1]], np.int32))

    torch = SimpleNamespace(
        cuda=SimpleNamespace(current_stream=lambda: SimpleNamespace(cuda_stream=77)), from_dlpack=np.from_dlpack
    )
    found = module.classify(SimpleNamespace(infer_device=infer_device), "images", torch)
    assert calls == [("images", 77)] and found.tolist() == [[3, 1]]


def test_every_example_is_listed():
    listed = (EXAMPLES / "README.md").read_text()
    for path in EXAMPLES.glob("*.py"):
        assert f"]({path.name})" in listed
