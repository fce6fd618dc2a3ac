"""Polygraphy's own comparator accepts a bundle as one of its runners."""

from __future__ import annotations

from collections import OrderedDict

import numpy as np
import pytest
from small_models import pictures

from infer import open_bundle
from infer.errors import BundleError

pytest.importorskip("polygraphy", reason="pip install polygraphy")
from polygraphy.backend.onnxrt import OnnxrtRunner, SessionFromOnnx
from polygraphy.comparator import Comparator, DataLoader, SimpleCompareFunc

from infer.interop.polygraphy import BundleRunner


def compare(one, two, **limits):
    loader = DataLoader(seed=1, iterations=3, val_range=(0, 255))
    results = Comparator.run([OnnxrtRunner(SessionFromOnnx(str(one / "model.onnx"))), BundleRunner(two)], loader)
    assert [name for name, _ in results][1].startswith(two.name)
    assert all(set(run) == {"logits", "scores", "classes"} for _, runs in results for run in runs)
    assert all(run.runtime > 0 for run in results[1][1])
    return bool(Comparator.compare_accuracy(results, compare_func=SimpleCompareFunc(**limits)))


def test_a_bundle_against_onnx_runtime(tiny):
    assert compare(tiny, tiny, atol=1e-4)


def test_another_network_is_told_apart(tiny, own):
    import onnx

    folder = own(tiny)
    model = onnx.load(folder / "model.onnx")
    weight = next(t for t in model.graph.initializer if len(t.dims) == 4)
    weight.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(weight) * 1.5, weight.name))
    onnx.save(model, folder / "model.onnx")
    assert not compare(folder, tiny, atol=1e-4)


def test_any_batch_and_results_of_the_callers_own(tiny):
    images = pictures(19)
    with open_bundle(tiny) as runner, BundleRunner(tiny, target="openvino") as bundle:
        expected = runner.infer(images)
        found = bundle.infer(OrderedDict(images=images))
        bundle.infer({"images": images[::-1].copy()})
        for name, values in expected._asdict().items():
            assert np.array_equal(found[name], values)
        assert bundle.last_inference_time() > 0


def test_untrained_bundles_can_be_compared(untrained):
    with BundleRunner(untrained) as bundle:
        assert "images" in bundle.get_input_metadata(use_numpy_dtypes=False)


def test_no_bundle(tmp_path):
    with pytest.raises(BundleError, match="is not a bundle"), BundleRunner(tmp_path):
        pass
