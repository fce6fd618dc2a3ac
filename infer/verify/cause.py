"""What lost accuracy in a bundle that was measured: its calibration, its graph, or the kernels of this machine.

Some of the images go through the graph as it is written, in ONNX Runtime, and through the plan. What the graph lacks
against FP32 was lost before any kernel ran; what the plan lacks against its graph was lost by the kernels.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from infer.backends.onnxruntime import OnnxRuntimeBackend
from infer.bundle import GRAPH, Manifest, check_files
from infer.checks.blame import Blame, Comparison, blame, compare
from infer.runner import Runner

IMAGES = 64
_BATCH = 16


def find_cause(runner: Runner, fp32: Runner, images: NDArray[np.uint8]) -> Blame | None:
    """Say where ``runner`` loses what it lacks against ``fp32``; None for fewer than two images.

    Args:
        runner: of the bundle.
        fp32: of the same weights.
        images: uint8 ``[N, crop, crop, 3]``, pre-processed.

    Raises:
        TargetUnavailableError: ONNX Runtime is not installed, or cannot run the graph (it has no bfloat16).
        BundleError: the graph changed since the build.
    """
    if len(images) < 2:
        return None
    folder, manifest = runner.folder, runner.manifest
    check_files(folder, [manifest.graph])
    engine = OnnxRuntimeBackend(folder / GRAPH, optimise=False)
    try:
        written = np.concatenate(
            [engine.infer(images[at : at + _BATCH]).logits for at in range(0, len(images), _BATCH)]
        )
    finally:
        engine.close()
    graph = compare(written, fp32.infer(images).logits, _floor(manifest, "graph"))
    plan = compare(runner.infer(images).logits, written, _floor(manifest, runner.target))
    kernels = runner.backend.instruction_set or runner.backend.device
    at_build = next((check.sqnr_db for check in manifest.checks if check.target == "graph"), None)
    found = blame(manifest.precision, graph, plan, at_build=at_build, target=runner.target, kernels=kernels)
    return found or _larger(manifest.precision, graph, plan, f"{runner.target} ({kernels})")


def _larger(precision: str, graph: Comparison, plan: Comparison, target: str) -> Blame:
    """Which of two losses, neither of them below its floor, is the larger."""
    found = (
        f"on {graph.images} of the images the {precision} graph as it is written keeps {_kept(graph)} of FP32, and "
        f"{target} {_kept(plan)} of that graph"
    )
    if _decibels(plan) < _decibels(graph):
        return Blame("kernels", f"kernels: {found}. See whether another --target loses it too")
    advice = (
        "Look at --layers-limit 64 and at the calibration data, or build PRECISION=auto"
        if precision in ("int8", "auto", "fp8")
        else "Build a higher precision"
    )
    return Blame("graph", f"graph: {found}. {advice}")


def _floor(manifest: Manifest, target: str) -> float:
    """What was asked for at the build; of a plan that could not be run there, what its known answers ask for."""
    asked = next((check.floor_db for check in manifest.checks if check.target == target), None)
    if asked is None and target != "graph" and manifest.known_answers is not None:
        asked = manifest.known_answers.floor_db
    return -math.inf if asked is None else asked


def _decibels(found: Comparison) -> float:
    return math.inf if found.sqnr_db is None else found.sqnr_db


def _kept(found: Comparison) -> str:
    return "all" if found.sqnr_db is None else f"{found.sqnr_db:.1f} dB"
