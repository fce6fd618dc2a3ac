"""Mixed precision within a budget, on networks in which it is known which layer has to leave int8."""

from dataclasses import replace

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from small_models import SIDE, SPEC, graph, pictures, run, weights_of
from typer.testing import CliRunner

from calibration.cache import read_cache
from calibration.onnx_index import Index
from calibration.request import Request
from calibration.sensitivity import logit_errors, roundings
from engine_build.build_bundle import BuildOptions, build
from engine_build.cli import app
from engine_build.precision.typed_graph import Typing
from engine_build.quantise import auto as auto_module
from engine_build.quantise import budget as budget_module
from engine_build.quantise.auto import AutoOptions, least, order, tied_layers
from engine_build.quantise.budget import split_images
from engine_build.quantise.int8 import Int8Options, quantise
from engine_build.quantise.qdq import Placement, insert_qdq
from engine_build.source import SourceOptions, Steps, load_source
from infer.bundle import read_manifest
from infer.errors import AccuracyError, InputError

HOSTILE = "conv3"
LABELS = ([f"class {number}" for number in range(10)], None)


def network(outlier=400.0, twins=False) -> onnx.ModelProto:
    """A user's classifier, float NCHW, of which only ``conv3`` cannot stand int8.

    One channel of what conv3 reads is ``outlier`` times larger than the others, and its weights as much smaller, so
    that float results stay the same; the one scale of the tensor leaves nothing of the other channels. ``twins`` are
    pairs of classes whose weights differ by less than float16 can tell.
    """
    constants = {}
    for number, shape in enumerate([(16, 3, 3, 3), (16, 16, 1, 1), (16, 16, 3, 3), (16, 16, 3, 3)]):
        deviation = np.float32(np.sqrt(2 / np.prod(shape[1:])))
        constants[f"conv{number}.weight"] = deviation * weights_of(*shape, seed=number)
        constants[f"conv{number}.bias"] = weights_of(16, seed=number + 10) / 4
    constants["conv2.weight"][0] *= outlier
    constants["conv2.bias"][0] *= outlier
    constants["conv3.weight"][:, 0] /= outlier
    weight = weights_of(10, 16, seed=31)
    if twins:
        rng = np.random.default_rng(0)
        weight[5:] = weight[:5] * (1 + 1e-5 * rng.choice([-1, 1], (5, 16)))
    constants |= {"fc.weight": weight, "fc.bias": np.zeros(10, np.float32)}
    pad = {"pads": [1, 1, 1, 1]}
    nodes = [
        ("Conv", "x conv0.weight conv0.bias", "c0", {**pad, "strides": [2, 2]}), ("Relu", "c0", "r0"),
        ("Conv", "r0 conv1.weight conv1.bias", "c1"), ("Relu", "c1", "r1"),
        ("Conv", "r1 conv2.weight conv2.bias", "c2", pad), ("Relu", "c2", "r2"),
        ("Conv", "r2 conv3.weight conv3.bias", "c3", pad), ("Add", "c3 r0", "sum"), ("Relu", "sum", "r3"),
        ("GlobalAveragePool", "r3", "p"), ("Flatten", "p", "f"), ("Gemm", "f fc.weight fc.bias", "y", {"transB": 1}),
    ]  # fmt: skip
    return graph(nodes, constants)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """120 random pictures without classes."""
    folder = tmp_path_factory.mktemp("pictures")
    for number, picture in enumerate(pictures(120, SIDE, seed=3)):
        Image.fromarray(picture).save(folder / f"{number:03}.png")
    return folder


@pytest.fixture(scope="module")
def options(folder):
    return Int8Options(calibration=Request((str(folder),), method="minmax"), placement=Placement("identity"))


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    path = tmp_path_factory.mktemp("user") / "hostile.onnx"
    onnx.save(network(), path)
    return load_source(SourceOptions("hostile", onnx=path, preprocessing=SPEC), Steps())


@pytest.fixture(scope="module")
def int8(source, options, tmp_path_factory):
    return quantise(source, options, tmp_path_factory.mktemp("cache") / "c", "tool", print)


def mixed_precision(source, int8, options, auto, labels, say=lambda line: None):
    return auto_module.mixed_precision(source, int8, options, auto, labels, Typing(source, pictures(8)), say)


@pytest.fixture(scope="module")
def mixed(source, int8, options):
    said = []
    found = mixed_precision(source, int8, options, AutoOptions(10.0), LABELS, said.append)
    return found, said


def test_the_layer_that_cannot_stand_int8_is_the_one_that_leaves_it(mixed):
    auto = mixed[0].auto
    assert [entry["node"] for entry in auto["kept"]] == [HOSTILE]
    assert auto["kept"][0]["operator"] == "Conv" and auto["kept"][0]["share"] > 0.9
    assert max(auto["errors"], key=auto["errors"].get) == HOSTILE and len(auto["errors"]) == auto["layers"] == 6
    assert auto["drop"] <= 10.0 == auto["max_drop"]


def test_the_graph_keeps_the_layer_and_nothing_else_in_float(mixed, int8):
    def readers_of_int8(model):
        index = Index(model)
        restored = {name for name, node in index.producer.items() if node.op_type == "DequantizeLinear"}
        return {node.name for node in model.graph.node if restored & set(node.input)}

    assert readers_of_int8(int8.graph) - readers_of_int8(mixed[0].graph) == {HOSTILE}
    assert set(mixed[0].quantised.nodes) == set(int8.quantised.nodes) - {HOSTILE}
    assert mixed[0].quantised.skipped == {HOSTILE: "kept in floating point on request"}


def test_the_curve_is_measured_and_printed(mixed):
    auto, said = mixed[0].auto, "\n".join(mixed[1])
    curve = {point["kept"]: point for point in auto["curve"]}
    assert list(curve) == [0, 1, 6]
    assert [point["fits"] for point in curve.values()] == [False, True, True]
    assert curve[0]["drop"] == pytest.approx(100 - curve[0]["agreement"], abs=1e-3) and curve[0]["drop"] > 10
    assert curve[6]["sqnr_db"] > curve[1]["sqnr_db"] > curve[0]["sqnr_db"]
    assert auto["measure"] == "agreement" and auto["images"] + auto["ranked_on"] == 120
    assert "0 of 6" in said and "over the budget" in said and f"fp16 {HOSTILE} (Conv)" in said


def test_twice_the_same(mixed, source, int8, options):
    again = mixed_precision(source, int8, options, AutoOptions(10.0), LABELS)
    assert again.auto == mixed[0].auto
    assert again.graph.SerializeToString() == mixed[0].graph.SerializeToString()


def test_a_wide_budget_leaves_int8_alone(source, int8, options):
    found = mixed_precision(source, int8, options, AutoOptions(100.0), LABELS)
    assert found.graph == int8.graph and found.auto["kept"] == [] and found.auto["errors"] == {}
    assert [point["kept"] for point in found.auto["curve"]] == [0]


def test_a_loss_that_equals_the_budget_is_within_it(source, int8, options, mixed):
    lost = mixed[0].auto["curve"][0]["drop"]
    assert mixed_precision(source, int8, options, AutoOptions(lost), LABELS).auto["kept"] == []
    assert mixed_precision(source, int8, options, AutoOptions(lost - 0.01), LABELS).auto["kept"] != []


def test_openvino_runs_the_trials_and_onnxruntime_where_it_is_missing(source, int8, options, mixed, monkeypatch):
    opened = []

    class Counted(budget_module.OnnxRuntimeBackend):
        def __init__(self, path):
            opened.append(path)
            super().__init__(path)

    monkeypatch.setattr(budget_module, "OnnxRuntimeBackend", Counted)
    found = mixed_precision(source, int8, options, AutoOptions(10.0), LABELS).auto
    assert found["engine"].startswith("openvino 20") and len(opened) == 1  # FP32 alone
    monkeypatch.setattr(budget_module.openvino_backend, "why_unavailable", lambda: "openvino is not installed")
    found = mixed_precision(source, int8, options, AutoOptions(10.0), LABELS).auto
    assert found["engine"].startswith("onnxruntime 1.") and len(opened) == 1 + 4
    assert [entry["node"] for entry in found["kept"]] == [HOSTILE]


def test_no_budget_at_all_is_met_where_fp16_loses_nothing(source, int8, options):
    found = mixed_precision(source, int8, options, AutoOptions(0.0), LABELS)
    assert found.auto["drop"] == 0 and found.auto["kept"][0]["node"] == HOSTILE
    kept = len(found.auto["kept"])
    below = [point for point in found.auto["curve"] if point["kept"] == kept - 1]
    assert not below or not below[0]["fits"]


def test_what_even_fp16_cannot_meet_fails_and_leaves_nothing(folder, options, tmp_path):
    onnx.save(network(twins=True), tmp_path / "twins.onnx")
    wanted = BuildOptions(
        "twins", onnx=tmp_path / "twins.onnx", preprocessing=SPEC, precision="auto", targets=("openvino",),
        output=tmp_path / "bundle", int8=options, auto=AutoOptions(1.0),
    )  # fmt: skip
    with pytest.raises(AccuracyError, match=r"every layer in fp16 the loss is \d+\.\d\d points of agreement") as caught:
        build(wanted)
    assert caught.value.exit_code == 3
    assert not (tmp_path / "bundle").exists()


def test_the_bundle_is_what_was_measured(source, options, mixed, tmp_path, monkeypatch):
    """From the command to the manifest: the plan runs the same layers in int8 that the search left there."""
    onnx.save(network(), tmp_path / "hostile.onnx")
    (data,) = options.calibration.data
    arguments = ["build", "-m", "hostile", "--onnx", str(tmp_path / "hostile.onnx"), "-p", "auto", "-t", "openvino"]
    arguments += ["--resize", str(SIDE), "--crop", str(SIDE), "-o", str(tmp_path / "bundle"), "-d", data]
    result = CliRunner().invoke(app, [*arguments, "--method", "minmax", "--residual", "identity", "--max-drop", "10"])
    assert result.exit_code == 0, result.output
    manifest = read_manifest(tmp_path / "bundle")
    assert manifest.precision == "auto"
    auto = manifest.calibration.auto
    assert [entry["node"] for entry in auto["kept"]] == [HOSTILE]
    assert auto["curve"] == mixed[0].auto["curve"]
    precisions = manifest.plans[0].audit.node_precisions
    assert {name for name, found in precisions.items() if found != "int8"} == {HOSTILE}
    assert HOSTILE not in manifest.calibration.int8_nodes and len(manifest.calibration.int8_nodes) == 4
    refused = CliRunner().invoke(app, [*arguments, "--max-drop", "-1"])
    assert refused.exit_code == 2 and "max drop" in refused.output


def images_of(source, options, data=(), limit=2048, layers=20, said=None):
    say = (said if said is not None else []).append
    return split_images(source, options.calibration, data, limit, LABELS, layers, say)


def test_images_that_rank_do_not_measure(source, options):
    ranking, budget = images_of(source, options)
    rows = {image.tobytes() for image in ranking}
    assert len(rows) == 60 and len(budget.images) == 60 and not rows & {image.tobytes() for image in budget.images}
    deep, rest = images_of(source, options, layers=200)
    assert (len(deep), len(rest.images)) == (16, 104)


def test_labels_make_it_top1_and_their_absence_agreement(source, options, folder, tmp_path):
    for number, path in enumerate(sorted(folder.glob("*.png"))[:20]):
        target = tmp_path / "data" / f"class_{number % 10}" / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    (tmp_path / "data" / "class_3" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    _, budget = images_of(source, options, [str(tmp_path / "data")])
    assert budget.measure == "top-1" and len(budget.images) == len(budget.targets) == 20
    assert sorted(budget.targets) == sorted([*range(10), *range(10)]) and "broken.png" in budget.notes[0]
    assert len(images_of(source, options, [str(tmp_path / "data")], limit=10)[1].images) == 10
    said = []
    _, flat = images_of(source, options, [str(folder)], said=said)
    assert flat.measure == "agreement" and len(flat.images) == 120 and "no usable labels" in said[0]


def test_top1_is_compared_with_that_of_fp32(source, int8, options, folder, tmp_path):
    """Every other picture in the folder of the class that FP32 gives it: FP32 has 50 %, int8 loses some of them."""
    import onnxruntime

    paths = sorted(folder.glob("*.png"))
    images = np.stack([np.asarray(Image.open(path)) for path in paths])
    session = onnxruntime.InferenceSession(source.graph.SerializeToString())
    for number, path in enumerate(paths):
        found = session.run(["logits"], {"images": images[number : number + 1]})[0].argmax()
        target = tmp_path / "data" / f"class_{(found + number % 2) % 10}" / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    found = mixed_precision(source, int8, options, AutoOptions(100.0, (str(tmp_path / "data"),)), LABELS).auto
    assert found["measure"] == "top-1" and found["images"] == 120
    (point,) = found["curve"]
    assert point["top1"] == pytest.approx(50 - point["drop"], abs=1e-3) and point["drop"] > 5
    assert abs(100 - point["agreement"] - point["drop"]) > 5


def test_a_budget_finer_than_an_image_is_said(source, int8, options):
    found = mixed_precision(source, int8, options, AutoOptions(0.001), LABELS)
    assert "less than one of 60 images" in found.notes[-1] and found.auto["drop"] == 0


def test_trained_weights_without_images_are_an_error(source, int8):
    with pytest.raises(InputError, match=r"DATA=.*--data"):
        mixed_precision(source, int8, Int8Options(), AutoOptions(), LABELS)


@pytest.mark.parametrize("wrong", [{"max_drop": -0.1}, {"max_drop": float("nan")}, {"max_drop": 101}, {"limit": 0}])
def test_options_that_cannot_be(wrong):
    with pytest.raises(InputError, match="found"):
        AutoOptions(**wrong)


@given(st.integers(1, 300), st.data())
@settings(max_examples=200, deadline=None)
def test_least_fits_and_one_less_does_not(count, data):
    fitting = {k: data.draw(st.booleans()) for k in range(1, count)} | {0: False, count: True}
    asked = []

    def fits(k):
        asked.append(k)
        return fitting[k]

    k = least(count, fits)
    assert fitting[k] and not fitting[k - 1]
    assert 0 not in asked and count not in asked and len(asked) <= 2 * count.bit_length()
    threshold = data.draw(st.integers(1, count))
    assert least(count, lambda k: k >= threshold) == threshold


def test_order_is_by_error_a_layer_and_stable():
    units = [("a",), ("b", "c"), ("d",), ("e",)]
    assert order(units, {"a": 1.0, "b": 4.0, "c": 0.0, "d": 3.0, "e": 1.0}) == [("d",), ("b", "c"), ("a",), ("e",)]


def test_readers_of_a_moved_relu_leave_together(source, options, int8, tmp_path):
    """conv1 and the average behind the last ReLU stand alone; with a second 1x1 reader conv1 gets company."""
    assert ("c1",) not in tied_layers(source.graph, int8) and ("conv1",) in tied_layers(source.graph, int8)
    model = network()
    index = Index(model)
    nodes = list(model.graph.node)
    pool = onnx.helper.make_node("MaxPool", ["r0"], ["m"], "m", kernel_shape=[3, 3], pads=[1, 1, 1, 1])
    shortcut = onnx.helper.make_node("Conv", ["m", "shortcut.weight"], ["s"], "shortcut")
    index.set_constant("shortcut.weight", weights_of(16, 16, 1, 1, seed=50) / 4)
    nodes[7].input[1] = "s"
    index.set_nodes([*nodes[:7], pool, shortcut, *nodes[7:]])
    onnx.save(model, tmp_path / "tied.onnx")
    loaded = load_source(SourceOptions("tied", onnx=tmp_path / "tied.onnx", preprocessing=SPEC), Steps())
    quantised = quantise(loaded, options, tmp_path / "cache", "tool", print)
    assert ("conv1", "shortcut") in tied_layers(loaded.graph, quantised)
    plain = quantise(
        loaded, replace(options, placement=replace(options.placement, shift=False)), tmp_path / "cache", "tool", print
    )
    assert ("conv1",) in tied_layers(loaded.graph, plain)


def test_errors_of_single_layers_add_up_on_the_shipped_model(shipped, shipped_images):
    """And the order that follows from them takes away more of the error than giving back the first layers would."""
    model = onnx.load(shipped("fp32") / "model.onnx")
    amax = read_cache(shipped("int8") / "calibration.cache").amax()
    images = shipped_images[0][::20]
    (expected,) = run(model, images, ["logits"])

    def error(exclude):
        (found,) = run(insert_qdq(model, amax, exclude=exclude)[0], images, ["logits"])
        return float(((found.astype(np.float64) - expected) ** 2).mean())

    graph_of_all, quantised = insert_qdq(model, amax)
    layers = [*quantised.nodes, *quantised.additions]
    errors = logit_errors(model, roundings(graph_of_all, quantised.tensors, layers), images)
    everything = error(())
    assert 0.8 < sum(errors.values()) / everything < 1.25
    worst = sorted(layers, key=lambda name: -errors[name])[:12]
    assert error(worst) < 0.75 * error(layers[:12]) < everything
