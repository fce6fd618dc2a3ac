"""One family of errors, each with the exit code of its kind."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path

import pytest

from infer import errors

ROOT = Path(__file__).parents[2]


def family():
    return [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, Exception)]


def test_one_base():
    assert all(issubclass(kind, errors.IResNetError) for kind in family())
    assert not issubclass(errors.IResNetError, (OSError, ValueError))


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        (errors.InputError, 2), (errors.ImageError, 2), (errors.AccuracyError, 3), (errors.WeightsError, 2),
        (errors.GraphError, 2), (errors.BuildError, 1), (errors.BundleError, 2), (errors.TargetUnavailableError, 1),
        (errors.UntrainedError, 1), (errors.KnownAnswersError, 1), (errors.MissingDependencyError, 1),
        (errors.DeviceError, 1), (errors.DeviceMemoryError, 1), (errors.UnsupportedError, 1),
    ],
)  # fmt: skip
def test_exit_codes(kind, code):
    assert kind("message").exit_code == code


def test_a_bad_image_is_a_bad_input():
    assert issubclass(errors.ImageError, errors.InputError)


def test_no_error_is_defined_elsewhere():
    """By the names of their bases, which all end so."""
    found = set()
    for package in ("engine_build", "calibration", "infer"):
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text("utf-8"))):
                bases = [ast.unparse(base) for base in node.bases] if isinstance(node, ast.ClassDef) else []
                if any(base.endswith(("Error", "Exception", "Warning")) for base in bases):
                    found.add(str(path.relative_to(ROOT)))
    found.remove("infer/serve/refusal.py")  # an answer of the server, which never leaves it
    assert found == {"infer/errors.py"}
