"""The stand-in for TensorRT refuses what the real bindings of each version lack, and computes what it says."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import pytest
from trt_stand_in.api import Api
from trt_stand_in.kernels import run_graph


def test_names_are_those_of_the_version(stack: Any) -> None:
    trt = importlib.import_module(stack.target)
    api = Api(stack.key)
    assert trt.__version__ == api.version
    for name in ("CudaGraphStrategy", "DynamicShapesKernelSpecializationStrategy"):
        assert hasattr(trt, name) == (stack.target == "tensorrt_rtx")
    assert [member.name for member in trt.DataType] == api.members("DataType")
    with pytest.raises(AttributeError, match="no attribute 'IInt8Calibrator9'"):
        _ = trt.IInt8Calibrator9
    with pytest.raises(NotImplementedError, match="Builder"):  # it exists, but not here
        _ = trt.Builder


def test_attributes_are_those_of_the_version(stack: Any) -> None:
    path = stack.write()
    with stack.open(path) as backend:
        engine = backend._session.engine._engine
        context = backend._session._slots[0]._execution._context
        assert engine.device_memory_size_v2 == 1800
        with pytest.raises(AttributeError, match="no attribute 'get_binding_index'"):
            engine.get_binding_index("images")
        with pytest.raises(AttributeError, match="no attribute 'execute_async_v2'"):
            context.execute_async_v2([], 0)
        with pytest.raises(AttributeError, match="no attribute 'device_memory_v3'"):
            context.device_memory_v3 = 0
        with pytest.raises(NotImplementedError, match="serialize"):
            engine.serialize()
        # Gone in 11: real code that used it would work with 10 only.
        old = "create_execution_context_without_device_memory"
        with pytest.raises(NotImplementedError if stack.key == "tensorrt-10" else AttributeError):
            getattr(engine, old)()
        del engine, context


def test_the_kernel_depends_on_every_byte_of_its_row_alone(stack_11: Any) -> None:
    stack_11.write()
    images = stack_11.images(3)
    logits, scores, classes = stack_11.expected(images)
    changed = images.copy()
    changed[1, 7, 7, 2] ^= 1
    other = stack_11.expected(changed)[0]
    assert (other[[0, 2]] == logits[[0, 2]]).all() and (other[1] != logits[1]).all()
    assert (np.diff(scores, axis=1) <= 0).all()
    assert (classes[:, 0] == logits.argmax(1)).all()


def test_the_graph_is_a_classifier(stack_11: Any) -> None:
    from trt_stand_in.graph import write_graph

    graph = stack_11.folder / "g.onnx"
    write_graph(graph, num_classes=7, top_k=2)
    stack_11.write()
    logits, scores, classes = run_graph(str(graph), stack_11.images(4))
    assert (logits.shape, scores.shape, classes.dtype) == ((4, 7), (4, 2), np.int32)
    assert (classes[:, 0] == logits.argmax(1)).all()
    np.testing.assert_allclose(scores[:, 0], np.exp(logits.max(1)) / np.exp(logits).sum(1), rtol=1e-5)
