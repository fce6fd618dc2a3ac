"""The reference engine."""

from __future__ import annotations

import numpy as np
import pytest
from small_models import SPEC, classifier, pictures

from infer.backends import onnxruntime, open_backend
from infer.backends.onnxruntime import OnnxRuntimeBackend
from infer.bundle import read_manifest
from infer.checks.self_test import SelfTest
from infer.errors import TargetUnavailableError


@pytest.fixture
def backend(tiny):
    return OnnxRuntimeBackend(tiny / "model.onnx", threads=1)


@pytest.mark.parametrize("rows", [1, 3, 32])
def test_results(backend, rows):
    from engine_build.graph.reference import graph_logits

    images = pictures(rows)
    found = backend.infer(images)
    np.testing.assert_allclose(found.logits, graph_logits(classifier(), SPEC)(images), atol=1e-4)
    assert np.array_equal(found.classes, np.argsort(-found.logits, 1)[:, :5])
    assert [array.dtype for array in found] == [np.float32, np.float32, np.int32]


def test_quantised_graphs_are_computed_as_they_are_written(tiny, own, monkeypatch):
    """ONNX Runtime's optimiser computes FP8 pairs wrongly."""
    import onnxruntime as ort

    levels = []
    session = ort.InferenceSession

    def spy(model, options, **kwargs):
        levels.append(options.graph_optimization_level)
        return session(model, options, **kwargs)

    monkeypatch.setattr(ort, "InferenceSession", spy)
    folder = own(tiny)
    for precision in ("fp32", "int8", "auto", "fp8"):
        manifest = read_manifest(folder)
        manifest.precision = precision
        open_backend(folder, manifest, SelfTest(folder, manifest), "onnxruntime").close()
    off, on = ort.GraphOptimizationLevel.ORT_DISABLE_ALL, ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    assert levels == [on, off, off, off]


def test_submit_is_done_at_once(backend):
    future = backend.submit(pictures(2))
    assert future.done()
    assert np.array_equal(future.result().logits, backend.infer(pictures(2)).logits)


def test_errors_come_out_of_the_future(backend):
    future = backend.submit(pictures(1, side=5))
    assert future.exception() is not None


def test_description(backend):
    assert backend.device.startswith("CPU (ONNX Runtime ")
    assert (backend.target, backend.in_flight) == ("onnxruntime", 1)


def test_closed(backend):
    backend.close()
    backend.close()
    with pytest.raises(TargetUnavailableError, match="this backend is closed"):
        backend.infer(pictures(1))


def test_a_graph_that_cannot_run(tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"junk")
    with pytest.raises(TargetUnavailableError, match=r"ONNX Runtime cannot run .*model.onnx: "):
        OnnxRuntimeBackend(tmp_path / "model.onnx")


def test_without_onnxruntime(monkeypatch, tiny):
    monkeypatch.setattr(onnxruntime, "find_spec", lambda _name: None)
    with pytest.raises(TargetUnavailableError, match="onnxruntime is not installed; pip install onnxruntime"):
        OnnxRuntimeBackend(tiny / "model.onnx")
