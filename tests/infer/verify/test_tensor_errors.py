"""Errors of quantised tensors: against numpy, order, a damaged layer comes out worst."""

import json

import numpy as np
import onnx
import pytest
from small_models import run

from infer.bundle import GRAPH, file_entry, read_manifest, write_manifest
from infer.errors import InputError
from infer.verify.tensor_errors import layer_errors, plot_layers


@pytest.fixture(scope="module")
def bundles(shipped):
    return shipped("int8"), shipped("fp32")


def test_every_quantised_tensor_worst_first(bundles, shipped_images):
    images = shipped_images[0][:16]
    done = []
    errors = layer_errors(*bundles, [images[:10], images[10:]], done.append)
    assert done == [10, 6]
    assert len(errors) == 54 == len(read_manifest(bundles[0]).calibration.tensors)
    ratios = [error.sqnr_db for error in errors]
    assert ratios == sorted(ratios) and 20 < ratios[0] < 35 < ratios[-1]
    assert all(error.clipped < 0.01 for error in errors)


def test_the_figures_are_those_of_numpy(bundles, shipped_images):
    images = shipped_images[0][:8]
    errors = {error.tensor: error for error in layer_errors(*bundles, [images])}
    fp32, int8 = (onnx.load(folder / GRAPH) for folder in (bundles[1], bundles[0]))
    offsets = {k: v.offset for k, v in read_manifest(bundles[0]).calibration.tensors.items()}
    for name in ("normalised", "layer2.1.relu_output", "layer3.2.relu_3_output"):
        (expected,) = run(fp32, images, [name])
        probe = onnx.ModelProto()
        probe.CopyFrom(int8)
        probe.graph.output.append(onnx.helper.make_tensor_value_info(f"{name}.dequantised", 10, None))
        (found,) = run(probe, images, [f"{name}.dequantised"])
        noise = ((found.astype(np.float64) + offsets[name] - expected) ** 2).sum()
        assert errors[name].sqnr_db == pytest.approx(10 * np.log10((expected.astype(np.float64) ** 2).sum() / noise))


def test_a_damaged_scale_comes_out_worst(bundles, own, shipped_images):
    folder = own(bundles[0])
    model = onnx.load(folder / GRAPH)
    victim = next(t for t in model.graph.initializer if t.name.startswith("layer3.3.relu_2_output.scale"))
    value = onnx.numpy_helper.to_array(victim)
    victim.CopyFrom(onnx.numpy_helper.from_array((value / 8).astype(value.dtype), victim.name))
    onnx.save(model, folder / GRAPH)
    manifest = read_manifest(folder)
    manifest.graph = file_entry(folder, GRAPH)
    write_manifest(folder, manifest)
    errors = layer_errors(folder, bundles[1], [shipped_images[0][:8]])
    worst = {error.tensor: error.sqnr_db for error in errors}
    assert worst["layer3.3.relu_2_output"] < 15 and errors[0].tensor.startswith("layer3.3.")


def test_refused_bundles(bundles, own, shipped_images):
    with pytest.raises(InputError, match=r"fp32.*int8 bundle"):
        layer_errors(bundles[1], bundles[1], [shipped_images[0][:2]])
    with pytest.raises(InputError, match="no image"):
        layer_errors(*bundles, [])
    folder = own(bundles[0])
    manifest = read_manifest(folder)
    manifest.calibration.graph_sha256 = "0" * 64
    write_manifest(folder, manifest)
    with pytest.raises(InputError, match="another float graph"):
        layer_errors(folder, bundles[1], [shipped_images[0][:2]])


def test_json_and_plot(bundles, shipped_images, tmp_path):
    pytest.importorskip("matplotlib")
    errors = layer_errors(*bundles, [shipped_images[0][:2]])
    assert json.loads(json.dumps([error.to_json() for error in errors]))[0]["tensor"] == errors[0].tensor
    plot_layers(errors, tmp_path / "layers.png", "title")
    assert (tmp_path / "layers.png").read_bytes().startswith(b"\x89PNG")


def test_verify_command_prints_the_layers(bundles, own, tmp_path):
    from typer.testing import CliRunner

    from engine_build.network.zoo import MODELS
    from infer.cli import app

    data = str(MODELS["iresnet50_fashion"].shipped / "calibration.tar.gz")
    arguments = [
        "verify",
        str(own(bundles[0])),
        "-d",
        data,
        "-r",
        str(bundles[1]),
        "--limit",
        "20",
        "--layers-limit",
        "10",
    ]
    result = CliRunner().invoke(app, [*arguments, "--json"])
    assert result.exit_code == 4, result.output
    found = json.loads(result.stdout)
    assert len(found["layers"]) == 54 and found["agreement"] > 90
