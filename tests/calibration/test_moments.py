"""Second moments of what layers read: against ONNX Runtime's own convolution, and the same in any order."""

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from small_graphs import pictures, residual_graph

from calibration import moments as module
from calibration.moments import LayerInput, Moments, collect_moments, layer_inputs
from calibration.onnx_index import Index
from infer.errors import InputError


def convolution(channels, out, **attributes):
    """One Conv of random integer weights as a model, and the weights."""
    kernel = attributes.pop("kernel")
    weights = np.random.default_rng(1).integers(-9, 10, (out, channels // attributes.get("group", 1), *kernel))
    node = helper.make_node("Conv", ["x", "w"], ["y"], "layer", **attributes)
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, channels, "H", "W"])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph([node], "g", [x], [y], [numpy_helper.from_array(weights.astype(np.float32), "w")])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9), weights


def run(model, x):
    import onnxruntime

    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0]


def every(count):
    return np.arange(count)


@pytest.mark.parametrize(
    ("channels", "attributes"),
    [
        (4, {"kernel": (3, 3), "pads": [1, 1, 1, 1]}),
        (4, {"kernel": (3, 3), "pads": [1, 1, 1, 1], "strides": [2, 2]}),
        (3, {"kernel": (7, 5), "pads": [3, 0, 1, 2], "strides": [2, 1]}),
        (4, {"kernel": (1, 1)}),
        (6, {"kernel": (3, 3), "group": 3, "dilations": [2, 1], "pads": [2, 1, 2, 1]}),
        (4, {"kernel": (3, 3), "strides": [2, 2], "auto_pad": "SAME_UPPER"}),
        (4, {"kernel": (2, 2), "auto_pad": "VALID"}),
    ],
)
def test_rows_times_weights_are_the_convolution(channels, attributes):
    model, weights = convolution(channels, 6, **attributes)
    x = np.random.default_rng(2).integers(-20, 21, (1, channels, 12, 9)).astype(np.float32)
    index = Index(model)
    layer = layer_inputs(index, index.graph.node, {"x": (1.0, 0.0)})["layer"]
    rows = layer.rows(x, every)
    per_group = weights.reshape(layer.groups, len(weights) // layer.groups, -1)
    found = np.einsum("ngk,gok->ngo", rows.astype(np.int64), per_group).reshape(len(rows), -1)
    expected = run(model, x)[0]
    np.testing.assert_array_equal(found.T.reshape(expected.shape), expected)


def test_values_are_rounded_as_quantize_linear_does():
    values = np.array([[-3.0, 0.24, 0.26, 0.75, 1e9, 5.0]], np.float32)
    layer = LayerInput("x", scale=0.5, offset=1.0)
    assert layer.rows(values, every).ravel().tolist() == [-8, -2, -1, 0, 127, 8]


def test_layers_without_a_known_matrix_are_left_out():
    model, _ = convolution(4, 6, kernel=(3, 3), auto_pad="SAME_LOWER")
    index = Index(model)
    assert layer_inputs(index, index.graph.node, {"x": (1.0, 0.0)}) == {}
    assert layer_inputs(index, index.graph.node, {}) == {}


def test_sums_are_exact(monkeypatch):
    rows = np.random.default_rng(3).integers(-128, 128, (5000, 2, 7)).astype(np.int8)
    rows[:1500] = -128  # the largest sums there are
    whole = Moments()
    for at in range(0, len(rows), 64):
        whole.add(rows[at : at + 64])
    exact = rows.astype(np.int64)
    mean = exact.sum(axis=0) / len(rows)
    products = np.einsum("ngi,ngj->gij", exact, exact) / len(rows)
    np.testing.assert_array_equal(whole.mean(), mean)
    np.testing.assert_array_equal(whole.covariance(), products - mean[:, :, None] * mean[:, None, :])
    assert whole.rows == len(rows)


def two_layers():
    graph = residual_graph()
    for number, node in enumerate(graph.graph.node):
        node.name = f"n{number}"
    index = Index(graph)
    layers = [node for node in graph.graph.node if node.op_type in ("Conv", "MatMul")]
    tensors = {"normalised": (0.02, 0.0), "relu1": (0.01, 1.28), "relu2": (0.01, 0.0), "pooled": (0.01, 0.0)}
    return graph, layer_inputs(index, layers, tensors)


def test_the_same_in_any_order_batch_and_number_of_threads(monkeypatch):
    graph, layers = two_layers()
    images = pictures(11)
    one_by_one = [images[i : i + 1] for i in range(len(images))]
    monkeypatch.setattr(module, "_EXACT", 1024)
    first = collect_moments(graph, one_by_one, layers)
    monkeypatch.setattr(module, "_EXACT", 70)
    monkeypatch.setattr(module, "default_threads", lambda: 1)
    again = collect_moments(graph, one_by_one[::-1], layers)
    assert len(first) == 4
    for name, moments in first.items():
        assert moments.rows == again[name].rows == 11 * (1 if layers[name].kernel is None else module.ROWS)
        np.testing.assert_array_equal(moments.covariance(), again[name].covariance())
        np.testing.assert_array_equal(moments.mean(), again[name].mean())


def test_no_images():
    graph, layers = two_layers()
    with pytest.raises(InputError, match="no images"):
        collect_moments(graph, [], layers)


def test_more_rows_than_the_sums_hold(monkeypatch):
    moments = Moments()
    monkeypatch.setattr(moments, "_summed", 1 << 17)
    moments.add(np.ones((1, 1, 2), np.int8))
    with pytest.raises(InputError, match="fewer images"):
        moments.mean()


def test_progress_counts_images():
    graph, layers = two_layers()
    seen = []
    collect_moments(graph, [pictures(1), pictures(1, 5)], layers, seen.append)
    assert seen == [1, 1]


def test_of_many_rows_of_a_product_some_are_taken_as_of_a_convolution():
    layer = LayerInput("tokens", 1.0)
    values = np.arange(3000, dtype=np.float32).reshape(1, 1000, 3) % 100
    places = module._Places(np.zeros((1, 4, 4, 3), np.uint8))
    rows = layer.rows(values, places)
    assert rows.shape == (module.ROWS, 1, 3)
    assert np.array_equal(rows[:, 0], values[0, places(1000)])
