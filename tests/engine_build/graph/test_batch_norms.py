"""Batch norms folded into the layer before them, and those that remain."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto
from small_models import SIDE, bn_constants, bn_inputs, graph, run_graph

from calibration.onnx_index import Index, attribute
from engine_build.graph.batch_norms import fold_batch_norms, simplify_batch_norms
from engine_build.graph.canonical import canonicalise
from infer.errors import GraphError

X = np.random.default_rng(1).normal(size=(2, 3, SIDE, SIDE)).astype(np.float32)
RNG = np.random.default_rng(3)
KERNEL = RNG.normal(size=(4, 3, 3, 3)).astype(np.float32)
BIAS = RNG.normal(size=4).astype(np.float32)
MATRIX = RNG.normal(size=(4, 3)).astype(np.float32)
BN4 = bn_constants("bn", 4, RNG)
C_BN, G_BN = f"c {bn_inputs('bn')}", f"g {bn_inputs('bn')}"
POOLED = [("GlobalAveragePool", "x", "p"), ("Flatten", "p", "f")]
SEVERAL = [("y", TensorProto.FLOAT, None), ("c", TensorProto.FLOAT, None)]

FOLDS = {
    "conv": (1, [("Conv", "x w", "c"), ("BatchNormalization", C_BN, "y")], {"w": KERNEL}),
    "conv with bias": (1, [("Conv", "x w b", "c"), ("BatchNormalization", C_BN, "y")], {"w": KERNEL, "b": BIAS}),
    "epsilon": (
        1, [("Conv", "x w", "c"), ("BatchNormalization", C_BN, "y", {"epsilon": 0.3})], {"w": KERNEL},
    ),
    "grouped conv": (
        1,
        [("Concat", "x x", "xx", {"axis": 1}), ("Conv", "xx w", "c", {"group": 2}),
         ("BatchNormalization", C_BN, "y")],
        {"w": KERNEL},
    ),
    "gemm, weight transposed": (
        1,
        [*POOLED, ("Gemm", "f m b", "g", {"transB": 1}), ("BatchNormalization", G_BN, "y")],
        {"m": MATRIX, "b": BIAS},
    ),
    "gemm, weight as it is": (
        1,
        [*POOLED, ("Gemm", "f m b", "g"), ("BatchNormalization", G_BN, "y")],
        {"m": np.ascontiguousarray(MATRIX.T), "b": BIAS},
    ),
    "gemm, square": (  # the axis cannot be told from the shape
        1,
        [*POOLED, ("Concat", "f b1", "ff", {"axis": 1}), ("Gemm", "ff m", "g"),
         ("BatchNormalization", G_BN, "y")],
        {"m": RNG.normal(size=(4, 4)).astype(np.float32), "b1": np.ones((2, 1), np.float32)},
    ),
    "gemm with factors": (
        1,
        [*POOLED, ("Gemm", "f m b", "g", {"transB": 1, "alpha": 0.5, "beta": 2.0}),
         ("BatchNormalization", G_BN, "y")],
        {"m": MATRIX, "b": BIAS},
    ),
    "shared weights": (
        1,
        [("Conv", "x w", "c"), ("Conv", "x w", "d"), ("BatchNormalization", C_BN, "e"), ("Add", "d e", "y")],
        {"w": KERNEL},
    ),
    "shared bias": (
        1,
        [("Conv", "x w b", "c"), ("Conv", "x v b", "d"), ("BatchNormalization", C_BN, "e"), ("Add", "d e", "y")],
        {"w": KERNEL, "v": KERNEL[::-1].copy(), "b": BIAS},
    ),
    "convolution read twice": (
        0, [("Conv", "x w", "c"), ("BatchNormalization", C_BN, "d"), ("Add", "c d", "y")], {"w": KERNEL},
    ),
    "norm read twice": (
        1,
        [("Conv", "x w", "c"), ("BatchNormalization", C_BN, "d"), ("Relu", "d", "r"), ("Add", "d r", "y")],
        {"w": KERNEL},
    ),
    "convolution is an output": (
        0, [("Conv", "x w", "c"), ("BatchNormalization", C_BN, "y")], {"w": KERNEL},
    ),
    "norm of a sum": (
        0, [("Conv", "x w", "c"), ("Add", "c c", "s"), ("BatchNormalization", f"s {bn_inputs('bn')}", "y")],
        {"w": KERNEL},
    ),
    "computed weight": (
        1, [("Mul", "w two", "v"), ("Conv", "x v", "c"), ("BatchNormalization", C_BN, "y")],
        {"w": KERNEL, "two": np.float32(2)},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", FOLDS)
def test_folding(case):
    folded, nodes, constants = FOLDS[case]
    outputs = SEVERAL if case == "convolution is an output" else SEVERAL[:1]
    model = graph(nodes, {**constants, **BN4}, outputs=outputs)
    before = run_graph(model, X)
    canonicalise(model)
    assert fold_batch_norms(model) == folded
    assert Index(model).op_counts()["BatchNormalization"] == 1 - folded
    for old, new in zip(before, run_graph(model, X), strict=True):
        np.testing.assert_allclose(new, old, atol=1e-4 * np.abs(old).max())


def test_folding_never_changes_a_constant_for_another_node():
    _, nodes, constants = FOLDS["shared weights"]
    with pytest.raises(GraphError, match=r"constant 'w' is read by several nodes \(c, d\); give each a copy first"):
        fold_batch_norms(graph(nodes, {**constants, **BN4}, outputs=SEVERAL[:1]))


def test_folding_drops_the_constants_of_the_norm():
    _, nodes, constants = FOLDS["conv"]
    model = graph(nodes, {**constants, **BN4}, outputs=SEVERAL[:1])
    fold_batch_norms(model)
    assert {tensor.name for tensor in model.graph.initializer} == {"w", "c.folded_bias"}


def test_remaining_norms_become_scale_and_shift():
    nodes = [("Relu", "x", "r"), ("BatchNormalization", f"r {bn_inputs('bn')}", "y", {"epsilon": 1e-3})]
    constants = bn_constants("bn", 3, RNG)
    constants["bn.running_var"][0] = 1e-9  # underflows in float16
    model = graph(nodes, constants, outputs=SEVERAL[:1])
    before = run_graph(model, X)[0]
    simplify_batch_norms(model)
    norm = model.graph.node[1]
    index = Index(model)
    assert attribute(norm, "epsilon") == 0
    assert index.value(norm.input[3]).tolist() == [0, 0, 0]
    assert index.value(norm.input[4]).tolist() == [1, 1, 1]
    np.testing.assert_allclose(run_graph(model, X)[0], before, rtol=1e-5, atol=1e-5)
