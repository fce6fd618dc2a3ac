"""The checks of ``gpu_streams.py`` on a real GPU where there is one, and the very same on the emulator."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("gpu_streams.py")
CHECKS, WITH_A_GPU_ONLY = 17, 4


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.usefixtures("driver")
def test_on_the_emulator() -> None:
    done = run("--emulator")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("ok:") == CHECKS - WITH_A_GPU_ONLY, done.stdout
    assert done.stdout.count("skipped:") == WITH_A_GPU_ONLY


@pytest.mark.gpu
def test_on_a_gpu() -> None:
    # In a process of its own: in this one the emulator may stand in the place of the driver.
    done = run()
    if done.returncode and not done.stdout and "Traceback" not in done.stderr:
        pytest.skip(done.stderr.strip())
    assert done.returncode == 0, done.stdout + done.stderr
    print(done.stdout)
    assert done.stdout.count("ok:") + done.stdout.count("skipped:") == CHECKS
