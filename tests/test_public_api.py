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
        "IResNetError", "ImageError", "InputError", "KnownAnswersError", "MissingDependencyError", "Outputs",
        "Prediction", "Runner", "TargetUnavailableError", "UnsupportedError", "UntrainedError", "WeightsError",
        "__version__", "open_bundle",
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


def check(path: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    """``mypy --strict`` as a user would run it, away from this project's configuration."""
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file", "", "--cache-dir", str(folder / "cache")]
    command += ["--follow-imports=silent", str(path)]
    environment = {"MYPYPATH": str(ROOT), "PATH": "/usr/bin:/bin"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_a_consumer_is_typed(tmp_path):
    done = check(CONSUMER, tmp_path)
    assert done.returncode == 0, done.stdout
    wrong = tmp_path / "wrong.py"
    wrong.write_text(CONSUMER.read_text().replace("-> list[Prediction]:", "-> list[int]:"))
    done = check(wrong, tmp_path)
    assert done.returncode == 1 and "list[Prediction]" in done.stdout, done.stdout
