"""What a deployment pays for ``import infer``, and the direction of imports between the packages."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import infer

ROOT = Path(__file__).parents[2]
HEAVY = {"torch", "onnx", "onnxruntime", "openvino", "tensorrt", "tensorrt_rtx", "pycuda", "typer", "rich"}


def fresh(code):
    """Run ``code`` in a new interpreter; what it prints, as JSON."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


LOADED = "import sys, json; {}; print(json.dumps(sorted({{name.partition('.')[0] for name in sys.modules}})))"


def test_import_is_light():
    loaded = set(fresh(LOADED.format("import infer")))
    assert not loaded & (HEAVY | {"PIL", "numpy"})
    assert "infer" in loaded


def test_opening_a_bundle_needs_no_framework_but_its_backend(tiny):
    loaded = set(fresh(LOADED.format("from infer import open_bundle, Runner, Prediction")))
    assert not loaded & HEAVY
    loaded = set(fresh(LOADED.format(f"import infer; infer.open_bundle({str(tiny)!r}, target='openvino').close()")))
    assert loaded & HEAVY == {"openvino"}


def test_import_is_fast():
    code = "import time; start = time.perf_counter(); import infer; print(time.perf_counter() - start)"
    assert min(fresh(code) for _ in range(5)) < 0.3


def test_names_are_found_lazily():
    assert infer.open_bundle.__module__ == "infer.runner"
    with pytest.raises(AttributeError, match="module 'infer' has no attribute 'opne_bundle'"):
        _ = infer.opne_bundle


def imported(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            yield (node.module or "").partition(".")[0]
        elif isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)


@pytest.mark.parametrize(
    ("package", "forbidden"),
    [("infer", {"engine_build", "calibration", "torch", "onnx"}), ("calibration", {"engine_build", "torch"})],
)
def test_imports_run_one_way(package, forbidden):
    wrong = {str(p.relative_to(ROOT)): set(imported(p)) & forbidden for p in (ROOT / package).rglob("*.py")}
    assert {path: names for path, names in wrong.items() if names} == {}
