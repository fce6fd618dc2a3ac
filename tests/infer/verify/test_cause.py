"""Calibration, graph or kernels: each broken by itself in a real bundle, and found."""

from __future__ import annotations

import shutil

import numpy as np
import onnx
import openvino
import pytest
from onnx import numpy_helper

from infer import open_bundle
from infer.bundle import file_entry, read_manifest, write_manifest
from infer.errors import TargetUnavailableError
from infer.verify.cause import find_cause
from infer.verify.run import verify_bundle


@pytest.fixture
def int8(own, shipped):
    """A copy of the int8 bundle with its fp32 sibling beside it."""
    folder = own(shipped("int8"))
    shutil.copytree(shipped("fp32"), folder.parent / shipped("fp32").name)
    return folder


def broken_graph(folder):
    """model.onnx with one activation scale that is forty times too small, as a stale cache has it."""
    model = onnx.load(folder / "model.onnx")
    quantise = [node for node in model.graph.node if node.op_type == "QuantizeLinear"]
    scale = quantise[len(quantise) // 2].input[1]
    users = {node.input[1] for node in quantise} & {scale}
    for tensor in model.graph.initializer:
        if tensor.name in users:
            value = numpy_helper.to_array(tensor)
            tensor.CopyFrom(numpy_helper.from_array((value / 40).astype(value.dtype), tensor.name))
    return model


def broken_kernels(folder):
    """The graph with the classifier's rows moved by one, which is what OpenVINO is then made to compute."""
    model = onnx.load(folder / "model.onnx")
    fc = next(t for t in model.graph.initializer if "fc" in t.name and len(t.dims) == 2)
    fc.CopyFrom(numpy_helper.from_array(np.roll(numpy_helper.to_array(fc), 1, int(fc.dims[0] != 10)), fc.name))
    return model


def put(folder, model, *, graph):
    """Make ``model`` the plan of the bundle, and with ``graph`` its model.onnx too; all hashes right."""
    path = folder / "model.onnx" if graph else folder / "other.onnx"
    onnx.save(model, path)
    openvino.save_model(openvino.Core().read_model(path), folder / "openvino.xml", compress_to_fp16=False)
    manifest = read_manifest(folder)
    if graph:
        manifest.graph = file_entry(folder, "model.onnx")
    else:
        path.unlink()
    plan = next(plan for plan in manifest.plans if plan.target == "openvino")
    plan.files = [file_entry(folder, name) for name in ("openvino.xml", "openvino.bin")]
    write_manifest(folder, manifest)
    shutil.rmtree(folder / "openvino.cache", ignore_errors=True)


@pytest.mark.parametrize(
    ("damage", "graph", "part", "said"),
    [
        (broken_graph, True, "calibration", "the model was calibrated with other images than these"),
        (broken_kernels, False, "kernels", "computes something else than its graph"),
    ],
)
def test_it_is_found_and_said_where_it_was_lost(int8, labelled, monkeypatch, damage, graph, part, said):
    monkeypatch.setenv("IRESNET_SELF_TEST", "never")
    put(int8, damage(int8), graph=graph)
    found = verify_bundle(int8, [str(labelled)], target="openvino").accuracy
    assert (found.outcome, found.diagnosis.cause) == ("failed", part)
    assert said in found.diagnosis.text
    assert read_manifest(int8).accuracy[-1].diagnosis.cause == part


def test_a_sound_bundle_is_not_asked(int8, labelled, monkeypatch):
    monkeypatch.setattr("infer.verify.run.find_cause", None)
    found = verify_bundle(int8, [str(labelled)], target="openvino").accuracy
    assert found.diagnosis.cause == "" and found.outcome != "failed"


def test_the_larger_of_two_small_losses_is_named(int8, shipped_images):
    images = shipped_images[0][:32]
    with (
        open_bundle(int8, target="openvino") as runner,
        open_bundle(int8.parent / int8.name.replace("int8", "fp32")) as fp32,
    ):
        cause = find_cause(runner, fp32, images)
        assert cause.part == "graph" and "32 of the images the int8 graph as it is written keeps 3" in cause.text
        assert find_cause(runner, fp32, images[:1]) is None


def test_where_the_graph_cannot_be_run_the_advice_stays(int8, labelled, monkeypatch):
    def missing(*_arguments):
        raise TargetUnavailableError("no engine")

    monkeypatch.setenv("IRESNET_SELF_TEST", "never")
    monkeypatch.setattr("infer.verify.run.find_cause", missing)
    put(int8, broken_kernels(int8), graph=False)
    found = verify_bundle(int8, [str(labelled)], target="openvino").accuracy
    assert found.diagnosis.cause == "" and "Look at --layers-limit 64" in found.diagnosis.text
