"""The checks of ``gpu_check.py`` on a real GPU where there is one, and the very same on the emulator."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
from trt_stand_in.api import VERSIONS

SCRIPT = Path(__file__).with_name("gpu_check.py")
CHECKS = 6


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.parametrize("key", list(VERSIONS))
@pytest.mark.usefixtures("driver")
def test_on_the_emulator(key: str) -> None:
    done = run("--stand-in", key)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("ok:") == 2 * CHECKS
    assert done.stderr == ""


@pytest.mark.gpu
@pytest.mark.parametrize("target", ["tensorrt", "tensorrt_rtx"])
def test_on_a_gpu(target: str) -> None:
    # Asked in another process: in this one the emulator may stand in the place of the driver.
    code = f"from infer.backends.tensorrt import why_unavailable; print(why_unavailable({target!r}) or '')"
    root = SCRIPT.parents[4]
    asked = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, check=True)
    if missing := asked.stdout.strip():
        pytest.skip(missing)
    assert importlib.util.find_spec("onnxruntime"), "the reference"
    done = run(target)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("ok:") == 2 * CHECKS
