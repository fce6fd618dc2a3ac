"""OpenVINO without the reports that it sends home."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]
PROGRAM = """
import multiprocessing, sys, threading
started = []
multiprocessing.Process.start = lambda process: started.append(process)
from infer import open_bundle
with open_bundle(sys.argv[1], target="openvino") as runner:
    runner.backend.infer(__import__("numpy").zeros((1, *runner.backend.input_shape), "uint8"))
for thread in threading.enumerate():
    if thread is not threading.main_thread():
        thread.join(5)
assert not started, started
assert "openvino_telemetry" not in sys.modules
import openvino_telemetry  # still there for whoever wants it
"""


def test_opening_a_bundle_starts_no_process_and_leaves_nothing_at_home(tiny, tmp_path):
    environment = {**os.environ, "HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    environment.pop("CI", None)  # telemetry keeps quiet in some of those
    subprocess.run([sys.executable, "-c", PROGRAM, str(tiny)], env=environment, check=True)
    assert not list(tmp_path.rglob("*openvino*")) and not (tmp_path / "intel").exists()


def test_a_program_that_has_the_package_keeps_it(tiny):
    program = f"import openvino, openvino_telemetry as before\n{PROGRAM.split('from infer', maxsplit=1)[0]}\n" + (
        "from infer.backends.openvino_import import import_openvino\n"
        "assert import_openvino() is openvino and sys.modules['openvino_telemetry'] is before"
    )
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)


def test_nothing_imports_it_in_another_way():
    plain = re.compile(r"^( +)(import openvino\b|from openvino\b)", re.MULTILINE)
    for package in ("infer", "calibration", "engine_build"):
        for path in (ROOT / package).rglob("*.py"):
            text = path.read_text("utf-8")
            typed = re.sub(r"if TYPE_CHECKING:\n(?: .*\n|\n)+", "", text)
            found = plain.search(typed) or re.search(r"^(import|from) openvino\b", typed, re.MULTILINE)
            assert found is None or path.name == "openvino_import.py", path
