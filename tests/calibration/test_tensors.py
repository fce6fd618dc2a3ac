"""Which tensors int8 needs, on graphs of every block type."""

import onnx
import pytest
from small_models import graph, weights_of

from calibration.onnx_index import Index
from calibration.tensors import activation_steps, activation_tensors, quantisable_nodes, residual_inputs, shift_groups


def block(pads=(0, 0, 0, 0), extra=()):
    """relu -> conv (1x1 unless padded) -> y, with more nodes reading the ReLU."""
    kernel = 3 if any(pads) else 1
    return graph(
        [
            ("Conv", "x w0 b0", "c0"),
            ("Relu", "c0", "r0"),
            ("Conv", "r0 w1", "y", {"pads": list(pads)}),
            *extra,
        ],
        {"w0": weights_of(4, 3, 1, 1), "b0": weights_of(4), "w1": weights_of(4, 4, kernel, kernel)},
        outputs=[("y", onnx.TensorProto.FLOAT, None)],
    )


def groups(model):
    index = Index(model)
    return {g.relu: g.tensors for g in shift_groups(index, {n.name for n in quantisable_nodes(index)})}


def test_inputs_of_layers_in_graph_order():
    assert activation_tensors(block()) == ["x", "r0"]


def test_a_1x1_reader_may_be_moved():
    assert groups(block()) == {"r0": ("r0",)}
    assert activation_steps(block()) == {"r0": 255}


def test_zero_padding_forbids_the_move():
    assert groups(block(pads=(1, 1, 1, 1))) == {}


@pytest.mark.parametrize("op", ["Sigmoid", "Neg"])
def test_another_reader_forbids_the_move(op):
    assert groups(block(extra=[(op, "r0", "other")])) == {}


def test_a_pool_shares_the_scale():
    pooled = [("MaxPool", "r0", "p0", {"kernel_shape": [2, 2]}), ("Conv", "p0 w2", "z")]
    model = block(extra=pooled)
    model.graph.initializer.append(onnx.numpy_helper.from_array(weights_of(4, 4, 1, 1), "w2"))
    assert groups(model) == {"r0": ("r0", "p0")}


def test_an_average_has_a_range_of_its_own():
    pooled = [("GlobalAveragePool", "r0", "p0"), ("Conv", "p0 w2", "z")]
    model = block(extra=pooled)
    model.graph.initializer.append(onnx.numpy_helper.from_array(weights_of(4, 4, 1, 1), "w2"))
    assert groups(model) == {}


@pytest.mark.parametrize(("name", "additions"), [("iresnet18", 8), ("iresnet50", 16)])
def test_additions_and_their_shortcuts(name, additions):
    from small_models import narrow

    from engine_build.graph.batch_norms import fold_batch_norms
    from engine_build.graph.export import export_torch
    from engine_build.graph.passes import canonicalise
    from engine_build.network.weights import random_weights
    from engine_build.network.zoo import MODELS

    row = narrow(name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(MODELS, row.name, row)
        model = export_torch(random_weights(row).model, row.preprocessing)[0]
    canonicalise(model)
    fold_batch_norms(model)
    found = residual_inputs(Index(model))
    assert len(found) == additions
    for node, (shortcut, branch) in found.items():
        stage_block = node.rsplit(".", 1)[0]
        assert branch.startswith(f"{stage_block}.conv")
        assert not shortcut.startswith(f"{stage_block}.conv")
