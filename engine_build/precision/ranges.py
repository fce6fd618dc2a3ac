"""Largest magnitude of every activation, to find what float16 cannot hold."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto

from calibration.session import ActivationSession
from engine_build.precision.casts import value_types


def channel_ranges(model: onnx.ModelProto, images: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
    """Largest ``|x|`` of each float activation tensor of a float32 graph over ``images``: ``[channels]``, along axis 1.

    Tensors of fewer than two dimensions count as one channel. What is not a number counts as infinite.

    Args:
        model: graph with the input and outputs of :func:`engine_build.graph.passes.prepare`.
        images: uint8 ``[N, crop, crop, 3]``.
    """
    types = value_types(model)
    made = [name for node in model.graph.node for name in node.output]
    watched = [name for name in made if types.get(name) == TensorProto.FLOAT]
    with ActivationSession(model, watched) as session:
        session.check(images)

        def largest(image: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
            return {name: _by_channel(value) for name, value in session.run(image[None]).items()}

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            each = list(pool.map(largest, images))
    return {name: np.max([found[name] for found in each], axis=0) for name in watched}


def _by_channel(value: NDArray[np.float32]) -> NDArray[np.float32]:
    rows = value.reshape(1, -1) if value.ndim < 2 else np.moveaxis(value, 1, 0).reshape(value.shape[1], -1)
    amax = np.maximum(rows.max(axis=1, initial=0), -rows.min(axis=1, initial=0))
    return np.where(np.isnan(amax), np.float32(np.inf), amax).astype(np.float32)
