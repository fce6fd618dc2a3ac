"""What the v2 protocol says about a server and its models, as JSON values; HTTP and gRPC send the same."""

from __future__ import annotations

import time
from typing import Any

from infer import __version__
from infer.bundle.tensors import CLASSES, INPUT, LOGITS, SCORES
from infer.serve.limits import Limits
from infer.serve.model import Model
from infer.serve.options import ENCODED
from infer.serve.service import NAME
from infer.serve.tensors import DATATYPES

EXTENSIONS = ("binary_tensor_data", "classification", "model_configuration", "model_repository", "statistics")


def server_metadata() -> dict[str, Any]:
    """Name, version and extensions."""
    return {"name": NAME, "version": __version__, "extensions": list(EXTENSIONS)}


def model_metadata(model: Model, name: str, versions: list[str]) -> dict[str, Any]:
    """Inputs and outputs; under ``NAME.encoded`` the input is encoded images."""
    shape = model.shape
    image = (
        {"name": INPUT, "datatype": "BYTES", "shape": [-1]}
        if name.endswith(ENCODED)
        else {"name": INPUT, "datatype": "UINT8", "shape": [-1, shape.side, shape.side, 3]}
    )
    outputs = [
        {"name": tensor, "datatype": DATATYPES[tensor], "shape": [-1, count]}
        for tensor, count in ((LOGITS, shape.classes), (SCORES, shape.best), (CLASSES, shape.best))
    ]
    return {
        "name": name,
        "versions": versions,
        "platform": f"iresnet_{model.runner.target}",
        "inputs": [image],
        "outputs": outputs,
    }


def model_config(model: Model, name: str, limits: Limits, max_delay: float) -> dict[str, Any]:
    """Fields of Triton's ``ModelConfig``. The largest batch is that of a request, which is split for the device."""
    shape, backend = model.shape, model.runner.backend
    encoded = name.endswith(ENCODED)
    image: dict[str, Any] = (
        {"name": INPUT, "data_type": "TYPE_STRING", "dims": [1], "reshape": {"shape": []}}
        if encoded
        else {"name": INPUT, "data_type": "TYPE_UINT8", "format": "FORMAT_NHWC", "dims": [shape.side, shape.side, 3]}
    )
    kinds = {"FP32": "TYPE_FP32", "INT32": "TYPE_INT32"}
    outputs = [
        {"name": tensor, "data_type": kinds[DATATYPES[tensor]], "dims": [count]}
        for tensor, count in ((LOGITS, shape.classes), (SCORES, shape.best), (CLASSES, shape.best))
    ]
    gpu = backend.on_device is not None
    return {
        "name": name,
        "platform": f"iresnet_{model.runner.target}",
        "backend": NAME,
        "max_batch_size": limits.max_images,
        "input": [image],
        "output": outputs,
        "instance_group": [{"count": backend.in_flight, "kind": "KIND_GPU" if gpu else "KIND_CPU"}],
        "dynamic_batching": {
            "preferred_batch_size": [backend.max_batch],
            "max_queue_delay_microseconds": round(1e6 * max_delay),
        },
        "parameters": {
            "precision": {"string_value": model.runner.manifest.precision},
            "trained": {"string_value": str(model.runner.manifest.model.trained).lower()},
        },
    }


def model_statistics(model: Model) -> dict[str, Any]:
    """Triton's statistics: requests, images, and how many batches had which size. Times in nanoseconds."""
    totals = model.metrics.totals
    batches = [(size, one.count, one.seconds) for size, one in sorted(totals.sizes.items())]

    def span(count: int, seconds: float) -> dict[str, int]:
        return {"count": count, "ns": round(1e9 * seconds)}

    return {
        "name": model.name,
        "version": model.version,
        "last_inference": round(1e3 * totals.last),
        "inference_count": totals.images,
        "execution_count": sum(count for _, count, _ in batches),
        "inference_stats": {
            "success": span(totals.requests, totals.seconds),
            "fail": span(totals.failed, totals.failed_seconds),
            "queue": span(totals.requests, totals.wait),
            "compute_input": span(totals.requests, totals.decode),
            "compute_infer": span(sum(count for _, count, _ in batches), sum(seconds for *_, seconds in batches)),
            "compute_output": span(0, 0.0),
        },
        "batch_stats": [
            {
                "batch_size": size,
                "compute_input": span(0, 0.0),
                "compute_infer": span(count, seconds),
                "compute_output": span(0, 0.0),
            }
            for size, count, seconds in batches
        ],
    }


def note_request(model: Model, ok: bool, seconds: float, wait: float, decode: float) -> None:
    """Add a request to the statistics of its model; in the event loop."""
    totals = model.metrics.totals
    if ok:
        totals.requests += 1
        totals.seconds += seconds
        totals.wait += wait
        totals.decode += decode
        totals.last = time.time()
    else:
        totals.failed += 1
        totals.failed_seconds += seconds
