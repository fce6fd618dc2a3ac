"""A loss of precision is told from a defect."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto
from small_models import CLASSES, CLASSIFIER, SPEC, bn_inputs, classifier, classifier_constants, graph, pictures

from calibration.onnx_index import Index
from engine_build.graph import passes
from engine_build.graph.check import check_step
from engine_build.graph.precision_loss import rounding_noise, widest_weights
from engine_build.graph.reference import graph_logits
from engine_build.precision.casts import to_precision
from infer.errors import GraphError

C = classifier_constants()


def copy_of(model):
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return copy


def prepare(model):
    passes.prepare(model, SPEC, CLASSES, graph_logits(copy_of(model), SPEC))


def cancelling(size, *between):
    """A large bias that the mean of the batch norm behind it takes away again."""
    stem = ("Conv", "x stem.weight large", "c", {"strides": [2, 2], "pads": [1, 1, 1, 1]})
    nodes = [stem, *between, ("BatchNormalization", f"d {bn_inputs('bn')}", "b"), *CLASSIFIER[2:]]
    return graph(nodes, {**C, "large": np.full(16, size, np.float32), "bn.running_mean": np.full(16, size, np.float32)})


CASES = {
    "relu": (cancelling(1e6, ("Relu", "c", "d")), "simplify_batch_norms", "'b'"),
    "gemm": (
        graph(
            [CLASSIFIER[0], ("GlobalAveragePool", "c", "p0"), ("Flatten", "p0", "f0"), ("Gemm", "f0 eye large", "g"),
             ("BatchNormalization", f"g {bn_inputs('bn')}", "f"), ("Gemm", "f fc.weight fc.bias", "y", {"transB": 1})],
            {**C, "eye": np.eye(16, dtype=np.float32), "large": np.full(16, 1e6, np.float32),
             "bn.running_mean": np.full(16, 1e6, np.float32)},
        ), "fold_batch_norms", "'f'",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_network_that_float32_cannot_compute(case):
    model, step, layer = CASES[case]
    with pytest.raises(GraphError, match=f"^step {step} lost precision: largest logit difference") as caught:
        prepare(copy_of(model))
    told = str(caught.value)
    assert "(0.001 of the largest logit)" in told and f"Its widest layer is {layer}" in told and "1e+06" in told
    assert "defect" not in told and "\n" not in told


def test_moderate_cancelling_passes():
    prepare(cancelling(1e3, ("Relu", "c", "d")))


@pytest.mark.parametrize("factor", [1.01, 0.99, -1])
def test_a_defect_is_called_a_defect(monkeypatch, factor):
    original = passes.fold_batch_norms

    def broken(model):
        result = original(model)
        index = Index(model)
        conv = next(node for node in model.graph.node if node.op_type == "Conv")
        index.set_constant(conv.input[1], index.value(conv.input[1]) * np.float32(factor))
        return result

    monkeypatch.setattr(passes, "fold_batch_norms", broken)
    with pytest.raises(GraphError, match=r"^step fold_batch_norms changed the results: .*This is a defect; report"):
        prepare(classifier())


def test_noise_is_that_of_the_number_format():
    model = classifier()
    prepare(model)
    images = pictures(2)
    largest = np.abs(graph_logits(model, SPEC)(images)).max()
    assert 1e-8 < rounding_noise(model, SPEC, images) / largest < 1e-5
    half = to_precision(model, "fp16")
    assert any(tensor.data_type == TensorProto.FLOAT16 for tensor in half.graph.initializer)
    assert 1e-4 < rounding_noise(half, SPEC, images) / largest < 1e-1


def test_a_cast_that_loses_too_much_is_told_with_advice():
    model = classifier()
    reference = graph_logits(copy_of(model), SPEC)
    prepare(model)
    with pytest.raises(GraphError, match=r"^step precision lost precision: .*or build fp32$"):
        check_step("precision", to_precision(model, "fp16"), SPEC, reference, 1e-6)


def test_the_widest_layer():
    model = graph(CLASSIFIER, {**C, "fc.weight": C["fc.weight"] * np.logspace(-9, 0, 10, dtype=np.float32)[:, None]})
    name, least, most = widest_weights(model)
    assert name == "y" and most / least > 1e8
