"""Choosing and opening the backend of a bundle."""

from __future__ import annotations

import logging
from pathlib import Path

from infer.backends.base import HOST_CODE_VARIABLE, Backend, GpuOptions, PlanCheck, PlanChecks
from infer.bundle import GRAPH, Manifest, Plan, check_files, find_plan
from infer.choices import TARGETS as TARGETS
from infer.errors import BundleError, InputError, KnownAnswersError, TargetUnavailableError

REFERENCE = "onnxruntime"
_LOG = logging.getLogger(__name__)


def why_unavailable(target: str, device: int = 0) -> str | None:
    """None when ``target`` runs on this machine (on GPU ``device``), else one sentence that says what is missing.

    Raises:
        InputError: unknown target.
    """
    if target == "openvino":
        from infer.backends import openvino

        return openvino.why_unavailable()
    if target == REFERENCE:
        from infer.backends import onnxruntime

        return onnxruntime.why_unavailable()
    if target in TARGETS:
        from infer.backends import tensorrt

        return tensorrt.why_unavailable(target, device)
    raise InputError(f"unknown target {target!r}; known: {', '.join((*TARGETS, REFERENCE))}")


def open_backend(
    folder: Path,
    manifest: Manifest,
    test: PlanChecks,
    target: str | None = None,
    threads: int | None = None,
    gpu: GpuOptions | None = None,
) -> Backend:
    """The backend of ``target``, or of the fastest target of the bundle that runs here and gives the known answers.

    Args:
        folder, manifest, target, threads, gpu: see :func:`infer.open_bundle`.
        test: asked before the first answer.

    Raises:
        BundleError: a file is damaged or ``target`` was not built.
        TargetUnavailableError: ``target``, or every target of the bundle, cannot run here.
        KnownAnswersError: ``target``, or every target that runs here, computes something wrong.
        InputError: no threads, or an unknown ``target``.
    """
    gpu = gpu or GpuOptions()
    if threads is not None and threads < 1:
        raise InputError(f"threads: expected at least 1, found {threads}")
    if target is not None:
        if (missing := why_unavailable(target, gpu.device)) is not None:
            raise TargetUnavailableError(f"{target} cannot run here: {missing}")
        return _open(folder, manifest, target, threads, gpu, test)
    reasons = []
    failed = False
    for plan in sorted(manifest.plans, key=lambda plan: TARGETS.index(plan.target) if plan.target in TARGETS else 99):
        missing = why_unavailable(plan.target, gpu.device) if plan.target in TARGETS else "unknown to this version"
        if missing is None:
            try:
                return _open(folder, manifest, plan.target, threads, gpu, test)
            except TargetUnavailableError as error:  # the library and a GPU are there: this has to be told
                missing = str(error)
                test.notes.append(f"{plan.target} is not used: {error}")
                _LOG.warning("%s is not used: %s", plan.target, error)
            except KnownAnswersError as error:
                missing, failed = str(error), True
                test.notes.append(f"{plan.target} is not used: {error}")
                _LOG.warning("%s is not used: %s", plan.target, error)
        reasons.append(f"{plan.target}: {missing}")
    listing = "; ".join(reasons) or "it has none"
    if failed:
        raise KnownAnswersError(f"no plan of {folder} runs right here ({listing})")
    raise TargetUnavailableError(f"no plan of {folder} runs here ({listing})")


def _open(
    folder: Path, manifest: Manifest, target: str, threads: int | None, gpu: GpuOptions, test: PlanChecks
) -> Backend:
    if target == REFERENCE:
        from infer.backends.onnxruntime import OnnxRuntimeBackend

        check_files(folder, [manifest.graph])
        # Its optimiser computes FP8 graphs wrongly and may fuse integer layers with other roundings.
        optimise = manifest.precision not in ("int8", "auto", "fp8")
        return OnnxRuntimeBackend(folder / GRAPH, threads, optimise=optimise, test=test.of(REFERENCE, [manifest.graph]))
    plan = find_plan(folder, manifest, target)
    check_files(folder, plan.files)
    if not plan.files:
        raise BundleError(f"{folder}: the plan for {target} lists no file; build the bundle again")
    path = folder / plan.files[0].file
    if target == "openvino":
        from infer.backends.openvino import CACHE_FOLDER, OpenVINOBackend

        if manifest.precision in ("int8", "auto") and not manifest.pair_safe:
            raise BundleError(
                f"{folder}: its int8 weights were chosen for TensorRT alone and overflow on CPUs without VNNI; build "
                "it again with openvino among the targets"
            )
        return OpenVINOBackend(path, plan.options, folder / CACHE_FOLDER, threads, test.of(target, plan.files))
    return _open_tensorrt(path, manifest, plan, gpu, test.of(target, plan.files))


def _open_tensorrt(path: Path, manifest: Manifest, plan: Plan, gpu: GpuOptions, test: PlanCheck) -> Backend:
    from importlib import import_module

    from infer.backends.cuda.gpus import driver_version, find_gpus
    from infer.backends.plan_fit import RTX, check_plan_fits
    from infer.backends.tensorrt import TensorRTBackend

    device, version = find_gpus()[0][gpu.device], import_module(plan.target).__version__
    check_plan_fits(plan, device, version)
    if plan.version_compatible and plan.target != RTX and not gpu.host_code_allowed:
        raise BundleError(
            f"{path}: a version-compatible plan holds code that runs on this machine. If you trust this bundle, set "
            f"{HOST_CODE_VARIABLE}=1, or pass gpu=GpuOptions(host_code=True)"
        )
    logits, scores = manifest.outputs[0].shape, manifest.outputs[1].shape
    backend = TensorRTBackend(
        path,
        plan.target,
        input_shape=manifest.inputs[0].shape[1:],
        num_classes=logits[1],
        top_k=scores[1],
        runtime_cache=path.with_suffix(".jit") if plan.target == RTX else None,
        options=gpu,
    )
    machine = {
        "device": f"{device.name}, {device.compute_capability}",
        "driver": driver_version(),
        "library": f"{plan.target} {version}",
        "options": str(sorted(backend.flags.items())),
    }
    try:
        for batch in sorted({1, backend.max_batch}):
            test(batch, backend.infer, machine)
    except BaseException:
        backend.close()
        raise
    return backend
