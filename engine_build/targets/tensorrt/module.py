"""The TensorRT modules: loading the one that a target names, and whether a plan can be built with it here."""

from __future__ import annotations

import importlib
from typing import Any

from infer.backends.cuda.gpus import find_gpus
from infer.errors import InputError, TargetUnavailableError

RTX = "tensorrt_rtx"
TARGETS = ("tensorrt", RTX)
"""The targets of the TensorRT builder; each is also the name of the Python module."""

_INSTALL = {"tensorrt": "pip install tensorrt", RTX: "pip install tensorrt-rtx-cu13"}
_OLDEST_MAJOR = {"tensorrt": 10, RTX: 1}


def load_module(target: str) -> Any:
    """The module of ``target``.

    Raises:
        InputError: ``target`` is not in :data:`TARGETS`.
        TargetUnavailableError: it is not installed, not complete or too old.
    """
    if target not in TARGETS:
        raise InputError(f"target: expected one of {', '.join(TARGETS)}, found {target!r}")
    try:
        trt = importlib.import_module(target)
    except Exception as error:  # bindings without their libraries fail with OSError, RuntimeError and others
        if isinstance(error, ModuleNotFoundError) and error.name == target:
            raise TargetUnavailableError(f"the Python module {target} is not installed: {_INSTALL[target]}") from None
        raise TargetUnavailableError(
            f"the Python module {target} does not load ({error}): {_INSTALL[target]} adds its libraries"
        ) from error
    if int(trt.__version__.split(".")[0]) < _OLDEST_MAJOR[target]:
        raise TargetUnavailableError(
            f"{target}: expected version {_OLDEST_MAJOR[target]} or newer, found {trt.__version__}: "
            f"{_INSTALL[target]} --upgrade"
        )
    return trt


def why_unavailable(target: str) -> str | None:
    """None if ``target`` can be built on this machine, else one sentence: what is missing and what to do.

    Raises:
        InputError: ``target`` is not in :data:`TARGETS`.
    """
    try:
        load_module(target)
    except TargetUnavailableError as error:
        return str(error)
    if target == RTX:
        return None
    gpus, missing = find_gpus()
    return None if gpus else f"a {target} plan is built on the GPU it runs on, and {missing}; {RTX} builds without one"
