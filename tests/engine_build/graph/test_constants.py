"""Constants that are computed, and constants that several nodes read."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from small_models import CLASSIFIER, SPEC, bn_inputs, classifier_constants, graph, pictures, run_graph, weights_of

from calibration.onnx_index import Index
from calibration.streaming import collect
from calibration.tensors import activation_steps, activation_tensors, quantisable_nodes
from engine_build.graph.constants import fold_constants
from engine_build.graph.passes import canonicalise, prepare
from engine_build.graph.reference import graph_logits
from engine_build.quantise.fp8 import insert_fp8
from engine_build.quantise.qdq import insert_qdq
from infer.errors import GraphError

C = classifier_constants()
W = C["fc.weight"]
STEM = [*CLASSIFIER[:5]]  # to the features "f"


def head(*nodes, **constants):
    """A classifier with another last layer behind the features ``f`` ``[N, 16]``."""
    return graph([*STEM, *nodes], {**C, **constants})


def chain(graph_nodes, **constants):
    return head(*graph_nodes, ("Gemm", "f weight fc.bias", "y", {"transB": 1}), **constants)


def quantised(weight, kind):
    scale = np.abs(weight).max(axis=1) / 7
    return {"q": np.rint(weight / scale[:, None]).astype(kind), "s": scale.astype(np.float32)}


CHAINS = {
    "identity": chain([("Identity", "fc.weight", "weight")]),
    "cast from float16": chain([("Cast", "h", "weight", {"to": 1})], h=W.astype(np.float16)),
    "cast from bfloat16": chain([("Cast", "h", "weight", {"to": 1})], h=W.astype(ml_dtypes.bfloat16)),
    "cast from float64": chain([("Cast", "h", "weight", {"to": 1})], h=W.astype(np.float64)),
    "reshape": chain([("Reshape", "flat shape", "weight")], flat=W.ravel(), shape=np.array([10, -1])),
    "transpose": chain([("Transpose", "t", "weight", {"perm": [1, 0]})], t=np.ascontiguousarray(W.T)),
    "int8": chain(
        [("DequantizeLinear", "q s z", "weight", {"axis": 0})], z=np.zeros(10, np.int8), **quantised(W, np.int8)
    ),
    "uint8, one scale": chain(
        [("DequantizeLinear", "q s z", "weight")],
        q=(np.rint(W * 16) + 100).astype(np.uint8), s=np.float32(1 / 16), z=np.uint8(100),
    ),
    "float16 scales": chain(
        [("DequantizeLinear", "q sh", "h", {"axis": 0}), ("Cast", "h", "weight", {"to": 1})],
        q=quantised(W, np.int8)["q"], sh=quantised(W, np.int8)["s"].astype(np.float16),
    ),
    "long": chain(
        [("Cast", "h", "k1", {"to": 1}), ("Mul", "k1 two", "k2"), ("Add", "k2 k2", "k3"), ("Transpose", "k3", "k4"),
         ("Identity", "k4", "k5"), ("Transpose", "k5", "weight")],
        h=W.astype(np.float16), two=np.float32(2),
    ),
    "constant nodes": chain(
        [("Constant", "", "k", {"value": numpy_helper.from_array(W)}), ("Neg", "k", "n"), ("Neg", "n", "weight")]
    ),
    "split": chain([("Split", "both", "weight other", {"num_outputs": 2})], both=np.concatenate([W, W * 2])),
    "low rank": chain([("MatMul", "down up", "weight")], down=weights_of(10, 2, seed=1), up=weights_of(2, 16, seed=2)),
}  # fmt: skip


def int8_of(model):
    """The graph through every pass, as int8, and what was quantised."""
    images = pictures(16, seed=3)
    prepare(model, SPEC, 10, graph_logits(model_copy(model), SPEC))
    ranges = collect(model, [images], activation_tensors(model)).amax("minmax", activation_steps(model))
    done, quantised = insert_qdq(model, ranges)
    onnx.checker.check_model(done, full_check=True)
    assert len({tensor.name for tensor in done.graph.initializer}) == len(done.graph.initializer)
    return done, quantised


def model_copy(model):
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return copy


def sqnr(found, expected):
    expected = expected - expected.mean(axis=0)
    found = found - found.mean(axis=0)
    return 10 * np.log10((expected**2).sum() / ((found - expected) ** 2).sum())


@pytest.mark.parametrize("case", CHAINS)
def test_weights_behind_a_chain_of_constants_are_quantised(case):
    model = model_copy(CHAINS[case])
    expected = graph_logits(model_copy(model), SPEC)(pictures(8))
    done, quantised = int8_of(model)
    assert len(quantised.nodes) == 2 and not quantised.skipped
    found = run_graph(done, pictures(8), ["logits"])[0]
    assert np.abs(found - expected).max() < 0.05 * np.abs(expected).max()


def test_a_chain_becomes_one_initializer():
    model = model_copy(CHAINS["long"])
    index = Index(model)
    fold_constants(index)
    assert index.op_counts() == Index(graph(CLASSIFIER, C)).op_counts()
    assert np.array_equal(index.value("weight"), 4 * W.astype(np.float16).astype(np.float32))
    assert not {"h", "two"} & {tensor.name for tensor in model.graph.initializer}  # nobody reads them any more


UNFOLDED = {
    "a large result": (
        [("Expand", "one shape", "big"), ("ReduceMean", "big", "m", {"keepdims": 0}), ("Add", "f m", "y")],
        {"one": np.ones(1, np.float32), "shape": np.array([3000, 3000])}, "Expand",
    ),
    "random numbers": (
        [("RandomNormalLike", "fc.bias", "r"), ("Gemm", "f fc.weight r", "y", {"transB": 1})], {}, "RandomNormalLike",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", UNFOLDED)
def test_what_is_not_computed(case):
    nodes, constants, kept = UNFOLDED[case]
    index = Index(head(*nodes, **constants))
    fold_constants(index)
    assert index.op_counts()[kept] == 1


# --- shared ----------------------------------------------------------------------------------------------------------


def shared(nodes, **constants):
    """A stem, ``nodes`` from the map ``r0`` to the map ``last``, both of 16 channels, and a classifier."""
    made = {"w0": weights_of(16, 3, 3, 3, seed=1) / 5, "b0": weights_of(16, seed=2)}
    weights = {f"w{i}": weights_of(16, 16, 1, 1, seed=10 + i) / 4 for i in range(1, 5)}
    stem = [("Conv", "x w0 b0", "c0", {"strides": [2, 2], "pads": [1, 1, 1, 1]}), ("Relu", "c0", "r0")]
    tail = [("GlobalAveragePool", "last", "p"), ("Flatten", "p", "f"),
            ("Gemm", "f fc.weight fc.bias", "y", {"transB": 1})]  # fmt: skip
    return graph([*stem, *nodes, *tail], {**made, **weights, **C, **constants})


def layers(*reads, last="last"):
    """Conv and ReLU one behind the other, each reading the named constants; the last one writes ``last``."""
    nodes = []
    for i, read in enumerate(reads, 1):
        ends = last if i == len(reads) else f"r{i}"
        nodes += [("Conv", f"r{i - 1} {read}", f"c{i}"), ("Relu", f"c{i}", ends)]
    return nodes


SHARED = {
    "a bias, two convolutions": shared(layers("w1 b", "w2", "w3 b"), b=np.zeros(16, np.float32)),
    "a bias, three": shared(layers("w1 b", "w2 b", "w3 b"), b=weights_of(16, seed=5) / 4),
    "a weight, two convolutions": shared(
        layers("w1 b1", "w1 b2"), b1=weights_of(16) / 9, b2=weights_of(16, seed=3) / 9,
    ),
    "a weight and a bias": shared(layers("w1 b", "w1 b", "w1 b"), b=weights_of(16, seed=5) / 4),
    "a grouped convolution": shared(
        [("Conv", "r0 g", "a", {"group": 4}), ("Relu", "a", "b"), ("Conv", "b g", "c", {"group": 4}),
         ("Relu", "c", "last")],
        g=weights_of(16, 4, 1, 1, seed=8),
    ),
    "a convolution and a Gemm through Reshape": shared(
        [*layers("k", last="map"), ("Reshape", "k shape", "m"), ("GlobalAveragePool", "r0", "p0"),
         ("Flatten", "p0", "f0"), ("Gemm", "f0 m", "g0"),
         ("Reshape", "g0 back", "g1"), ("Sigmoid", "g1", "g2"), ("Mul", "map g2", "last")],
        k=weights_of(16, 16, 1, 1, seed=9) / 4, shape=np.array([16, 16]), back=np.array([0, 16, 1, 1]),
    ),
    "an addition and a product": shared(
        [*layers("w1", last="map"), ("Add", "map row", "a"), ("Mul", "a row", "last")],
        row=weights_of(1, 16, 1, 1),
    ),
    "parameters of two batch norms": shared(
        [("Conv", "r0 w1", "c1"), ("BatchNormalization", "c1 ones zeros zeros ones", "n1"), ("Relu", "n1", "r1"),
         ("Conv", "r1 w2", "c2"), ("Add", "c2 r0", "s2"), ("BatchNormalization", "s2 ones zeros zeros ones", "n2"),
         ("Relu", "n2", "r2"), ("Conv", "r2 w3", "c3"), ("Add", "c3 s2", "s3"),
         ("BatchNormalization", "s3 ones zeros zeros ones", "n3"), ("Relu", "n3", "last")],
        ones=np.full(16, 0.8, np.float32), zeros=np.full(16, 0.1, np.float32),
    ),
    "a bias and a batch norm": shared(
        [("Conv", "r0 w1 b", "c1"), ("Relu", "c1", "r1"), ("Conv", "r1 w2", "c2"), ("Add", "c2 r0", "s2"),
         ("BatchNormalization", "s2 one b b one", "n2"), ("Relu", "n2", "r2"), ("Conv", "r2 w3 b", "c3"),
         ("Relu", "c3", "last")],
        b=np.full(16, 0.3, np.float32), one=np.ones(16, np.float32),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", SHARED)
def test_a_constant_that_several_nodes_read_is_changed_for_none_of_them(case):
    model = model_copy(SHARED[case])
    images = pictures(64, seed=4)
    expected = graph_logits(model_copy(model), SPEC)(images)
    done, quantised = int8_of(model)
    index = Index(model)
    assert all(len(index.consumers[tensor.name]) == 1 for tensor in model.graph.initializer)
    assert len(quantised.nodes) == len(quantisable_nodes(index)) and not quantised.skipped
    assert sqnr(run_graph(done, images, ["logits"])[0], expected) > 20


@pytest.mark.parametrize("case", SHARED)
def test_fp8_graphs_of_shared_constants_are_valid(case):
    model = model_copy(SHARED[case])
    prepare(model, SPEC, 10, graph_logits(model_copy(model), SPEC))
    ranges = collect(model, [pictures(8)], activation_tensors(model)).amax("minmax")
    onnx.checker.check_model(insert_fp8(model, ranges)[0], full_check=True)


def test_constants_are_called_after_the_node_that_reads_them():
    model = model_copy(SHARED["parameters of two batch norms"])
    canonicalise(model)
    names = {tensor.name for tensor in model.graph.initializer}
    assert {"n1.scale", "n1.shift", "n1.mean", "n1.variance", "n3.scale", "c1.weight", "fc.bias"} <= names


def test_a_node_may_read_one_constant_twice():
    model = graph([("Gemm", "two two", "t"), *CLASSIFIER[:-1], ("Gemm", "f fc.weight fc.bias", "z", {"transB": 1}),
                   ("Where", "mask half half", "h"), ("Add", "z h", "y")],
                  {**C, "two": np.eye(2, dtype=np.float32), "half": np.full(10, 0.5, np.float32),
                   "mask": np.array([True] * 10)})  # fmt: skip
    before = run_graph(model, weights_of(2, 3, 32, 32))[0]
    canonicalise(model)
    np.testing.assert_allclose(run_graph(model, weights_of(2, 3, 32, 32))[0], before, atol=1e-5)


NAMES = ["normalise.shift", "top_k.k", "quantise.zero", "a, b", "new\nline", "tab\there", "x\x1ey", "[ONNX Layer: z]",
         "a + b", "a || b", "colon: 1", "", "n" * 3000]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_names_that_text_formats_cannot_carry_are_replaced(name):
    model = graph(CLASSIFIER, C)
    index = Index(model)
    for node in model.graph.node:
        node.name = f"{name}{node.op_type}"
    for old in ("stem.weight", "fc.bias", *bn_inputs("bn").split()[:1]):
        for node in index.consumers[old]:
            node.input[list(node.input).index(old)] = f"{name}{old[:2]}"
        index.constants[old].name = f"{name}{old[:2]}"
    for tensor, new in {"c": f"{name}c", "r": f"{name}r"}.items():
        for node in index.consumers[tensor]:
            node.input[0] = new
        index.producer[tensor].output[0] = new
    images = pictures(8)
    expected = graph_logits(model_copy(model), SPEC)(images)
    done, quantised = int8_of(model)
    assert len(quantised.nodes) == 2
    made = [done.graph.node, done.graph.initializer]
    names = [item.name for items in made for item in items] + [t for node in done.graph.node for t in node.output]
    assert all(n and not set(n) & set(", +|[]\n\t\x1e") and len(n) < 300 for n in names)
    assert sqnr(run_graph(done, images, ["logits"])[0], expected) > 20


def test_a_changed_constant_of_one_reader_is_refused_where_others_read_it():
    index = Index(graph([("Add", "x k", "a"), ("Mul", "a k", "y")], {"k": np.ones(3, np.float32)}))
    assert index.set_constant("k", np.ones(3, np.float32)) == "k"  # no change
    with pytest.raises(GraphError, match=r"constant 'k' is read by several nodes \(a, y\)"):
        index.set_constant("k", np.zeros(3, np.float32))


def test_initializers_listed_as_inputs_and_as_constant_nodes():
    model = graph(CLASSIFIER, {k: v for k, v in C.items() if k != "fc.bias"})
    model.graph.node.insert(
        0, helper.make_node("Constant", [], ["fc.bias"], "k", value=numpy_helper.from_array(C["fc.bias"]))
    )
    model.graph.input.append(helper.make_tensor_value_info("fc.weight", TensorProto.FLOAT, [10, 16]))
    before = run_graph(graph(CLASSIFIER, C), weights_of(2, 3, 32, 32))[0]
    del model.graph.input[1:]
    canonicalise(model)
    np.testing.assert_allclose(run_graph(model, weights_of(2, 3, 32, 32))[0], before, atol=1e-6)
