"""What the three packages export, and that a stranger's code sees its types."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import calibration
import engine_build
import infer

ROOT = Path(__file__).parents[1]
EXPORTS = {
    infer: {
        "AccuracyError", "BuildError", "BundleError", "DeviceError", "DeviceMemoryError", "GpuOptions", "GraphError",
        "IResNetError", "ImageError", "InconclusiveError", "InputError", "KnownAnswersError", "MissingDependencyError",
        "Outputs", "Prediction", "ProcessError", "Runner", "TargetUnavailableError", "UnsupportedError",
        "UntrainedError", "WeightsError", "__version__", "open_bundle",
    },
    engine_build: {"BuildOptions", "__version__", "build", "create_model"},
    calibration: {
        "Calibrated", "CalibrationCache", "Provenance", "Request", "Statistics", "__version__", "calibrate",
        "check_matches", "read_cache", "write_cache",
    },
}  # fmt: skip


@pytest.mark.parametrize("package", EXPORTS, ids=lambda package: package.__name__)
def test_exports(package):
    assert set(package.__all__) == EXPORTS[package]
    for name in package.__all__:
        assert getattr(package, name) is not None
    assert callable(engine_build.build) and callable(calibration.calibrate)  # and no modules of these names
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = package.nothing


def test_one_version():
    assert infer.__version__ == engine_build.__version__ == calibration.__version__


@pytest.mark.parametrize("package", ["infer", "engine_build", "calibration"])
def test_the_packages_say_that_they_are_typed(package):
    assert (ROOT / package / "py.typed").is_file()


CONSUMER = ROOT / "tests/consumer.py"


def test_a_consumer_is_typed(tmp_path):
    """``mypy --strict`` as a user would run it, away from this project's configuration: on code that is right, and on a
    copy in which one type is not."""
    wrong = tmp_path / "wrong.py"
    wrong.write_text(CONSUMER.read_text().replace("-> list[Prediction]:", "-> list[int]:"))
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file", "", "--cache-dir", str(tmp_path / "cache")]
    command += ["--follow-imports=silent", str(CONSUMER), str(wrong)]
    environment = {"MYPYPATH": str(ROOT), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    errors = [line for line in done.stdout.splitlines() if ": error: " in line]
    assert len(errors) == 1 and errors[0].startswith("wrong.py:") and "list[Prediction]" in errors[0], done.stdout
