"""Classifiers whose weights or activations lie where float16 ends. Each gives logits of ordinary size."""

from __future__ import annotations

import numpy as np
import onnx
from small_models import CLASSES, graph

_STEM = (("Conv", "x w0 b0", "c0", {"strides": [2, 2], "pads": [1, 1, 1, 1]}), ("Relu", "c0", "r0"))
_HEAD = (("GlobalAveragePool", "h", "p"), ("Flatten", "p", "f"), ("Gemm", "f fw fb", "y", {"transB": 1}))
_POOL = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "strides": [2, 2]}


class _Weights(dict):
    """Constants ``w<name>`` and ``b<name>`` of 1x1 convolutions with 16 channels, of the size asked for."""

    def __init__(self) -> None:
        self._rng = np.random.default_rng(3)
        self.layer("0", 1, (16, 3, 3, 3))
        self |= {"fw": self._normal((CLASSES, 16)) * 4, "fb": self._normal((CLASSES,))}

    def _normal(self, shape):
        return self._rng.normal(size=shape).astype(np.float32)

    def layer(self, name, size, shape=(16, 16, 1, 1), bias=None):
        size = np.float32(size)
        self[f"w{name}"] = self._normal(shape) * size / np.float32(np.sqrt(np.prod(shape[1:])))
        self[f"b{name}"] = self._normal(shape[:1]) * np.float32(0.1 * size if bias is None else bias)


def chain(up: float, **options) -> onnx.ModelProto:
    """Four convolutions; activations grow by ``up`` twice and shrink again."""
    constants, nodes, loudness = _Weights(), [*_STEM], 1.0
    for number, size in enumerate((up, up, 1 / up, 1 / up), 1):
        loudness *= size
        constants.layer(number, size, bias=0.1 * loudness)
        nodes += [("Conv", f"r{number - 1} w{number} b{number}", f"c{number}"), ("Relu", f"c{number}", f"r{number}")]
    return graph([*nodes, ("GlobalAveragePool", "r4", "p"), *_HEAD[1:]], constants, **options)


def residual(loud: float, **options) -> onnx.ModelProto:
    """A residual block, an addition and both its inputs near ``loud``, with a padded convolution in it."""
    constants = _Weights()
    constants.layer(1, loud)
    constants.layer(2, 1, (16, 16, 3, 3), bias=0.1 * loud)
    constants.layer(3, 1, bias=0.1 * loud)
    constants.layer(4, 1 / loud, bias=0.1)
    nodes = [
        *_STEM, ("Conv", "r0 w1 b1", "c1"), ("Relu", "c1", "r1"), ("Conv", "r1 w2 b2", "c2", {"pads": [1, 1, 1, 1]}),
        ("Relu", "c2", "r2"), ("Conv", "r2 w3 b3", "c3"), ("Add", "c3 r1", "s"), ("Relu", "s", "r3"),
        ("Conv", "r3 w4 b4", "c4"), ("Relu", "c4", "h"), *_HEAD,
    ]  # fmt: skip
    return graph(nodes, constants, **options)


def pooled(loud: float, **options) -> onnx.ModelProto:
    """A max-pool on integers and a convolution share their input, which is near ``loud``."""
    constants = _Weights()
    constants.layer(1, loud)
    for number in (2, 3):
        constants.layer(number, 1 / loud, bias=0.1)
    nodes = [
        *_STEM, ("Conv", "r0 w1 b1", "c1"), ("Relu", "c1", "r1"), ("MaxPool", "r1", "m", _POOL),
        ("Conv", "r1 w2 b2", "c2", {"strides": [2, 2]}), ("Conv", "m w3 b3", "c3"), ("Add", "c2 c3", "s"),
        ("Relu", "s", "h"), *_HEAD,
    ]  # fmt: skip
    return graph(nodes, constants, **options)


def one_of_two(**options) -> onnx.ModelProto:
    """Two convolutions read one pooled tensor, and the bias of the first does not fit into float16."""
    constants = _Weights()
    for number in (2, 3, 4):
        constants.layer(number, 1)
    constants["b3"][3] = 7e4
    constants |= {"low": np.float32(-5), "high": np.float32(5)}
    nodes = [
        *_STEM, ("MaxPool", "r0", "m", _POOL), ("Conv", "r0 w2 b2", "c2", {"strides": [2, 2]}),
        ("Conv", "m w3 b3", "c3"), ("Conv", "m w4 b4", "c4"), ("Clip", "c3 low high", "k3"), ("Add", "c2 k3", "s"),
        ("Add", "s c4", "t"), ("Relu", "t", "h"), *_HEAD,
    ]  # fmt: skip
    return graph(nodes, constants, **options)


def amplified(small: float, channels: slice = slice(None), **options) -> onnx.ModelProto:
    """A convolution with ``channels`` as small as ``small``, behind a ReLU a BN that brings them back to 1."""
    constants = _Weights()
    constants.layer(1, 1)
    constants.layer(2, 1)
    scale = np.ones(16, np.float32)
    scale[channels] = small
    constants["w1"] *= scale.reshape(-1, 1, 1, 1)
    constants["b1"] *= scale
    constants |= {"g": 1 / scale, "t": np.zeros(16, np.float32), "m": np.zeros(16, np.float32)}
    constants["v"] = np.ones(16, np.float32)
    nodes = [
        *_STEM, ("Conv", "r0 w1 b1", "c1"), ("Relu", "c1", "r1"), ("BatchNormalization", "r1 g t m v", "n"),
        ("Relu", "n", "r2"), ("Conv", "r2 w2 b2", "c2"), ("Relu", "c2", "h"), *_HEAD,
    ]  # fmt: skip
    return graph(nodes, constants, **options)


def dead_channels(small: float, bias: float | None = None, **options) -> onnx.ModelProto:
    """As :func:`amplified` without the BN: trained networks have channels like these, which do nothing."""
    constants = _Weights()
    constants.layer(1, 1)
    constants["w1"][3:7] = small
    if bias is not None:
        constants["b1"][3:7] = bias
    return graph([*_STEM, ("Conv", "r0 w1 b1", "c1"), ("Relu", "c1", "h"), *_HEAD], constants, **options)


def quiet(small: float, **options) -> onnx.ModelProto:
    """Activations near ``small`` between three convolutions."""
    constants = _Weights()
    constants.layer(1, small)
    constants.layer(2, 1, bias=0.1 * small)
    constants.layer(3, 1 / small, bias=0.1)
    nodes = [*_STEM]
    for number in (1, 2, 3):
        result = f"r{number}" if number < 3 else "h"
        nodes += [("Conv", f"r{number - 1} w{number} b{number}", f"c{number}"), ("Relu", f"c{number}", result)]
    return graph([*nodes, *_HEAD], constants, **options)


def tiny_bias(small: float = 1e-9, **options) -> onnx.ModelProto:
    """A convolution whose bias is ``small`` in every channel."""
    constants = _Weights()
    constants.layer(1, 1)
    constants["b1"] = np.full(16, small, np.float32)
    return graph([*_STEM, ("Conv", "r0 w1 b1", "c1"), ("Relu", "c1", "h"), *_HEAD], constants, **options)


def loud_classifier(**options) -> onnx.ModelProto:
    """Logits beyond float16."""
    constants = _Weights()
    constants["fw"] *= np.float32(1e5)
    constants["fb"] *= np.float32(1e5)
    return graph([*_STEM, ("Relu", "r0", "h"), *_HEAD], constants, **options)
