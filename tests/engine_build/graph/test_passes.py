"""The ONNX passes: what each does, that results stay, and that a broken one is caught and named."""

from __future__ import annotations

import io

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto
from small_models import CLASSES, SIDE, SPEC, bn_constants, classifier, graph, pictures, run_graph

from calibration.onnx_index import Index
from engine_build.graph import passes
from engine_build.graph.batch_norms import fold_batch_norms
from engine_build.graph.canonical import canonicalise
from engine_build.graph.check import check_step
from engine_build.graph.reference import graph_logits
from engine_build.network import zoo
from engine_build.network.iresnet import IResNet
from engine_build.precision.casts import to_precision
from infer.errors import GraphError

X = np.random.default_rng(1).normal(size=(2, 3, SIDE, SIDE)).astype(np.float32)


def ops(model):
    return Index(model).op_counts()


@pytest.fixture(scope="module")
def prepared(exported, untrained):
    """A network and its deployed graph."""
    return exported[0], onnx.load(untrained / "model.onnx")


# --- the whole chain -------------------------------------------------------------------------------------------------


def test_results_equal_pytorch_for_uint8_images(prepared):
    network, model = prepared
    images = pictures(5)
    normalised = (images.astype(np.float64) / 255 - SPEC.mean) / SPEC.std
    with torch.no_grad():
        expected = network(torch.tensor(normalised.transpose(0, 3, 1, 2), dtype=torch.float32)).double()
    logits, scores, classes = run_graph(model, images, ["logits", "scores", "classes"])
    np.testing.assert_allclose(logits, expected, atol=1e-3 * expected.abs().max())
    order = np.argsort(-logits, axis=1)[:, :5]
    assert np.array_equal(classes, order)
    assert classes.dtype == np.int32
    np.testing.assert_allclose(scores, np.take_along_axis(expected.softmax(1).numpy(), order, 1), atol=1e-4)
    assert (np.diff(scores, axis=1) <= 0).all()


def test_the_signature(prepared):
    _, model = prepared
    kinds = {
        value.name: (
            value.type.tensor_type.elem_type,
            [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim],
        )
        for value in (*model.graph.input, *model.graph.output)
    }
    assert kinds == {
        "images": (TensorProto.UINT8, ["batch", SIDE, SIDE, 3]),
        "logits": (TensorProto.FLOAT, ["batch", CLASSES]),
        "scores": (TensorProto.FLOAT, ["batch", 5]),
        "classes": (TensorProto.INT32, ["batch", 5]),
    }
    assert next(entry.version for entry in model.opset_import if not entry.domain) >= 17


@pytest.mark.parametrize("batch", [1, 2, 7])
def test_the_batch_is_dynamic(prepared, batch):
    logits, _, _ = run_graph(prepared[1], pictures(7)[:batch])
    np.testing.assert_allclose(logits, run_graph(prepared[1], pictures(7))[0][:batch], atol=1e-4)


def test_names_are_unique_and_tell_the_module(prepared):
    _, model = prepared
    names = [node.name for node in model.graph.node]
    assert len(set(names)) == len(names)
    tensors = [name for node in model.graph.node for name in node.output]
    assert len(set(tensors)) == len(tensors)
    convolutions = {node.name for node in model.graph.node if node.op_type == "Conv"}
    modules = {name for name, module in prepared[0].named_modules() if isinstance(module, torch.nn.Conv2d)}
    assert convolutions == modules
    assert [node.name for node in model.graph.node if node.op_type == "Gemm"] == ["fc"]
    assert "layer4.1.bn2" in names
    known = ("logits", "scores", "classes", "normalised", "top_k_indices", "top_k_logits")
    assert all(name in known or "_output" in name for name in tensors)


def test_no_path_of_this_machine_stays(exported, prepared):
    traces = (b"site-packages", b".py", str(passes.__file__).rsplit("/", 3)[0].encode())
    raw = exported[1].read_bytes()
    assert any(trace in raw for trace in traces)  # what the exporter leaves behind
    clean = prepared[1].SerializeToString()
    assert not any(trace in clean for trace in traces)


DEEP = [("iresnet50", 12, 16), ("iresnet101", 29, 33), ("iresnet152", 46, 50), ("iresnet200", 62, 66)]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("name", "norms", "additions"), DEEP)
def test_norms_that_remain_in_deep_networks(name, norms, additions):
    torch.manual_seed(0)
    network = IResNet(zoo.MODELS[name].arch, CLASSES, 1 / 16).eval()
    buffer = io.BytesIO()  # torch's older exporter is quick, folds nothing when told so, and names as users' files do
    torch.onnx.export(
        network, (torch.zeros(1, 3, SIDE, SIDE),), buffer, dynamo=False, opset_version=17,
        training=torch.onnx.TrainingMode.PRESERVE, do_constant_folding=False,
    )  # fmt: skip
    model = onnx.load_model_from_string(buffer.getvalue())
    every = ops(model)["BatchNormalization"]
    canonicalise(model)
    assert fold_batch_norms(model) == every - norms
    counts = ops(model)
    assert (counts["BatchNormalization"], counts["Add"]) == (norms, additions)
    assert counts["Conv"] == additions * 3 + 5  # three a block, four projections, the stem
    index = Index(model)
    left = [node for node in model.graph.node if node.op_type == "BatchNormalization"]
    assert {index.producer[norm.input[0]].op_type for norm in left} == {"Add"}


def test_the_shipped_graph_has_the_same_form(shipped):
    counts = ops(onnx.load(shipped("fp32") / "model.onnx"))
    assert (counts["BatchNormalization"], counts["Add"], counts["Conv"]) == (12, 16, 53)


# --- one broken pass -------------------------------------------------------------------------------------------------

PASSES = ["canonicalise", "fold_batch_norms", "simplify_batch_norms", "add_uint8_input", "add_classification_head"]


def prepare_tiny():
    model = classifier()
    passes.prepare(model, SPEC, CLASSES, graph_logits(classifier(), SPEC))
    return model


@pytest.mark.parametrize("name", PASSES)
@pytest.mark.parametrize("spoil", ["weight", "graph", "rows"])
def test_a_broken_pass_is_named(monkeypatch, name, spoil):
    original = getattr(passes, name)

    def broken(model, *args):
        result = original(model, *args)
        index = Index(model)
        conv = next(node for node in model.graph.node if node.op_type == "Conv")
        if spoil == "weight":
            weight = index.value(conv.input[1]).copy()
            weight[3] *= 1.1
            index.set_constant(conv.input[1], weight)
        elif spoil == "graph":
            conv.input[0] = "nothing"
        else:  # right for one image, wrong for more
            flat = next(node for node in model.graph.node if node.op_type == "Flatten")
            flat.CopyFrom(onnx.helper.make_node("Reshape", [flat.input[0], "one"], flat.output, flat.name))
            index.set_constant("one", np.array([1, -1]))
        return result

    monkeypatch.setattr(passes, name, broken)
    with pytest.raises(GraphError, match=f"^step {name}[ :]") as caught:
        prepare_tiny()
    if spoil == "weight":
        assert "changed the results: largest logit difference" in str(caught.value)
        assert "(0.001 of the largest logit)" in str(caught.value)


def test_the_whole_chain_passes_when_nothing_is_broken():
    assert ops(prepare_tiny())["BatchNormalization"] == 0


def test_shapes_that_are_declared_wrongly_are_caught(monkeypatch):
    original = passes.add_classification_head
    monkeypatch.setattr(passes, "add_classification_head", lambda model, _classes: original(model, 77))
    with pytest.raises(GraphError, match="finished graph is not valid ONNX"):
        prepare_tiny()


def test_results_that_are_not_numbers_are_caught():
    model = classifier()
    index = Index(model)
    index.set_constant("fc.bias", np.full(CLASSES, np.nan, np.float32))
    with pytest.raises(GraphError, match="step here changed the results"):
        check_step("here", model, SPEC, graph_logits(classifier(), SPEC))


def test_another_number_of_classes_is_caught():
    with pytest.raises(GraphError, match=r"step here: expected logits \(1, 10\), found \(1, 4\)"):
        check_step("here", four_classes(), SPEC, graph_logits(classifier(), SPEC))


def four_classes():
    model = classifier()
    index = Index(model)
    index.set_constant("fc.weight", index.value("fc.weight")[:4])
    index.set_constant("fc.bias", index.value("fc.bias")[:4])
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 4
    return model


# --- input and head --------------------------------------------------------------------------------------------------


def test_uint8_input_is_exact():
    model = graph([("Identity", "x", "y")], {}, outputs=[("y", TensorProto.FLOAT, None)])
    passes.add_uint8_input(model, SPEC)
    ramp = np.repeat(np.arange(256, dtype=np.uint8), 12).reshape(1, SIDE, SIDE, 3)
    expected = ((ramp.astype(np.float64) / 255 - SPEC.mean) / SPEC.std).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(run_graph(model, ramp)[0], expected, atol=1e-6)


def test_fewer_than_five_classes():
    model = four_classes()
    passes.add_classification_head(model, 4)
    logits, scores, classes = run_graph(model, X)
    assert scores.shape == classes.shape == (2, 4)
    assert np.array_equal(classes, np.argsort(-logits, 1))
    np.testing.assert_allclose(scores.sum(1), 1, atol=1e-5)


def far_apart():
    """A prepared graph whose logits are hundreds apart: all but the first score underflow."""
    model = classifier()
    index = Index(model)
    index.set_constant("fc.weight", index.value("fc.weight") * 300)
    passes.prepare(model, SPEC, CLASSES, graph_logits(copy_of(model), SPEC))
    return model


def copy_of(model):
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return copy


def expect_the_ranks_of_the_logits(logits, scores, classes):
    assert (np.diff(np.sort(logits, axis=1)) > 0).all() and (np.ptp(logits, axis=1) > 110).all()
    assert np.array_equal(classes, np.argsort(-logits, axis=1)[:, :5])
    assert (scores[:, -1] == 0).all()  # so that softmax cannot rank them
    shifted = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    expected = np.take_along_axis(shifted / shifted.sum(axis=1, keepdims=True), classes.astype(np.int64), 1)
    np.testing.assert_allclose(scores, expected, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_classes_are_ranked_where_softmax_underflows(precision):
    model = to_precision(far_apart(), precision)
    expect_the_ranks_of_the_logits(*run_graph(model, pictures(6), ["logits", "scores", "classes"]))


def test_openvino_ranks_them_too(tmp_path):
    openvino = pytest.importorskip("openvino")
    onnx.save(far_apart(), tmp_path / "model.onnx")
    hint = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.Core().compile_model(str(tmp_path / "model.onnx"), "CPU", hint)
    found = compiled([pictures(6)])
    expect_the_ranks_of_the_logits(*(found[name] for name in ("logits", "scores", "classes")))


def test_equal_logits_are_ranked_by_their_number():
    model = classifier()
    index = Index(model)
    for name in ("fc.weight", "fc.bias"):
        index.set_constant(name, np.zeros_like(index.value(name)))
    passes.add_classification_head(model, CLASSES)
    _, scores, classes = run_graph(model, X)
    assert classes.tolist() == [[0, 1, 2, 3, 4]] * 2
    np.testing.assert_allclose(scores, 0.1, atol=1e-6)


def test_an_inner_tensor_called_logits():
    model = graph([("Relu", "x", "logits"), ("Relu", "logits", "y")], {})
    with pytest.raises(GraphError, match="inner tensor called 'logits'; rename it"):
        passes.add_classification_head(model, CLASSES)


# --- canonical form --------------------------------------------------------------------------------------------------


def canonical(nodes, constants, **options):
    model = graph(nodes, constants, **options)
    before = run_graph(model, X)[0]
    canonicalise(model)
    np.testing.assert_allclose(run_graph(model, X)[0], before, atol=1e-5)
    return model


Y = [("y", TensorProto.FLOAT, None)]


def test_constant_nodes_become_initializers():
    model = canonical([("Constant", "", "six", {"value_float": 6.0}), ("Clip", "x - six", "y")], {}, outputs=Y)
    assert ops(model) == {"Clip": 1}
    assert len(model.graph.initializer) == 1


@pytest.mark.parametrize("axes", [[2, 3], [-1, -2]])
def test_spatial_means_become_pools(axes):
    model = canonical(
        [("ReduceMean", "x axes", "p"), ("Reshape", "p shape", "y")],
        {"axes": np.array(axes), "shape": np.array([-1, 3])}, outputs=Y,
    )  # fmt: skip
    assert ops(model) == {"GlobalAveragePool": 1, "Flatten": 1}


@pytest.mark.parametrize("axes", [[2, 3], [-2, -1]])
def test_spatial_means_that_drop_their_dimensions_become_pools_too(axes):
    model = canonical([("ReduceMean", "x axes", "y", {"keepdims": 0})], {"axes": np.array(axes)}, outputs=Y)
    assert ops(model) == {"GlobalAveragePool": 1, "Flatten": 1}
    old = [("ReduceMean", "x", "y", {"keepdims": 0, "axes": axes})]
    assert ops(canonical(old, {}, outputs=Y, opset=17)) == {"GlobalAveragePool": 1, "Flatten": 1}


REDUCED = [("ReduceMean", [1]), ("ReduceMax", [-1]), ("ReduceSum", [1, 2]), ("ReduceL2", [2]), ("ReduceMean", [-2, -1])]


@pytest.mark.parametrize(("kind", "axes"), REDUCED)
def test_reductions_of_three_dimensions_keep_them(kind, axes):
    nodes = [("Reshape", "x line", "l"), (kind, "l axes", "y", {"keepdims": 0})]
    model = canonical(nodes, {"line": np.array([0, 3, -1]), "axes": np.array(axes)}, outputs=Y)
    assert ops(model) == {"Reshape": 1, kind: 1, "Squeeze": 1}


def test_a_reduction_over_everything_stays():
    assert ops(canonical([("ReduceMax", "x", "m"), ("Add", "x m", "y")], {}, outputs=Y)) == {"ReduceMax": 1, "Add": 1}


def test_other_means_and_reshapes_stay():
    model = canonical(
        [("ReduceMean", "x axes", "m"), ("GlobalAveragePool", "m", "p"), ("Reshape", "p shape", "y")],
        {"axes": np.array([1, 2]), "shape": np.array([0, 1, -1])}, outputs=Y,
    )  # fmt: skip
    assert ops(model) == {"ReduceMean": 1, "GlobalAveragePool": 1, "Reshape": 1}


def test_identities_go_also_those_before_shared_weights():
    rng = np.random.default_rng(3)
    constants = {"w": rng.normal(size=(4, 3, 3, 3)).astype(np.float32), **bn_constants("bn", 4, rng)}
    nodes = [
        ("Identity", "x", "a"), ("Identity", "a", "b"), ("Identity", "bn.weight", "g"), ("Conv", "b w", "c"),
        ("BatchNormalization", "c g bn.bias bn.running_mean bn.running_var", "n"), ("Identity", "n", "y"),
    ]  # fmt: skip
    model = canonical(nodes, constants, outputs=Y)
    assert ops(model) == {"Conv": 1, "BatchNormalization": 1, "Identity": 1}  # the last one names the output
    assert fold_batch_norms(model) == 1


def test_equal_names_get_numbers():
    model = graph([("Relu", "x", "a", {"name": "act"}), ("Relu", "a", "y", {"name": "act"})], {}, outputs=Y)
    canonicalise(model)
    assert [node.name for node in model.graph.node] == ["act", "act_2"]
    assert model.graph.node[0].output[0] == "act_output"


def test_nodes_without_a_name_are_called_by_their_kind():
    nodes = [("Relu", "x", "a", {"name": ""}), ("Relu", "a", "y", {"name": ""})]
    assert [node.name for node in canonical(nodes, {}, outputs=Y).graph.node] == ["relu", "relu_2"]


USED = ["softmax", "top_k", "classes.cast", "normalise.cast", "normalise.nchw", "scores", "images"]


@pytest.mark.parametrize("name", USED)
def test_names_that_the_passes_use_do_not_clash(name):
    model = classifier()
    for node in model.graph.node:
        if node.op_type == "Relu":
            node.name = node.output[0] = name
        if node.op_type == "GlobalAveragePool":
            node.input[0] = name
    passes.prepare(model, SPEC, CLASSES, graph_logits(classifier(), SPEC))
    assert ops(model)["Relu"] == 1
