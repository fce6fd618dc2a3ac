"""The error of the logits when one layer alone is rounded, against whole graphs computed by other means."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper
from small_models import SIDE, graph, pictures, weights_of

from calibration.onnx_index import Index
from calibration.segments import cut
from calibration.sensitivity import Rounding, logit_errors, roundings
from infer.errors import GraphError, InputError

IMAGES = pictures(11, seed=2)
LAYERS = ("stem", "conv1", "conv2", "conv3", "fc")


def net() -> onnx.ModelProto:
    """uint8 images to logits: a stem, a block with a shortcut, one more layer, a classifier, a softmax behind it."""
    constants = {"mean": np.full(3, 120, np.float32), "factor": np.full(3, 1 / 60, np.float32)}
    for number, shape in enumerate([(8, 3, 3, 3), (8, 8, 1, 1), (8, 8, 3, 3), (8, 8, 1, 1)]):
        constants[f"w{number}"] = weights_of(*shape, seed=number) / np.float32(np.sqrt(np.prod(shape[1:])))
    constants |= {"fw": weights_of(8, 10, seed=9), "fb": weights_of(10, seed=10)}
    nodes = [
        ("Cast", "images", "cast", {"to": 1}), ("Sub", "cast mean", "sub"), ("Mul", "sub factor", "mul"),
        ("Transpose", "mul", "x", {"perm": [0, 3, 1, 2]}),
        ("Conv", "x w0", "c0", {"pads": [1, 1, 1, 1], "strides": [2, 2], "name": "stem"}), ("Relu", "c0", "r0"),
        ("Conv", "r0 w1", "c1", {"name": "conv1"}), ("Relu", "c1", "r1"),
        ("Conv", "r1 w2", "c2", {"pads": [1, 1, 1, 1], "name": "conv2"}), ("Add", "c2 r0", "sum", {"name": "add"}),
        ("Relu", "sum", "r2"), ("Conv", "r2 w3", "c3", {"name": "conv3"}), ("Relu", "c3", "r3"),
        ("GlobalAveragePool", "r3", "pool"), ("Flatten", "pool", "flat"),
        ("Gemm", "flat fw fb", "logits", {"name": "fc"}), ("Softmax", "logits", "scores", {"axis": 1}),
    ]  # fmt: skip
    images = [("images", onnx.TensorProto.UINT8, ["N", SIDE, SIDE, 3])]
    return graph(nodes, constants, inputs=images, outputs=[("logits", 1, ["N", 10]), ("scores", 1, ["N", 10])])


def run(model, images, outputs=("logits",)):
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(list(outputs), {session.get_inputs()[0].name: images})


def quantised(model, scales, axis_of=lambda node: 1 if node.op_type == "Gemm" else 0):
    """Every named layer behind real QuantizeLinear and DequantizeLinear nodes: activations and weights."""
    work = onnx.ModelProto()
    work.CopyFrom(model)
    index = Index(work)
    zero = index.set_constant("zero", np.array(0, np.int8))
    nodes = []
    for node in work.graph.node:
        if node.name in scales:
            scale = index.set_constant(f"{node.name}.scale", np.array(scales[node.name], np.float32))
            q, dq = f"{node.name}.q", f"{node.name}.dq"
            nodes.append(helper.make_node("QuantizeLinear", [node.input[0], scale, zero], [q]))
            nodes.append(helper.make_node("DequantizeLinear", [q, scale, zero], [dq]))
            node.input[0] = dq
            if len(node.input) > 1 and node.input[1] in index.constants:
                weight, axis = index.value(node.input[1]), axis_of(node)
                step = np.abs(np.moveaxis(weight, axis, 0)).reshape(weight.shape[axis], -1).max(axis=1) / 127
                shape = [-1 if at == axis else 1 for at in range(weight.ndim)]
                names = (
                    index.set_constant(f"{node.name}.w", np.rint(weight / step.reshape(shape)).astype(np.int8)),
                    index.set_constant(f"{node.name}.ws", step.astype(np.float32)),
                    index.set_constant(f"{node.name}.wz", np.zeros(len(step), np.int8)),
                )
                nodes.append(helper.make_node("DequantizeLinear", names, [f"{node.name}.wd"], axis=axis))
                node.input[1] = f"{node.name}.wd"
        nodes.append(node)
    index.set_nodes(nodes)
    return work


SCALES = {"stem": 0.02, "conv1": 0.03, "conv2": 0.05, "conv3": 0.06, "add": 0.04, "fc": 0.01}


def candidates(model):
    found = {}
    for name, scale in SCALES.items():  # one by one: two of them read one tensor with different scales
        graph_of_one = quantised(model, {name: scale})
        read = {node.name: node.input[0] for node in model.graph.node}[name]
        found |= roundings(graph_of_one, {read: (scale, 0.0)}, [name])
    return found


def test_segments_end_where_one_tensor_is_alive():
    segments = cut(net(), "logits", LAYERS)
    assert [(s.input, s.output) for s in segments] == [
        ("images", "c0"), ("c0", "sum"), ("sum", "c3"), ("c3", "logits"),
    ]  # fmt: skip
    assert [[n for n in s.nodes if n in LAYERS] for s in segments] == [["stem"], ["conv1", "conv2"], ["conv3"], ["fc"]]


def test_segments_in_a_row_are_the_graph():
    (expected,) = run(net(), IMAGES)
    value = IMAGES
    for segment in cut(net(), "logits", LAYERS):
        (value,) = run(segment.model, value, [segment.output])
    np.testing.assert_array_equal(value, expected)


def test_a_graph_without_cuts_is_one_segment():
    model = net()
    model.graph.node[-2].input[2] = "late"  # the bias of the classifier comes from the images
    model.graph.node.insert(4, helper.make_node("ReduceMean", ["x"], ["late"], "late", keepdims=0))
    assert [s.output for s in cut(model, "logits", LAYERS)] == ["logits"]


@pytest.mark.parametrize("name", SCALES)
def test_one_layer_against_a_whole_graph_with_real_qdq(name):
    model = net()
    (expected,), (found,) = run(model, IMAGES), run(quantised(model, {name: SCALES[name]}), IMAGES)
    wanted = float(((found.astype(np.float64) - expected) ** 2).mean())
    got = logit_errors(model, candidates(model), IMAGES)[name]
    assert got == pytest.approx(wanted, rel=0.02) and wanted > 0


def test_an_offset_moves_what_is_rounded():
    """x rounded as (x - o) / s in -128..127: with o = 128 s the steps cover 0 to 255 s and nothing below."""
    constants = {"half": np.array([0.5], np.float32)}
    given = [("images", onnx.TensorProto.FLOAT, ["N", 4])]
    model = graph(
        [("Mul", "images half", "logits", {"name": "layer"})],
        constants,
        inputs=given,
        outputs=[("logits", 1, ["N", 4])],
    )
    values = np.array([[0.0, 1.04, 25.5, 30.0], [-1.0, 0.31, 12.74, 25.46]], np.float32)
    rounded = np.array([[0.0, 1.0, 25.5, 25.5], [0.0, 0.3, 12.7, 25.5]])
    found = logit_errors(model, {"layer": Rounding({0: (0.1, 12.8)})}, values)
    assert found["layer"] == pytest.approx(float(((rounded - values) ** 2).mean()) / 4, rel=1e-4)


def test_nothing_rounded_is_no_error():
    model = net()
    weight = numpy_helper.to_array(next(t for t in model.graph.initializer if t.name == "w2"))
    errors = logit_errors(model, {"conv2": Rounding(weights={1: weight}), "fc": Rounding()}, IMAGES)
    assert errors == {"conv2": 0.0, "fc": 0.0}


def test_the_same_for_any_number_of_threads_and_order_of_layers():
    model, given = net(), candidates(net())
    one = logit_errors(model, given, IMAGES, threads=1)
    three = logit_errors(model, dict(reversed(given.items())), IMAGES, threads=3)
    assert one == three and list(one) == list(given) and list(three) == list(given)[::-1]


def test_progress_counts_layers():
    done = []
    logit_errors(net(), candidates(net()), IMAGES, progress=done.append)
    assert done == [1] * len(SCALES)


def test_roundings_of_a_quantised_graph():
    model = net()
    work = quantised(model, {"conv1": 0.03, "fc": 0.01})
    tensors = {"r0": (0.03, 3.84), "flat": (0.01, 0.0)}
    found = roundings(work, tensors, ["conv1", "fc"])
    assert found["conv1"].activations == {0: (0.03, 3.84)} and found["fc"].activations == {0: (0.01, 0.0)}
    for name, weight, axis in (("conv1", "w1", 0), ("fc", "fw", 1)):
        original = Index(model).value(weight)
        rounded = np.moveaxis(found[name].weights[1], axis, 0).reshape(original.shape[axis], -1)
        step = np.abs(np.moveaxis(original, axis, 0)).reshape(len(rounded), -1).max(axis=1) / 127
        difference = np.abs(rounded - np.moveaxis(original, axis, 0).reshape(rounded.shape))
        assert (difference <= step[:, None] * 0.501).all() and difference.max() > step.min() * 0.2
    with pytest.raises(GraphError, match="no node 'conv9'"):
        roundings(work, tensors, ["conv9"])


def test_what_cannot_be():
    with pytest.raises(InputError, match="no images"):
        logit_errors(net(), {}, IMAGES[:0])
    with pytest.raises(GraphError, match="'conv9'"):
        logit_errors(net(), {"conv9": Rounding()}, IMAGES)
    with pytest.raises(InputError, match="threads"):
        logit_errors(net(), {"fc": Rounding()}, IMAGES, threads=0)
    with pytest.raises(GraphError, match="computes 'nothing'"):
        cut(net(), "nothing", LAYERS)
    with pytest.raises(GraphError, match="cannot run a part"):
        logit_errors(net(), {"fc": Rounding()}, IMAGES[:, :5])
