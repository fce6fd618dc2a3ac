"""A model of a Triton Inference Server repository.

    REPOSITORY/NAME/config.pbtxt
    REPOSITORY/NAME/labels.txt
    REPOSITORY/NAME/1/model.plan           tensorrt; model.xml and .bin for openvino, model.onnx for onnxruntime

Triton's classification extension labels an element by its place in the tensor, so the labels belong to ``logits``
(https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_classification.md); ``classes``
holds the indices themselves.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from infer.bundle import FileEntry, Manifest, Plan, check_files, find_plan, read_labels, read_manifest
from infer.errors import BundleError, InputError, UntrainedError
from infer.files import replacing_folder

CONFIG = "config.pbtxt"
TARGETS = ("tensorrt", "openvino", "onnxruntime")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]*")
_TYPES = {"uint8": "TYPE_UINT8", "float32": "TYPE_FP32", "int32": "TYPE_INT32"}
# What OpenVINO compiles for here too; its backend pads smaller batches to this size.
_OPENVINO_BATCH = 8


@dataclass(frozen=True)
class TritonOptions:
    """How the model is served.

    Attributes:
        name: of the model; None for ``<model>-<precision>``.
        target: ``tensorrt``, ``openvino`` or ``onnxruntime``; None for the first of them that the bundle has.
        instances: copies that run at once on each GPU, or on the CPU; two overlap copies with the network.
        queue_delay: microseconds that the dynamic batcher may wait for a preferred batch.
        link: hard links in place of copies.
        allow_untrained: export although the weights are random.
    """

    name: str | None = None
    target: str | None = None
    instances: int = 2
    queue_delay: int = 100
    link: bool = False
    allow_untrained: bool = False

    def __post_init__(self) -> None:
        if self.name is not None and not _NAME.fullmatch(self.name):
            raise InputError(f"name: expected letters, digits, '.', '-' and '_', found {self.name!r}")
        if self.target is not None and self.target not in TARGETS:
            found = "TensorRT-RTX plans cannot be loaded by Triton; " if self.target == "tensorrt_rtx" else ""
            raise InputError(f"target: {found}expected one of {', '.join(TARGETS)}, found {self.target!r}")
        if self.instances < 1 or self.queue_delay < 0:
            raise InputError(
                f"expected at least 1 instance and no negative delay, found {self.instances} and {self.queue_delay}"
            )


def export_triton(bundle: Path, repository: Path, options: TritonOptions | None = None) -> Path:
    """Add the bundle to a model repository, or replace the model of that name. The model appears whole or not at all.

    Returns:
        Folder of the model.

    Raises:
        BundleError: the bundle is damaged or lacks the target.
        UntrainedError: random weights, without ``allow_untrained``.
        InputError: an option cannot be used, or the folder in its place is no Triton model.
    """
    options = options or TritonOptions()
    manifest = read_manifest(bundle)
    if not manifest.model.trained and not options.allow_untrained:
        raise UntrainedError(f"{bundle} was built from random weights; build it with trained ones or --allow-untrained")
    labels = read_labels(bundle, manifest)
    target, plan, files = _choose(bundle, manifest, options.target)
    check_files(bundle, files)
    name = options.name or f"{manifest.model.name}-{manifest.precision}"
    folder = repository / name
    if folder.exists() and not (folder / CONFIG).is_file():
        raise InputError(f"{folder} is no Triton model (no {CONFIG}) and would be replaced; pass another name")
    with replacing_folder(folder) as work:
        (work / "1").mkdir()
        for entry in files:
            put(bundle / entry.file, work / "1" / f"model{Path(entry.file).suffix}", link=options.link)
        (work / "labels.txt").write_text("\n".join(labels) + "\n", encoding="utf-8")
        (work / CONFIG).write_text(config(manifest, name, target, plan, options), encoding="utf-8")
    return folder


def put(source: Path, destination: Path, *, link: bool) -> None:
    """Copy a file, or make a hard link.

    Raises:
        InputError: the link cannot be made, as between file systems.
    """
    if not link:
        shutil.copyfile(source, destination)
        return
    try:
        os.link(source, destination)
    except OSError as error:
        raise InputError(f"cannot link {destination} to {source} ({error.strerror}); export without --link") from error


def _choose(bundle: Path, manifest: Manifest, target: str | None) -> tuple[str, Plan | None, list[FileEntry]]:
    """Target, its plan (None for the graph itself) and the files to serve."""
    if target is None:
        built = [plan.target for plan in manifest.plans]
        target = next((name for name in TARGETS if name in built), TARGETS[-1])
    if target == "onnxruntime":
        return target, None, [manifest.graph]
    plan = find_plan(bundle, manifest, target)
    if target == "tensorrt" and manifest.batch.min > 1:
        raise BundleError(
            f"{bundle}: Triton sends batches from 1, the plan takes them from {manifest.batch.min}; "
            "build it with BATCH=1,OPT,MAX"
        )
    return target, plan, plan.files


def config(manifest: Manifest, name: str, target: str, plan: Plan | None, options: TritonOptions) -> str:
    """Text of ``config.pbtxt``; fields as in Triton's ``model_config.proto``."""
    batch = manifest.batch
    largest = _OPENVINO_BATCH if target == "openvino" else batch.max
    preferred = [_OPENVINO_BATCH] if target == "openvino" else sorted({batch.opt, batch.max})
    kind = "KIND_GPU" if target == "tensorrt" else "KIND_CPU" if target == "openvino" else "KIND_AUTO"
    backend = {"tensorrt": 'platform: "tensorrt_plan"', "openvino": 'backend: "openvino"'}
    parameters = {
        "preprocessing": json.dumps(manifest.preprocessing.to_json()),
        "precision": manifest.precision,
        "trained": str(manifest.model.trained).lower(),
        "weights_sha256": manifest.model.weights_sha256,
    }
    if target == "openvino" and plan is not None:
        parameters |= {"ENABLE_BATCH_PADDING": "YES", "PERFORMANCE_HINT": "THROUGHPUT"}
        if plan.options.get("INFERENCE_PRECISION_HINT") == "bf16":
            parameters["HINT_BF16"] = "YES"
    inputs = [_tensor(t.name, t.dtype, t.shape[1:], "format: FORMAT_NHWC") for t in manifest.inputs]
    outputs = [
        _tensor(t.name, t.dtype, t.shape[1:], 'label_filename: "labels.txt"' if t.name == "logits" else "")
        for t in manifest.outputs
    ]
    return "\n".join(
        [
            *(f"# {line}" for line in _remarks(manifest, target, plan)),
            f"name: {quote(name)}",
            backend.get(target, 'platform: "onnxruntime_onnx"'),
            f"max_batch_size: {largest}",
            *_list("input", inputs),
            *_list("output", outputs),
            f"instance_group [ {{ count: {options.instances} kind: {kind} }} ]",
            "dynamic_batching {",
            f"  preferred_batch_size: [ {', '.join(map(str, preferred))} ]",
            f"  max_queue_delay_microseconds: {options.queue_delay}",
            "}",
            *(
                f"parameters {{ key: {quote(key)} value {{ string_value: {quote(value)} }} }}"
                for key, value in parameters.items()
            ),
            "",
        ]
    )


def _remarks(manifest: Manifest, target: str, plan: Plan | None) -> list[str]:
    spec, crop = manifest.preprocessing, manifest.preprocessing.crop
    untrained = "" if manifest.model.trained else ", UNTRAINED: random weights"
    lines = [
        f"{manifest.model.name}, {manifest.precision}{untrained}",
        f"Clients send uint8 RGB: short side to {spec.resize} ({spec.interpolation}, antialiased), then the",
        f"centre {crop} x {crop}; see the parameter preprocessing.",
    ]
    if target == "tensorrt" and plan is not None:
        where = plan.gpu or "the GPU it was built on"
        if plan.hardware_compatible:
            where = "any GPU from compute capability 8.0"
        later = " or later of the same major version" if plan.version_compatible else ""
        lines.append(f"The plan needs a Triton release with TensorRT {plan.version}{later}, and {where}.")
    return lines


def _tensor(name: str, dtype: str, dims: Sequence[int], extra: str) -> str:
    fields = f"name: {quote(name)} data_type: {_TYPES[dtype]} dims: [ {', '.join(map(str, dims))} ] {extra}".rstrip()
    return f"  {{ {fields} }}"


def _list(field: str, items: list[str]) -> list[str]:
    return [f"{field} [", ",\n".join(items), "]"]


def quote(text: str) -> str:
    """A string of protobuf's text format."""
    return json.dumps(text, ensure_ascii=False)
