"""Some of the points at which the system may refuse; run.py tries all of them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


@pytest.mark.skipif(sys.platform != "linux" or shutil.which("cc") is None, reason="needs Linux and a C compiler")
def test_whatever_is_refused_ends_in_one_line_and_leaves_nothing_half_written(shipped, labelled, tmp_path):
    for precision in ("fp32", "fp16"):
        shutil.copytree(shipped(precision), tmp_path / f"bundles/iresnet50_fashion-{precision}")
    command = [sys.executable, str(HERE / "run.py"), "--bundles", str(tmp_path / "bundles"), "--data", str(labelled)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    chosen = ["--commands", "classify", "classify-csv", "triton", "--every", "9"]
    done = subprocess.run([*command, *chosen], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(re.search(r"(\d+) points tried, 0 wrong", done.stdout)[1]) >= 15
