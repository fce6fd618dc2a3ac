"""Float graphs from PyTorch and from users."""

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
from engine_build import export
from engine_build.export import export_torch, load_user_graph
from engine_build.graph import prepare
from engine_build.iresnet import Architecture, IResNet, initialise
from engine_build.reference import graph_logits, torch_logits
from infer.errors import GraphError


def small_network(width=1 / 16):
    network = IResNet(Architecture("bottleneck", (2, 3, 2, 2)), CLASSES, width)
    initialise(network)
    generator = torch.Generator().manual_seed(0)
    for name, value in network.state_dict().items():  # two BNs with equal statistics would share their tensors
        if "running" in name or ("bn" in name and "num" not in name):
            value.uniform_(0.5, 1.5, generator=generator)
    return network.eval()


# --- PyTorch ---------------------------------------------------------------------------------------------------------


def test_pytorch_graph(exported):
    network, path = exported
    raw = onnx.load(path)
    value_in, value_out = raw.graph.input[0], raw.graph.output[0]
    assert (value_in.name, value_out.name) == ("images", "logits")
    assert value_in.type.tensor_type.shape.dim[0].dim_param
    images = pictures(5)
    expected = torch_logits(network, SPEC)(images)
    for batch in (1, 5):
        found = graph_logits(raw, SPEC)(images[:batch])
        np.testing.assert_allclose(found, expected[:batch], atol=1e-3 * np.abs(expected).max())


def test_an_export_that_differs_is_caught_and_nothing_is_printed(monkeypatch, capfd):
    pool = torch.nn.AdaptiveAvgPool2d(1)
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), pool, torch.nn.Flatten(), torch.nn.Linear(4, 10))
    graph, reference = export_torch(network, SPEC)
    assert reference(pictures(2)).shape == (2, 10)
    assert Index(graph).op_counts()["Conv"] == 1
    shifted = lambda model, spec: lambda images: torch_logits(model, spec)(images) * 1.01  # noqa: E731
    monkeypatch.setattr(export, "torch_logits", shifted)
    with pytest.raises(GraphError, match=r"step export changed the results: largest logit difference"):
        export_torch(network, SPEC)
    assert capfd.readouterr() == ("", "")


# --- a user's own graph ----------------------------------------------------------------------------------------------


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
    "float16": (half(), r"expected a float32 input"),
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
    "fixed reshape": (batch_of_one(CLASSES), "two images together give other logits than alone"),
    "fixed reshape, undeclared": (batch_of_one("C"), "two images together give other logits than alone"),
    "unknown opset": (classifier(opset=99), "ONNX Runtime cannot run it"),
    "no convolution": (
        graph([("Flatten", "x", "f"), ("Gemm", "f m", "y")], {"m": np.ones((3 * SIDE**2, CLASSES), np.float32)}),
        "no convolution in it",
    ),
    "custom operator": (
        graph([*CLASSIFIER[:-1], ("Magic", "f", "y", {"domain": "mine"})], classifier_constants()),
        "not a valid ONNX model",
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
