"""``make`` looks at its arguments before it installs anything, and hands them on."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


@pytest.fixture
def make(tmp_path):
    """``make`` in a folder that has the Makefile and the table of models, and what the installation looks at."""
    for name in ("Makefile", "setup.py", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "engine_build/network").mkdir(parents=True)
    shutil.copy(ROOT / "engine_build/network/zoo.py", tmp_path / "engine_build/network")

    def run(*arguments):
        command = ["make", "--no-print-directory", *arguments]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)

    return run


WRONG = {
    "precision": (
        ["engine", "PRECISION=int9"],
        "PRECISION: expected one of fp32 fp16 bf16 int8 fp8 auto; found 'int9'",
    ),
    "model": (["engine", "MODEL=resnet50"], "MODEL: there is no model 'resnet50'"),
    "target": (["engine", "TARGET=openvino,cuda"], "TARGET: expected auto or some of"),
    "weights": (["engine", "WEIGHTS=/none.pth"], "WEIGHTS: there is no file '/none.pth'"),
    "onnx": (["engine", "MODEL=mine", "ONNX=/none.onnx"], "ONNX: there is no file '/none.onnx'"),
    "cache": (["engine", "CACHE=/none"], "CACHE: there is no file '/none'"),
    "old batch": (["engine", "BATCH=1,2,4"], "BATCH= is now MAX_BATCH=, with MIN_BATCH= and OPT_BATCH="),
    "old count": (["calibrate", "IMAGES=12"], "IMAGES= is now LIMIT="),
    "no bundle": (["bench", "BUNDLE=nothing"], "BUNDLE: there is no bundle in 'nothing'"),
    "nothing to serve": (["serve", "BUNDLE=nothing"], "BUNDLE: there is no bundle in 'nothing'"),
    "no info": (["info"], "BUNDLE: there is no bundle in 'engines/iresnet101-fp16'"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_arguments_cost_nothing(make, tmp_path, case):
    arguments, message = WRONG[case]
    done = make(*arguments)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {message}")
    assert not (tmp_path / ".venv").exists()


@pytest.mark.parametrize(("arguments", "message"), [(["classify"], "IMAGES: expected"), (["verify"], "DATA: expected")])
def test_a_bundle_alone_is_not_enough(make, tmp_path, arguments, message):
    (tmp_path / "b").mkdir()
    (tmp_path / "b/manifest.json").touch()
    done = make(*arguments, "BUNDLE=b")
    assert done.returncode == 2 and done.stderr.startswith(f"error: {message}")


def test_arguments_are_handed_on(make):
    done = make("-n", "engine", "MODEL=iresnet50", "PRECISION=int8", "DATA=a b", "LIMIT=9", "MAX_BATCH=8", "MAX_DROP=1")
    (command,) = [line for line in done.stdout.replace("\\\n", " ").splitlines() if "iresnet build" in line]
    assert " ".join(command.split()) == (
        '.venv/bin/iresnet build --model "iresnet50" --precision int8 --target auto --max-batch "8" --max-drop "1" '
        '--data "a b" --limit "9"'
    )


def test_help_names_every_target(make):
    done = make("help")
    assert done.returncode == 0
    for name in ("demo", "engine", "calibrate", "classify", "verify", "bench", "serve", "doctor", "test", "lint"):
        assert f"  {name} " in done.stdout
