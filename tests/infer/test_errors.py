"""One family of errors, each with the exit code of its kind."""

from __future__ import annotations

import inspect

import pytest

from infer import errors


def family():
    return [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, Exception)]


def test_one_base():
    assert all(issubclass(kind, errors.IResNetError) for kind in family())
    assert not issubclass(errors.IResNetError, (OSError, ValueError))


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        (errors.InputError, 2), (errors.ImageError, 2), (errors.AccuracyError, 3), (errors.WeightsError, 1),
        (errors.GraphError, 1), (errors.BuildError, 1), (errors.BundleError, 1), (errors.TargetUnavailableError, 1),
        (errors.UntrainedError, 1),
    ],
)  # fmt: skip
def test_exit_codes(kind, code):
    assert kind("message").exit_code == code


def test_a_bad_image_is_a_bad_input():
    assert issubclass(errors.ImageError, errors.InputError)
