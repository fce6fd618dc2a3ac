"""The precision in the graph: the right type on every tensor, float32 where it must be, and no overflow."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from graph_checks import activation_ranges, outputs_are_float32
from onnx import TensorProto
from onnx.reference import ReferenceEvaluator
from small_models import CLASSES, CLASSIFIER, SPEC, classifier_constants, graph, pictures

from calibration.onnx_index import Index
from engine_build.graph.passes import prepare
from engine_build.graph.reference import graph_logits
from engine_build.precision.casts import PRECISIONS, to_precision, value_types
from engine_build.precision.float16 import FLOAT16_MAX, float32_nodes
from infer.errors import InputError

KINDS = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
FLOAT32_NODES = {
    "normalise.cast",
    "normalise.sub",
    "normalise.mul",
    "softmax",
    "top_k",
    "scores.gather",
    "classes.cast",
}


@pytest.fixture(scope="module")
def network(untrained):
    """A whole residual network, fp32, as it is before the precision is chosen."""
    return onnx.load(untrained / "model.onnx")


def infer(model, images):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return dict(zip(("logits", "scores", "classes"), session.run(None, {"images": images}), strict=True))


def prepared(nodes, constants):
    model = graph(nodes, constants)
    prepare(model, SPEC, CLASSES, graph_logits(graph(nodes, constants), SPEC))
    return model


def output_types(model):
    types = value_types(model)
    return {node.name: types[node.output[0]] for node in model.graph.node}


@pytest.mark.parametrize("precision", KINDS)
def test_every_tensor_has_its_type(network, precision):
    kind, typed = KINDS[precision], to_precision(network, precision)
    onnx.checker.check_model(typed, full_check=True)
    types = value_types(typed)
    index = Index(typed)
    for node in typed.graph.node:
        floats = {
            types[name] for name in node.input if name and types[name] not in (TensorProto.INT64, TensorProto.UINT8)
        }
        if node.op_type != "Cast":
            expected = TensorProto.FLOAT if node.name in FLOAT32_NODES else kind
            assert floats == {expected}, node.name
            assert types[node.output[0]] == expected, node.name
    kinds = {tensor.name: tensor.data_type for tensor in typed.graph.initializer}
    assert {name for name, k in kinds.items() if k == TensorProto.FLOAT} == {"normalise.shift", "normalise.factor"}
    assert {
        k for name, k in kinds.items() if name.endswith(f".{'float16' if precision == 'fp16' else 'bfloat16'}")
    } == {kind}
    assert index.op_counts()["Cast"] == 4  # uint8 in, to the precision, back for the softmax, the class numbers
    assert index.op_counts() - onnx_counts(network) == {"Cast": 2}


def onnx_counts(model):
    return Index(model).op_counts()


@pytest.mark.parametrize("precision", ["fp32", *KINDS])
def test_inputs_and_outputs_stay(network, precision):
    typed = to_precision(network, precision)
    assert outputs_are_float32(typed)
    assert typed.graph.input[0].type.tensor_type.elem_type == TensorProto.UINT8
    softmax = Index(typed).producer["softmax_output"]
    assert value_types(typed)[softmax.input[0]] == TensorProto.FLOAT


def test_outputs_of_another_type_are_noticed(network):
    wrong = onnx.ModelProto()
    wrong.CopyFrom(network)
    wrong.graph.output[0].type.tensor_type.elem_type = TensorProto.FLOAT16
    assert not outputs_are_float32(wrong)


def test_the_given_graph_is_left_alone(network):
    before = network.SerializeToString()
    for precision in ("fp32", "fp16", "bf16"):
        to_precision(network, precision)
    assert network.SerializeToString() == before
    assert to_precision(network, "fp32").SerializeToString() == before


def test_bf16_gets_the_opset_that_knows_it(network):
    assert next(entry.version for entry in to_precision(network, "bf16").opset_import if not entry.domain) == 22


@pytest.mark.parametrize("name", ["fp8", "FP16", ""])
def test_unknown_precision(network, name):
    assert {"fp32", "fp16", "bf16"} <= set(PRECISIONS)
    with pytest.raises(InputError, match=f"unknown precision '{name}'; known: fp32, fp16, bf16"):
        to_precision(network, name)


def test_fp16_is_close_but_not_equal(network):
    images = pictures(8)
    exact, half = infer(network, images)["logits"], infer(to_precision(network, "fp16"), images)["logits"]
    error = np.abs(half - exact).max() / np.abs(exact).max()
    assert 1e-6 < error < 0.01
    assert half.dtype == np.float32


def test_bf16_rounds_every_weight_to_eight_bits(network):
    exact, typed = Index(network), Index(to_precision(network, "bf16"))
    conv = exact.producer["layer3.1.conv1_output"]
    weight = exact.value(conv.input[1])
    rounded = typed.value(f"{conv.input[1]}.bfloat16").astype(np.float32)
    error = np.abs(rounded - weight) / np.abs(weight)
    assert 2**-10 < error.max() <= 2**-8


def test_kept_nodes_stay_float32_between_casts(network):
    kept = {"layer2.0.conv1", "layer2.0.conv2"}
    typed = to_precision(network, "fp16", kept)
    types, own = output_types(typed), output_types(network)
    floats = {name for name, kind in types.items() if kind == TensorProto.FLOAT and name in own}
    beside = {"layer2.0.relu"}  # or the first of the two would be alone between casts
    assert floats == {*FLOAT32_NODES - {"classes.cast"}, *kept, *beside}
    images = pictures(2)
    assert np.abs(infer(typed, images)["logits"] - infer(network, images)["logits"]).max() < 0.01


def test_a_kept_classifier_writes_its_logits_directly():
    model = prepared(CLASSIFIER, classifier_constants())
    typed = to_precision(model, "fp16", ["fc"])
    assert Index(typed).producer["logits"].op_type == "Gemm"
    images = pictures(2)
    np.testing.assert_allclose(infer(typed, images)["logits"], infer(model, images)["logits"], rtol=0.01, atol=0.01)


def test_a_weight_shared_with_a_kept_node_exists_twice():
    nodes = [("Conv", "x w", "a"), ("Conv", "x w", "b"), ("Add", "a b", "r"), *CLASSIFIER[3:]]
    constants = {**classifier_constants(), "w": classifier_constants()["stem.weight"]}
    model = prepared(nodes, constants)
    first, second = (node.name for node in model.graph.node if node.op_type == "Conv")
    typed = to_precision(model, "fp16", [first])
    index = Index(typed)
    weights = {
        node.name: index.constants[node.input[1]].data_type for node in typed.graph.node if node.op_type == "Conv"
    }
    assert weights == {first: TensorProto.FLOAT, second: TensorProto.FLOAT16}
    assert infer(typed, pictures(1))["logits"].shape == (1, CLASSES)


def test_one_cast_serves_every_reader():
    nodes = [*CLASSIFIER[:3], ("Sigmoid", "r", "s"), ("Tanh", "r", "t"), ("Mul", "s t", "m"),
             ("GlobalAveragePool", "m", "p"), *CLASSIFIER[4:]]  # fmt: skip
    model = prepared(nodes, classifier_constants())
    typed = to_precision(model, "fp16", ["s", "t"])
    assert sum(node.name == "r_output.to_float" for node in typed.graph.node) == 1
    onnx.checker.check_model(typed, full_check=True)


@pytest.mark.parametrize("precision", KINDS)
@pytest.mark.parametrize(
    ("nodes", "constants"),
    [
        ([("Resize", "r - factors", "u", {"mode": "nearest"})], {"factors": np.array([1, 1, 2, 2], np.float32)}),
        (
            [("Shape", "r", "shape"), ("ConstantOfShape", "shape", "zero"), ("Add", "r zero", "u")],
            {},
        ),
        (
            [("Shape", "r", "shape"), ("Cast", "shape", "n", {"to": 1}), ("ReduceMax", "n", "top"),
             ("Div", "r top", "u")],
            {},
        ),
        ([("Clip", "r low high", "u")], {"low": np.float32(0), "high": np.float32(6)}),
        ([("Cast", "r", "d", {"to": 1}), ("Relu", "d", "u")], {}),
    ],
    ids=["resize", "zeros", "integers", "clip", "cast"],
)  # fmt: skip
def test_operators_of_other_networks(nodes, constants, precision):
    nodes = [*CLASSIFIER[:3], *nodes, ("GlobalAveragePool", "u", "p"), *CLASSIFIER[4:]]
    model = prepared(nodes, {**classifier_constants(), **constants})
    typed = to_precision(model, precision)
    onnx.checker.check_model(typed, full_check=True)
    if precision == "fp16":  # ONNX Runtime has few bf16 kernels
        images = pictures(2)
        exact = infer(model, images)["logits"]
        np.testing.assert_allclose(infer(typed, images)["logits"], exact, atol=0.02 * np.abs(exact).max())


@pytest.mark.parametrize("precision", KINDS)
@pytest.mark.parametrize("high", [None, np.finfo(np.float32).max, np.inf, 1e6])
def test_bounds_beyond_the_type_become_its_largest_number(precision, high):
    """TensorRT takes the largest float32 for a bound that is missing; exporters write it for ``clamp(min=0)``."""
    clip = ("Clip", "b low" if high is None else "b low high", "r")
    constants = {**classifier_constants(), "low": np.float32(0)} | ({} if high is None else {"high": np.float32(high)})
    model = prepared([*CLASSIFIER[:2], clip, *CLASSIFIER[3:]], constants)
    typed = to_precision(model, precision)
    node = next(node for node in typed.graph.node if node.op_type == "Clip")
    low, found = (Index(typed).value(name).astype(np.float64) for name in node.input[1:])
    largest = {"fp16": 65504.0, "bf16": float(np.float32(2) ** 127 * np.float32(2 - 2**-7))}[precision]
    assert low == 0 and (found == largest or (precision == "bf16" and high == 1e6 and abs(found - 1e6) < 4e3))
    onnx.checker.check_model(typed, full_check=True)


# --- overflow --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def loud():
    """Activations near a million between two convolutions; results are moderate again."""
    constants = classifier_constants()
    rng = np.random.default_rng(0)
    constants["up.weight"] = (rng.normal(size=(8, 3, 3, 3)) * 1e5).astype(np.float32)
    constants["up.weight"].clip(-6e4, 6e4, out=constants["up.weight"])  # each weight alone would fit
    constants["down.weight"] = (rng.normal(size=(16, 8, 1, 1)) * 1e-5).astype(np.float32)
    nodes = [("Conv", "x up.weight", "c"), ("Relu", "c", "r"), ("Conv", "r down.weight", "s"),
             ("GlobalAveragePool", "s", "p"), *CLASSIFIER[4:]]  # fmt: skip
    used = {name: value for name, value in constants.items() if any(name in node[1] for node in nodes)}
    return prepared(nodes, used)


def test_what_overflows_stays_float32(loud):
    images = pictures(8)
    amax = activation_ranges(loud, images)
    assert max(amax.values()) > 10 * FLOAT16_MAX
    assert list(float32_nodes(loud, amax)) == ["up", "r", "down"]
    exact = infer(loud, images)["logits"]
    with np.errstate(all="ignore"):  # ONNX Runtime computes float16 convolutions in float32; this one does not
        naive = ReferenceEvaluator(to_precision(loud, "fp16")).run(None, {"images": images})[0]
    assert not np.isfinite(naive).all()
    kept = to_precision(loud, "fp16", float32_nodes(loud, amax))
    found = dict(
        zip(("logits", "scores", "classes"), ReferenceEvaluator(kept).run(None, {"images": images}), strict=True)
    )
    np.testing.assert_allclose(found["logits"], exact, atol=0.01 * np.abs(exact).max())
    assert np.array_equal(found["classes"][:, 0], infer(loud, images)["classes"][:, 0])
    types = output_types(kept)
    assert [types[name] for name in ("up", "r", "down")] == [TensorProto.FLOAT] * 3
    assert [types[name] for name in ("p", "f", "fc")] == [TensorProto.FLOAT16] * 3


def test_trained_networks_need_no_float32(shipped):
    model = onnx.load(shipped("fp16") / "model.onnx")
    assert {k for name, k in output_types(model).items() if name.startswith("layer") or name == "fc"} == {
        TensorProto.FLOAT16
    }
