"""Matrix products in every form that exporters write, and the lists of what int8 takes and what it leaves."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from small_models import CLASSIFIER, SPEC, classifier_constants, graph, pictures, run_graph, weights_of

from calibration.onnx_index import Index
from calibration.streaming import collect
from calibration.tensors import activation_steps, activation_tensors, floating_products, quantisable_nodes
from engine_build.graph.passes import canonicalise, prepare
from engine_build.graph.reference import graph_logits
from engine_build.quantise.qdq import insert_qdq
from infer.errors import InputError

C = classifier_constants()
W, B = C["fc.weight"], C["fc.bias"]
T = np.ascontiguousarray(W.T)
X = weights_of(3, 3, 32, 32)


def head(*nodes, stem=CLASSIFIER[:5], **constants):
    """A classifier with another last layer behind the features ``f`` ``[N, 16]``."""
    return graph([*stem, *nodes], {**C, **constants})


PLAIN = {
    "gemm": head(("Gemm", "f t fc.bias", "y"), t=T),
    "gemm without a bias": head(("Gemm", "f t", "y"), t=T),
    "alpha and beta": head(("Gemm", "f t fc.bias", "y", {"alpha": 0.5, "beta": 3.0}), t=T),
    "alpha, transposed weights": head(("Gemm", "f fc.weight fc.bias", "y", {"alpha": 2.0, "transB": 1})),
    "beta 0": head(("Gemm", "f t fc.bias", "y", {"beta": 0.0}), t=T),
    "beta without a bias": head(("Gemm", "f t", "y", {"beta": 0.5}), t=T),
    "a row as bias": head(("Gemm", "f t row", "y", {"beta": 0.5}), t=T, row=B[None]),
    "a number as bias": head(("Gemm", "f t one", "y"), t=T, one=np.float32(0.7)),
    "one number as bias": head(("Gemm", "f t one", "y"), t=T, one=np.array([[0.7]], np.float32)),
    "transposed input": head(
        ("Transpose", "f", "ft", {"perm": [1, 0]}), ("Gemm", "ft t fc.bias", "y", {"transA": 1}), t=T
    ),
    "matmul": head(("MatMul", "f t", "y"), t=T),
    "matmul and addition": head(("MatMul", "f t", "m"), ("Add", "m fc.bias", "y"), t=T),
    "addition, the other way": head(("MatMul", "f t", "m"), ("Add", "fc.bias m", "y"), t=T),
    "matmul, transposed weights": head(
        ("Transpose", "fc.weight", "tw"), ("MatMul", "f tw", "m"), ("Add", "m fc.bias", "z"), ("Identity", "z", "y")
    ),
    "two additions": head(("MatMul", "f t", "m"), ("Add", "m fc.bias", "n"), ("Add", "n one", "y"), t=T, one=B[None]),
    "a bias of half": head(
        ("Gemm", "f t fc.bias", "a", {"beta": 0.5}), ("Relu", "a", "a2"), ("Gemm", "a2 square fc.bias", "y"),
        t=T, square=weights_of(10, 10),
    ),
    "one dimension of pixels": head(
        ("Conv", "line k", "c1", {"pads": [1, 1]}), ("Add", "c1 column", "c2"), ("ReduceMean", "c2 two", "f"),
        ("Gemm", "f t", "y"), stem=[*CLASSIFIER[:3], ("Reshape", "r shape", "line")], t=T,
        k=weights_of(16, 16, 3) / 4, column=weights_of(1, 16, 1), two=np.array([2]), shape=np.array([0, 16, 256]),
    ),
    "three dimensions": head(
        ("Unsqueeze", "r two", "u"), ("Conv", "u k", "v", {"pads": [0, 1, 1, 0, 1, 1]}),
        ("ReduceMean", "v axes", "f", {"keepdims": 0}), ("Gemm", "f t", "y"), stem=CLASSIFIER[:3], t=T,
        k=weights_of(16, 16, 1, 3, 3) / 9, two=np.array([2]), axes=np.array([2, 3, 4]),
    ),
    **{
        f"convolution with {name}": head(
            ("Conv", "r k", "v", attributes), ("GlobalAveragePool", "v", "p"),
            ("Flatten", "p", "f"), ("Gemm", "f t fc.bias", "y"), stem=CLASSIFIER[:3], t=T,
            k=weights_of(16, 16, 3, 3) / 9,
        )
        for name, attributes in {
            "holes": {"dilations": [2, 2], "pads": [2, 2, 2, 2]}, "auto_pad": {"auto_pad": "SAME_UPPER"},
            "auto_pad and strides": {"auto_pad": "SAME_LOWER", "strides": [2, 2]},
            "uneven pads": {"pads": [0, 0, 1, 2]},
            "no pads": {"auto_pad": "VALID"},
        }.items()
    },
}  # fmt: skip
# The mean keeps its dimension in the one above.
for _node in PLAIN["one dimension of pixels"].graph.node:
    if _node.op_type == "ReduceMean":
        _node.attribute.append(onnx.helper.make_attribute("keepdims", 0))


def copy_of(model):
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return copy


def int8_of(model):
    """The graph through every pass, its int8 form, and what was quantised."""
    model = copy_of(model)
    prepare(model, SPEC, 10, graph_logits(copy_of(model), SPEC))
    ranges = collect(model, [pictures(32, seed=3)], activation_tensors(model)).amax("minmax", activation_steps(model))
    done, quantised = insert_qdq(model, ranges)
    onnx.checker.check_model(done, full_check=True)
    return model, done, quantised


@pytest.mark.parametrize("case", PLAIN)
def test_every_form_becomes_plain_and_int8(case):
    model = copy_of(PLAIN[case])
    expected = run_graph(model, X)[0]
    canonicalise(model)
    np.testing.assert_allclose(run_graph(model, X)[0], expected, atol=1e-5 * np.abs(expected).max())
    kinds = Index(model).op_counts()
    assert not kinds["MatMul"] and not kinds["Add"]
    layers = [node for node in model.graph.node if node.op_type in ("Conv", "Gemm")]
    assert all(not {"alpha", "beta", "transA"} & {a.name for a in node.attribute} for node in layers)
    model, done, quantised = int8_of(PLAIN[case])
    assert set(quantised.nodes) == {node.name for node in layers} and not quantised.skipped
    images = pictures(16, seed=5)
    expected = graph_logits(copy_of(PLAIN[case]), SPEC)(images)
    found = run_graph(done, images, ["logits"])[0]
    assert np.abs(found - expected).max() < 0.06 * np.abs(expected).max()


TOKENS = [*CLASSIFIER[:3], ("Reshape", "r shape", "line"), ("Transpose", "line", "tokens", {"perm": [0, 2, 1]})]
SHAPE = {"shape": np.array([0, 16, 256])}
TAIL = [("ReduceMean", "last one", "f", {"keepdims": 0}), ("Gemm", "f t fc.bias", "y")]
FLOATING = {
    "two activations": (
        [*TOKENS, ("MatMul", "tokens line", "like"), ("Softmax", "like", "soft"),
         ("MatMul", "soft tokens", "last")],
        {}, {"like": "its weights are not constant, line computes them",
             "last": "its weights are not constant, tokens computes them"},
    ),
    "the constant first": (
        [*TOKENS, ("MatMul", "mix tokens", "last")], {"mix": weights_of(4, 256) / 16},
        {"last": "its constant is the first operand"},
    ),
    "a constant for each image of a batch": (
        [*TOKENS, ("MatMul", "tokens stack", "last")], {"stack": weights_of(1, 16, 16)}, {"last": "3 dimensions"},
    ),
    "einsum": (
        [*TOKENS, ("Einsum", "tokens square", "last", {"equation": "ntc,cd->ntd"})], {"square": weights_of(16, 16)},
        {"last": "Einsum has no int8 form"},
    ),
    "upwards": (
        [*CLASSIFIER[:3], ("ConvTranspose", "r up", "v", {"strides": [2, 2]}), ("Reshape", "v wide", "line2"),
         ("Transpose", "line2", "last", {"perm": [0, 2, 1]})],
        {"up": weights_of(16, 16, 2, 2) / 8, "wide": np.array([0, 16, -1])}, {"v": "ConvTranspose has no int8 form"},
    ),
    "computed convolution": (
        [*CLASSIFIER[:3], ("ReduceMean", "r all", "level", {"keepdims": 0}), ("Mul", "level k", "kernel"),
         ("Conv", "r kernel", "v"), ("Reshape", "v shape2", "line2"),
         ("Transpose", "line2", "last", {"perm": [0, 2, 1]})],
        {"k": weights_of(16, 16, 1, 1), "all": np.array([0, 1, 2, 3]), "shape2": np.array([0, 16, 256])},
        {"v": "its weights are not constant, kernel computes them"},
    ),
    "computed bias": (
        [*CLASSIFIER[:3], ("ReduceMean", "r all", "level", {"keepdims": 0}), ("Conv", "r k level", "v"),
         ("Reshape", "v shape2", "line2"), ("Transpose", "line2", "last", {"perm": [0, 2, 1]})],
        {"k": weights_of(16, 16, 1, 1), "all": np.array([0, 2, 3]), "shape2": np.array([0, 16, 256])},
        {"v": "its bias is not constant"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", FLOATING)
def test_what_has_no_int8_form_is_listed_with_the_reason(case):
    nodes, constants, reasons = FLOATING[case]
    model = graph([*nodes, *TAIL], {**C, **SHAPE, "t": T, "one": np.array([1]), **constants})
    canonicalise(model)
    index = Index(model)
    found = floating_products(index)
    assert list(found) == list(reasons)
    assert all(reason in found[name] for name, reason in reasons.items())
    assert [node.name for node in quantisable_nodes(index)] == ["stem", "y"]


@pytest.mark.parametrize("case", [case for case in FLOATING if not case.startswith("computed")])
def test_every_product_is_in_one_of_the_two_lists(case):
    nodes, constants, reasons = FLOATING[case]
    model, _, quantised = int8_of(graph([*nodes, *TAIL], {**C, **SHAPE, "t": T, "one": np.array([1]), **constants}))
    products = {n.name for n in model.graph.node if n.op_type in ("Conv", "ConvTranspose", "Gemm", "MatMul", "Einsum")}
    assert products == {*quantised.nodes, *quantised.skipped} and len(products) == len(quantised.nodes) + len(reasons)


def attention():
    """MatMul over tokens: constant weights and a bias by Add, then two activations."""
    nodes = [
        *TOKENS, ("MatMul", "tokens q", "m"), ("Add", "m qb", "n"), ("Relu", "n", "o"), ("MatMul", "o v", "last"),
        *TAIL,
    ]  # fmt: skip
    constants = {"q": weights_of(16, 24) / 4, "qb": weights_of(24) / 4, "v": weights_of(24, 16, seed=2) / 5}
    return graph(nodes, {**C, **SHAPE, "t": T, "one": np.array([1]), **constants})


def test_a_matmul_of_tokens_is_quantised_one_scale_a_column():
    _, done, quantised = int8_of(attention())
    assert quantised.nodes == ("stem", "m", "last", "y")
    index = Index(done)
    restore = index.producer[next(n for n in done.graph.node if n.name == "m").input[1]]
    assert index.value(restore.input[1]).shape == (24,) and onnx.helper.get_node_attr_value(restore, "axis") == 1
    images = pictures(32, seed=6)
    expected, found = graph_logits(attention(), SPEC)(images), run_graph(done, images, ["logits"])[0]
    assert np.abs(found - expected).max() < 0.05 * np.abs(expected).max()
    assert "relu_output.quantise" not in {n.name for n in done.graph.node} or not quantised.shifted


def test_both_builders_make_int8_kernels_of_matmul_and_of_every_convolution(tmp_path):
    from engine_build.targets.audit import require_precision
    from engine_build.targets.openvino import build_openvino

    for name, model in {"tokens": attention(), "line": PLAIN["one dimension of pixels"]}.items():
        _, done, quantised = int8_of(model)
        path = tmp_path / f"{name}.onnx"
        onnx.save(done, path)
        plan = build_openvino(path, tmp_path, "int8", quantised.nodes)
        assert set(plan.audit.node_precisions.values()) == {"int8"}
        if pytest.importorskip("tensorrt_rtx"):
            from engine_build.targets.tensorrt import BatchProfile, PlanRequest, build_plan

            request = PlanRequest(path, tmp_path / f"{name}.plan", BatchProfile(1, 2, 4))
            built = build_plan("tensorrt_rtx", request, False)
            require_precision(built.audit, quantised.nodes, "int8")


def test_a_joint_projection_of_an_attention_is_left_floating():
    """TensorRT divides its weights and computes the parts in floating point; the gate would fail the build."""
    nodes = [
        *TOKENS, ("MatMul", "tokens joint", "m"), ("Split", "m parts", "q k v", {"axis": 2}),
        ("Transpose", "k", "kt", {"perm": [0, 2, 1]}), ("MatMul", "q kt", "like"), ("Softmax", "like", "soft"),
        ("MatMul", "soft v", "last"), *TAIL,
    ]  # fmt: skip
    constants = {"joint": weights_of(16, 48) / 4, "parts": np.array([16, 16, 16]), "t": T, "one": np.array([1])}
    model = graph(nodes, {**C, **SHAPE, **constants})
    canonicalise(model)
    found = floating_products(Index(model))
    assert list(found) == ["m", "like", "last"] and "divided among the operands" in found["m"]


def squeeze_and_excite():
    """Two small products one behind the other, which OpenVINO makes one kernel of, and a gate on the channels."""
    nodes = [
        *CLASSIFIER[:5], ("Gemm", "f down", "d"), ("Relu", "d", "e"), ("Gemm", "e up bias", "u"), ("Sigmoid", "u", "s"),
        ("Mul", "f s", "g"), ("Gemm", "g t fc.bias", "y"),
    ]  # fmt: skip
    constants = {"down": weights_of(16, 4) / 4, "up": weights_of(4, 16) / 2, "bias": weights_of(16), "t": T}
    return graph(nodes, {**C, **constants})


def test_openvino_computes_a_mean_of_tokens_right(tmp_path, folder):
    """It does not where the mean drops its dimension and is rounded at once: the opening's own check fails then."""
    from infer import open_bundle

    built(tmp_path, folder, attention())
    images = pictures(16, seed=8)
    with open_bundle(tmp_path / "bundle", target="openvino") as runner:
        found = runner.infer(images).logits
    expected = graph_logits(attention(), SPEC)(images)
    assert np.abs(found - expected).max() < 0.05 * np.abs(expected).max()


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_products_that_openvino_joins_are_audited(tmp_path, folder, precision):
    manifest, _ = built(tmp_path, folder, squeeze_and_excite(), precision)
    assert manifest.plans[0].audit.node_precisions == dict.fromkeys(("stem", "d", "u", "y"), precision)


def test_logits_that_are_not_float_vectors_stay_as_they_are():
    model = head(("Gemm", "f t grid", "y"), t=T, grid=weights_of(3, 10))
    before = run_graph(model, X)[0]
    canonicalise(model)
    assert floating_products(Index(model)) == {"y": "its bias has the shape [3, 10], int8 needs one number a channel"}
    np.testing.assert_allclose(run_graph(model, X)[0], before, atol=1e-6)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    from PIL import Image

    made = tmp_path_factory.mktemp("calibration")
    for number, picture in enumerate(pictures(24)):
        Image.fromarray(picture).save(made / f"{number}.png")
    return made


def built(tmp_path, folder, model, precision="int8"):
    """The manifest and the graph of a whole build for OpenVINO."""
    from calibration.request import Request
    from engine_build.build_bundle import BuildOptions, build
    from engine_build.quantise.int8 import Int8Options

    onnx.save(model, tmp_path / "net.onnx")
    options = BuildOptions(
        model="net", onnx=tmp_path / "net.onnx", preprocessing=SPEC, precision=precision, targets=("openvino",),
        output=tmp_path / "bundle", int8=Int8Options(calibration=Request((str(folder),), 24)),
    )  # fmt: skip
    return build(options)[1], onnx.load(tmp_path / "bundle" / "model.onnx")


def test_a_whole_build_lists_every_product_and_says_why_some_are_floating(tmp_path, folder):
    nodes, constants, reasons = FLOATING["two activations"]
    model = graph([*nodes, *TAIL], {**C, **SHAPE, "t": T, "one": np.array([1]), **constants})
    manifest, typed = built(tmp_path, folder, model)
    record = manifest.calibration
    products = {node.name for node in typed.graph.node if node.op_type in ("Conv", "Gemm", "MatMul")}
    assert products == {*record.int8_nodes, *record.float_nodes}
    assert not set(record.int8_nodes) & set(record.float_nodes) and set(record.float_nodes) == set(reasons)
    assert any(note.startswith("2 convolutions and products have no int8 form") for note in manifest.notes)


def test_a_graph_without_any_layer_for_int8(tmp_path, folder):
    nodes = [("Shape", "x", "size"), ("Gather", "size at", "three"), ("Cast", "three", "level", {"to": 1}),
             ("Mul", "level k", "kernel"), ("Conv", "x kernel", "v"), ("GlobalAveragePool", "v", "p"),
             ("Flatten", "p", "y")]  # fmt: skip
    constants = {"k": weights_of(10, 3, 1, 1), "at": np.array(1)}
    with pytest.raises(InputError, match=r"a layer that can be quantised, found none: v \(its weights are not"):
        built(tmp_path, folder, graph(nodes, constants))
