"""The gates of a build: right graphs and plans pass, and of wrong ones calibration, graph or kernels is blamed."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from xml.etree import ElementTree

import msgspec
import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from calibration.cache import read_cache, write_cache
from calibration.request import Request
from engine_build.build_bundle import BuildOptions, build
from engine_build.checks.gates import FLOORS, GateImages, Gates, gate_images
from engine_build.precision.casts import to_precision
from engine_build.quantise.int8 import Int8Options, quantise
from engine_build.source import SourceOptions, Steps, load_source
from engine_build.synthetic import synthetic_images
from infer.bundle import file_entry, read_manifest
from infer.checks.blame import ScaleFit
from infer.errors import AccuracyError, GraphError


@pytest.fixture(scope="module")
def source(narrow_row):
    return load_source(SourceOptions(narrow_row.name, offline=True), Steps())


@pytest.fixture(scope="module")
def quantised(source, tmp_path_factory):
    return quantise(source, Int8Options(), tmp_path_factory.mktemp("cache") / "c", "tool", lambda line: None)


@pytest.fixture(scope="module")
def typed(quantised):
    return to_precision(quantised.graph, "int8")


@pytest.fixture(scope="module")
def images(source):
    return gate_images(source, Int8Options(calibration=Request((str(shipped_set()),))), None)


def shipped_set():
    from engine_build.network.zoo import MODELS

    return MODELS["iresnet50_fashion"].shipped / "calibration.tar.gz"


def with_scales(quantised, change):
    """``quantised`` again, from a cache whose scales were changed."""
    scales = {name: np.float32(change(name, scale)) for name, scale in quantised.cache.scales.items()}
    return dataclasses.replace(quantised.cache, scales=scales)


def regraph(source, quantised, tmp_path, change):
    write_cache(tmp_path / "stale", with_scales(quantised, change))
    options = Int8Options(cache=tmp_path / "stale", accept_cache=True)
    return quantise(source, options, tmp_path / "none", "tool", lambda line: None)


def test_a_right_graph_passes(source, quantised, typed, images):
    gates = Gates(source, "int8", images)
    gates.graph(typed, quantised)
    (check,) = gates.checks
    assert (check.target, check.against, check.images) == ("graph", "float graph", len(images.images))
    assert check.sqnr_db >= check.floor_db
    assert "onnxruntime" in check.engine


def test_a_network_that_amplifies_rounding_is_asked_for_less(source, quantised, typed, images, monkeypatch):
    monkeypatch.setitem(FLOORS, "int8", 30.0)
    gates = Gates(source, "int8", images)
    gates.graph(typed, quantised)
    (check,) = gates.checks
    assert 5 < check.floor_db < check.sqnr_db < 30
    assert "amplifies rounding" in gates.notes[0] and "in place of 30 dB" in gates.notes[0]


@pytest.mark.parametrize("factor", [8, 1 / 4])
def test_stale_scales_are_the_calibrations_fault(source, quantised, images, tmp_path, factor):
    stale = regraph(source, quantised, tmp_path, lambda name, scale: scale * factor)
    with pytest.raises(AccuracyError, match=r"^calibration: .*more error than the best.*--data") as caught:
        Gates(source, "int8", images).graph(to_precision(stale.graph, "int8"), stale)
    assert "\n" not in str(caught.value)


def test_scales_that_do_not_fit_are_asked_for_more(source, quantised, typed, images, monkeypatch):
    """A calibration on noise may leave more than the floor: what counts is that other scales would do far better."""
    monkeypatch.setitem(FLOORS, "int8", 5.0)
    Gates(source, "int8", images).graph(typed, quantised)
    monkeypatch.setattr("engine_build.checks.gates.Gates.scale_fit", lambda *_: ScaleFit("mse", 14.0, "relu", 4.0))
    monkeypatch.setitem(FLOORS, "int8", 15.0)
    with pytest.raises(AccuracyError, match=r"^calibration: .*at least 25\.0 dB are needed"):
        Gates(source, "int8", images).graph(typed, quantised)
    Gates(source, "int8", images, min_sqnr=10).graph(typed, quantised)  # asked for by name: nothing else counts


def test_scales_of_other_tensors_are_the_calibrations_fault(source, quantised, images, tmp_path):
    names = list(quantised.cache.scales)
    others = dict(zip(names, names[1:] + names[:1], strict=True))
    stale = regraph(source, quantised, tmp_path, lambda name, scale: quantised.cache.scales[others[name]])
    with pytest.raises(AccuracyError, match=r"^calibration: "):
        Gates(source, "int8", images).graph(to_precision(stale.graph, "int8"), stale)


@pytest.mark.parametrize("precision", ["int8", "fp16"])
def test_a_ruined_graph_is_the_graphs_fault(source, quantised, typed, images, precision):
    ruined = onnx.ModelProto()
    ruined.CopyFrom(typed if precision == "int8" else to_precision(source.graph, "fp16"))
    biases = [tensor for tensor in ruined.graph.initializer if "bias" in tensor.name and len(tensor.dims) == 1]
    tensor = biases[len(biases) // 2]
    value = numpy_helper.to_array(tensor)
    shift = 4 * np.abs(value).max() + 1
    tensor.CopyFrom(numpy_helper.from_array((value[::-1] + shift).astype(value.dtype), tensor.name))
    with pytest.raises(AccuracyError, match=rf"^graph: the {precision} graph, computed as it is written"):
        Gates(source, precision, images).graph(ruined, quantised if precision == "int8" else None)


def test_the_floor_is_an_option(source, quantised, typed, images):
    with pytest.raises(AccuracyError, match=r"at least 90\.0 dB are needed.*--min-sqnr"):
        Gates(source, "int8", images, min_sqnr=90).graph(typed, quantised)
    gates = Gates(source, "int8", images, min_sqnr=-5)
    gates.graph(typed, quantised)
    assert gates.checks[0].floor_db == -5


def test_kernels_that_compute_something_else(source, typed, own, build_once, narrow_row):
    bundle = own(build_once(f"{narrow_row.name}-int8", model=narrow_row.name, precision="int8"))
    manifest = read_manifest(bundle)
    gates = Gates(source, "int8", GateImages(synthetic_images(32, source.spec.crop, 5), "synthetic pictures"))
    gates.graph(onnx.load(bundle / "model.onnx"), None)
    (plan,) = manifest.plans
    gates.plan(bundle, manifest, plan)
    check = gates.checks[1]
    assert (check.target, check.against) == ("openvino", "typed graph")
    assert check.engine.endswith(plan.audit.summary.instruction_set)
    transpose_weights(bundle, plan)
    with pytest.raises(AccuracyError, match=r"^kernels: openvino \([\w+]+\) computes something else than its graph"):
        gates.plan(bundle, manifest, plan)


def transpose_weights(bundle, plan):
    """Turn the largest int8 weight of OpenVINO's file around, and let the manifest vouch for it."""
    constants = [node.attrib for node in ElementTree.parse(bundle / "openvino.xml").iter("data")]
    largest = max((c for c in constants if c.get("element_type") == "i8"), key=lambda c: int(c["size"]))
    start, size = int(largest["offset"]), int(largest["size"])
    content = np.fromfile(bundle / "openvino.bin", np.uint8)
    content[start : start + size] = content[start : start + size][::-1].copy()
    content.tofile(bundle / "openvino.bin")
    plan.files[1] = file_entry(bundle, "openvino.bin")


def test_a_plan_that_does_not_run_here_is_not_checked(source, images, monkeypatch):
    monkeypatch.setattr("engine_build.checks.gates.why_unavailable", lambda target: "no GPU")
    gates, plan = Gates(source, "int8", images), SimpleNamespace(target="tensorrt_rtx", notes=[])
    gates.plan(None, None, plan)
    assert gates.checks == [] and plan.notes == ["not checked: it does not run here (no GPU)"]


def test_which_images(source, narrow_row, tmp_path):
    trained = dataclasses.replace(source, info=msgspec.structs.replace(source.info, trained=True))
    few = gate_images(trained, Int8Options(), 64.0)
    assert few.images.shape == (8, 32, 32, 3) and few.source == "8 synthetic pictures"
    # Random weights are calibrated with the images of another model.
    assert gate_images(source, Int8Options(), 64.0).source == "8 calibration images"
    assert len(gate_images(source, Int8Options(), 0.001).images) == 64
    unreadable = Int8Options(calibration=Request((str(tmp_path),)))
    assert gate_images(trained, unreadable, 4.0).source == "16 synthetic pictures"
    asked = gate_images(source, Int8Options(calibration=Request((str(shipped_set()),))), 4.0)
    assert asked.images.shape == (16, 32, 32, 3) and asked.source == "16 calibration images"
    shipped = dataclasses.replace(source, row=SimpleNamespace(shipped=shipped_set().parent))
    # Whatever it is calibrated with: a calibration on noise is judged by what the model was trained for.
    assert gate_images(shipped, Int8Options(calibration=Request(("/noise",))), 4.0).source == "16 calibration images"


def test_a_network_that_gives_the_same_for_every_image(source, images):
    constant = onnx.ModelProto()
    constant.CopyFrom(source.graph)
    (weight,) = [t for t in constant.graph.initializer if t.name == gemm_weight(constant)]
    weight.CopyFrom(numpy_helper.from_array(np.zeros(list(weight.dims), np.float32), weight.name))
    gates = Gates(dataclasses.replace(source, graph=constant), "fp16", images)
    gates.graph(to_precision(constant, "fp16"), None)
    assert gates.checks[0].sqnr_db is None or gates.checks[0].sqnr_db > 40


def gemm_weight(model):
    (gemm,) = [node for node in model.graph.node if node.op_type == "Gemm"]
    return gemm.input[1]


def test_a_float_graph_that_gives_no_numbers(source, images, typed):
    broken = onnx.ModelProto()
    broken.CopyFrom(source.graph)
    weight = next(t for t in broken.graph.initializer if t.data_type == TensorProto.FLOAT and len(t.dims) == 4)
    weight.CopyFrom(numpy_helper.from_array(np.full(list(weight.dims), np.nan, np.float32), weight.name))
    with pytest.raises(GraphError, match="the float32 graph gives NaN or infinite logits"):
        Gates(dataclasses.replace(source, graph=broken), "int8", images).graph(typed, None)


def test_a_build_stops_and_leaves_nothing(narrow_row, tmp_path, quantised):
    write_cache(tmp_path / "stale", with_scales(quantised, lambda name, scale: scale / 4))
    options = BuildOptions(
        narrow_row.name, precision="int8", targets=("openvino",), output=tmp_path / "bundle", offline=True,
        int8=Int8Options(cache=tmp_path / "stale", accept_cache=True),
    )  # fmt: skip
    assert read_cache(tmp_path / "stale").scales
    with pytest.raises(AccuracyError, match=r"^calibration: "):
        build(options)
    assert not (tmp_path / "bundle").exists()


def test_the_bundle_keeps_what_was_measured(shipped):
    """The shipped model at every precision: floors are met with room to spare, on its calibration images."""
    least = {"fp16": 55, "bf16": 30, "int8": 30}
    for precision, expected in least.items():
        graph, plan = read_manifest(shipped(precision)).checks
        assert (graph.target, plan.target) == ("graph", "openvino")
        assert graph.images == plan.images == 64
        assert graph.floor_db == FLOORS[precision] and graph.sqnr_db >= expected
        assert graph.agreement >= 98 and plan.agreement >= 98
