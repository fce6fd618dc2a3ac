"""The session that hands out inner tensors."""

import tempfile

import numpy as np
import onnx
import pytest
from small_graphs import TENSORS, float_graph, pictures, residual_graph

from calibration.session import ActivationSession
from infer.errors import GraphError


def test_close_removes_the_file_and_may_be_repeated(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    session = ActivationSession(residual_graph(), TENSORS)
    assert len(list(tmp_path.glob("calibration-*"))) == 1
    session.close()
    assert not list(tmp_path.glob("calibration-*"))
    session.close()


def test_a_graph_that_fails_to_open_leaves_no_file(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(GraphError) as caught:
        ActivationSession(float_graph("NoSuchOperator"), ["y"])
    assert not list(tmp_path.glob("calibration-*")), caught


def test_weights_move_to_the_file_and_the_results_stay():
    """Weights above the inline limit are in a file of their own; a plain session on the same image agrees."""
    import onnxruntime

    model = residual_graph()
    with ActivationSession(model, ["pooled", "sum", "sum"]) as session:
        assert session.tensors == ["sum", "pooled"]
        assert (session.input_name, session.dtype, session.image_shape) == ("images", np.uint8, (20, 20, 3))
        image = pictures(1)
        found = session.run(image)
        again = session.run(image)
    assert all(np.array_equal(found[name], again[name]) for name in found)
    model.graph.output.append(onnx.helper.make_empty_tensor_value_info("sum"))
    plain = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(found["sum"], plain.run(["sum"], {"images": image})[0], rtol=1e-5, atol=1e-6)


def test_an_output_of_the_graph_may_be_asked_for():
    with ActivationSession(residual_graph(), ["logits"]) as session:
        assert session.run(pictures(1))["logits"].shape == (1, 10)


def test_an_image_the_graph_cannot_run_is_an_error():
    graph = float_graph("Reshape")
    graph.graph.node[0].input.append("shape")
    graph.graph.initializer.append(onnx.numpy_helper.from_array(np.array([3]), "shape"))
    with (
        ActivationSession(graph, ["y"]) as session,
        pytest.raises(GraphError, match="ONNX Runtime cannot run the graph"),
    ):
        session.run(np.zeros((1, 4), np.float32))
