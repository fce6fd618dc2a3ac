"""FP8: what the pairs compute, which layers get them, and that TensorRT-RTX really makes fp8 kernels of them."""

from dataclasses import replace

import ml_dtypes
import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto
from PIL import Image
from small_models import SIDE, SPEC, graph, pictures, run, weights_of

from calibration.onnx_index import Index
from calibration.request import Request
from calibration.streaming import collect
from calibration.tensors import activation_tensors
from engine_build.build_bundle import BuildOptions, build
from engine_build.precision.casts import to_precision
from engine_build.quantise import fp8
from engine_build.quantise.fp8 import LARGEST, fp8_scale, fp8_targets, insert_fp8, quantise_weights
from engine_build.quantise.int8 import Int8Options
from engine_build.quantise.qdq import Placement
from engine_build.targets import BuildSettings, build_target
from infer.backends.cuda.gpus import Gpu
from infer.bundle import GRAPH, read_manifest
from infer.errors import BuildError

UINT8 = [("images", TensorProto.UINT8, ["N", SIDE, SIDE, 3])]


def net(stem=3, opset=20, ir_version=9) -> onnx.ModelProto:
    """A deployed graph with a stem, a grouped layer, a shortcut and a classifier."""
    constants = {"mean": np.full(3, 120, np.float32), "factor": np.full(3, 1 / 60, np.float32)}
    for number, shape in enumerate([(16, 3, stem, stem), (16, 4, 3, 3), (16, 16, 1, 1)]):
        constants[f"w{number}"] = weights_of(*shape, seed=number) / np.float32(np.sqrt(np.prod(shape[1:])))
    constants |= {"fw": weights_of(10, 16, seed=9), "fb": weights_of(10, seed=10)}
    nodes = [
        ("Cast", "images", "cast", {"to": 1, "name": "normalise.cast"}),
        ("Sub", "cast mean", "sub", {"name": "normalise.sub"}),
        ("Mul", "sub factor", "mul", {"name": "normalise.mul"}), ("Transpose", "mul", "x", {"perm": [0, 3, 1, 2]}),
        ("Conv", "x w0", "c0", {"pads": [stem // 2] * 4, "strides": [2, 2], "name": "stem"}), ("Relu", "c0", "r0"),
        ("Conv", "r0 w1", "c1", {"pads": [1, 1, 1, 1], "group": 4, "name": "grouped"}), ("Relu", "c1", "r1"),
        ("Conv", "r1 w2", "c2", {"name": "pointwise"}), ("Add", "c2 r0", "sum", {"name": "add"}),
        ("Relu", "sum", "r2"), ("GlobalAveragePool", "r2", "p"), ("Flatten", "p", "f"),
        ("Gemm", "f fw fb", "logits", {"transB": 1, "name": "fc"}),
    ]  # fmt: skip
    return graph(nodes, constants, inputs=UINT8, outputs=[("logits", 1, ["N", 10])], opset=opset, ir_version=ir_version)


LAYERS = ("stem", "grouped", "pointwise", "fc")


def ranges(model):
    return collect(model, [pictures(16)], activation_tensors(model)).amax("minmax")


@pytest.fixture(scope="module")
def amax():
    return ranges(net())


@given(st.floats(1e-30, 1e30))
def test_the_scale_reaches_the_largest_value_and_is_float16_where_that_can_hold_it(amax):
    scale = fp8_scale(amax)
    assert scale.shape == () and scale.dtype == np.float32
    assert amax / float(scale) <= LARGEST
    if 2.0**-14 * LARGEST <= amax <= 65504 * LARGEST:
        assert float(np.float16(scale)) == float(scale)
        assert float(scale) == 2.0**-14 or amax / float(np.nextafter(np.float16(scale), np.float16(0))) > LARGEST
    else:
        assert amax / float(scale) > LARGEST * (1 - 1e-6)  # as near as float32 comes


def test_zeros_have_a_scale_too():
    assert fp8_scale(np.array([0, 1], np.float32))[0] == 2.0**-14


@pytest.mark.parametrize("axis", [0, 1])
def test_weights_keep_three_bits_of_mantissa_in_every_channel(axis):
    weight = weights_of(12, 7, 3, 3, seed=4) * np.logspace(-4, 3, 12, dtype=np.float32).reshape(-1, 1, 1, 1)
    weight = np.ascontiguousarray(np.moveaxis(weight, 0, axis))
    values, scale = quantise_weights(weight, axis)
    assert values.dtype == ml_dtypes.float8_e4m3fn and values.shape == weight.shape and scale.shape == (12,)
    restored = values.astype(np.float64) * np.moveaxis(scale[:, None, None, None], 0, axis)
    assert np.isfinite(restored).all()
    normal = np.abs(weight) >= 2.0**-6 * np.moveaxis(scale[:, None, None, None], 0, axis)
    assert normal.mean() > 0.8
    assert (np.abs(restored - weight)[normal] <= np.abs(weight)[normal] * 2.0**-4 * 1.001).all()


def test_the_graph_computes_what_fp8_does(amax):
    """Against the float graph by hand: inputs and weights of every layer rounded to E4M3 by another library."""
    import torch
    from torch.nn import functional

    def e4m3(x, scale):
        return (x / scale).clip(-LARGEST, LARGEST).to(torch.float8_e4m3fn).float() * scale

    model = net()
    images = pictures(8, seed=5)
    work, done = insert_fp8(model, amax)
    assert done.nodes == LAYERS and done.additions == ("add",) and done.skipped == {} and done.shifted == ()
    weights = {name: torch.tensor(Index(model).value(name)) for name in ("w0", "w1", "w2", "fw")}

    def layer(function, tensor, name, value, **options):
        weight = weights[name]
        scale = torch.tensor(fp8_scale(weight.abs().flatten(1).amax(1).numpy()))
        scale = scale.reshape(-1, *[1] * (weight.ndim - 1))
        return function(e4m3(value, float(fp8_scale(amax[tensor]))), e4m3(weight, scale), **options)

    x = (torch.tensor(images).float().permute(0, 3, 1, 2) - 120) * np.float32(1 / 60)
    r0 = layer(functional.conv2d, "x", "w0", x, padding=1, stride=2).relu()
    r1 = layer(functional.conv2d, "r0", "w1", r0, padding=1, groups=4).relu()
    c2 = layer(functional.conv2d, "r1", "w2", r1)
    r2 = (c2 + e4m3(r0, float(fp8_scale(amax["r0"])))).relu()
    expected = layer(functional.linear, "f", "fw", r2.mean((2, 3))) + torch.tensor(Index(model).value("fb"))
    (found,), (exact,) = run(work, images, ["logits"]), run(model, images, ["logits"])
    error = np.abs(expected.numpy() - exact).max()
    # Values that lie on the edge between two fp8 numbers may fall to either side.
    assert np.abs(found - expected.numpy()).max() < 0.2 * error
    assert 15 < 20 * np.log10(np.linalg.norm(exact) / np.linalg.norm(found - exact)) < 40


def test_the_form_that_tensorrt_wants(amax):
    model = net()
    before = model.SerializeToString()
    work, _ = insert_fp8(model, amax)
    assert model.SerializeToString() == before
    index = Index(work)
    for node in work.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            assert index.constants[node.input[2]].data_type == TensorProto.FLOAT8E4M3FN
            assert not index.value(node.input[2]).astype(np.float32).any()
            weight = index.constants.get(node.input[0])
            assert list(index.constants[node.input[1]].dims) == ([] if weight is None else [weight.dims[0]])
    assert index.op_counts()["QuantizeLinear"] == 4  # x, r0 (read by a layer and the addition), r1, f
    onnx.checker.check_model(to_precision(work, "int8"), full_check=True)


def test_large_windows_unknown_ranges_and_wishes_stay_float(amax):
    _, large = insert_fp8(net(stem=7), ranges(net(stem=7)))
    assert large.nodes == LAYERS[1:] and "7x7" in large.skipped["stem"]
    assert insert_fp8(net(stem=5), ranges(net(stem=5)))[1].nodes == LAYERS
    assert insert_fp8(net(), amax, exclude=("add",))[1].additions == ()
    _, done = insert_fp8(net(), {**amax, "f": 0.0}, "none", exclude=("grouped",))
    assert done.nodes == ("stem", "pointwise") and done.additions == ()
    assert "request" in done.skipped["grouped"] and "no calibrated range" in done.skipped["fc"]


def test_an_older_opset_is_converted(amax):
    work, _ = insert_fp8(net(opset=17, ir_version=8), amax)
    assert work.opset_import[0].version >= 19 and work.ir_version >= 9
    (old,), (new,) = run(work, pictures(2), ["logits"]), run(insert_fp8(net(), amax)[0], pictures(2), ["logits"])
    np.testing.assert_allclose(old, new, rtol=1e-5)


def test_a_classifier_with_its_weights_the_other_way_round(amax):
    model = net()
    index = Index(model)
    index.set_constant("fw", index.value("fw").T)
    del model.graph.node[-1].attribute[:]
    (found,), (same,) = (run(insert_fp8(m, amax)[0], pictures(2), ["logits"]) for m in (model, net()))
    np.testing.assert_allclose(found, same, rtol=1e-5)


@pytest.fixture
def built(tmp_path):
    """``built(graph, nodes)``: a real TensorRT-RTX plan of a graph behind the fp8 gate."""
    pytest.importorskip("tensorrt_rtx")

    def make(work, nodes, **settings):
        onnx.save(to_precision(work, "int8"), tmp_path / GRAPH)
        return build_target("tensorrt_rtx", tmp_path, "fp8", BuildSettings(**settings), nodes)

    return make


def test_every_layer_becomes_an_fp8_kernel(built, amax):
    work, done = insert_fp8(net(), amax)
    plan = built(work, done.nodes)
    assert plan.audit.summary.mac_precisions == {"fp8": 4}
    assert min(float(number) for number in plan.compute_capabilities) >= 8.9


def test_a_large_window_is_caught_by_the_gate(built, monkeypatch, tmp_path):
    """The trap: TensorRT-RTX takes fp8 Q/DQ around a 7x7 window and silently computes in floating point."""
    monkeypatch.setattr(fp8, "_LARGEST_WINDOW", 49)
    work, done = insert_fp8(net(stem=7), ranges(net(stem=7)))
    with pytest.raises(BuildError, match=r"expected 4 fp8 kernels in the plan, found 3; not fp8: stem \(fp16\)"):
        built(work, done.nodes)
    assert not list(tmp_path.glob("*.plan"))


def test_gpus_without_fp8_are_refused(built, amax):
    work, done = insert_fp8(net(), amax)
    with pytest.raises(BuildError, match=r"8\.9 or newer"):
        built(work, done.nodes, compute_capabilities=("8.6",))


def test_targets_without_fp8(monkeypatch):
    left, notes = fp8_targets(("tensorrt_rtx", "openvino"), named=False)
    assert left == ("tensorrt_rtx",) and "openvino was left out" in notes[0]
    with pytest.raises(BuildError, match=r"openvino.*no fp8 kernels"):
        fp8_targets(("tensorrt_rtx", "openvino"), named=True)
    with pytest.raises(BuildError, match="openvino"):
        fp8_targets(("openvino",), named=False)
    for capability, fits in (("8.6", False), ("8.9", True), ("9.0", True), ("12.0", True)):
        monkeypatch.setattr(fp8, "find_gpus", lambda found=capability: ([Gpu("card", found)], ""))
        assert fp8_targets(("tensorrt", "tensorrt_rtx"), named=False)[0][0] == ("tensorrt" if fits else "tensorrt_rtx")


def test_the_bundle(tmp_path):
    """A whole build for every target that can: the manifest says what is fp8, what is not and why."""
    pytest.importorskip("tensorrt_rtx")
    constants = {
        "stem.weight": weights_of(16, 3, 7, 7, seed=1) / 12, "conv.weight": weights_of(16, 16, 3, 3, seed=2) / 12,
        "fc.weight": weights_of(10, 16, seed=3), "fc.bias": weights_of(10, seed=4),
    }  # fmt: skip
    nodes = [
        ("Conv", "x stem.weight", "s", {"pads": [3, 3, 3, 3], "strides": [2, 2]}), ("Relu", "s", "r"),
        ("Conv", "r conv.weight", "c", {"pads": [1, 1, 1, 1]}), ("Add", "c r", "sum"), ("Relu", "sum", "t"),
        ("GlobalAveragePool", "t", "p"), ("Flatten", "p", "f"), ("Gemm", "f fc.weight fc.bias", "y", {"transB": 1}),
    ]  # fmt: skip
    onnx.save(graph(nodes, constants), tmp_path / "user.onnx")
    for number, picture in enumerate(pictures(8)):
        Image.fromarray(picture).save(tmp_path / f"{number}.png")
    wanted = BuildOptions(
        "user", onnx=tmp_path / "user.onnx", preprocessing=SPEC, precision="fp8", output=tmp_path / "b",
        int8=Int8Options(calibration=Request((str(tmp_path / "*.png"),)), placement=Placement("identity")),
    )  # fmt: skip
    folder, _ = build(wanted)
    manifest = read_manifest(folder)
    assert manifest.precision == "fp8" and [plan.target for plan in manifest.plans] == ["tensorrt_rtx"]
    assert any("openvino was left out" in note for note in manifest.notes)
    assert any(note.startswith("stem is not fp8") for note in manifest.notes)
    record, audit = manifest.calibration, manifest.plans[0].audit.summary
    assert record.fp8_nodes == ["conv", "fc"] and audit.mac_precisions == {"fp8": 2, "fp16": 1}
    assert list(record.float_nodes) == ["stem"] and len(record.fp8_additions) == 1
    assert record.method == "mse" and (folder / "calibration.cache").is_file() and record.tensors is None
    with pytest.raises(BuildError, match="no fp8 kernels"):
        build(replace(wanted, targets=("openvino",), output=tmp_path / "c"))
    assert not (tmp_path / "c").exists()
