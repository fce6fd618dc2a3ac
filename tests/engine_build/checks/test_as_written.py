"""A typed graph computed as it is written, held against numpy's own float16 and ml_dtypes' bfloat16."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from small_models import CLASSES, CLASSIFIER, SPEC, classifier_constants, graph, pictures

from engine_build.checks.as_written import as_written, emulated, engine_name
from engine_build.graph.passes import prepare
from engine_build.graph.reference import graph_logits
from engine_build.precision.casts import to_precision
from infer.errors import GraphError

TYPES = {"fp16": (TensorProto.FLOAT16, np.float16), "bf16": (TensorProto.BFLOAT16, ml_dtypes.bfloat16)}


@pytest.fixture(scope="module")
def prepared():
    model = graph(CLASSIFIER, classifier_constants())
    prepare(model, SPEC, CLASSES, graph_logits(model, SPEC))
    return model


def chain(kind):
    """(float(image bytes) + 2048) - 2048, / 3, in ``kind``: every step rounds."""
    nodes = [
        helper.make_node("Cast", ["images"], ["x"], to=TensorProto.FLOAT),
        helper.make_node("Cast", ["x"], ["low"], to=kind),
        helper.make_node("Constant", [], ["third"], value=numpy_helper.from_array(np.float32([3]), "t")),
        helper.make_node("Cast", ["third"], ["low_third"], to=kind),
        helper.make_node("Div", ["low", "low_third"], ["a"]),
        helper.make_node("Add", ["a", "big"], ["b"]),
        helper.make_node("Sub", ["b", "big"], ["c"]),
        helper.make_node("Relu", ["c"], ["d"]),
        helper.make_node("Cast", ["d"], ["logits"], to=TensorProto.FLOAT),
    ]
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    values = [
        helper.make_tensor_value_info("images", TensorProto.UINT8, ["N", 4]),
        helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 4]),
    ]
    big = numpy_helper.from_array(np.array([2048], np.float32).astype(dtype), "big")
    body = helper.make_graph(nodes, "g", values[:1], values[1:], [big])
    return helper.make_model(body, opset_imports=[helper.make_opsetid("", 22)], ir_version=10)


@pytest.mark.parametrize("name", TYPES)
def test_every_step_rounds(name):
    kind, dtype = TYPES[name]
    images = np.arange(64, dtype=np.uint8).reshape(16, 4) * 4
    low = images.astype(np.float32).astype(dtype)
    expected = ((low / dtype(3)) + dtype(2048)) - dtype(2048)
    found = as_written(chain(kind))(images)
    np.testing.assert_array_equal(found, expected.astype(np.float32))
    assert len(np.unique(found)) < 48  # of 64 different numbers


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_a_classifier_equals_the_reference_evaluator(prepared, precision):
    typed = to_precision(prepared, precision)
    images = pictures(4)
    found = as_written(typed)(images)
    exact = as_written(prepared)(images)
    error = np.abs(found - exact).max()
    assert 0 < error < {"fp16": 0.02, "bf16": 0.2}[precision]
    if precision == "fp16":  # onnx's evaluator has no bfloat16 convolution
        other = ReferenceEvaluator(typed).run(["logits"], {"images": images})[0]
        np.testing.assert_allclose(found, other, atol=2 * error)


def test_float32_graphs_are_taken_as_they_are(prepared):
    assert emulated(prepared) is prepared
    images = pictures(20)
    np.testing.assert_array_equal(as_written(prepared)(images)[:3], as_written(prepared)(images[:3]))
    raw = graph(CLASSIFIER, classifier_constants())
    np.testing.assert_allclose(as_written(raw, SPEC)(images), as_written(prepared)(images), atol=1e-4)


@pytest.mark.parametrize("precision", ["fp16", "bf16", "int8"])
def test_the_emulation_is_float32_and_valid(prepared, precision):
    typed = to_precision(prepared, precision)
    before = typed.SerializeToString()
    work = emulated(typed)
    onnx.checker.check_model(work, full_check=True)
    assert typed.SerializeToString() == before
    low = {TensorProto.FLOAT16, TensorProto.BFLOAT16}
    assert not any(tensor.data_type in low for tensor in work.graph.initializer)


def test_low_outputs_are_refused(prepared):
    wrong = onnx.ModelProto()
    wrong.CopyFrom(chain(TensorProto.FLOAT16))
    wrong.graph.output[0].type.tensor_type.elem_type = TensorProto.FLOAT16
    del wrong.graph.node[-1]
    wrong.graph.node[-1].output[0] = "logits"
    with pytest.raises(GraphError, match=r"expected inputs and outputs in float32.*'logits' is not"):
        as_written(wrong)


def test_what_onnx_runtime_refuses(prepared):
    broken = onnx.ModelProto()
    broken.CopyFrom(prepared)
    broken.graph.node[0].op_type = "NoSuchOperator"
    with pytest.raises(GraphError, match="cannot run the typed graph"):
        as_written(broken)


def test_the_engine_is_named():
    assert engine_name().startswith("onnxruntime 1.")
