"""Graphs at the ends of float16, typed: the logits are right, nothing is lost on the way, and the builders take it."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from extreme_nets import (
    amplified,
    chain,
    dead_channels,
    loud_classifier,
    one_of_two,
    pooled,
    quiet,
    residual,
    tiny_bias,
)
from onnx import TensorProto
from small_models import CLASSES, SPEC, classifier, pictures

from calibration.onnx_index import Index
from calibration.streaming import collect
from calibration.tensors import activation_steps, activation_tensors
from engine_build.checks.as_written import as_written
from engine_build.graph.passes import prepare
from engine_build.graph.reference import graph_logits
from engine_build.precision.casts import ALWAYS_FLOAT32, value_types
from engine_build.precision.float16 import FLOAT16_LEAST, FLOAT16_MAX, OVERFLOW, SUBNORMAL, UNDERFLOW
from engine_build.precision.typed_graph import BESIDE, NO_FORM, TypedGraph, Typing
from engine_build.quantise.fp8 import insert_fp8
from engine_build.quantise.qdq import insert_qdq
from engine_build.source import Source
from engine_build.targets.audit import require_float32, require_precision
from engine_build.targets.openvino import build_openvino
from engine_build.targets.tensorrt import BatchProfile, PlanRequest, build_plan
from infer.bundle import ModelInfo
from infer.errors import BuildError, GraphError

PAIR = ("QuantizeLinear", "DequantizeLinear")
NETS = {
    "chain": lambda: chain(300.0),
    "chain far beyond": lambda: chain(1e5),
    "addition": lambda: residual(2e5),
    "addition far beyond": lambda: residual(1e7),
    "pool": lambda: pooled(2e5),
    "pool far beyond": lambda: pooled(1e7),
    "one of two readers": one_of_two,
    "classifier": loud_classifier,
    "amplified": lambda: amplified(1e-9),
    "amplified channels": lambda: amplified(1e-9, slice(3, 12)),
    "amplified subnormal": lambda: amplified(1e-5),
    "quiet": lambda: quiet(1e-6),
    "very quiet": lambda: quiet(1e-12),
    "tiny bias": tiny_bias,
}


def source_of(model: onnx.ModelProto) -> Source:
    reference = graph_logits(model, SPEC)
    graph = onnx.ModelProto()
    graph.CopyFrom(model)
    prepare(graph, SPEC, CLASSES, reference)
    info = ModelInfo(name="net", num_classes=CLASSES, weights="", weights_sha256="", trained=True)
    return Source(graph, SPEC, info, None, reference, 0)


def with_pairs(source: Source, precision: str) -> onnx.ModelProto:
    if precision not in ("int8", "fp8"):
        return source.graph
    statistics = collect(source.graph, [pictures(24, seed=5)], activation_tensors(source.graph))
    if precision == "fp8":
        return insert_fp8(source.graph, statistics.amax("minmax", {}))[0]
    return insert_qdq(source.graph, statistics.amax("minmax", activation_steps(source.graph)))[0]


def typed_of(source: Source, precision: str) -> TypedGraph:
    typing = Typing(source, pictures(8))
    return typing.typed(with_pairs(source, precision), "int8" if precision == "fp8" else precision)


def sqnr(found, expected):
    assert np.isfinite(found).all()
    return 10 * np.log10((expected**2).sum() / ((found - expected) ** 2).sum())


@pytest.fixture(scope="module")
def nets():
    return {name: source_of(make()) for name, make in NETS.items()}


@pytest.mark.parametrize("name", NETS)
def test_logits_are_right_at_both_ends_of_float16(nets, name):
    source, images = nets[name], pictures(16, seed=9)
    expected = source.reference(images)
    floors = {"fp16": 55, "bf16": 38, "int8": 19}
    for precision, floor in floors.items():
        typed = typed_of(source, precision)
        assert sqnr(as_written(typed.graph)(images), expected) > floor, precision
        if precision == "bf16":
            assert typed.float32 == {}


@pytest.mark.parametrize("precision", ["int8", "fp8"])
@pytest.mark.parametrize("name", NETS)
def test_pairs_have_the_type_of_what_they_stand_before(nets, name, precision):
    typed = typed_of(nets[name], precision)
    index, types = Index(typed.graph), value_types(typed.graph)
    float32 = {*typed.float32, *ALWAYS_FLOAT32}
    for node in typed.graph.graph.node:
        if node.name in float32:
            assert {types[n] for n in node.input if n and types[n] in (1, 10)} <= {TensorProto.FLOAT}, node.name
        if node.op_type not in PAIR:
            continue
        scale = index.value(node.input[1])
        if scale.dtype == np.float16:
            assert (scale >= FLOAT16_LEAST).all() and np.isfinite(scale).all(), node.name
        if node.op_type == "QuantizeLinear":
            assert types[node.input[0]] == types[node.input[1]]
            continue
        readers = index.consumers[node.output[0]]
        kinds = {reader.op_type for reader in readers}
        assert "Cast" not in kinds, node.name  # no change of type between a pair and its readers
        wanted = {TensorProto.FLOAT if reader.name in float32 else TensorProto.FLOAT16 for reader in readers}
        assert {types[node.output[0]]} == wanted, node.name
        quantise = index.producer.get(node.input[0])
        if quantise is not None and types[node.output[0]] == TensorProto.FLOAT:
            assert index.value(quantise.input[1]).dtype == np.float32, node.name


def test_no_infinity_and_no_lost_constant(nets):
    for name, source in nets.items():
        for precision in ("fp16", "int8"):
            typed = typed_of(source, precision).graph
            for tensor in typed.graph.initializer:
                if tensor.data_type != TensorProto.FLOAT16:
                    continue
                value = onnx.numpy_helper.to_array(tensor)
                assert np.isfinite(value).all(), (name, precision, tensor.name)
                largest = np.abs(value).max()
                zeros = tensor.name.removesuffix(".float16").rsplit(".", 1)[-1] in ("zero", "lower", "shift")
                assert zeros or largest >= FLOAT16_LEAST or not largest, (name, precision, tensor.name)


@pytest.mark.parametrize(
    ("name", "precision", "expected"),
    [
        ("chain", "fp16", {"c2": OVERFLOW, "r2": OVERFLOW, "c3": OVERFLOW}),
        ("amplified", "fp16", {"c1": UNDERFLOW, "r1": UNDERFLOW, "n": OVERFLOW}),
        ("amplified channels", "fp16", {"c1": UNDERFLOW, "r1": UNDERFLOW, "n": OVERFLOW}),
        ("amplified channels", "int8", {"c1": UNDERFLOW, "r1": UNDERFLOW, "n": OVERFLOW}),
        ("amplified subnormal", "fp16", {"c1": SUBNORMAL, "r1": SUBNORMAL, "n": OVERFLOW}),
        ("tiny bias", "fp16", {"c1": UNDERFLOW, "h": BESIDE}),
        ("tiny bias", "bf16", {}),
        ("quiet", "fp16", {"c1": SUBNORMAL, "r1": SUBNORMAL, "c2": SUBNORMAL, "r2": SUBNORMAL, "c3": OVERFLOW}),
        ("classifier", "fp16", {"fc": OVERFLOW}),
        ("one of two readers", "fp16", {"c3": OVERFLOW, "k3": OVERFLOW}),
        ("one of two readers", "int8", {"m": BESIDE, "c2": BESIDE, "c3": OVERFLOW, "c4": BESIDE, "k3": OVERFLOW}),
    ],
)
def test_what_stays_float32_and_why(nets, name, precision, expected):
    found = typed_of(nets[name], precision).float32
    assert {("fc" if key == "y" else key): why for key, why in found.items()} == expected


def test_channels_that_do_nothing_keep_no_layer_from_float16():
    """Trained networks have channels whose weights are 1e-10: listing each such layer would leave little in float16."""
    for bias in (None, 0):
        assert typed_of(source_of(dead_channels(1e-10, bias)), "fp16").float32 == {}


def test_a_scale_beyond_float16_stays_float32():
    """At 1e7 and 127 steps the scale of the addition's shortcut is above 65504."""
    source = source_of(residual(1e8))
    typed = typed_of(source, "int8")
    scales = [Index(typed.graph).value(n.input[1]) for n in typed.graph.graph.node if n.op_type in PAIR]
    assert max(float(scale.max()) for scale in scales) > FLOAT16_MAX
    images = pictures(16, seed=9)
    assert sqnr(as_written(typed.graph)(images), source.reference(images)) > 20


def test_a_moved_relu_is_bounded_by_its_own_type(nets):
    """Without an upper bound TensorRT takes the largest float32; with float16's, activations of 2e5 are cut off."""
    typed = typed_of(nets["chain"], "int8")
    index = Index(typed.graph)
    clips = {node.name: node for node in typed.graph.graph.node if node.op_type == "Clip"}
    assert len(clips) >= 4
    for name, node in clips.items():
        if name in typed.float32:
            assert len(node.input) < 3 or not node.input[2] or index.value(node.input[2]) > 1e30
        else:
            assert index.value(node.input[2]).dtype == np.float16 and index.value(node.input[2]) == FLOAT16_MAX


def test_the_notes_say_how_many_and_why(nets):
    lines = typed_of(nets["chain far beyond"], "fp16").notes()
    assert lines == ["7 nodes stay float32, float16 would overflow: c1, r1, c2, r2, c3 and 2 more"]
    lines = typed_of(nets["tiny bias"], "fp16").notes()
    assert lines == [
        "1 node stays float32, float16 would underflow to 0: c1", "1 node stays float32, as its neighbours do: h"
    ]  # fmt: skip
    (line,) = typed_of(nets["quiet"], "int8").notes()[:1]
    assert line.startswith("3 nodes stay float32 around their integers, float16 would underflow to 0: c1, c2, c3")


# --- the builders ----------------------------------------------------------------------------------------------------


def plan_of(typed: TypedGraph, folder):
    onnx.save(typed.graph, folder / "model.onnx")
    request = PlanRequest(folder / "model.onnx", folder / "plan", BatchProfile(1, 2, 4), compute_capabilities=("8.9",))
    return build_plan("tensorrt_rtx", request, False).audit


@pytest.mark.parametrize("name", ["chain", "addition far beyond", "pool", "one of two readers", "amplified", "quiet"])
def test_builders_run_every_layer_in_int8(nets, name, tmp_path):
    typed = typed_of(nets[name], "int8")
    layers = [n.name for n in typed.graph.graph.node if n.op_type in ("Conv", "Gemm")]
    require_precision(plan_of(typed, tmp_path), layers, "int8")
    build_openvino(tmp_path / "model.onnx", tmp_path, "int8", layers, list(typed.float32))


@pytest.mark.parametrize("name", ["chain", "amplified channels", "tiny bias", "one of two readers"])
def test_tensorrt_multiplies_in_float32_what_has_to_be(nets, name, tmp_path):
    """TensorRT-RTX makes a float16 layer of a float32 one that stands alone between two casts."""
    typed = typed_of(nets[name], "fp16")
    audit = plan_of(typed, tmp_path)
    require_float32(audit, typed.float32)
    layers = [n.name for n in typed.graph.graph.node if n.op_type == "Conv" and n.name in typed.float32]
    assert layers and {audit.node_precisions[layer] for layer in layers} == {"fp32"}


def test_a_layer_that_tensorrt_computes_in_float16_after_all_is_an_error(nets, tmp_path):
    typed = typed_of(nets["tiny bias"], "fp16")
    audit = plan_of(typed, tmp_path)
    with pytest.raises(BuildError, match=r"1 layers have to run in float32, but TensorRT made of them: c0 \(fp16\)"):
        require_float32(audit, ["c0", "c1"])


def test_openvino_computes_in_float32_where_float16_would_not_do(nets, tmp_path):
    """With its hint f16 it computes in float16 what is float32 in the graph, on CPUs that have such arithmetic."""
    typed = typed_of(nets["chain"], "fp16")
    onnx.save(typed.graph, tmp_path / "model.onnx")
    plan = build_openvino(tmp_path / "model.onnx", tmp_path, "fp16", (), list(typed.float32))
    assert plan.options["INFERENCE_PRECISION_HINT"] == "f32"
    assert plan.audit.summary.mac_precisions == {"fp32": 6}


# --- opsets and validity ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("opset", [17, 18, 19, 20, 21])
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "int8", "fp8"])
def test_the_typed_graph_is_valid_whatever_the_opset(opset, precision):
    typed = typed_of(source_of(classifier(opset=opset)), precision).graph
    onnx.checker.check_model(typed, full_check=True)
    if precision not in ("bf16", "fp8"):
        assert as_written(typed)(pictures(1)).shape == (1, CLASSES)
    found = next(entry.version for entry in typed.opset_import if not entry.domain)
    assert found == max(opset, {"fp32": 0, "fp16": 0, "bf16": 22, "int8": 19, "fp8": 19}[precision])


def test_a_conversion_that_changes_the_results_stops_the_build(monkeypatch):
    from engine_build.precision import opsets

    convert = opsets.onnx.version_converter.convert_version

    def wrong(model, opset):
        converted = convert(model, opset)
        node = next(node for node in converted.graph.node if node.op_type == "GlobalAveragePool")
        node.op_type = "GlobalMaxPool"
        return converted

    monkeypatch.setattr(opsets.onnx.version_converter, "convert_version", wrong)
    with pytest.raises(GraphError, match="step opset 19 changed the results"):
        typed_of(source_of(classifier(opset=17)), "int8")


def test_operators_without_a_form_in_the_type_stay_float32():
    nodes = [
        ("Conv", "x w", "c", {"strides": [2, 2]}), ("Celu", "c", "r"), ("GlobalAveragePool", "r", "p"),
        ("Flatten", "p", "f"), ("Gemm", "f v", "y", {"transB": 1}),
    ]  # fmt: skip
    from small_models import graph, weights_of

    model = graph(nodes, {"w": weights_of(8, 3, 3, 3) / 5, "v": weights_of(CLASSES, 8)})
    source = source_of(model)
    for precision, floor in (("fp16", 50), ("bf16", 35)):
        typed = typed_of(source, precision)
        assert typed.float32 == {"r": NO_FORM}
        images = pictures(4)
        assert sqnr(as_written(typed.graph)(images), source.reference(images)) > floor
