"""Known answers at the build: the pictures, the floor, and that a plan which does not reach it fails the build."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from small_models import CLASSES, CLASSIFIER, SPEC, classifier_constants, graph

from engine_build.build_bundle import BuildOptions, build
from engine_build.checks.as_written import as_written, emulated
from engine_build.checks.known_answers import answer_images, known_answers, noisy, rounding_cost, warnings
from engine_build.graph.passes import prepare
from engine_build.graph.reference import graph_logits
from engine_build.precision.casts import to_precision
from infer.backends import openvino
from infer.bundle import FileEntry, KnownAnswers, check_files, file_entry, read_manifest
from infer.checks.known_answers import FILE, read_answers
from infer.checks.passed import PASSES
from infer.checks.sqnr import centred_sqnr
from infer.errors import BuildError, KnownAnswersError


@pytest.fixture(scope="module")
def prepared():
    model = graph(CLASSIFIER, classifier_constants())
    prepare(model, SPEC, CLASSES, graph_logits(model, SPEC))
    return model


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "int8"])
def test_every_bundle_has_answers_and_every_plan_passed(shipped, precision):
    folder = shipped(precision)
    manifest = read_manifest(folder)
    record = manifest.known_answers
    answers = read_answers(folder, manifest)
    np.testing.assert_array_equal(answers.logits, as_written(onnx.load(folder / "model.onnx"))(answers.images))
    assert answers.images.shape == (8, 64, 64, 3)
    cap = {"fp32": 50, "fp16": 35, "bf16": 22, "int8": 25}[precision]
    assert record.floor_db == pytest.approx(min(cap, record.rounding_db - 6))
    assert record.floor_db > cap - 4  # of a trained network
    assert len(list((folder / PASSES).iterdir())) >= 1
    assert not [note for note in manifest.notes if "known answers" in note]


def test_the_answers_of_random_weights_tell_too(untrained):
    assert read_manifest(untrained).known_answers.floor_db > 40


@pytest.mark.parametrize("side", [8, 32, 224, 257, 384, 600])
def test_the_pictures(side, tmp_path):
    images = answer_images(side)
    assert (images.shape, images.dtype) == ((8, side, side, 3), np.uint8)
    np.testing.assert_array_equal(images, answer_images(side))
    assert len({image.tobytes() for image in images}) == 8
    np.savez_compressed(tmp_path / "x.npz", images=images)
    assert (tmp_path / "x.npz").stat().st_size < 2_000_000
    means = images.mean(axis=(1, 2, 3))
    assert np.ptp(means) > 60  # dark and bright ones


def test_the_noise_is_of_the_size_that_was_asked_for():
    """One matrix product with the identity: what comes out is the input with its noise."""
    nodes = [
        helper.make_node("Cast", ["images"], ["x"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["x", "w"], ["logits"]),
    ]
    values = [
        helper.make_tensor_value_info("images", TensorProto.UINT8, ["N", 64]),
        helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 64]),
    ]
    weight = onnx.numpy_helper.from_array(np.eye(64, dtype=np.float32), "w")
    for opset in (17, 22):
        body = helper.make_graph(nodes, "g", values[:1], values[1:], [weight])
        model = helper.make_model(body, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
        images = np.random.default_rng(0).integers(1, 255, (16, 64), np.uint8)
        relative = noisy(model, 2**-8, 3)(images) / images - 1
        assert np.abs(relative).max() <= 2**-8 + 1e-6
        assert relative.std() == pytest.approx(2**-8 / 3**0.5, rel=0.1)
        assert np.abs(relative.mean(axis=0)).mean() < 2**-9  # another for each picture
        np.testing.assert_array_equal(relative, noisy(model, 2**-8, 3)(images) / images - 1)
        assert not np.array_equal(relative, noisy(model, 2**-8, 4)(images) / images - 1)
        logits = images.astype(np.float32)
        cost = rounding_cost(model, images, logits, 2**-8)
        centred = (logits - logits.mean(axis=0)).std()
        assert cost == pytest.approx(20 * np.log10(centred / (np.sqrt((logits**2).mean()) * 2**-8 / 3**0.5)), abs=0.5)
    assert rounding_cost(model, images, logits, 0.0) is None


def test_a_quantised_graph_gets_its_noise_before_each_quantiser(shipped):
    plain = emulated(onnx.load(shipped("int8") / "model.onnx"))
    seen = []

    class Stop(Exception):
        pass

    def look(model):
        seen.append(model)
        raise Stop

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stop):
        patch.setattr("engine_build.checks.known_answers.as_written", look)
        noisy(plain, 2**-11, 0)
    (model,) = seen
    made = {node.output[0] for node in model.graph.node if node.domain == "noise"}
    readers = [node for node in model.graph.node if made & set(node.input)]
    assert {node.op_type for node in readers} == {"QuantizeLinear"}
    assert len(readers) == sum(node.op_type == "QuantizeLinear" for node in model.graph.node)


def test_coarser_arithmetic_gets_a_lower_floor(prepared, tmp_path):
    floors = {}
    for precision in ("fp32", "bf16"):
        typed = to_precision(prepared, precision)
        floors[precision] = known_answers(typed, precision, SPEC.crop, tmp_path)
        check_files(tmp_path, [file_entry(tmp_path, FILE)])
    assert floors["bf16"].rounding_db < floors["fp32"].rounding_db - 12
    assert floors["bf16"].floor_db <= 22


def test_a_network_whose_answers_do_not_vary_cannot_tell(tmp_path):
    constants = classifier_constants()
    constants["stem.weight"][:] *= 1e-6
    model = graph(CLASSIFIER, constants)
    prepare(model, SPEC, CLASSES, graph_logits(model, SPEC))
    record = known_answers(to_precision(model, "bf16"), "bf16", SPEC.crop, tmp_path)
    assert record.floor_db < 12
    assert "cannot tell a right plan from a wrong one" in warnings(record)[0]
    constants["stem.weight"][:] = 0
    model = graph(CLASSIFIER, constants)
    prepare(model, SPEC, CLASSES, graph_logits(model, SPEC))
    record = known_answers(model, "fp32", SPEC.crop, tmp_path)
    assert record.rounding_db is None or record.floor_db == 0


def test_a_graph_that_gives_nan_is_refused(tmp_path):
    constants = classifier_constants()
    constants["fc.weight"][:] = 3e38
    model = graph(CLASSIFIER, constants)
    with pytest.raises(BuildError, match="NaN or infinite logits"):
        known_answers(with_head(model), "fp32", SPEC.crop, tmp_path)
    assert not (tmp_path / FILE).exists()


def with_head(model):
    from engine_build.graph.passes import add_uint8_input

    add_uint8_input(model, SPEC)
    return model


def test_a_plan_that_is_wrong_fails_the_build(tiny_onnx, tmp_path, monkeypatch):
    original = openvino.Pool._run
    monkeypatch.setattr(
        openvino.Pool,
        "_run",
        lambda self, request, batch, count: original(self, request, batch, count)._replace(
            logits=np.zeros((count, CLASSES), np.float32)
        ),
    )
    options = BuildOptions("tiny", onnx=tiny_onnx, precision="fp32", preprocessing=SPEC, targets=("openvino",))
    with pytest.raises(
        KnownAnswersError, match=r"openvino .* computes something else than its graph.*The graph is right"
    ):
        build(BuildOptions(**{**vars(options), "output": tmp_path / "out"}))
    assert list(tmp_path.iterdir()) == []


def test_centred_noise_of_the_classifier(prepared):
    """The floor is a promise about other engines: onnx's own evaluator keeps it."""
    from onnx.reference import ReferenceEvaluator

    typed = to_precision(prepared, "fp16")
    images = answer_images(SPEC.crop)
    logits = as_written(typed)(images)
    cost = rounding_cost(emulated(typed), images, logits, 2**-11)
    other = ReferenceEvaluator(typed).run(["logits"], {"images": images})[0]
    assert centred_sqnr(other, logits) > cost - 6


def test_warnings_of_a_good_floor():
    entry = FileEntry(file="x", sha256="0", size=1)
    assert warnings(KnownAnswers(file=entry, images=8, engine="e", rounding_db=None, floor_db=20.0)) == []
