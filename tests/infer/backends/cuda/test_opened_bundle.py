"""A bundle opened on a GPU: its options reach the backend, and every level of the API gives the same."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from cuda_emulator.emulator import Emulator
from typer.testing import CliRunner

from infer.backends.base import GpuOptions
from infer.bundle import file_entry, read_manifest, write_manifest
from infer.cli import app
from infer.errors import BundleError, InputError, KnownAnswersError, TargetUnavailableError
from infer.runner import Runner, open_bundle


@pytest.fixture
def runner(bundle: Path) -> Iterator[Runner]:
    with open_bundle(bundle, gpu=GpuOptions(slots=2, max_batch=8, spin=True)) as opened:
        yield opened


def test_the_options_reach_the_backend(runner: Runner) -> None:
    assert (runner.target, runner.backend.max_batch, runner.backend.in_flight) == ("tensorrt", 8, 4)
    assert runner.backend.flags == {  # type: ignore[attr-defined]
        "CUDA graphs": "batches of 1, 8", "waiting": "spinning", "streams": "2, 4 batches in flight"
    }  # fmt: skip


def test_every_level_gives_the_same(runner: Runner, bundle: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (21, *runner.manifest.inputs[0].shape[1:]), np.uint8)
    whole = runner.infer(images)
    with open_bundle(bundle, target="onnxruntime") as reference:
        np.testing.assert_allclose(whole.logits, reference.infer(images).logits, atol=1e-4)
    parts = [images[:8], images[8:9], images[9:16], images[16:]]
    streamed = list(runner.stream(iter(parts)))
    submitted = [future.result(30) for future in [runner.submit(part) for part in parts]]
    for results in (streamed, submitted):
        assert np.concatenate([outputs.logits for outputs in results]).tobytes() == whole.logits.tobytes()
        assert np.concatenate([outputs.classes for outputs in results]).tobytes() == whole.classes.tobytes()


def test_wrong_batches(runner: Runner) -> None:
    side = runner.preprocessing.crop
    for rows in (0, 9):
        with pytest.raises(InputError, match=f"expected a batch of 1 to 8 images, found {rows}"):
            runner.submit(np.zeros((rows, side, side, 3), np.uint8))
    with pytest.raises(InputError, match=r"expected a uint8 array \[N, .*found float32"):
        next(runner.stream([np.zeros((1, side, side, 3), np.float32)]))  # type: ignore[list-item]


def test_device_levels_refuse_on_a_cpu(bundle: Path) -> None:
    with open_bundle(bundle, target="openvino") as runner:
        with pytest.raises(TargetUnavailableError, match="enqueue needs a TensorRT target, this bundle runs on openvi"):
            runner.enqueue(256, 1, [256, 512, 768], 0)
        with pytest.raises(TargetUnavailableError, match="infer_device needs a TensorRT target"):
            runner.infer_device(None)


def test_a_gpu_that_is_not_there(bundle: Path) -> None:
    with pytest.raises(TargetUnavailableError, match="expected CUDA device 7, found"):
        open_bundle(bundle, target="tensorrt", gpu=GpuOptions(device=7))


def test_the_benchmark_states_its_flags(bundle: Path) -> None:
    options = ["--batch", "2", "--duration", "0.1", "--warm-up", "0", "--slots", "1", "--no-graphs", "--json"]
    done = CliRunner().invoke(app, ["bench", str(bundle), *options])
    assert done.exit_code == 0, done.output
    flags = json.loads(done.stdout)["flags"]
    assert (flags["CUDA graphs"], flags["waiting"]) == ("off", "blocking")
    assert flags["streams"] == "1, 2 batches in flight"


def another_graph(bundle: Path, stack: Any, **options: Any) -> None:
    """Replace the TensorRT plan by one that computes something else, with its right hash in the manifest."""
    manifest = read_manifest(bundle)
    image, k = tuple(manifest.inputs[0].shape[1:]), manifest.outputs[1].shape[1]
    stack.write("tensorrt.plan", image=image, top_k=k, max_batch=16, **options)
    manifest.plans[-1].files = [file_entry(bundle, "tensorrt.plan")]
    write_manifest(bundle, manifest)


def test_a_right_plan_passes_once(bundle: Path) -> None:
    for remembered in (False, True):
        with open_bundle(bundle, target="tensorrt") as runner:
            assert runner.self_test is not None
            assert [(one.batch, one.remembered) for one in runner.self_test.checked] == [
                (1, remembered),
                (16, remembered),
            ]
    with open_bundle(bundle, target="tensorrt", gpu=GpuOptions(cuda_graphs=False)) as runner:  # another way to run
        assert runner.self_test is not None
        assert not any(one.remembered for one in runner.self_test.checked)


def test_a_plan_that_computes_something_else_is_caught(
    bundle: Path, stack_11: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    graph = onnx.load(bundle / "model.onnx")
    bias = next(tensor for tensor in graph.graph.initializer if list(tensor.dims) == [10])
    value = onnx.numpy_helper.to_array(bias).copy()
    value[3] += 1
    bias.CopyFrom(onnx.numpy_helper.from_array(value, bias.name))
    onnx.save(graph, tmp_path / "other.onnx")
    for options in ({"graph": str(tmp_path / "other.onnx")}, {}):  # one bias; the emulator's own kernel
        another_graph(bundle, stack_11, **options)
        with pytest.raises(KnownAnswersError, match=r"known answers at batch 1: kernels: tensorrt \(.*graph is ri"):
            open_bundle(bundle, target="tensorrt")
        with open_bundle(bundle) as runner:  # the automatic choice goes on, and says so
            assert runner.target == "openvino"
            assert runner.self_test is not None
            assert runner.self_test.notes[0].startswith("tensorrt is not used: ")
        assert "tensorrt is not used: " in caplog.text


def test_code_inside_a_plan_is_not_run_unasked(bundle: Path, stack_11: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = read_manifest(bundle)
    image, graph = tuple(manifest.inputs[0].shape[1:]), str(bundle / "model.onnx")
    stack_11.write("tensorrt.plan", image=image, top_k=manifest.outputs[1].shape[1], graph=graph, host_code=True)
    manifest.plans[-1].files = [file_entry(bundle, "tensorrt.plan")]
    write_manifest(bundle, manifest)
    with pytest.raises(TargetUnavailableError, match="cannot load this plan"):
        open_bundle(bundle, target="tensorrt")  # the manifest is silent about it, TensorRT refuses
    manifest.plans[-1].version_compatible = True
    write_manifest(bundle, manifest)
    with pytest.raises(BundleError, match=r"holds code that runs on this machine.*IRESNET_ALLOW_HOST_CODE=1"):
        open_bundle(bundle)  # no silent way out to another target
    with open_bundle(bundle, gpu=GpuOptions(host_code=True)) as runner:
        assert runner.target == "tensorrt"
    monkeypatch.setenv("IRESNET_ALLOW_HOST_CODE", "1")
    open_bundle(bundle).close()
    with pytest.raises(BundleError):
        open_bundle(bundle, gpu=GpuOptions(host_code=False))


@pytest.mark.parametrize("why", ["another GPU", "driver too old"])
def test_the_automatic_choice_goes_on(bundle: Path, emulator: Emulator, why: str) -> None:
    if why == "another GPU":
        manifest = read_manifest(bundle)
        manifest.plans[-1].gpu = "NVIDIA L4"
        write_manifest(bundle, manifest)
    else:
        emulator.driver_version(11.4)
    with open_bundle(bundle, allow_untrained=True) as runner:
        assert runner.target == "openvino"
        assert runner.self_test is not None
        (note,) = [note for note in runner.self_test.notes if "tensorrt is not used" in note]
        assert ("built for NVIDIA L4" if why == "another GPU" else "NVIDIA driver") in note
    with pytest.raises(TargetUnavailableError):
        open_bundle(bundle, target="tensorrt")
