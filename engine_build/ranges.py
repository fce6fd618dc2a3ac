"""Largest magnitude of every activation, to find what float16 cannot hold."""

from __future__ import annotations

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto

from calibration.collect import collect
from engine_build.precision import value_types


def activation_ranges(model: onnx.ModelProto, images: NDArray[np.uint8]) -> dict[str, float]:
    """Largest ``|x|`` of each float activation tensor of a float32 graph over ``images``.

    Args:
        model: graph with the input and outputs of :func:`engine_build.graph.prepare`.
        images: uint8 ``[N, crop, crop, 3]``.
    """
    types = value_types(model)
    made = [name for node in model.graph.node for name in node.output]
    watched = [name for name in made if types.get(name) == TensorProto.FLOAT]
    statistics = collect(model, [images], watched, histograms=False)
    return {name: seen.amax for name, seen in statistics.tensors.items()}
