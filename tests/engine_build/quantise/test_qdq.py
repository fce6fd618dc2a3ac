"""Q/DQ pairs: what they compute, where they stand, that the builder really makes int8 kernels of them."""

import numpy as np
import onnx
import pytest
from small_models import SIDE, graph, pictures, run, weights_of

from calibration.onnx_index import Index
from calibration.streaming import collect
from calibration.tensors import activation_steps, activation_tensors, shift_groups
from engine_build.precision.casts import to_precision
from engine_build.quantise.qdq import Placement, insert_qdq
from infer.errors import InputError

UINT8 = [("images", onnx.TensorProto.UINT8, ["N", SIDE, SIDE, 3])]


def residual_net():
    """A deployed graph with every pattern: padded and 1x1 layers, pool, shortcut, BN, average, classifier."""
    c = {"shift": np.full(3, 120, np.float32), "factor": np.full(3, 1 / 60, np.float32), "k": np.array([5], np.int64)}
    for number, shape in enumerate([(8, 3, 3, 3), (8, 8, 1, 1), (8, 8, 3, 3), (8, 8, 1, 1), (8, 8, 1, 1)]):
        c[f"w{number}"] = weights_of(*shape, seed=number) / np.float32(np.sqrt(np.prod(shape[1:])))
        c[f"b{number}"] = weights_of(8, seed=number + 10) / 4
    c |= {"gamma": np.full(8, 0.7, np.float32), "beta": weights_of(8, seed=30) / 4}
    c |= {"zero": np.zeros(8, np.float32), "one": np.ones(8, np.float32)}
    c |= {"fw": weights_of(10, 8, seed=31), "fb": weights_of(10, seed=32)}
    nodes = [
        ("Cast", "images", "cast", {"to": 1, "name": "normalise.cast"}),
        ("Sub", "cast shift", "sub", {"name": "normalise.sub"}),
        ("Mul", "sub factor", "mul", {"name": "normalise.mul"}),
        ("Transpose", "mul", "normalised", {"perm": [0, 3, 1, 2], "name": "normalise.nchw"}),
        ("Conv", "normalised w0 b0", "c0", {"pads": [1, 1, 1, 1], "strides": [2, 2]}), ("Relu", "c0", "r0"),
        ("Conv", "r0 w1 b1", "c1"), ("Relu", "c1", "r1"),
        ("Conv", "r1 w2 b2", "c2", {"pads": [1, 1, 1, 1], "strides": [2, 2]}), ("Relu", "c2", "r2"),
        ("Conv", "r2 w3 b3", "c3"),
        ("MaxPool", "r0", "p0", {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "strides": [2, 2]}),
        ("Conv", "p0 w4 b4", "shortcut"), ("Add", "c3 shortcut", "sum"),
        ("BatchNormalization", "sum gamma beta zero one", "n", {"epsilon": 0.0}), ("Relu", "n", "r4"),
        ("GlobalAveragePool", "r4", "avg"), ("Flatten", "avg", "flat"),
        ("Gemm", "flat fw fb", "logits", {"transB": 1}),
        ("Softmax", "logits", "soft", {"name": "softmax"}),
        ("TopK", "soft k", "scores indices", {"name": "top_k"}),
        ("Cast", "indices", "classes", {"to": 6, "name": "classes.cast"}),
    ]  # fmt: skip
    outputs = [("logits", 1, ["N", 10]), ("scores", 1, ["N", 5]), ("classes", 6, ["N", 5])]
    return graph(nodes, c, inputs=UINT8, outputs=outputs)


LAYERS = ("c0", "c1", "c2", "c3", "shortcut", "logits")


@pytest.fixture(scope="module")
def net():
    return residual_net()


@pytest.fixture(scope="module")
def amax(net):
    statistics = collect(net, [pictures(32, seed=5)], activation_tensors(net, "both"))
    return statistics.amax("minmax", activation_steps(net))


def sqnr(found, expected):
    return 10 * np.log10((expected**2).sum() / ((found - expected) ** 2).sum())


def test_additions_stay_in_floating_point_unless_asked_for(net, amax):
    quantised, done = insert_qdq(net, amax)
    assert done.nodes == LAYERS and done.additions == ()
    add = next(n for n in quantised.graph.node if n.name == "sum")
    assert {Index(quantised).producer[i].op_type for i in add.input} == {"Conv"}


def test_every_layer_and_addition_is_quantised(net, amax):
    quantised, done = insert_qdq(net, amax, Placement("identity"))
    onnx.checker.check_model(quantised, full_check=True)
    assert done.nodes == LAYERS and done.additions == ("sum",) and not done.skipped
    index = Index(quantised)
    for name in LAYERS:
        node = next(n for n in quantised.graph.node if n.name == name)
        assert [index.producer[i].op_type for i in node.input[:2]] == ["DequantizeLinear"] * 2
    add = next(n for n in quantised.graph.node if n.name == "sum")
    assert [index.producer[i].op_type for i in add.input] == ["Conv", "DequantizeLinear"]


def test_scales_have_the_shape_that_tensorrt_needs(net, amax):
    quantised, _ = insert_qdq(net, amax)
    index = Index(quantised)
    for node in quantised.graph.node:
        if node.op_type == "QuantizeLinear":
            assert index.value(node.input[1]).shape == () and index.value(node.input[2]) == 0
        if node.op_type == "DequantizeLinear" and node.input[0] in index.constants:
            channels = index.value(node.input[0]).shape[0]
            assert index.value(node.input[1]).shape == (channels,) and not index.value(node.input[2]).any()


@pytest.mark.parametrize("residual", ["identity", "none", "both"])
@pytest.mark.parametrize("shift", [True, False])
def test_the_result_is_close_to_float(net, amax, residual, shift):
    images = pictures(16, seed=7)
    quantised, done = insert_qdq(net, amax, Placement(residual, shift=shift))
    assert sqnr(run(quantised, images)[0], run(net, images)[0]) > 25
    assert bool(done.shifted) == shift and bool(done.additions) == (residual != "none")


def test_the_whole_range_beats_half_of_it(net, amax):
    images = pictures(64, seed=8)
    expected = run(net, images)[0]
    shifted, plain = (run(insert_qdq(net, amax, Placement(shift=on))[0], images)[0] for on in (True, False))
    assert sqnr(shifted, expected) > sqnr(plain, expected) + 0.5


def test_max_pools_work_on_integers_with_the_same_result(net, amax):
    images = pictures(16, seed=9)
    pooled, floating = (insert_qdq(net, amax, Placement(pool=on))[0] for on in (True, False))
    sources = {}
    for name, model in (("pooled", pooled), ("floating", floating)):
        index = Index(model)
        pool = next(n for n in model.graph.node if n.op_type == "MaxPool")
        sources[name] = index.producer[pool.input[0]].op_type
        assert index.consumers[pool.output[0]][0].op_type == "QuantizeLinear"  # the layer behind it keeps its own pair
    assert sources["pooled"] == "DequantizeLinear" != sources["floating"]
    for one, two in zip(run(pooled, images), run(floating, images), strict=True):
        assert np.array_equal(one, two)


def test_a_max_pool_between_two_scales_stays_as_it_is(net, amax):
    other = amax | {"p0": amax["p0"] * 0.5}
    quantised, _ = insert_qdq(net, other, Placement(shift=False))
    pool = next(n for n in quantised.graph.node if n.op_type == "MaxPool")
    assert Index(quantised).producer[pool.input[0]].op_type != "DequantizeLinear"


def test_moved_tensors_use_negative_integers(net, amax):
    quantised, done = insert_qdq(net, amax)
    assert set(done.shifted) == {"r0", "p0", "r2", "flat"}  # r1 feeds a padded layer
    probe = onnx.ModelProto()
    probe.CopyFrom(quantised)
    probe.graph.output.append(onnx.helper.make_tensor_value_info("r2.int8", onnx.TensorProto.INT8, None))
    (integers,) = run(probe, pictures(8), ["r2.int8"])
    assert integers.min() == -128 and integers.max() > 100


def second_block():
    """The block of a stage that has no leading BN: its ReLU is read by a convolution and by the addition."""
    c = {f"w{n}": weights_of(8, i, 1, 1, seed=n) / 3 for n, i in enumerate((3, 8, 8))}
    c |= {"b1": weights_of(8, seed=9), "fw": weights_of(10, 8, seed=4), "fb": weights_of(10, seed=5)}
    nodes = [
        ("Conv", "x w0", "stem", {"strides": [2, 2]}), ("Relu", "stem", "r"),
        ("Conv", "r w1 b1", "c1"), ("Relu", "c1", "r1"), ("Conv", "r1 w2", "c2"), ("Add", "c2 r", "sum"),
        ("GlobalAveragePool", "sum", "avg"), ("Flatten", "avg", "flat"), ("Gemm", "flat fw fb", "y", {"transB": 1}),
    ]  # fmt: skip
    return graph(nodes, c)


@pytest.mark.parametrize("make", [residual_net, second_block], ids=["stage", "second block"])
def test_the_shift_alone_changes_nothing(make):
    """With a fine scale in place of int8's, the moved graph equals the float one: bias and offset cancel exactly."""
    from calibration.tensors import quantisable_nodes, shift_groups
    from engine_build.quantise.shifted import add_to_bias, apply_shift

    net, moved = make(), onnx.ModelProto()
    moved.CopyFrom(net)
    index = Index(moved)
    layers = quantisable_nodes(index)
    offsets = {}
    for group in shift_groups(index, {n.name for n in layers}):
        _, offset = apply_shift(index, group, dict.fromkeys(group.tensors, 3.0))
        offsets.update(dict.fromkeys(group.tensors, offset))
    for node in quantisable_nodes(index):
        if node.input[0] in offsets:
            weights = index.value(node.input[1])
            sums = weights.reshape(len(weights), -1).sum(axis=1)
            add_to_bias(index, node, offsets[node.input[0]] * sums)
    assert offsets
    index.set_nodes(moved.graph.node)
    raw = moved.graph.input[0].name == "images"
    images = pictures(8) if raw else weights_of(8, 3, SIDE, SIDE)
    np.testing.assert_allclose(run(moved, images)[0], run(net, images)[0], rtol=1e-4, atol=1e-4)


def test_a_shortcut_behind_a_relu_uses_the_whole_range_and_the_branch_gives_it_back():
    net, x = second_block(), weights_of(16, 3, SIDE, SIDE, seed=6)
    layers = {"stem", "c1", "c2", "y"}
    groups = {group.relu: group for group in shift_groups(Index(net), layers)}
    assert groups["r"].tensors == ("r",) and groups["r"].branches == ("c2",)
    assert groups["r1"].branches == ()
    amax = collect(net, [x], activation_tensors(net)).amax("minmax", activation_steps(net))
    expected = run(net, x)[0]
    for exclude in ((), ("sum",)):  # an addition in floating point reads the moved tensor all the same
        quantised, done = insert_qdq(net, amax, Placement("identity"), exclude=exclude)
        assert "r" in done.shifted and done.additions == (() if exclude else ("sum",))
        add = next(node for node in quantised.graph.node if node.name == "sum")
        assert set(add.input) == {"c2", "r" if exclude else "r.dequantised"}
        assert sqnr(run(quantised, x)[0], expected) > 40
    ranges = collect(net, [x], activation_tensors(net, "both")).amax("minmax", activation_steps(net))
    both, done = insert_qdq(net, ranges, Placement("both"))
    add = next(node for node in both.graph.node if node.name == "sum")
    assert done.additions == ("sum",) and set(add.input) == {"c2", "r.dequantised"}
    assert sqnr(run(both, x)[0], expected) > 40
    probe = insert_qdq(net, amax)[0]
    probe.graph.output.append(onnx.helper.make_tensor_value_info("r.int8", onnx.TensorProto.INT8, None))
    (integers,) = run(probe, x, ["r.int8"])
    assert integers.min() == -128 and integers.max() > 100


def test_a_branch_that_something_else_reads_too_keeps_the_shortcut_where_it_is():
    net = second_block()
    net.graph.node.insert(6, onnx.helper.make_node("Relu", ["c2"], ["other"], "other"))
    net.graph.node.insert(7, onnx.helper.make_node("Add", ["other", "other"], ["unread"], "unread"))
    assert "r" not in {group.relu for group in shift_groups(Index(net), {"stem", "c1", "c2", "y"})}


def test_tensors_without_a_range_stay_float_and_are_reported(net, amax):
    partial = {k: v for k, v in amax.items() if k not in ("r1", "shortcut")}
    _, done = insert_qdq(net, {**partial, "flat": 0.0})
    assert done.nodes == ("c0", "c1", "c3", "shortcut") and done.additions == ()
    assert set(done.skipped) == {"c2", "logits"} and "r1" in done.skipped["c2"]


def test_excluded_layers_stay_float(net, amax):
    quantised, done = insert_qdq(net, amax, Placement("identity"), exclude=["c3", "sum"])
    assert "c3" in done.skipped and "c3" not in done.nodes and done.additions == ()
    # r2 is read by c3 alone, which now needs the true values
    assert "r2" not in done.shifted
    images = pictures(8)
    assert sqnr(run(quantised, images)[0], run(net, images)[0]) > 25


def test_the_rest_becomes_float16_and_integers_stay(net, amax):
    typed = to_precision(insert_qdq(net, amax)[0], "int8")
    onnx.checker.check_model(typed, full_check=True)
    index = Index(typed)
    pairs = [n for n in typed.graph.node if n.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert {index.constants[n.input[1]].data_type for n in pairs} == {onnx.TensorProto.FLOAT16}
    assert {index.constants[n.input[2]].data_type for n in pairs} == {onnx.TensorProto.INT8}
    images = pictures(16)
    found, expected = run(typed, images)[0], run(net, images)[0]
    assert found.dtype == np.float32 and sqnr(found, expected) > 25


def test_unknown_residual():
    with pytest.raises(InputError, match="none, identity, both"):
        Placement("all")


def test_tensorrt_rtx_runs_every_layer_in_int8(net, amax, tmp_path):
    pytest.importorskip("tensorrt_rtx")
    from engine_build.targets.audit import require_precision
    from engine_build.targets.tensorrt import BatchProfile, PlanRequest, build_plan

    quantised, done = insert_qdq(net, amax)
    path = tmp_path / "int8.onnx"
    onnx.save(to_precision(quantised, "int8"), path)
    request = PlanRequest(path, tmp_path / "int8.plan", BatchProfile(1, 2, 4))
    built = build_plan("tensorrt_rtx", request, False, lambda audit: require_precision(audit, done.nodes, "int8"))
    assert [built.audit.node_precisions[name] for name in LAYERS] == ["int8"] * len(LAYERS)
