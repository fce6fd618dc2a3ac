"""The pass over the images, end to end through ONNX Runtime."""

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from small_graphs import SIZE, TENSORS, float_graph, pictures, residual_graph

from calibration.cache import CalibrationCache, format_cache
from calibration.choices import METHODS
from calibration.streaming import collect
from infer.errors import GraphError, InputError

IMAGES = pictures(13)


def state(statistics):
    tensors = {
        name: (t.minimum.hex(), t.maximum.hex(), t.elements, t.histogram.exponent, t.histogram.counts.tobytes())
        for name, t in statistics.tensors.items()
    }
    return tensors, statistics.images, statistics.data_hash, statistics.warnings


@pytest.fixture(scope="module")
def expected():
    return collect(residual_graph(), [IMAGES], TENSORS, threads=1)


def test_agrees_with_a_plain_run(expected):
    """Against one plain ONNX Runtime run without any optimisation, and numpy's own statistics."""
    model = residual_graph()
    model.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in TENSORS)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    arrays = dict(zip(TENSORS, session.run(TENSORS, {"images": IMAGES}), strict=True))
    assert list(expected.tensors) == TENSORS
    for name, array in arrays.items():
        found = expected.tensors[name]
        assert found.elements == array.size == found.histogram.counts.sum()
        np.testing.assert_allclose([found.minimum, found.maximum], [array.min(), array.max()], rtol=1e-4, atol=1e-5)
        counts, _ = np.histogram(np.abs(array), found.histogram.counts.size, (0, 2.0**found.histogram.exponent))
        # Float rounding may move single values over a bin edge.
        assert np.abs(np.cumsum(counts) - np.cumsum(found.histogram.counts)).max() <= 0.002 * array.size
    assert expected.tensors["sum"].minimum < 0 == expected.tensors["relu1"].minimum


@given(st.permutations(range(len(IMAGES))), st.lists(st.integers(0, 13), max_size=5), st.integers(1, 3))
@settings(max_examples=12, deadline=None)
def test_order_batches_and_threads_do_not_matter(expected, order, cuts, threads):
    batches = np.split(IMAGES[list(order)], sorted(cuts))
    found = collect(residual_graph(), batches, TENSORS, threads=threads)
    assert state(found) == state(expected)
    for method in METHODS:
        one, other = (format_cache(CalibrationCache(s.scales(method))) for s in (found, expected))
        assert one == other


def test_a_reused_batch_buffer_is_harmless(expected):
    def reader():
        buffer = np.empty((2, SIZE, SIZE, 3), np.uint8)
        for start in range(0, len(IMAGES), 2):
            part = IMAGES[start : start + 2]
            buffer[: len(part)] = part
            yield buffer[: len(part)]

    assert state(collect(residual_graph(), reader(), TENSORS, threads=3)) == state(expected)


def test_a_file_and_a_model_give_the_same_and_the_model_is_left_alone(tmp_path, expected):
    model = residual_graph()
    before = model.SerializeToString()
    assert state(collect(model, [IMAGES], [*TENSORS, *TENSORS[::-1]])) == state(expected)
    assert model.SerializeToString() == before
    onnx.save(model, tmp_path / "one.onnx")
    external = tmp_path / "two.onnx"
    onnx.save(model, external, save_as_external_data=True, location="two.bin", size_threshold=0)
    for path in (tmp_path / "one.onnx", external):
        assert state(collect(path, [IMAGES], TENSORS)) == state(expected)


def test_ranges_only(expected):
    found = collect(residual_graph(), [IMAGES], TENSORS, histograms=False)
    assert found.amax("minmax") == expected.amax("minmax")
    with pytest.raises(InputError, match="needs histograms"):
        found.amax("mse")


def test_methods_and_scales(expected):
    amax = {method: expected.amax(method) for method in METHODS}
    assert all(list(values) == TENSORS for values in amax.values())
    for name in TENSORS:
        largest = amax["minmax"][name]
        assert largest == expected.tensors[name].amax > 0
        assert all(0 < amax[method][name] <= largest for method in METHODS)
    assert expected.amax("percentile", percentile=95)["relu1"] < expected.amax("percentile", percentile=99)["relu1"]
    assert expected.scales("mse")["sum"] == np.float32(amax["mse"]["sum"] / 127)
    with pytest.raises(InputError, match="unknown calibration method 'max'"):
        expected.amax("max")


def test_float_input_and_the_input_itself():
    data = np.random.default_rng(0).standard_normal((5, 4)).astype(np.float32)
    found = collect(float_graph(), [data[:2], data[2:]], ["y", "x"])
    assert list(found.tensors) == ["x", "y"]
    assert (found.tensors["x"].minimum, found.tensors["x"].maximum) == (data.min(), data.max())
    assert (found.tensors["y"].minimum, found.tensors["y"].maximum) == (0, data.max())


def test_only_the_input():
    data = np.ones((3, 4), np.float32)
    assert collect(float_graph(), [data], ["x"]).tensors["x"].elements == 12


def test_float16_graph():
    found = collect(residual_graph(dtype=TensorProto.FLOAT16), [IMAGES], ["relu1", "sum"])
    single = collect(residual_graph(), [IMAGES], ["relu1", "sum"])
    assert found.amax("minmax")["sum"] == pytest.approx(single.amax("minmax")["sum"], rel=0.01)


def test_progress_counts_images():
    seen = []
    collect(residual_graph(), [IMAGES[:5], IMAGES[5:]], ["sum"], progress=seen.append, threads=2)
    assert seen == list(range(1, 14))


@pytest.mark.parametrize("batches", [[], [IMAGES[:0]], [IMAGES[:0], IMAGES[:0]]])
def test_no_images(batches):
    with pytest.raises(InputError, match="no calibration images"):
        collect(residual_graph(), batches, TENSORS)


@pytest.mark.parametrize(
    ("batch", "found"),
    [
        (IMAGES[0], r"found uint8 \[20, 20, 3\]"),
        (IMAGES[:, :19], r"found uint8 \[13, 19, 20, 3\]"),
        (IMAGES.astype(np.float32), r"found float32 \[13, 20, 20, 3\]"),
        ([IMAGES[0]], "found list"),
    ],
)
def test_batches_that_do_not_fit(batch, found):
    with pytest.raises(
        InputError, match=r"expected batches of uint8 \[N, 20, 20, 3\] for the input 'images', " + found
    ):
        collect(residual_graph(), [IMAGES, batch], TENSORS)


def test_unknown_tensors_and_constants_are_named():
    with pytest.raises(GraphError, match="2 of 3 tensors are no activations of the graph: nowhere, w1;"):
        collect(residual_graph(), [IMAGES], ["sum", "nowhere", "w1"])
    with pytest.raises(InputError, match="no tensor names"):
        collect(residual_graph(), [IMAGES], [])


def test_integer_tensor():
    with pytest.raises(GraphError, match="'images': expected float32 or float16 activations, found uint8"):
        collect(residual_graph(), [IMAGES], ["images"])


@pytest.mark.parametrize("threads", [1, 3])
def test_non_finite_activations_name_the_tensor_nearest_the_input(threads):
    model = residual_graph()
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    broken = onnx.numpy_helper.to_array(weights["w2"]).copy()
    broken[3, 5] = np.nan
    weights["w2"].CopyFrom(onnx.numpy_helper.from_array(broken, "w2"))
    with pytest.raises(GraphError, match=r"'c2': .* NaN or infinite"):
        collect(model, [IMAGES], ["sum", "c2", "relu1"], threads=threads)


def test_unusable_graphs(tmp_path):
    with pytest.raises(GraphError, match="no ONNX file at"):
        collect(tmp_path / "none.onnx", [IMAGES], TENSORS)
    (tmp_path / "text.onnx").write_text("not a graph")
    with pytest.raises(GraphError, match="not a readable ONNX model"):
        collect(tmp_path / "text.onnx", [IMAGES], TENSORS)
    with pytest.raises(GraphError, match="needs a free batch or one of 1"):
        collect(residual_graph(batch=8), [IMAGES], TENSORS)
    two = residual_graph()
    two.graph.input.append(helper.make_tensor_value_info("more", TensorProto.FLOAT, [1]))
    with pytest.raises(GraphError, match=r"one input, found \['images', 'more'\]"):
        collect(two, [IMAGES], TENSORS)
    with pytest.raises(GraphError, match="ONNX Runtime does not accept the graph"):
        collect(float_graph("NoSuchOperator"), [np.zeros((1, 4), np.float32)], ["y"])
    with pytest.raises(InputError, match="threads must be at least 1"):
        collect(residual_graph(), [IMAGES], TENSORS, threads=0)


def test_a_fixed_batch_of_one_is_fine(expected):
    assert state(collect(residual_graph(batch=1), [IMAGES], TENSORS)) == state(expected)


def test_nothing_is_left_behind_when_the_reader_fails(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def reader():
        yield IMAGES
        assert list(tmp_path.iterdir()), "the session's file was expected here"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        collect(residual_graph(), reader(), TENSORS, threads=2)
    assert not list(tmp_path.iterdir())
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("calibration")]


ENDLESS = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs of a shell start with it ignored
sys.path[:0] = sys.argv[1:3]
from small_graphs import TENSORS, pictures, residual_graph
from calibration.streaming import collect
import itertools
collect(residual_graph(), itertools.repeat(pictures(4)), TENSORS, threads=2,
        progress=lambda done: done == 8 and print("running", flush=True))
"""


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_ctrl_c_ends_at_once_and_leaves_nothing(tmp_path):
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", ENDLESS, str(root), str(Path(__file__).parent)]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment) as child:
        try:
            assert child.stdout.readline() == "running\n"
            assert list(tmp_path.glob("calibration-*"))  # ONNX Runtime drops a file of its own there, too
            start = time.monotonic()
            child.send_signal(signal.SIGINT)
            _, error = child.communicate(timeout=30)
        finally:
            child.kill()
    assert time.monotonic() - start < 10
    assert child.returncode != 0 and "KeyboardInterrupt" in error
    assert not list(tmp_path.glob("calibration-*"))


def test_memory_does_not_grow_with_the_images():
    """Python-side peak of numpy's and Python's own allocations, for ten times the images."""
    import tracemalloc

    def peak(count: int) -> int:
        tracemalloc.start()
        collect(residual_graph(), (pictures(1, seed) for seed in range(count)), TENSORS, threads=1)
        top = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return top

    peak(2)
    # One image's activations are 60 kB.
    assert peak(80) < peak(8) + 150_000
