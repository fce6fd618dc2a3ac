"""The same weights give the logits of the official code: golden/official_logits.json.

The figures were computed in float32 on a CPU with the authors' code (github.com/iduta/iresnet) in ``eval()``. The
weights are a fill that any machine can repeat (:func:`filled`), the input is noise of seed 7. For each architecture the
file holds the number of parameters and keys, the CRC-32 of the keys with their shapes, the first 32 logits, the
standard deviation of all 1,000 and the arg max.
"""

from __future__ import annotations

import json
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

from calibration.onnx_index import Index
from engine_build.graph.batch_norms import fold_batch_norms, simplify_batch_norms
from engine_build.graph.equalise import residual_streams
from engine_build.graph.export import export_torch
from engine_build.graph.passes import canonicalise, equalise_streams
from engine_build.network.zoo import MODELS, count_parameters, shape_only
from infer.bundle.preprocessing import IMAGENET

GOLDEN = json.loads((Path(__file__).parent / "golden/official_logits.json").read_text())
COMPUTED = [name for name, row in GOLDEN.items() if "logits" in row]
TOLERANCE = 1e-3  # standard deviations of the logits
GRAPHS = ("iresnet18", "iresnet34", "iresnet50", "iresgroup50")  # through the passes in the default run


def rows(quick):
    return [name if name in quick else pytest.param(name, marks=pytest.mark.slow) for name in COMPUTED]


def filled(name):
    """The network; every value comes from the CRC-32 of its key, by the first rule that fits name or shape."""
    model, state = shape_only(MODELS[name]), {}
    for key, old in model.state_dict().items():
        r, shape = np.random.default_rng(zlib.crc32(key.encode())), tuple(old.shape)
        if key.endswith("num_batches_tracked"):
            value = np.zeros(shape)
        elif key.endswith("running_var"):
            value = r.uniform(0.5, 1.5, shape)
        elif key.endswith(("running_mean", "bias")):
            value = r.normal(0, 0.1, shape)
        elif len(shape) == 1:
            value = r.uniform(0.5, 1.5, shape)
        else:
            value = r.normal(0, np.sqrt(1 / np.prod(shape[1:])), shape)
        state[key] = torch.from_numpy(np.asarray(value)).to(old.dtype)
    model.load_state_dict(state, assign=True)
    return model


def noise():
    return np.random.default_rng(7).normal(0, 1, (1, 3, 224, 224)).astype(np.float32)


def assert_official(name, logits):
    expected = GOLDEN[name]
    assert logits.shape == (1000,)
    assert np.abs(logits[:32] - expected["logits"]).max() < TOLERANCE * expected["std"]
    assert logits.std() == pytest.approx(expected["std"], rel=1e-3)
    assert logits.argmax() == expected["argmax"]


def test_every_official_architecture_is_here():
    assert set(GOLDEN) <= set(MODELS)
    assert len(COMPUTED) == 14


@pytest.mark.parametrize("name", GOLDEN)
def test_keys_shapes_and_parameters(name):
    model = shape_only(MODELS[name])
    keys = [f"{key}:{tuple(value.shape)}" for key, value in model.state_dict().items()]
    expected = GOLDEN[name]
    assert (len(keys), zlib.crc32("\n".join(keys).encode())) == (expected["keys"], expected["key_crc"])
    assert count_parameters(model) == expected["params"]


@pytest.mark.parametrize("name", rows(set(COMPUTED) - {"iresnet302", "iresnet404"}))
def test_pytorch(name):
    with torch.inference_mode():
        logits = filled(name)(torch.from_numpy(noise()))
    assert_official(name, logits.numpy()[0])


@pytest.mark.parametrize("name", rows(GRAPHS))
def test_exported_folded_equalised_graph(name):
    import onnxruntime

    graph, _ = export_torch(filled(name), IMAGENET)
    canonicalise(graph)
    fold_batch_norms(graph)
    streams = len(residual_streams(Index(graph)))
    assert equalise_streams(graph) == streams > 0
    simplify_batch_norms(graph)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(graph.SerializeToString(), options, providers=["CPUExecutionProvider"])
    assert_official(name, session.run(None, {session.get_inputs()[0].name: noise()})[0][0])
