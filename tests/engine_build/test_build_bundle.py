"""The pipeline as a whole: what a bundle holds, and that it appears whole or not at all."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from small_models import CLASSES, CLASSIFIER, SPEC, classifier, classifier_constants, graph, pictures

from calibration.onnx_index import Index
from engine_build import build_bundle as pipeline
from engine_build.build_bundle import BuildOptions, Steps, build, resolve_targets, sample_images
from engine_build.graph import export
from engine_build.graph.reference import graph_logits
from engine_build.network import zoo
from engine_build.precision import typed_graph
from engine_build.targets import BuildSettings
from infer import open_bundle
from infer.bundle import BatchProfile, check_files, read_labels, read_manifest
from infer.errors import AccuracyError, BuildError, GraphError, InputError, WeightsError
from infer.files import sha256_file


@pytest.fixture
def options(tmp_path, tiny_onnx):
    """A build that takes a second."""
    return BuildOptions(
        model="tiny", onnx=tiny_onnx, precision="fp32", preprocessing=SPEC, targets=("openvino",),
        output=tmp_path / "engines" / "tiny",
    )  # fmt: skip


@pytest.fixture
def quick_export(monkeypatch):
    """A stand-in for the exporter, which takes seconds: the graph of another small network."""
    monkeypatch.setattr(export, "export_torch", lambda *_: (classifier(), graph_logits(classifier(), SPEC)))


def left(options):
    """Everything beside and in the output."""
    folder = options.output.parent
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*")) if folder.exists() else []


# --- what is in it ---------------------------------------------------------------------------------------------------


def test_the_manifest_describes_the_folder(tiny, tiny_onnx):
    manifest = read_manifest(tiny)
    assert (manifest.format, manifest.model.network_revision) == (2, None)
    assert manifest.known_answers is not None
    assert datetime.fromisoformat(manifest.created).tzinfo is not None
    assert manifest.tool.startswith("iresnet-trt ")
    assert (manifest.precision, manifest.model.name, manifest.model.num_classes) == ("fp32", "tiny", CLASSES)
    assert (manifest.model.weights, manifest.model.weights_sha256) == ("tiny.onnx", sha256_file(tiny_onnx))
    assert manifest.model.trained
    assert [(t.name, t.dtype, t.shape) for t in manifest.inputs] == [("images", "uint8", [-1, 32, 32, 3])]
    assert [(t.name, t.dtype, t.shape) for t in manifest.outputs] == [
        ("logits", "float32", [-1, 10]), ("scores", "float32", [-1, 5]), ("classes", "int32", [-1, 5]),
    ]  # fmt: skip
    assert manifest.preprocessing == SPEC
    listed = [manifest.graph, manifest.labels, manifest.known_answers.file]
    listed += [entry for plan in manifest.plans for entry in plan.files]
    check_files(tiny, listed)
    files = {path.name for path in tiny.iterdir() if path.is_file()}
    assert files == {"manifest.json", *(entry.file for entry in listed)}
    assert [plan.target for plan in manifest.plans] == ["openvino"]
    assert read_labels(tiny, manifest) == [f"class {i}" for i in range(CLASSES)]
    assert not [path for path in tiny.parent.iterdir() if path.name.startswith(".tiny")]


def test_the_shipped_model(shipped):
    folder = shipped("fp16")
    manifest = read_manifest(folder)
    row = zoo.MODELS["iresnet50_fashion"]
    assert (manifest.model.trained, manifest.model.weights, manifest.model.width) == (True, "shipped", 0.25)
    assert manifest.model.weights_sha256 == sha256_file(row.shipped / "weights.safetensors")
    assert manifest.preprocessing == row.preprocessing
    assert (manifest.float32_nodes, manifest.model.network_revision) == ([], 2)
    assert read_labels(folder, manifest)[9] == "ankle boot"
    assert manifest.plans[0].audit.summary.mac_nodes == 54  # 53 convolutions and the classifier


def test_random_weights_are_recorded_as_such(untrained):
    manifest = read_manifest(untrained)
    assert (manifest.model.trained, manifest.model.weights, manifest.model.weights_sha256) == (
        False,
        "random (seed 0)",
        "",
    )
    assert any("no official checkpoint was released" in note for note in manifest.notes)


@pytest.mark.usefixtures("quick_export")
def test_published_accuracy_is_claimed_for_found_weights_only(monkeypatch, narrow_row, options, tmp_path):
    row = replace(narrow_row, top1=77.31, top5=93.5)
    monkeypatch.setitem(zoo.MODELS, row.name, row)
    monkeypatch.setenv("IRESNET_CACHE", str(tmp_path / "cache"))
    options = replace(options, model=row.name, onnx=None, preprocessing=None)
    assert build(options)[1].model.top1 is None  # random
    path = tmp_path / f"cache/weights/{row.name}.pth"
    path.parent.mkdir(parents=True)
    torch.save(zoo.create_model(row.name).state_dict(), path)
    found = build(options)[1].model
    assert (found.top1, found.top5, found.weights) == (77.31, 93.5, f"cache ({row.name}.pth)")
    assert found.published.startswith("github.com/iduta/iresnet")
    given = build(replace(options, weights=path))[1].model
    assert (given.top1, given.published, given.weights, given.trained) == (None, None, f"{row.name}.pth", True)


def test_settings_and_labels_arrive(options, tmp_path):
    names = tmp_path / "names.txt"
    names.write_text("".join(f"größe {i}\n" for i in range(CLASSES)), encoding="utf-8")
    settings = BuildSettings(batch=BatchProfile(min=2, opt=4, max=6))
    folder, manifest = build(replace(options, labels=names, settings=settings))
    assert (manifest.batch.min, manifest.batch.opt, manifest.batch.max) == (2, 4, 6)
    assert read_labels(folder, read_manifest(folder))[3] == "größe 3"


def test_steps_are_reported_and_timed(options):
    lines = []
    steps = Steps(say=lines.append)
    build(options, steps)
    names = list(steps.seconds)
    assert (names[0], names[-1]) == ("load", "self-test")
    assert names.index("known answers") < names.index("openvino")
    assert names.index("passes") < names.index("precision")
    assert all(seconds >= 0 for seconds in steps.seconds.values())
    assert any(line.startswith("known answers on openvino: passed") for line in lines)
    assert any("1 Conv" in line and "1 batch norms folded" in line for line in lines)


def test_overflow_is_kept_in_float32_and_said(options, tmp_path):
    constants = classifier_constants()
    constants["stem.weight"] *= 1e4
    constants["down.weight"] = np.full((16, 16, 1, 1), 1e-6, np.float32)
    nodes = [
        CLASSIFIER[0],
        ("Relu", "c", "r"),
        ("Conv", "r down.weight", "s"),
        ("GlobalAveragePool", "s", "p"),
        *CLASSIFIER[4:],
    ]
    used = {name: value for name, value in constants.items() if any(name in node[1] for node in nodes)}
    onnx.save(graph(nodes, used), tmp_path / "loud.onnx")
    folder, manifest = build(replace(options, onnx=tmp_path / "loud.onnx", precision="fp16"))
    assert manifest.float32_nodes == ["stem", "r", "down"]
    assert "3 nodes stay float32, float16 would overflow: stem, r, down" in manifest.notes
    assert read_manifest(folder).float32_nodes == manifest.float32_nodes
    with open_bundle(folder) as runner, open_bundle(build(options)[0]) as _:
        images = pictures(4)
        expected = graph_logits(graph(nodes, used), SPEC)(images)
        np.testing.assert_allclose(runner.infer(images).logits, expected, atol=0.02 * np.abs(expected).max())


def test_a_defect_of_the_cast_stops_the_build(monkeypatch, options):
    """The finished graph is run against the network it came from."""
    real = typed_graph.to_precision

    def broken(*arguments):
        typed = real(*arguments)
        weight = next(t for t in typed.graph.initializer if len(t.dims) == 4)
        weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * np.float16(1.5), weight.name))
        return typed

    monkeypatch.setattr(typed_graph, "to_precision", broken)
    with pytest.raises(AccuracyError, match=r"^graph: the fp16 graph, computed as it is written, against float32: "):
        build(replace(options, precision="fp16"))
    assert not options.folder.exists()


# --- whole or not at all ---------------------------------------------------------------------------------------------


def fail_in(monkeypatch, stage, error):
    def fail(*_args, **_kwargs):
        raise error

    monkeypatch.setattr(pipeline, stage, fail)


STAGES = [
    ("build_target", BuildError("no")),
    ("build_target", KeyboardInterrupt()),
    ("write_manifest", OSError("disk full")),
]


@pytest.mark.parametrize(("stage", "error"), STAGES, ids=["target", "ctrl-c", "manifest"])
def test_a_late_failure_leaves_nothing(monkeypatch, options, stage, error):
    fail_in(monkeypatch, stage, error)
    with pytest.raises(type(error)):
        build(options)
    assert left(options) == []


@pytest.mark.parametrize(("stage", "error"), STAGES, ids=["target", "ctrl-c", "manifest"])
def test_a_late_failure_leaves_the_old_bundle(monkeypatch, options, own, tiny, stage, error):
    old = own(tiny)
    before = {path: path.read_bytes() for path in old.rglob("*") if path.is_file()}
    fail_in(monkeypatch, stage, error)
    with pytest.raises(type(error)):
        build(replace(options, output=old, precision="fp16"))
    assert {path: path.read_bytes() for path in old.rglob("*") if path.is_file()} == before
    assert [path.name for path in old.parent.iterdir()] == [old.name]
    with open_bundle(old) as runner:
        assert runner.infer(pictures(1)).logits.shape == (1, CLASSES)


def test_a_new_bundle_replaces_the_old_one(options, own, tiny):
    old = own(tiny)
    (old / "stale.plan").write_bytes(b"from an earlier build")
    build(replace(options, output=old, precision="fp16"))
    assert read_manifest(old).precision == "fp16"
    assert not (old / "stale.plan").exists()
    assert [path.name for path in old.parent.iterdir()] == [old.name]


def test_a_folder_that_is_no_bundle_is_not_replaced(options):
    options.output.mkdir(parents=True)
    (options.output / "thesis.tex").write_text("precious")
    with pytest.raises(InputError, match="holds other files and would be replaced"):
        build(options)
    assert left(options) == ["tiny", "tiny/thesis.tex"]


def test_a_file_is_not_replaced(options):
    options.output.parent.mkdir(parents=True)
    options.output.write_text("precious")
    with pytest.raises(InputError, match=r"is a file; pass a folder"):
        build(options)
    assert options.output.read_text() == "precious"


def test_an_empty_folder_is_filled(options):
    options.output.mkdir(parents=True)
    assert read_manifest(build(options)[0]).model.name == "tiny"


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"precision": "fp12"}, InputError, "unknown precision 'fp12'; known: fp32"),
        ({"targets": ("openvino", "tpu")}, InputError, "unknown target 'tpu'; known: auto, tensorrt"),
        ({"model": "resnet50", "onnx": None, "preprocessing": None}, InputError, "unknown model 'resnet50'"),
        ({"onnx": Path("none.onnx")}, GraphError, "no ONNX file at none.onnx"),
        ({"labels": Path("none.txt")}, InputError, "no label file at none.txt"),
        (
            {"model": "iresnet50", "onnx": None, "require_weights": True, "offline": True},
            WeightsError,
            "no trained weights",
        ),
        ({"model": "iresnet50", "onnx": None, "weights": Path("none.pth")}, WeightsError, "no checkpoint at none.pth"),
        ({"model": "iresnet50", "onnx": None, "width": 0.3, "offline": True}, InputError, "width 0.3 gives"),
    ],
)
def test_options_that_cannot_be_used(options, changes, error, message):
    with pytest.raises(error, match=message):
        build(replace(options, **changes))
    assert left(options) == []


def test_bad_names_are_found_before_anything_is_loaded(monkeypatch, options):
    fail_in(monkeypatch, "load_source", AssertionError("loaded"))
    for changes in ({"precision": "x"}, {"targets": ("x",)}):
        with pytest.raises(InputError):
            build(replace(options, **changes))


# --- targets ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def machine(monkeypatch):
    """``machine(**reasons)``: what is missing for a target; the others can be built."""
    return lambda **reasons: monkeypatch.setattr(pipeline, "why_unbuildable", reasons.get)


def test_auto_takes_what_can_be_built(machine):
    machine(tensorrt="no GPU")
    assert resolve_targets(["auto"]) == ("tensorrt_rtx", "openvino")
    machine()
    assert resolve_targets(["auto"]) == ("tensorrt", "tensorrt_rtx", "openvino")


def test_auto_with_nothing_says_why_for_each(machine):
    machine(tensorrt="no GPU", tensorrt_rtx="not installed", openvino="not installed either")
    with pytest.raises(BuildError) as caught:
        resolve_targets(["auto"])
    assert str(caught.value) == (
        "no target can be built here: tensorrt: no GPU; tensorrt_rtx: not installed; openvino: not installed either"
    )


def test_a_named_target_that_cannot_be_built(machine):
    machine(tensorrt="no NVIDIA driver (libcuda.so.1)")
    with pytest.raises(BuildError, match=r"target tensorrt cannot be built here: no NVIDIA driver \(libcuda.so.1\)"):
        resolve_targets(["openvino", "tensorrt"])
    assert resolve_targets(["openvino"]) == ("openvino",)


def test_order_and_duplicates(machine):
    machine()
    assert resolve_targets(["openvino", "tensorrt_rtx", "openvino"]) == ("openvino", "tensorrt_rtx")


def test_this_machine():
    assert "openvino" in resolve_targets(["auto"])


# --- sample images ---------------------------------------------------------------------------------------------------


def test_sample_images():
    def sample(row, spec, count):
        return sample_images(SimpleNamespace(row=row, spec=spec), count)

    row = zoo.MODELS["iresnet50_fashion"]
    found = sample(row, row.preprocessing, 12)
    assert found.shape == (12, 64, 64, 3)
    assert (found[..., 0] == found[..., 2]).all()  # Fashion-MNIST is grey; synthetic pictures are not
    synthetic = sample(zoo.MODELS["iresnet50"], SPEC, 3)
    assert synthetic.shape == (3, 32, 32, 3)
    assert (synthetic[..., 0] != synthetic[..., 2]).any()
    assert np.array_equal(synthetic, sample(None, SPEC, 3))


def test_the_bundle_graph_is_the_folded_one(tiny):
    assert Index(onnx.load(tiny / "model.onnx")).op_counts()["BatchNormalization"] == 0
