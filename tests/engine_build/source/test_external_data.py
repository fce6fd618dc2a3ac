"""Weights in files beside the graph."""

from __future__ import annotations

import hashlib
import subprocess

import numpy as np
import onnx
import pytest
from small_models import SPEC, classifier, pictures

from engine_build.graph.reference import graph_logits
from engine_build.source import SourceOptions, Steps, load_source
from engine_build.source.external_data import external_locations, load_onnx, onnx_sha256
from engine_build.source.user_graph import load_user_graph
from infer.errors import GraphError
from infer.files import sha256_file


def save(folder, **options):
    folder.mkdir(exist_ok=True)
    options = {"all_tensors_to_one_file": True, "location": "net.data", **options}
    onnx.save(classifier(), folder / "net.onnx", save_as_external_data=True, size_threshold=0, **options)
    return folder / "net.onnx"


def refer_to(path, location):
    """Let every tensor of the graph lie in ``location``."""
    model = onnx.load(path, load_external_data=False)
    for tensor in model.graph.initializer:
        next(entry for entry in tensor.external_data if entry.key == "location").value = location
    path.write_bytes(model.SerializeToString())


def test_a_graph_alone_has_the_hash_of_its_file(tmp_path):
    onnx.save(classifier(), tmp_path / "net.onnx")
    assert onnx_sha256(tmp_path / "net.onnx") == sha256_file(tmp_path / "net.onnx")


def test_the_hash_covers_every_file_and_can_be_had_from_sha256sum(tmp_path):
    path = save(tmp_path / "several", all_tensors_to_one_file=False)
    locations = external_locations(onnx.load(path, load_external_data=False))
    assert len(locations) == 7 and locations == sorted(locations)
    lines = subprocess.run(
        ["sha256sum", "net.onnx", *locations], cwd=path.parent, capture_output=True, text=True, check=True
    ).stdout
    expected = hashlib.sha256(lines.replace("net.onnx", "graph").encode()).hexdigest()
    assert onnx_sha256(path) == expected
    data = path.parent / locations[-1]
    data.write_bytes(data.read_bytes()[::-1])
    assert onnx_sha256(path) != expected


def test_the_manifest_has_that_hash(tmp_path):
    path = save(tmp_path)
    source = load_source(SourceOptions("net", onnx=path, preprocessing=SPEC), Steps())
    assert source.info.weights_sha256 == onnx_sha256(path) != sha256_file(path)
    found = graph_logits(source.graph, SPEC)(pictures(2))
    np.testing.assert_allclose(found, graph_logits(classifier(), SPEC)(pictures(2)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("location", ["../net.data", "/etc/hostname", "a/../../net.data", "link"])
def test_files_outside_the_folder_are_refused(tmp_path, location):
    path = save(tmp_path / "model")
    (tmp_path / "net.data").write_bytes((path.parent / "net.data").read_bytes())
    (path.parent / "link").symlink_to(tmp_path / "net.data")
    (path.parent / "a").mkdir()
    refer_to(path, location)
    with pytest.raises(GraphError, match=r"net.onnx: expected its weights in its own folder, found '.*'; copy that"):
        load_user_graph(path, SPEC)


def test_a_missing_file_is_named(tmp_path):
    path = save(tmp_path)
    (tmp_path / "net.data").unlink()
    with pytest.raises(GraphError, match=r"net.onnx: its weights are in 'net.data', which is not there; copy it"):
        load_onnx(path)


def test_a_file_that_is_too_short(tmp_path):
    path = save(tmp_path)
    (tmp_path / "net.data").write_bytes(b"few")
    with pytest.raises(GraphError, match="not a valid ONNX model"):
        load_user_graph(path, SPEC)
