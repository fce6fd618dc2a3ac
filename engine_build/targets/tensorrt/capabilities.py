"""The compute capabilities that a TensorRT-RTX plan is built for."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from engine_build.targets.tensorrt.request import parse_capability
from infer.backends.cuda.gpus import find_gpus
from infer.errors import InputError

#: TensorRT-RTX compiles for Turing (7.5) too, but then knows neither fp32 matrix products nor int8 kernels, for any
#: GPU of the list. fp8 arithmetic came with Ada (8.9). Both as in the constants, ``SM86``.
OLDEST_INT8 = 80
OLDEST_FP8 = 89


def known_capabilities(trt: Any) -> dict[str, Any]:
    """``8.6`` to the constant ``SM86`` and so on, of every GPU that the module ``trt`` knows, oldest first."""
    constants = trt.ComputeCapability.__members__
    numbers = sorted(int(name[2:]) for name in constants if re.fullmatch(r"SM\d+", name))
    return {f"{number // 10}.{number % 10}": constants[f"SM{number}"] for number in numbers}


def choose(known: dict[str, Any], wanted: Sequence[str], name: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The capabilities of ``wanted``, each once.

    Args:
        known: from :func:`known_capabilities`.
        wanted: ``8.6``, ``sm86``; ``current`` alone is the GPU of this machine.
        name: of the builder, for the error.

    Returns:
        As they are to be set, ``("current",)`` among them, and what they are in numbers.

    Raises:
        InputError: one that the builder does not know, none at all, or ``current`` without a GPU.
    """
    chosen = tuple(dict.fromkeys(parse_capability(text) for text in wanted))
    if chosen == ("current",):
        gpus, missing = find_gpus()
        if not gpus:
            raise InputError(f"compute capability current: {missing}; name the GPUs to build for, for example 8.9")
        return chosen, (gpus[0].compute_capability,)
    if not chosen or not all(number in known for number in chosen):
        raise InputError(
            f"compute capabilities: {name} builds for {', '.join(known)}, or for current alone, "
            f"found {', '.join(wanted) or 'none'}; other GPUs need the target tensorrt"
        )
    return chosen, chosen
