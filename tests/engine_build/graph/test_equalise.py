"""Stream equalisation: the function stays, the ranges meet."""

import numpy as np
import onnx
import pytest
from small_models import graph, run, weights_of

from calibration.onnx_index import Index
from engine_build.graph.equalise import equalise_streams, residual_streams


def stage(**changes):
    """Two convolutions add to a stream that a BN and, through a ReLU, a convolution read."""
    rng = np.random.default_rng(0)
    spread = np.array([10.0, 1.0, 0.1, 1.0], np.float32)
    constants = {
        "w0": weights_of(4, 3, 1, 1) * spread.reshape(-1, 1, 1, 1), "b0": weights_of(4) * spread,
        "w1": weights_of(4, 3, 1, 1, seed=1) * spread.reshape(-1, 1, 1, 1),
        "gamma": rng.uniform(0.5, 2, 4).astype(np.float32), "beta": weights_of(4),
        "mean": np.zeros(4, np.float32), "var": spread**2,
        "w2": weights_of(2, 4, 1, 1), "w3": weights_of(2, 4, 1, 1, seed=2),
    }  # fmt: skip
    nodes = [
        ("Conv", "x w0 b0", "c0"), ("Conv", "x w1", "c1"), ("Add", "c0 c1", "sum"),
        ("BatchNormalization", "sum gamma beta mean var", "n"), ("Conv", "n w2", "y"),
        ("Relu", "sum", "r"), ("Conv", "r w3", "z", changes),
    ]  # fmt: skip
    outputs = [(name, onnx.TensorProto.FLOAT, None) for name in ("y", "z")]
    return graph(nodes, constants, outputs=outputs)


def test_outputs_stay_and_ranges_meet():
    model, equal = stage(), stage()
    assert equalise_streams(equal) == 1
    image = np.random.default_rng(1).standard_normal((2, 3, 32, 32)).astype(np.float32)
    for before, after in zip(run(model, image), run(equal, image), strict=True):
        np.testing.assert_allclose(after, before, rtol=1e-4, atol=1e-4 * np.abs(before).max())
    spreads = []
    for graph_ in (model, equal):
        (stream,) = run(graph_, image, ["sum"])
        ranges = np.abs(stream).max(axis=(0, 2, 3))
        spreads.append(ranges.max() / ranges.min())
    assert spreads[0] > 30 and spreads[1] < spreads[0] / 5


@pytest.mark.parametrize("reader", ["Sigmoid", "Softmax"])
def test_a_stream_that_something_else_reads_is_left_alone(reader):
    model = stage()
    model.graph.node.append(onnx.helper.make_node(reader, ["sum"], ["other"]))
    before = model.SerializeToString()
    assert equalise_streams(model) == 0
    assert model.SerializeToString() == before


def test_a_stream_that_is_an_output_is_left_alone():
    model = stage()
    model.graph.output.append(onnx.helper.make_tensor_value_info("sum", onnx.TensorProto.FLOAT, None))
    assert equalise_streams(model) == 0


def test_a_grouped_reader_is_left_alone():
    model = stage(group=2)
    next(t for t in model.graph.initializer if t.name == "w3").CopyFrom(
        onnx.numpy_helper.from_array(weights_of(2, 2, 1, 1), "w3")
    )
    assert equalise_streams(model) == 0


def test_every_stage_of_an_iresnet_has_one_stream(exported):
    from engine_build.graph.batch_norms import fold_batch_norms
    from engine_build.graph.passes import canonicalise

    model = onnx.load(exported[1])
    canonicalise(model)
    fold_batch_norms(model)
    streams = residual_streams(Index(model))
    assert len(streams) == 4
    assert all(len(stream.norms) >= 1 for stream in streams)
