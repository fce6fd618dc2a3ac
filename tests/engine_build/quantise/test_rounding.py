"""Weights rounded by second moments through a whole build: the same bytes, what is gained, what the bundle says."""

from dataclasses import replace

import numpy as np
import onnx
import pytest
from graph_checks import saturating_pairs
from onnx import numpy_helper
from PIL import Image
from small_models import SIDE, pictures

from calibration.cache import write_cache
from calibration.onnx_index import Index
from calibration.request import Request
from calibration.streaming import collect
from calibration.tensors import activation_steps, activation_tensors
from engine_build.build_bundle import BuildOptions, build
from engine_build.quantise import rounding
from engine_build.quantise.int8 import Int8Options, make_cache, quantise
from engine_build.quantise.qdq import Placement, insert_qdq, layer_scales
from engine_build.quantise.rounding import round_layers
from engine_build.source import SourceOptions, Steps, load_source
from infer.bundle import read_manifest
from infer.bundle.build_record import WeightRounding
from infer.errors import InputError


@pytest.fixture(scope="module")
def source(narrow_row):
    return load_source(SourceOptions(narrow_row.name, offline=True), Steps())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    for number, picture in enumerate(pictures(40, SIDE, seed=3)):
        Image.fromarray(picture).save(folder / f"{number:03}.png")
    return folder


@pytest.fixture(scope="module")
def amax(source):
    statistics = collect(source.graph, [pictures(16)], activation_tensors(source.graph))
    return statistics.amax("mse", activation_steps(source.graph))


def rounded(source, amax, images, **options):
    scales = layer_scales(Index(source.graph), amax, Placement())
    return round_layers(source.graph, images, scales, **options)


def integers(model):
    """Every int8 weight of a graph, by name."""
    return {t.name: numpy_helper.to_array(t) for t in model.graph.initializer if t.name.endswith(".int8")}


def test_the_same_bytes_from_the_same_images_in_any_order(source, amax):
    images = pictures(24, seed=7)
    first, again = rounded(source, amax, images), rounded(source, amax, images[::-1])
    assert len(first.weights) == 21 and first.images == 24
    for name, weights in first.weights.items():
        assert weights.integers.tobytes() == again.weights[name].integers.tobytes()
        np.testing.assert_array_equal(weights.bias, again.weights[name].bias)


def test_no_pair_can_saturate_and_without_the_condition_some_can(source, amax):
    images = pictures(16, seed=8)
    for safe in (True, False):
        found = rounded(source, amax, images, pair_safe=safe).weights
        graph, _ = insert_qdq(source.graph, amax, rounded=found, pair_safe=safe)
        unsafe = sum(saturating_pairs(value) for value in integers(graph).values())
        assert (unsafe == 0) == safe


def test_layers_compute_nearer_to_float(source, amax):
    """Each layer by itself on images that were not seen: the error of what it computes, against rounding to nearest."""
    from calibration.sensitivity import logit_errors, roundings

    found = rounded(source, amax, pictures(64, seed=9)).weights
    errors = {}
    for name, weights in (("moments", found), ("nearest", {})):
        graph, done = insert_qdq(source.graph, amax, rounded=weights)
        candidates = roundings(graph, done.tensors, list(done.nodes))
        weights_alone = {key: replace(value, activations={}) for key, value in candidates.items()}
        errors[name] = logit_errors(source.graph, weights_alone, pictures(32, seed=10))
    gains = [errors["nearest"][name] / errors["moments"][name] for name in errors["nearest"]]
    assert np.exp(np.mean(np.log(gains))) > 1.15


def test_excluded_layers_are_left_out(source, amax):
    found = rounded(source, amax, pictures(2), exclude=["conv1"])
    assert "conv1" not in found.weights and len(found.weights) == 20


def test_little_memory_takes_more_passes_with_the_same_result(source, amax, monkeypatch):
    images = pictures(6, seed=11)
    whole = rounded(source, amax, images)
    monkeypatch.setattr(rounding, "_BYTES", 1 << 15)
    seen = []
    parts = rounded(source, amax, images, progress=seen.append)
    assert list(whole.weights) == sorted(parts.weights, key=list(whole.weights).index) and sum(seen) == 6
    for name, weights in whole.weights.items():
        np.testing.assert_array_equal(weights.integers, parts.weights[name].integers)


def test_rows_too_long_are_rounded_to_nearest(source, amax, monkeypatch):
    monkeypatch.setattr(rounding, "LONGEST", 100)
    found = rounded(source, amax, pictures(2)).weights
    assert "conv1" not in found and "layer4.1.conv2" not in found and "fc" in found


def test_only_a_cache_rounds_to_nearest_and_says_so(source, folder, tmp_path):
    request = Request((str(folder),))
    made, _ = make_cache(source, request, tmp_path / "c", "tool", lambda line: None)
    write_cache(tmp_path / "c", made)
    said = []
    alone = quantise(source, Int8Options(cache=tmp_path / "c"), tmp_path / "none", "tool", said.append)
    assert any("rounded to nearest (no calibration images, only a cache)" in line for line in said)
    assert alone.record().weights == WeightRounding(rounding="nearest", reason="no calibration images, only a cache")
    both = Int8Options(cache=tmp_path / "c", calibration=request)
    assert quantise(source, both, tmp_path / "none", "tool", lambda line: None).record().weights.images == 40


def test_nearest_on_request(source, folder, tmp_path):
    options = Int8Options(calibration=Request((str(folder),)), rounding="nearest")
    found = quantise(source, options, tmp_path / "c", "tool", lambda line: None)
    assert found.record().weights == WeightRounding(rounding="nearest", reason="asked for")
    with pytest.raises(InputError, match="moments, nearest, found 'best'"):
        Int8Options(rounding="best")


@pytest.mark.parametrize(("targets", "safe"), [(("openvino",), True), (("tensorrt_rtx",), False)])
def test_the_condition_is_held_where_a_cpu_target_is_built(narrow_row, tmp_path, targets, safe):
    if not safe:
        pytest.importorskip("tensorrt_rtx")
    folder, _ = build(
        BuildOptions(narrow_row.name, precision="int8", targets=targets, output=tmp_path / "b", offline=True)
    )
    assert read_manifest(folder).pair_safe == safe
    graph = onnx.load(folder / "model.onnx")
    weights = {name: value for name, value in integers(graph).items() if value.ndim > 1}
    assert len(weights) == 21
    assert (sum(map(saturating_pairs, weights.values())) == 0) == safe
