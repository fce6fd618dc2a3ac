"""Users' own graphs: read, checked, refused in words."""

from __future__ import annotations

import io

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto
from small_models import (
    CLASSES,
    CLASSIFIER,
    SIDE,
    SPEC,
    bn_constants,
    bn_inputs,
    classifier,
    classifier_constants,
    graph,
    pictures,
)

from calibration.onnx_index import Index
from engine_build.graph.passes import prepare
from engine_build.graph.reference import graph_logits, torch_logits
from engine_build.network.architecture import Architecture
from engine_build.network.iresnet import IResNet, initialise
from engine_build.source.user_graph import load_user_graph
from infer.errors import GraphError


def small_network(width=1 / 16):
    network = IResNet(Architecture("bottleneck", (2, 3, 2, 2)), CLASSES, width)
    initialise(network)
    generator = torch.Generator().manual_seed(0)
    for name, value in network.state_dict().items():  # two BNs with equal statistics would share their tensors
        if "running" in name or ("bn" in name and "num" not in name):
            value.uniform_(0.5, 1.5, generator=generator)
    return network.eval()


def load(tmp_path, model):
    path = tmp_path / "user.onnx"
    path.write_bytes(model if isinstance(model, bytes) else model.SerializeToString())
    return load_user_graph(path, SPEC)


def check(tmp_path, model, images=None):
    """Load, run every pass, and compare with the model as it came, one image at a time."""
    images = pictures(3) if images is None else images
    original = graph_logits(model, SPEC)
    expected = np.concatenate([original(image[None]) for image in images])
    loaded, reference, classes = load(tmp_path, model)
    assert classes == expected.shape[1]
    np.testing.assert_allclose(reference(images), expected, atol=1e-4)
    prepare(loaded, SPEC, classes, reference)
    np.testing.assert_allclose(graph_logits(loaded, SPEC)(images), expected, atol=1e-3 * np.abs(expected).max())
    return loaded


def test_dynamic_batch(tmp_path):
    loaded = check(tmp_path, classifier())
    assert loaded.graph.input[0].name == "images"


def test_fixed_batch(tmp_path):
    fixed = classifier(
        inputs=[("x", TensorProto.FLOAT, [1, 3, SIDE, SIDE])], outputs=[("y", TensorProto.FLOAT, [1, CLASSES])]
    )
    check(tmp_path, fixed)


@pytest.mark.parametrize("opset", [8, 9, 11, 13, 16])
def test_old_opsets_are_converted(tmp_path, opset):
    loaded = check(tmp_path, classifier(opset=opset, ir_version=4))
    assert next(entry.version for entry in loaded.opset_import if not entry.domain) >= 17


def test_initializers_listed_as_inputs(tmp_path):
    model = classifier(opset=11, ir_version=3)
    for tensor in model.graph.initializer:  # as every file of IR 3 has them
        model.graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    check(tmp_path, model)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("options", [{"opset_version": 13}, {"opset_version": 9}, {"opset_version": 17}])
def test_graphs_of_the_older_pytorch_exporter(tmp_path, options):
    network, buffer = small_network(), io.BytesIO()
    torch.onnx.export(network, (torch.zeros(1, 3, SIDE, SIDE),), buffer, dynamo=False, input_names=["input"], **options)
    loaded = check(tmp_path, onnx.load_model_from_string(buffer.getvalue()))
    names = [node.name for node in loaded.graph.node]
    assert "/layer2/layer2.1/conv1/Conv" in names
    assert len(set(names)) == len(names)
    np.testing.assert_allclose(
        graph_logits(loaded, SPEC)(pictures(2)), torch_logits(network, SPEC)(pictures(2)), rtol=1e-3, atol=1e-3
    )


def test_attention_over_channels_is_not_mistaken_for_the_classifier(tmp_path):
    nodes = [
        *CLASSIFIER[:3],
        ("GlobalAveragePool", "r", "gap"), ("Reshape", "gap row", "line"),
        ("Conv", "line eca", "mixed", {"pads": [1, 1]}),
        ("Sigmoid", "mixed", "gate"), ("Reshape", "gate column", "gates"), ("Mul", "r gates", "scaled"),
        ("GlobalAveragePool", "scaled", "p"), *CLASSIFIER[4:],
    ]  # fmt: skip
    constants = {
        **classifier_constants(), "row": np.array([0, 1, 16]), "column": np.array([0, 16, 1, 1]),
        "eca": np.array([[[0.5, 1.0, -0.5]]], np.float32),
    }  # fmt: skip
    loaded = check(tmp_path, graph(nodes, constants))
    assert Index(loaded).op_counts()["Reshape"] == 2


def with_tail(*nodes, **constants):
    nodes = [*CLASSIFIER[:-1], ("Gemm", "f fc.weight fc.bias", "z", {"transB": 1}), *nodes]
    return graph(nodes, {**classifier_constants(), **constants})


def batch_of_one(outputs):
    """Ends in a reshape that mixes the images of a larger batch."""
    nodes = [
        *CLASSIFIER[:-2], ("Conv", "p head", "q"), ("Reshape", "q line", "y"),
    ]  # fmt: skip
    head = classifier_constants()["fc.weight"][:, :, None, None]
    constants = {**classifier_constants(), "head": head, "line": np.array([1, -1])}
    inputs = [("x", TensorProto.FLOAT, [1, 3, SIDE, SIDE])]
    return graph(nodes, constants, inputs=inputs, outputs=[("y", TensorProto.FLOAT, [1, outputs])])


def two_inputs():
    model = graph([("Add", "x x2", "a"), *CLASSIFIER], classifier_constants())
    model.graph.input.append(onnx.helper.make_tensor_value_info("x2", TensorProto.FLOAT, ["N", 3, SIDE, SIDE]))
    return model


def half():
    model = classifier()
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.FLOAT16
    return model


def image(*shape):
    return classifier(inputs=[("x", TensorProto.FLOAT, ["N", *shape])])


def outputs(*shape, kind=TensorProto.FLOAT):
    return [("y", kind, ["N", *shape])]


REFUSED = {
    "not ONNX": (b"\x89PNG not a model at all", "not a valid ONNX model"),
    "empty": (b"", "not a valid ONNX model"),
    "truncated": (classifier().SerializeToString()[:900], "not a valid ONNX model"),
    "rank 3": (image(3, SIDE), r"expected a float32 input \[N, 3, H, W\], found \[None, 3, 32\]"),
    "NHWC": (image(SIDE, SIDE, 3), r"expected a float32 input \[N, 3, H, W\], found \[None, 32, 32, 3\]"),
    "grey": (image(1, SIDE, SIDE), r"expected a float32 input \[N, 3, H, W\], found \[None, 1, 32, 32\]"),
    "float16": (half(), r"expected a float32 input \[N, 3, H, W\], found float16 \[None, 3, 32, 32\]"),
    "other size": (image(3, 64, 64), r"its input is 64x64 but the crop is 32; pass --crop 64"),
    "not square": (image(3, 32, 48), r"expected a square input, found 32x48"),
    "two inputs": (two_inputs(), r"expected one input and one output, found 2 and 1"),
    "two outputs": (
        classifier(outputs=[*outputs(CLASSES), ("f", TensorProto.FLOAT, ["N", 16])]), "found 1 and 2",
    ),
    "softmax": (with_tail(("Softmax", "z", "y")), r"ends in Softmax; pass the model without it"),
    "softmax, hidden": (with_tail(("Softmax", "z", "s"), ("Identity", "s", "y")), r"ends in Softmax"),
    "sigmoid": (with_tail(("Sigmoid", "z", "y")), r"ends in Sigmoid"),
    "class number": (
        graph([*CLASSIFIER[:-1], ("ArgMax", "f", "y", {"axis": 1, "keepdims": 0})], classifier_constants(),
              outputs=outputs(kind=TensorProto.INT64)),
        r"expected an output \[N, C\]",
    ),
    "feature map": (
        graph(CLASSIFIER[:3], classifier_constants(), outputs=[("r", TensorProto.FLOAT, ["N", 16, 16, 16])]),
        r"expected an output \[N, C\], found \[None, 16, 16, 16\]",
    ),
    "declares others": (classifier(outputs=outputs(7)), "declares 7 classes but computes 10"),
    "fixed reshape": (
        batch_of_one(CLASSES), r"logits than alone; .* the batch is fixed in node 'y' \(Reshape to \[1, -1\]\)",
    ),
    "fixed reshape, undeclared": (batch_of_one("C"), "two images together give other logits than alone"),
    "unknown opset": (classifier(opset=99), "ONNX Runtime cannot run it"),
    "no convolution": (
        graph([("Flatten", "x", "f"), ("Gemm", "f m", "y")], {"m": np.ones((3 * SIDE**2, CLASSES), np.float32)}),
        "no convolution in it",
    ),
    "custom operator": (
        graph([*CLASSIFIER[:-1], ("Magic", "f", "y", {"domain": "mine"})], classifier_constants()),
        r"operator Magic of domain 'mine' \(node 'y'\) is not one of ONNX's own; export it with standard operators",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refused(tmp_path, case):
    model, message = REFUSED[case]
    with pytest.raises(GraphError, match=message) as caught:
        load(tmp_path, model)
    assert "user.onnx: " in str(caught.value)


def test_a_missing_file(tmp_path):
    with pytest.raises(GraphError, match="no ONNX file at"):
        load_user_graph(tmp_path / "none.onnx", SPEC)


def test_an_opset_that_cannot_be_converted(tmp_path):
    norm = ("BatchNormalization", f"c {bn_inputs('bn')}", "b", {"is_test": 1})
    head = ("Gemm", "f fc.weight fc.bias", "y", {"transB": 1, "broadcast": 1})
    nodes = [CLASSIFIER[0], norm, *CLASSIFIER[2:-1], head]
    with pytest.raises(GraphError, match=r"opset 6 cannot be converted to \d+ .*; export it with 17 or later"):
        load(tmp_path, graph(nodes, classifier_constants(), opset=6, ir_version=4))


def test_norms_without_a_convolution_before_them_stay(tmp_path):
    nodes = [("BatchNormalization", "x in.weight in.bias in.running_mean in.running_var", "n"),
             ("Conv", "n stem.weight", "c", {"strides": [2, 2], "pads": [1, 1, 1, 1]}), *CLASSIFIER[1:]]  # fmt: skip
    constants = {**classifier_constants(), **bn_constants("in", 3, np.random.default_rng(0))}
    assert Index(check(tmp_path, graph(nodes, constants))).op_counts()["BatchNormalization"] == 1


# --- refused before any work -----------------------------------------------------------------------------------------

C = classifier_constants()


def replaced(nodes, **constants):
    return graph(nodes, {**C, **constants})


def spoiled(name, value, at=0):
    array = C[name].copy()
    array.ravel()[at] = value
    return replaced(CLASSIFIER, **{name: array})


def qdq(*rest):
    """Q/DQ around the convolution, as exporters of quantised models write it."""
    scale = {"s": np.float32(0.02), "z": np.int8(0), "ws": np.float32(0.01)}
    wq = np.clip(np.rint(C["stem.weight"] / 0.01), -127, 127).astype(np.int8)
    nodes = [("QuantizeLinear", "x s z", "xq"), ("DequantizeLinear", "xq s z", "xd"),
             ("DequantizeLinear", "wq ws z", "wd"), ("Conv", "xd wd", "c", {"strides": [2, 2], "pads": [1, 1, 1, 1]}),
             *CLASSIFIER[1:]]  # fmt: skip
    return replaced(nodes, wq=wq, **scale)


def dynamically_quantised():
    nodes = [*CLASSIFIER[:-1], ("DynamicQuantizeLinear", "f", "fq fs fz"), ("MatMulInteger", "fq w8 fz", "i"),
             ("Cast", "i", "j", {"to": 1}), ("Mul", "j fs", "y")]  # fmt: skip
    return replaced(nodes, w8=np.ones((16, 10), np.int8))


def integers():
    nodes = [("QuantizeLinear", "x s u", "xq"), ("ConvInteger", "xq w8", "i"), ("Cast", "i", "c", {"to": 1}),
             *CLASSIFIER[1:]]  # fmt: skip
    return replaced(nodes, s=np.float32(0.02), u=np.uint8(0), w8=np.ones((16, 3, 3, 3), np.int8))


def qlinear():
    w8 = np.clip(np.rint(C["stem.weight"] * 64), -127, 127).astype(np.int8)
    nodes = [("QuantizeLinear", "x s z", "xq"), ("QLinearConv", "xq s z w8 s z s z", "cq"),
             ("DequantizeLinear", "cq s z", "c"), *CLASSIFIER[1:]]  # fmt: skip
    return replaced(nodes, s=np.float32(0.02), z=np.int8(0), w8=w8)


def fused(domain, op="FusedConv"):
    model = replaced([(op, "x stem.weight", "c", {"domain": domain}), *CLASSIFIER[1:]])
    model.opset_import.append(onnx.helper.make_opsetid(domain, 1))
    return model


def branching():
    made = {}
    for name, op in (("then", "Relu"), ("else", "Neg")):
        node = onnx.helper.make_node(op, ["c"], [name])
        value = onnx.helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
        made[f"{name}_branch"] = onnx.helper.make_graph([node], name, [], [value])
    nodes = [CLASSIFIER[0], ("ReduceMax", "c", "m", {"keepdims": 0}), ("Greater", "m zero", "q"),
             ("If", "q", "r", made), *CLASSIFIER[3:]]  # fmt: skip
    return replaced(nodes, zero=np.float32(0))


def sparse():
    model = replaced(CLASSIFIER, **{"fc.bias": C["fc.bias"]})
    index = Index(model)
    model.graph.initializer.remove(index.constants["fc.bias"])
    values = onnx.numpy_helper.from_array(C["fc.bias"][:2], "fc.bias")
    places = onnx.numpy_helper.from_array(np.array([0, 1]), "places")
    model.graph.sparse_initializer.append(onnx.helper.make_sparse_tensor(values, places, [10]))
    return model


def in_half(kind, name):
    """Everything between two Casts in another floating-point type."""
    weights = {k: v.astype(onnx.helper.tensor_dtype_to_np_dtype(kind)) for k, v in C.items()}
    nodes = [
        ("Cast", "x", "h", {"to": kind}),
        ("Conv", "h stem.weight", "c", {"pads": [1, 1, 1, 1]}),
        *CLASSIFIER[1:5],
        ("Gemm", "f fc.weight fc.bias", "z", {"transB": 1}),
        ("Cast", "z", "y", {"to": 1}),
    ]
    return graph(nodes, weights, opset=22)  # fmt: skip


def one_logit(width=1):
    constants = {"fc.weight": C["fc.weight"][:1], "fc.bias": C["fc.bias"][:1]}
    return graph(CLASSIFIER, {**C, **constants}, outputs=outputs(width))


def batch_of_four():
    """A reshape with the four images of the export in it."""
    nodes = [*CLASSIFIER[:4], ("Reshape", "p four", "f", {"name": "view"}), CLASSIFIER[5]]
    inputs = [("x", TensorProto.FLOAT, [4, 3, SIDE, SIDE])]
    return graph(nodes, {**C, "four": np.array([4, 16])}, inputs=inputs, outputs=[("y", TensorProto.FLOAT, [4, 10])])


def constant_output():
    model = graph([CLASSIFIER[0]], C)
    model.graph.output[0].name = "logits"
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.ones((1, 10), np.float32), "logits"))
    return model


FLOAT_ADVICE = "pass the float model it was made from: --precision int8 quantises it here"
TOLD = {
    "Q/DQ": (qdq(), rf"it is quantised already \(2 nodes, first QuantizeLinear 'xq'\); {FLOAT_ADVICE}"),
    "dynamic": (dynamically_quantised(), r"quantised already \(2 nodes, first DynamicQuantizeLinear 'fq'\)"),
    "integers": (integers(), r"quantised already \(2 nodes, first QuantizeLinear 'xq'\)"),
    "QLinear": (qlinear(), r"quantised already \(3 nodes"),
    "QLinear of ONNX Runtime": (fused("com.microsoft", "QLinearGlobalAveragePool"), "quantised already"),
    "packed weights": (fused("com.microsoft", "MatMulNBits"), "quantised already"),
    "fused": (fused("com.microsoft"), r"operator FusedConv of domain 'com.microsoft' \(node 'c'\) .* ORT optimisation"),
    "blocked": (fused("com.microsoft.nchwc", "Conv"), "operator Conv of domain 'com.microsoft.nchwc'"),
    "machine learning": (fused("ai.onnx.ml", "Scaler"), "operator Scaler of domain 'ai.onnx.ml' .* standard operators"),
    "branch": (branching(), r"node 'r' is control flow \(If\)"),
    "NaN in a weight": (
        spoiled("stem.weight", np.nan), r"weights 'stem.weight' \(read by 'c'\) hold NaN or infinity in 1 of 432 ",
    ),
    "infinite bias": (spoiled("fc.bias", np.inf), r"weights 'fc.bias' \(read by 'y'\) hold NaN or infinity in 1 of 10"),
    "NaN in a variance": (spoiled("bn.running_var", np.nan), r"weights 'bn.running_var' \(read by 'b'\)"),
    "negative variance": (spoiled("bn.running_var", -2.0), r"variance 'bn.running_var' of batch norm 'b' is negative"),
    "overflow": (
        replaced(CLASSIFIER, **{"fc.weight": C["fc.weight"] * np.float32(1e38), "bn.weight": C["bn.weight"] * 1e6}),
        r"its logits are NaN or infinite .*; the first come from node 'y' \(Gemm\)",
    ),
    "one logit": (one_logit(), r"expected logits of two or more classes, found 1: .* export the two logits \[0, z\]"),
    "one logit, undeclared": (one_logit("C"), "expected logits of two or more classes, found 1"),
    "sparse": (sparse(), "initializer 'fc.bias' is sparse; store it as a plain tensor"),
    "float16 inside": (in_half(10, "float16"), r"it computes in float16 \(node 'h'\); pass the float32 model"),
    "bfloat16 inside": (in_half(16, "bfloat16"), r"it computes in bfloat16 \(node 'h'\)"),
    "float64 inside": (in_half(11, "double"), r"it computes in double \(node 'c'\)"),
    "batch of four": (batch_of_four(), r"; the batch is fixed in node 'view' \(Reshape to \[4, 16\]\)"),
    "constant output": (constant_output(), "its output 'logits' is a constant"),
}  # fmt: skip


@pytest.mark.parametrize("case", TOLD)
def test_refused_in_words(tmp_path, case):
    model, message = TOLD[case]
    with pytest.raises(GraphError, match=message) as caught:
        load(tmp_path, model)
    assert "user.onnx: " in str(caught.value) and "\n" not in str(caught.value)


BEFORE_WORK = [case for case in TOLD if case not in ("overflow", "one logit, undeclared", "batch of four")]


@pytest.mark.parametrize("case", BEFORE_WORK)
def test_it_is_refused_before_anything_runs(tmp_path, monkeypatch, case):
    monkeypatch.setattr("engine_build.source.user_graph.graph_logits", None)
    with pytest.raises(GraphError):
        load(tmp_path, TOLD[case][0])


ACCEPTED = {
    "int8 weights alone": replaced(
        [("DequantizeLinear", "wq ws", "wd", {"axis": 0}),
         ("Conv", "x wd", "c", {"strides": [2, 2], "pads": [1, 1, 1, 1]}), *CLASSIFIER[1:]],
        wq=np.rint(C["stem.weight"] * 100).astype(np.int8), ws=np.full(16, 0.01, np.float32),
    ),
    "float16 weights alone": replaced(
        [("Cast", "wh", "wd", {"to": 1}), ("Conv", "x wd", "c", {"strides": [2, 2], "pads": [1, 1, 1, 1]}),
         *CLASSIFIER[1:]],
        wh=C["stem.weight"].astype(np.float16),
    ),
    "infinity as a bound": replaced(
        [*CLASSIFIER[:2], ("Clip", "b zero inf", "r"), *CLASSIFIER[3:]], zero=np.float32(0), inf=np.float32(np.inf),
    ),
    "a mask": replaced(
        [*CLASSIFIER[:-1], ("Gemm", "f fc.weight fc.bias", "z", {"transB": 1}), ("Where", "on z low", "y")],
        on=np.array([True] * 9 + [False]), low=np.full(10, -1e4, np.float32),
    ),
    **{f"opset {opset}": classifier(opset=opset, ir_version=10) for opset in (13, 14, 15, 16, 17, 18, 19, 21, 22, 23)},
}  # fmt: skip


@pytest.mark.parametrize("case", ACCEPTED)
def test_accepted(tmp_path, case):
    model = onnx.ModelProto()
    model.CopyFrom(ACCEPTED[case])
    check(tmp_path, model)


def test_local_functions_are_inlined(tmp_path):
    model = replaced([*CLASSIFIER[:2], ("Positive", "b", "r", {"domain": "local"}), *CLASSIFIER[3:]])
    model.opset_import.append(onnx.helper.make_opsetid("local", 1))
    body = [onnx.helper.make_node("Relu", ["a"], ["b"])]
    opsets = [onnx.helper.make_opsetid("", 20)]
    model.functions.append(onnx.helper.make_function("local", "Positive", ["a"], ["b"], body, opsets))
    assert Index(check(tmp_path, model)).op_counts()["Relu"] == 1


def test_a_conversion_that_changes_the_logits_is_refused(tmp_path, monkeypatch):
    convert = onnx.version_converter.convert_version

    def wrong(model, opset):
        converted = convert(model, opset)
        next(node for node in converted.graph.node if node.op_type == "Relu").op_type = "Abs"
        return converted

    monkeypatch.setattr(onnx.version_converter, "convert_version", wrong)
    with pytest.raises(GraphError, match="from opset 13 to 20 it gives other logits; export it with 17 or later"):
        load(tmp_path, classifier(opset=13))
