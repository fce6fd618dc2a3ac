"""Which calibration cache an int8 build takes, what the bundle then holds, and how accurate it is."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

from calibration.cache import read_cache, write_cache
from calibration.from_images import graph_sha256
from calibration.request import Request
from engine_build.build_bundle import BuildOptions, build
from engine_build.quantise.int8 import Int8Options, find_cache, make_cache, quantise, with_method
from engine_build.source import SourceOptions, Steps, load_source
from infer.bundle import read_manifest
from infer.bundle.build_record import WeightRounding
from infer.errors import BuildError, InputError
from infer.verify.run import verify_bundle


@pytest.fixture(scope="module")
def source(narrow_row):
    return load_source(SourceOptions(narrow_row.name, offline=True), Steps())


@pytest.fixture(scope="module")
def folder_of_images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for number in range(24):
        (folder / f"c{number % 3}").mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (40, 50, 3), np.uint8)).save(folder / f"c{number % 3}" / f"{number}.png")
    return folder


def request(folder, **changes):
    return replace(Request((str(folder),), limit=12), **changes)


def silent(_line):
    pass


def test_images_that_were_asked_for(source, folder_of_images, tmp_path):
    target = tmp_path / "x.calibration"
    cache, notes = find_cache(source, Int8Options(calibration=request(folder_of_images)), target, "tool", silent)
    assert notes == [] and cache.provenance.images == 12 and cache.provenance.method == "mse"
    assert cache.provenance.graph_sha256 == graph_sha256(source.graph)
    assert read_cache(target) == cache


def test_the_cache_of_the_same_graph_is_taken_again(source, folder_of_images, tmp_path):
    target = tmp_path / "x.calibration"
    made, _ = make_cache(source, request(folder_of_images), target, "tool", silent)
    said = []
    found, _ = find_cache(source, Int8Options(), target, "tool", said.append)
    assert found == made and "12 images" in said[0]


def test_another_method_comes_from_the_same_pass(source, folder_of_images, tmp_path):
    target = tmp_path / "x.calibration"
    made, _ = make_cache(source, request(folder_of_images), target, "tool", silent)
    direct, _ = make_cache(source, request(folder_of_images, method="minmax"), tmp_path / "y", "tool", silent)
    found = with_method(made, graph_sha256(source.graph), Request((), method="minmax"))
    assert found.scales == direct.scales != made.scales
    assert with_method(made, "0" * 64, Request(())) is None
    assert (
        with_method(made, graph_sha256(source.graph), Request((), "percentile", parameters={"percentile": 9.0})) is None
    )


def test_a_cache_of_another_graph_is_made_again(source, folder_of_images, tmp_path):
    target = tmp_path / "x.calibration"
    made, _ = make_cache(source, request(folder_of_images), target, "tool", silent)
    other = replace(made, provenance=_struct_replace(made.provenance, graph_sha256="0" * 64))
    write_cache(target, other)
    said = []
    found, notes = find_cache(source, Int8Options(), target, "tool", said.append)
    assert "another graph" in said[0] and found.provenance.graph_sha256 == graph_sha256(source.graph)
    assert "random weights" in notes[0]


def _struct_replace(struct, **changes):
    import msgspec

    return msgspec.structs.replace(struct, **changes)


def test_an_explicit_cache_of_another_graph_is_refused(source, folder_of_images, tmp_path):
    made, _ = make_cache(source, request(folder_of_images), tmp_path / "x", "tool", silent)
    scales = {("other" if name == "normalised" else name): value for name, value in made.scales.items()}
    origin = _struct_replace(made.provenance, graph_sha256="0" * 64)
    write_cache(tmp_path / "foreign", replace(made, scales=scales, provenance=origin))
    options = Int8Options(cache=tmp_path / "foreign")
    with pytest.raises(InputError, match=r"graph 0000.*missing \(normalised\).*unknown.*--accept-cache"):
        quantise(source, options, tmp_path / "none", "tool", silent)
    taken = quantise(source, replace(options, accept_cache=True), tmp_path / "none", "tool", silent)
    assert "normalised" in taken.notes[0] and "conv1" in taken.quantised.skipped
    assert taken.record().tensors_missing == ["normalised"]


def of_the_old_network(made, path):
    """A cache as it was written before the network was the official one: another graph, and no revision."""
    write_cache(path, replace(made, provenance=_struct_replace(made.provenance, graph_sha256="0" * 64)))
    beside = path.with_name(f"{path.name}.json")
    text = beside.read_text()
    assert '"network_revision": 2' in text
    beside.write_text(re.sub(r',\s*"network_revision": 2', "", text))
    return path


def test_a_cache_of_the_old_network_is_refused(source, folder_of_images, tmp_path):
    made, _ = make_cache(source, request(folder_of_images), tmp_path / "x", "tool", silent)
    old = of_the_old_network(made, tmp_path / "old")
    with pytest.raises(InputError, match=r"old: expected a calibration cache of network revision 2, found 1: its netw"):
        quantise(source, Int8Options(cache=old, accept_cache=True), tmp_path / "none", "tool", silent)
    said = []
    find_cache(source, Int8Options(), old, "tool", said.append)
    assert "is not used (expected a calibration cache of network revision 2, found 1" in said[0]
    assert read_cache(old).provenance.network_revision == 2  # calibrated again


def test_other_caches_without_a_revision_stay_as_they_are(source, folder_of_images, tmp_path):
    made, _ = make_cache(source, request(folder_of_images), tmp_path / "x", "tool", silent)
    write_cache(tmp_path / "foreign", replace(made, provenance=None))
    options = Int8Options(cache=tmp_path / "foreign")
    with pytest.raises(InputError, match="its origin is unknown"):
        quantise(source, options, tmp_path / "none", "tool", silent)
    quantise(source, replace(options, accept_cache=True), tmp_path / "none", "tool", silent)
    mine = replace(source, info=_struct_replace(source.info, network_revision=None))
    old = of_the_old_network(made, tmp_path / "old")
    with pytest.raises(InputError, match="it was made from graph 0000"):
        quantise(mine, Int8Options(cache=old), tmp_path / "none", "tool", silent)


def test_trained_weights_without_images_are_an_error(source, tmp_path):
    trained = replace(source, info=_struct_replace(source.info, trained=True))
    with pytest.raises(InputError, match="DATA="):
        make_cache(trained, Request(()), tmp_path / "x", "tool", silent)
    assert not (tmp_path / "x").exists()


def test_random_weights_take_shipped_images_with_a_warning(source, tmp_path):
    cache, notes = make_cache(source, Request(()), tmp_path / "x", "tool", silent)
    assert cache.provenance.images == 64 and "random weights" in notes[0]


def test_unreadable_images_are_an_error_and_leave_no_cache(source, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    with pytest.raises(InputError, match=r"broken\.png"):
        make_cache(source, Request((str(tmp_path / "broken.png"),)), tmp_path / "x", "tool", silent)
    assert not (tmp_path / "x").exists()


def test_the_bundle_says_what_is_quantised(shipped):
    folder = shipped("int8")
    manifest = read_manifest(folder)
    record = manifest.calibration
    assert (len(record.int8_nodes), len(record.int8_additions), record.shifted_tensors) == (54, 0, 37)
    assert record.weights == WeightRounding(rounding="second moments", images=128, layers=54)
    assert manifest.pair_safe
    assert record.tensors_missing == [] and record.images == 512 and record.method == "mse"
    audit = manifest.plans[0].audit
    assert [audit.node_precisions[name] for name in record.int8_nodes] == ["int8"] * 54
    cache = read_cache(folder / "calibration.cache")
    assert cache.provenance.data_sha256 == record.data_sha256
    types = {t.data_type for t in onnx.load(folder / "model.onnx").graph.initializer}
    assert onnx.TensorProto.INT8 in types
    assert json.loads((folder / "calibration.cache.json").read_text())["method"] == "mse"


def test_int8_keeps_the_accuracy(shipped):
    """All shipped test images: within 0.10 points of FP32's top-1, agreement at least 99.65 %, 35.5 dB on any CPU."""
    from engine_build.network.zoo import MODELS

    data = MODELS["iresnet50_fashion"].shipped / "test.tar.gz"
    found = verify_bundle(
        shipped("int8"), [str(data)], reference=shipped("fp32"), reference_target="openvino"
    ).accuracy.to_json()
    assert found["images"] == 10_000
    assert found["top1"] >= found["reference_top1"] - 0.10
    assert found["agreement"] >= 99.65
    assert found["sqnr_db"] >= 35.5


def test_a_layer_that_stays_float_fails_the_build(narrow_row, tmp_path, monkeypatch):
    """The trap: TensorRT-RTX takes an activation scale of shape [1] and silently computes in floating point."""
    pytest.importorskip("tensorrt_rtx")
    from engine_build.quantise.writer import PairWriter

    activation = PairWriter.activation

    def vectors(self, tensor):
        scalar = self.scale_of
        self.scale_of = lambda name: [scalar(name)]
        try:
            return activation(self, tensor)
        finally:
            self.scale_of = scalar

    monkeypatch.setattr(PairWriter, "activation", vectors)
    options = BuildOptions(
        narrow_row.name, precision="int8", targets=("tensorrt_rtx",), output=tmp_path / "bundle", offline=True
    )
    with pytest.raises(BuildError, match="not int8: conv1"):
        build(options)
    assert not (tmp_path / "bundle").exists()
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


def test_calibrate_command(narrow_row, folder_of_images, tmp_path):
    from typer.testing import CliRunner

    from engine_build.cli import app

    target = tmp_path / "c.calibration"
    arguments = ["calibrate", "-m", narrow_row.name, "--offline", "-d", str(folder_of_images), "-o", str(target)]
    result = CliRunner().invoke(app, [*arguments, "--limit", "6", "--method", "percentile", "--percentile", "99.9"])
    assert result.exit_code == 0, result.output
    provenance = read_cache(target).provenance
    assert (provenance.images, provenance.method, provenance.parameters) == (6, "percentile", {"percentile": 99.9})
    assert "fewer" in result.output or "only 6 images" in result.output
    wrong = CliRunner().invoke(app, [*arguments, "--method", "best"])
    assert wrong.exit_code == 2 and "minmax" in wrong.output


def test_a_seeded_sample_of_the_folders(folder_of_images):
    from calibration.from_images import choose_images

    first = [r.member for r in choose_images(request(folder_of_images, limit=6))]
    again = [r.member for r in choose_images(request(folder_of_images, limit=6))]
    other = [r.member for r in choose_images(request(folder_of_images, limit=6, seed=1))]
    assert first == again != other
    assert sorted(Path(m).parent.name for m in first) == ["c0", "c0", "c1", "c1", "c2", "c2"]
