"""The weights of a graph rounded by the second moments of what its layers read (:mod:`engine_build.quantise.gptq`)."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray

from calibration.moments import LayerInput, Moments, collect_moments, layer_inputs
from calibration.onnx_index import Index
from calibration.tensors import channel_axis, quantisable_nodes
from engine_build.quantise.gptq import round_by_moments
from engine_build.quantise.pairs import pair_orders, window
from engine_build.quantise.weight_scales import RoundedWeights, from_rows, weight_rows, weight_scale
from infer.bundle.build_record import WeightRounding

#: Enough: 64 rows an image are more than the largest window has weights.
IMAGES = 128
#: Longer rows of weights are rounded to nearest: their moments would take hundreds of megabytes and minutes to factor.
LONGEST = 8192
# Of moments that are held at once; deeper networks than the published ones take another pass over the images.
_BYTES = 2 << 30


@dataclass(frozen=True)
class RoundedLayers:
    """The rounded weights of a graph and where they came from.

    Attributes:
        weights: by layer.
        images: that the moments were taken of; 0: rounded to nearest.
        reason: why to nearest; empty otherwise.
    """

    weights: Mapping[str, RoundedWeights]
    images: int = 0
    reason: str = ""

    def record(self) -> WeightRounding:
        """What the manifest keeps."""
        if not self.weights:
            return WeightRounding(rounding="nearest", reason=self.reason)
        return WeightRounding(rounding="second moments", images=self.images, layers=len(self.weights))


def round_layers(
    graph: onnx.ModelProto,
    images: NDArray[np.uint8],
    tensors: Mapping[str, tuple[float, float]],
    *,
    exclude: Collection[str] = (),
    method: str = "mse",
    pair_safe: bool = True,
    progress: Callable[[int], None] = lambda done: None,
) -> RoundedLayers:
    """Round the weights of every layer whose input is quantised.

    The same bytes from the same images, in any order.

    Args:
        graph: the float32 graph.
        images: uint8 ``[N, crop, crop, 3]``.
        tensors: scale and offset of the layers' inputs, see :func:`engine_build.quantise.qdq.layer_scales`.
        exclude: layers to leave out.
        method: how scales are chosen, see :func:`engine_build.quantise.weight_scales.quantise_weights`.
        pair_safe: see there.
        progress: called with 1 after each image.
    """
    index = Index(graph)
    nodes = [node for node in quantisable_nodes(index) if node.name not in exclude]
    inputs = layer_inputs(index, nodes, tensors)
    sizes = {node.name: _bytes(index, node, inputs[node.name]) for node in nodes if node.name in inputs}
    found: dict[str, RoundedWeights] = {}
    for number, names in enumerate(_passes(sizes)):
        taken = collect_moments(
            graph,
            (images[at : at + 1] for at in range(len(images))),
            {name: inputs[name] for name in names},
            progress if number == 0 else lambda done: None,
        )
        for node in nodes:
            if node.name in taken:
                weight, moments = index.value(node.input[1]), taken.pop(node.name)
                found[node.name] = _round(weight, channel_axis(node), inputs[node.name], moments, method, pair_safe)
    return RoundedLayers(found, len(images), "" if found else "no layer whose input can be sampled")


def _bytes(index: Index, node: onnx.NodeProto, layer: LayerInput) -> int:
    """Size of a layer's second moments."""
    weight = index.constants[node.input[1]].dims
    length = int(np.prod(weight, dtype=np.int64)) // weight[channel_axis(node)]
    return layer.groups * length * length * 4


def _passes(sizes: Mapping[str, int]) -> list[list[str]]:
    """The layers in as many groups as memory asks for, without those whose rows are too long."""
    passes: list[list[str]] = []
    held = 0
    for name, size in sizes.items():
        if size > LONGEST * LONGEST * 4:
            continue
        if not passes or held + size > _BYTES:
            passes.append([])
            held = 0
        passes[-1].append(name)
        held += size
    return passes


def _round(
    weight: NDArray[np.float32], axis: int, layer: LayerInput, moments: Moments, method: str, pair_safe: bool
) -> RoundedWeights:
    rows = weight_rows(weight, axis)
    orders = pair_orders(*window(weight.shape, axis)) if pair_safe else []
    scale = weight_scale(rows, orders, method)
    integers, bias = np.empty_like(rows), np.empty(len(rows))
    covariance, mean = moments.covariance(), layer.scale * moments.mean() + layer.offset
    for group, part in enumerate(np.split(np.arange(len(rows)), layer.groups)):
        integers[part] = round_by_moments(rows[part], scale[part], orders, covariance[group])
        bias[part] = (rows[part] - integers[part] * scale[part, None]).astype(np.float64) @ mean[group]
    return RoundedWeights(from_rows(integers, weight.shape, axis), scale, bias)
