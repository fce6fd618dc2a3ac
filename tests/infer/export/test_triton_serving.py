"""Triton exports beyond one model: versions, warm-up, the queue, what makes int8 right in ONNX Runtime."""

from __future__ import annotations

import numpy as np
import pytest
from triton_configs import PLAN, change, parse, with_plan
from tritonclient.grpc import model_config_pb2

from infer.bundle import BatchProfile, file_entry, read_manifest
from infer.checks.known_answers import measure, read_answers
from infer.errors import BundleError, InputError
from infer.export.triton import TritonOptions, export_triton
from infer.export.triton_versions import is_version, versions


def files(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# --- versions --------------------------------------------------------------------------------------------------------


def test_a_second_export_is_a_second_version(bundle, tmp_path):
    """The first one stays, so that a server can be rolled back."""
    folder = export_triton(bundle, tmp_path)
    before = files(folder)
    (bundle / "tensorrt.plan").write_bytes(b"another plan")
    manifest = read_manifest(bundle)
    manifest.plans[-1].files = [file_entry(bundle, "tensorrt.plan")]
    change(bundle, plans=manifest.plans)
    assert export_triton(bundle, tmp_path) == folder
    after = files(folder)
    assert versions(folder) == [1, 2]
    assert after.pop("2/model.plan") == b"another plan"
    assert after == before


def test_a_version_that_is_named_replaces_only_itself(bundle, tmp_path):
    folder = export_triton(bundle, tmp_path, TritonOptions(version=3))
    assert versions(folder) == [3]
    export_triton(bundle, tmp_path)
    (folder / "3/model.plan").write_bytes(b"old")
    export_triton(bundle, tmp_path, TritonOptions(version=4))
    assert (folder / "3/model.plan").read_bytes() == b"old"
    export_triton(bundle, tmp_path, TritonOptions(version=3))
    assert (folder / "3/model.plan").read_bytes() == PLAN and versions(folder) == [3, 4]


def test_versions_that_share_no_configuration_are_refused_and_kept(bundle, tmp_path):
    folder = export_triton(bundle, tmp_path)
    before = files(folder)
    (bundle / "labels.txt").write_text("\n".join(f"other {number}" for number in range(10)) + "\n")
    change(bundle, labels=file_entry(bundle, "labels.txt"))
    with pytest.raises(InputError, match=r"version 1 would no longer fit: all versions share labels.txt"):
        export_triton(bundle, tmp_path)
    with pytest.raises(InputError, match=r"version 1 would no longer fit: all versions share config.pbtxt"):
        export_triton(bundle, tmp_path, TritonOptions(target="openvino"))
    assert files(folder) == before
    export_triton(bundle, tmp_path, TritonOptions(version=1))  # nothing else is left that would have to fit
    assert "other 3" in (folder / "labels.txt").read_text()


@pytest.mark.parametrize(("name", "expected"), [("1", True), ("10", True), ("01", False), ("a", False), ("٣", False)])
def test_what_triton_takes_for_a_version(name, expected):
    assert is_version(name) == expected


# --- warm-up ---------------------------------------------------------------------------------------------------------


def warmups(config):
    return [(sample.batch_size, sample.inputs["images"]) for sample in config.model_warmup]


@pytest.mark.parametrize(
    ("target", "sizes"), [("tensorrt", {1, 64, 128}), ("openvino", {1, 8}), ("onnxruntime", {1, 64})]
)
def test_known_answers_warm_the_model_up(bundle, tmp_path, target, sizes):
    change(bundle, batch=BatchProfile(min=1, opt=64, max=128))
    folder = export_triton(bundle, tmp_path, TritonOptions(target=target))
    config, _ = parse(folder)
    images = read_answers(bundle, read_manifest(bundle)).images
    found = warmups(config)
    assert {batch for batch, _ in found} == sizes
    assert [value.input_data_file for _, value in found] == [f"known_answer_{n}" for n in range(len(images))]
    for _, value in found:
        assert (value.data_type, list(value.dims)) == (model_config_pb2.TYPE_UINT8, [32, 32, 3])
        data = (folder / "warmup" / value.input_data_file).read_bytes()
        assert data == images[int(value.input_data_file.rpartition("_")[2])].tobytes()


def test_without_known_answers_zeros_warm_up(bundle, tmp_path):
    folder = export_triton(change(bundle, known_answers=None), tmp_path)
    assert not (folder / "warmup").exists()
    assert all(value.zero_data for _, value in warmups(parse(folder)[0]))


# --- the queue -------------------------------------------------------------------------------------------------------


def test_the_queue_is_bounded_and_requests_end(bundle, tmp_path):
    config, text = parse(export_triton(bundle, tmp_path, TritonOptions(queue_size=5, queue_timeout=250)))
    policy = config.dynamic_batching.default_queue_policy
    assert (policy.max_queue_size, policy.default_timeout_microseconds) == (5, 250_000)
    assert policy.timeout_action == model_config_pb2.ModelQueuePolicy.REJECT and policy.allow_timeout_override
    assert "preferred" not in text
    config, _ = parse(export_triton(bundle, tmp_path / "b", TritonOptions(queue_size=0, queue_timeout=0)))
    assert not config.dynamic_batching.HasField("default_queue_policy")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"version": 0}, "version: expected a number from 1, found 0"),
        ({"queue_size": -1}, "expected a queue size and a time-out from 0, found -1 and 10000"),
        ({"queue_timeout": -2}, "found None and -2"),
        ({"decoders": 0}, "decoders: expected at least 1"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(InputError, match=message):
        TritonOptions(**options)


# --- ONNX Runtime ----------------------------------------------------------------------------------------------------


def test_onnxruntime_computes_int8_as_it_is_written(shipped, tmp_path):
    """Level 2 of the configuration is ORT_DISABLE_ALL; with the defaults the same graph gives something else."""
    import onnxruntime

    folder = export_triton(shipped("int8"), tmp_path, TritonOptions(target="onnxruntime"))
    assert parse(folder)[0].optimization.graph.level == 2
    manifest = read_manifest(shipped("int8"))
    answers = read_answers(shipped("int8"), manifest)
    levels = onnxruntime.GraphOptimizationLevel
    missed = {}
    for level in (levels.ORT_DISABLE_ALL, levels.ORT_ENABLE_ALL):
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = level
        session = onnxruntime.InferenceSession(folder / "1/model.onnx", options, providers=["CPUExecutionProvider"])

        def infer(images, session=session):
            from infer.backends.base import Outputs

            return Outputs(*session.run(["logits", "scores", "classes"], {"images": np.ascontiguousarray(images)}))

        missed[level] = measure(infer, answers, 4, manifest.known_answers.floor_db).missed
    assert missed == {levels.ORT_DISABLE_ALL: False, levels.ORT_ENABLE_ALL: True}


def test_floating_point_keeps_the_optimisations(bundle, tmp_path):
    assert not parse(export_triton(bundle, tmp_path, TritonOptions(target="onnxruntime")))[0].optimization.graph.level


def test_bf16_is_refused_for_onnxruntime(shipped, tmp_path):
    with pytest.raises(BundleError, match="ONNX Runtime has no bf16 convolution"):
        export_triton(shipped("bf16"), tmp_path, TritonOptions(target="onnxruntime"))
    assert list(tmp_path.iterdir()) == []


def test_a_plan_that_triton_could_not_batch(bundle, tmp_path):
    with_plan(bundle, "tensorrt_rtx")
    with pytest.raises(InputError, match="TensorRT-RTX plans cannot be loaded by Triton"):
        TritonOptions(target="tensorrt_rtx")
