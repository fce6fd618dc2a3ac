"""Float graphs from PyTorch."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from small_models import SPEC, pictures

from calibration.onnx_index import Index
from engine_build.graph import export
from engine_build.graph.export import export_torch
from engine_build.graph.reference import graph_logits, torch_logits
from infer.errors import GraphError


def test_pytorch_graph(exported):
    network, path = exported
    raw = onnx.load(path)
    value_in, value_out = raw.graph.input[0], raw.graph.output[0]
    assert (value_in.name, value_out.name) == ("images", "logits")
    assert value_in.type.tensor_type.shape.dim[0].dim_param
    images = pictures(5)
    expected = torch_logits(network, SPEC)(images)
    for batch in (1, 5):
        found = graph_logits(raw, SPEC)(images[:batch])
        np.testing.assert_allclose(found, expected[:batch], atol=1e-3 * np.abs(expected).max())


def test_an_export_that_differs_is_caught_and_nothing_is_printed(monkeypatch, capfd):
    pool = torch.nn.AdaptiveAvgPool2d(1)
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), pool, torch.nn.Flatten(), torch.nn.Linear(4, 10))
    graph, reference = export_torch(network, SPEC)
    assert reference(pictures(2)).shape == (2, 10)
    assert Index(graph).op_counts()["Conv"] == 1
    shifted = lambda model, spec: lambda images: torch_logits(model, spec)(images) * 1.01  # noqa: E731
    monkeypatch.setattr(export, "torch_logits", shifted)
    with pytest.raises(GraphError, match=r"step export changed the results: largest logit difference"):
        export_torch(network, SPEC)
    assert capfd.readouterr() == ("", "")
