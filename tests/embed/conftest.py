"""The library, its headers and the example, built once for the run."""

from __future__ import annotations

import fcntl
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def built(shared_folder):
    """Folder with the library, its headers and the example."""
    folder = shared_folder / "embed"
    with (shared_folder / "embed.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            command = [sys.executable, ROOT / "embed/build.py", "--output", shared_folder / "embed.part"]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr
            assert not done.stderr, "compiler warnings"
            (shared_folder / "embed.part").rename(folder)
    return folder
