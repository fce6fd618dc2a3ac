"""``config.pbtxt`` of a bundle's model; fields as in Triton's ``model_config.proto``.

Versions of one model share this file, so what it says about pixels and tensors has to fit each of them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from infer.bundle import Manifest, Plan
from infer.choices import Precision

WARMUP_FOLDER = "warmup"
PREPROCESSING = "preprocessing"
_TYPES = {"uint8": "TYPE_UINT8", "float32": "TYPE_FP32", "int32": "TYPE_INT32"}
# What OpenVINO compiles for here too; its backend pads smaller batches to this size.
_OPENVINO_BATCH = 8
# Graphs with Q/DQ: ONNX Runtime's rewriting makes other numbers of them, at every level. Triton's backend knows no
# session.disable_quant_qdq, but its level 2 is ORT_DISABLE_ALL, which computes each node as it is written
# (src/onnxruntime.cc of triton-inference-server/onnxruntime_backend).
_AS_WRITTEN: tuple[Precision, ...] = ("int8", "fp8", "auto")
_DISABLE_ALL = 2


@dataclass(frozen=True)
class Serving:
    """How a model is scheduled.

    Attributes:
        instances: copies that run at once on each GPU, or on the CPU.
        queue_delay: microseconds that the dynamic batcher waits for a larger batch.
        queue_size: requests that wait; more are refused. 0: no limit.
        queue_timeout: milliseconds after which a waiting request is refused. 0: never.
    """

    instances: int
    queue_delay: int
    queue_size: int
    queue_timeout: int


def largest_batch(manifest: Manifest, target: str) -> int:
    """``max_batch_size`` of the model."""
    return _OPENVINO_BATCH if target == "openvino" else manifest.batch.max


def warmup_batches(manifest: Manifest, target: str, answers: int) -> list[int]:
    """Batch sizes of the warm-up samples: one for each known answer, and every size that kernels are chosen for.

    Args:
        manifest: of the bundle.
        target: that is served.
        answers: known answers there are; 0 gives the sizes alone.
    """
    largest = largest_batch(manifest, target)
    sizes = {1, largest} if target == "openvino" else {1, manifest.batch.opt}
    if target == "tensorrt":
        sizes |= {largest}
    return [*[1] * (answers - len(sizes)), *sorted(sizes)]


def config(manifest: Manifest, name: str, target: str, plan: Plan | None, serving: Serving, *, answers: int) -> str:
    """Text of ``config.pbtxt``.

    Args:
        manifest: of the bundle.
        name: of the model.
        target: ``tensorrt``, ``openvino`` or ``onnxruntime``.
        plan: of the target; None for ``onnxruntime``, which reads the graph.
        serving: how it is scheduled.
        answers: known answers that lie in :data:`WARMUP_FOLDER` as ``known_answer_0`` and so on; 0 warms up with zeros.
    """
    kind = "KIND_GPU" if target == "tensorrt" else "KIND_CPU" if target == "openvino" else "KIND_AUTO"
    backend = {"tensorrt": 'platform: "tensorrt_plan"', "openvino": 'backend: "openvino"'}
    parameters = {
        PREPROCESSING: preprocessing(manifest),
        "precision": manifest.precision,
        "trained": str(manifest.model.trained).lower(),
        "weights_sha256": manifest.model.weights_sha256,
    }
    if target == "openvino" and plan is not None:
        parameters |= {"ENABLE_BATCH_PADDING": "YES", "PERFORMANCE_HINT": "THROUGHPUT"}
        if plan.options.get("INFERENCE_PRECISION_HINT") == "bf16":
            parameters["HINT_BF16"] = "YES"
    as_written = target == "onnxruntime" and manifest.precision in _AS_WRITTEN
    return "\n".join(
        [
            *(f"# {line}" for line in _remarks(manifest, target, plan)),
            f"name: {quote(name)}",
            backend.get(target, 'platform: "onnxruntime_onnx"'),
            f"max_batch_size: {largest_batch(manifest, target)}",
            *inputs(manifest),
            *outputs(manifest),
            f"instance_group [ {{ count: {serving.instances} kind: {kind} }} ]",
            *([f"optimization {{ graph {{ level: {_DISABLE_ALL} }} }}"] if as_written else []),
            *_batching(serving),
            *_warmup(manifest, target, answers),
            *(parameter(key, value) for key, value in parameters.items()),
            "",
        ]
    )


def preprocessing(manifest: Manifest) -> str:
    """What clients and the decoder have to do, as JSON."""
    return json.dumps(manifest.preprocessing.to_json())


def inputs(manifest: Manifest) -> list[str]:
    """The ``input`` field."""
    return _list("input", [_tensor(t.name, t.dtype, t.shape[1:], "format: FORMAT_NHWC") for t in manifest.inputs])


def outputs(manifest: Manifest) -> list[str]:
    """The ``output`` field, the logits with labels."""
    extra = {"logits": 'label_filename: "labels.txt"'}
    return _list("output", [_tensor(t.name, t.dtype, t.shape[1:], extra.get(t.name, "")) for t in manifest.outputs])


def parameter(key: str, value: str) -> str:
    """An entry of ``parameters``."""
    return f"parameters {{ key: {quote(key)} value {{ string_value: {quote(value)} }} }}"


def quote(text: str) -> str:
    """A string of protobuf's text format."""
    return json.dumps(text, ensure_ascii=False)


def _batching(serving: Serving) -> list[str]:
    """No preferred sizes: the plans have one profile, for which Triton's documentation advises against them.

    https://github.com/triton-inference-server/server/blob/main/docs/user_guide/batcher.md
    """
    policy = []
    if serving.queue_size:
        policy.append(f"max_queue_size: {serving.queue_size}")
    if serving.queue_timeout:
        policy += [
            "timeout_action: REJECT",
            f"default_timeout_microseconds: {serving.queue_timeout * 1000}",
            "allow_timeout_override: true",
        ]
    return [
        "dynamic_batching {",
        f"  max_queue_delay_microseconds: {serving.queue_delay}",
        *([f"  default_queue_policy {{ {' '.join(policy)} }}"] if policy else []),
        "}",
    ]


def _warmup(manifest: Manifest, target: str, answers: int) -> list[str]:
    """A request of batch size n is one picture n times; the known answers take turns."""
    [image] = manifest.inputs
    dims = ", ".join(map(str, image.shape[1:]))
    samples = []
    for number, batch in enumerate(warmup_batches(manifest, target, answers)):
        data = f"input_data_file: {quote(f'known_answer_{number % answers}')}" if answers else "zero_data: true"
        value = f"data_type: {_TYPES[image.dtype]} dims: [ {dims} ] {data}"
        entry = f"inputs {{ key: {quote(image.name)} value {{ {value} }} }}"
        samples.append(f"  {{ name: {quote(f'{number}, batch {batch}')} batch_size: {batch} {entry} }}")
    return _list("model_warmup", samples)


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
