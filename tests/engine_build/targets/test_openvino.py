"""OpenVINO plans: files, hints, and the audit of what this CPU really runs."""

from __future__ import annotations

import openvino
import pytest

from engine_build.targets.openvino import build_openvino, inference_precision
from infer.backends.openvino import computes_in
from infer.bundle import read_manifest
from infer.errors import BuildError
from infer.files import sha256_file


def capabilities(*names):
    class Core:
        def get_property(self, device, name):
            assert (device, name) == ("CPU", "OPTIMIZATION_CAPABILITIES")
            return names

    return Core()


@pytest.mark.parametrize(
    ("precision", "hint"), [("fp32", "f32"), ("fp16", "f16"), ("bf16", "bf16"), ("int8", "f32"), ("auto", "f32")]
)
def test_the_hint_of_a_cpu_that_can(precision, hint, monkeypatch):
    monkeypatch.setattr("infer.backends.openvino.cpu_flags", lambda: frozenset({"avx512f", "avx512_bf16"}))
    assert inference_precision(capabilities("FP32", "FP16", "BF16"), precision) == (hint, [])


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_a_cpu_that_cannot_computes_in_float32_and_says_so(precision):
    hint, notes = inference_precision(capabilities("FP32", "INT8"), precision)
    assert hint == "f32"
    assert notes == [f"this CPU has no {precision} arithmetic: weights are {precision}, OpenVINO computes in float32"]


def test_the_rest_of_int8_is_float32_where_bf16_would_be_emulated(monkeypatch):
    monkeypatch.setattr("infer.backends.openvino.cpu_flags", lambda: frozenset({"avx512f", "avx512_vnni"}))
    core = capabilities("FP32", "INT8", "BF16")  # whatever OpenVINO lists
    assert inference_precision(core, "int8") == ("f32", [])
    assert inference_precision(core, "bf16")[0] == "f32"


def test_the_plan(tiny, tmp_path):
    plan = build_openvino(tiny / "model.onnx", tmp_path, "fp32")
    assert [entry.file for entry in plan.files] == ["openvino.xml", "openvino.bin"]
    for entry in plan.files:
        path = tmp_path / entry.file
        assert (entry.size, entry.sha256) == (path.stat().st_size, sha256_file(path))
    assert (plan.target, plan.options) == ("openvino", {"INFERENCE_PRECISION_HINT": "f32"})
    assert openvino.__version__.startswith(plan.version)
    assert plan.seconds > 0
    audit = plan.audit.summary
    assert audit.mac_nodes == 2  # the convolution and the classifier
    assert audit.mac_precisions == {"fp32": 2}
    assert sum(audit.layer_types.values()) == sum(audit.layer_precisions.values()) == audit.layers
    assert audit.instruction_set != "unknown"
    assert audit.engine_bytes == sum(entry.size for entry in plan.files)
    assert set(plan.audit.node_precisions) == {"stem", "fc"}  # ONNX nodes by name, also the last


def test_every_layer_with_weights_is_audited(shipped):
    (plan,) = read_manifest(shipped("fp32")).plans
    assert plan.audit.summary.mac_precisions == {"fp32": 54}
    assert {"conv1", "layer3.5.conv2", "layer4.0.downsample.1"} <= set(plan.audit.node_precisions)


def test_bf16_runs_as_bf16_where_the_cpu_has_it(shipped):
    (plan,) = read_manifest(shipped("bf16")).plans
    if computes_in(openvino.Core(), "bf16"):
        assert plan.options == {"INFERENCE_PRECISION_HINT": "bf16"}
        assert plan.audit.summary.mac_precisions["bf16"] == 54
        assert plan.notes == []
    else:
        assert plan.audit.summary.mac_precisions == {"fp32": 54}
        assert "no bf16 arithmetic" in plan.notes[0]


def test_a_graph_that_openvino_cannot_read(tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"junk")
    with pytest.raises(BuildError, match=r"OpenVINO cannot read model.onnx: "):
        build_openvino(tmp_path / "model.onnx", tmp_path, "fp32")


def test_a_graph_that_openvino_cannot_compile(monkeypatch, tiny, tmp_path):
    def refuse(*_args, **_kwargs):
        raise RuntimeError("Exception from src/plugin.cpp:1:\nunsupported operation\n")

    monkeypatch.setattr(openvino.Core, "compile_model", refuse)
    with pytest.raises(BuildError, match=r"OpenVINO cannot compile the model \(unsupported operation\)"):
        build_openvino(tiny / "model.onnx", tmp_path, "fp32")
