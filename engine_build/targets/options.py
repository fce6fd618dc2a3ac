"""Settings held against the targets they are for, before any work is done."""

from __future__ import annotations

from collections.abc import Sequence

from engine_build.targets import BuildSettings
from engine_build.targets.tensorrt.capabilities import OLDEST_FP8, OLDEST_INT8, choose, known_capabilities
from engine_build.targets.tensorrt.module import RTX, TARGETS, load_module
from infer.errors import InputError


def check_options(targets: Sequence[str], precision: str, settings: BuildSettings) -> None:
    """Refuse what has no effect on any of ``targets``, and GPUs that TensorRT-RTX cannot build for.

    Args:
        targets: that will be built.
        precision: of the graph.
        settings: of the user.

    Raises:
        InputError: says which option, and what to do.
    """
    built = ", ".join(targets)
    if settings.hardware_compatible and "tensorrt" not in targets:
        raise InputError(
            f"hardware compatible: expected the target tensorrt, found {built}. A tensorrt_rtx plan runs on every GPU "
            "of its compute capabilities; leave the option out"
        )
    for label, given in (
        ("version compatible", settings.version_compatible),
        ("workspace", settings.workspace is not None),
        ("optimization level", settings.optimization_level is not None),
        ("no TF32", not settings.tf32),
        ("auxiliary streams", settings.max_aux_streams is not None),
        ("averaged timing", settings.avg_timing_iterations is not None),
    ):
        if given and not set(targets) & set(TARGETS):
            raise InputError(f"{label}: expected a target of {', '.join(TARGETS)}, found {built}; leave the option out")
    if settings.compute_capabilities is None:
        return
    if RTX not in targets:
        raise InputError(
            f"compute capabilities: expected the target {RTX}, found {built}. A tensorrt plan is for the GPU it is "
            "built on; leave the option out"
        )
    module = load_module(RTX)
    chosen, _ = choose(known_capabilities(module), settings.compute_capabilities, f"{RTX} {module.__version__}")
    oldest = {"int8": OLDEST_INT8, "auto": OLDEST_INT8, "fp8": OLDEST_FP8}.get(precision, 0)
    if too_old := [text for text in chosen if text != "current" and int(text.replace(".", "")) < oldest]:
        raise InputError(
            f"compute capabilities: {precision} needs {oldest // 10}.{oldest % 10} or newer, found "
            f"{', '.join(too_old)}; leave them out"
        )
