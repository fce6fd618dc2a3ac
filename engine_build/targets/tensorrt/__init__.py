"""Plans for TensorRT 10, TensorRT 11 and TensorRT-RTX from one builder.

The three share one way to decide precision: a strongly typed network, in which the ONNX graph gives the type of every
tensor. So there is one path, with the module chosen at run time and its constants taken by name, never by number:
some changed their values. What differs: full TensorRT builds for the GPU it runs on and needs one; TensorRT-RTX
builds anywhere, for a list of compute capabilities, and compiles its kernels on the user's GPU.
"""

from __future__ import annotations

import hashlib
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine_build.targets.audit import PlanAudit
from engine_build.targets.onnx_nodes import mac_nodes, uses_fp8
from engine_build.targets.tensorrt.capabilities import OLDEST_FP8, OLDEST_INT8, choose, known_capabilities
from engine_build.targets.tensorrt.layers import assign_nodes, parse_layers
from engine_build.targets.tensorrt.logging import BuildLog, parser_errors
from engine_build.targets.tensorrt.module import RTX, TARGETS, load_module, why_unavailable
from engine_build.targets.tensorrt.progress import Report, interruptible, make_monitor, progress_bar
from engine_build.targets.tensorrt.request import BuiltPlan, PlanRequest
from engine_build.targets.tensorrt.timing_cache import TimingCache
from infer.backends.cuda.gpus import find_gpus
from infer.backends.cuda.logger import process_logger
from infer.bundle import BatchProfile
from infer.errors import BuildError, InputError, TargetUnavailableError
from infer.files import replacing

if TYPE_CHECKING:
    from rich.progress import Progress

__all__ = ["TARGETS", "BatchProfile", "BuiltPlan", "PlanRequest", "build_plan", "why_unavailable"]

_ADVICE = (
    (r"workspace limit", "Give it more workspace, or none for all the memory there is"),
    (r"Turing|SM75", "Leave compute capability 7.5 out"),
    (r"fp8", "fp8 needs compute capability 8.9 or newer: leave older ones out"),
    (r"has type UInt8 but must", "Cast the uint8 input to a floating-point type before anything else"),
    (r"[Oo]ut ?[Oo]f ?[Mm]emory", "Free memory on the GPU, or lower the largest batch or the workspace"),
)


def build_plan(
    target: str,
    request: PlanRequest,
    progress: bool | Progress | None = None,
    gate: Callable[[PlanAudit], None] | None = None,
) -> BuiltPlan:
    """Build one plan and audit it.

    Args:
        target: one of :data:`TARGETS`.
        request: what to build.
        progress: a rich Progress to draw in, True or False; None draws a bar where standard error is a terminal.
        gate: called with the audit before the plan is written; what it raises prevents the plan.

    Raises:
        InputError: the request does not fit the target or the graph.
        TargetUnavailableError: ``target`` cannot be built here.
        BuildError: TensorRT refused the graph or failed; one message with its errors and the nodes they name.
        KeyboardInterrupt: Ctrl-C, after TensorRT has stopped. No file is left.
    """
    missing = why_unavailable(target)
    if missing:
        raise TargetUnavailableError(missing)
    _check(target, request)
    started = time.perf_counter()
    graph = _read_graph(request.graph)
    nodes, fp8 = mac_nodes(graph), uses_fp8(graph)
    del graph
    with interruptible() as cancelled, progress_bar(progress, f"{target} plan") as report:
        build = _Build(target, request)
        plan = build.run(fp8, report, cancelled)
    audit = build.audit(plan, nodes)
    if gate is not None:
        gate(audit)
    try:
        digest = _write(request.plan, memoryview(plan))
    except OSError as error:
        raise BuildError(f"the plan of {plan.nbytes} bytes could not be written to {request.plan}: {error}") from error
    gpu = None if target == RTX else find_gpus()[0][0]
    return BuiltPlan(
        target=target,
        file=request.plan,
        size_bytes=audit.engine_bytes,
        sha256=digest,
        version=build.version,
        gpu=gpu,
        compute_capabilities=(gpu.compute_capability,) if gpu else build.capabilities,
        seconds=time.perf_counter() - started,
        audit=audit,
        notes=tuple(build.notes),
    )


class _Build:
    """One build: the objects of TensorRT and what came of them.

    Attributes:
        capabilities: compute capabilities of a TensorRT-RTX plan.
        notes: for the user.
    """

    def __init__(self, target: str, request: PlanRequest) -> None:
        self._trt = load_module(target)
        self._rtx = target == RTX
        self._request = request
        self._logger = process_logger(self._trt)
        self._log = BuildLog(self._trt, gpu_less=self._rtx)
        self._name = f"{target} {self._trt.__version__}"
        self.version: str = self._trt.__version__
        self.capabilities: tuple[str, ...] = ()
        self._timings = None if request.timing_cache is None or self._rtx else TimingCache(request.timing_cache)
        self.notes: list[str] = []

    def run(self, fp8: bool, report: Report | None, cancelled: threading.Event) -> Any:
        """The serialised plan, an ``IHostMemory``; None if ``cancelled`` was set.

        Raises:
            BuildError, InputError: see :func:`build_plan`.
        """
        with self._logger.listening(self._log):
            return self._run(fp8, report, cancelled)

    def _run(self, fp8: bool, report: Report | None, cancelled: threading.Event) -> Any:
        trt, request = self._trt, self._request
        builder = trt.Builder(self._logger)
        network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        parser = trt.OnnxParser(network, self._logger)
        if not parser.parse_from_file(str(request.graph)):
            raise self._failure("parse", [*parser_errors(parser, gpu_less=self._rtx), *self._log.errors])
        config = builder.create_builder_config()
        self._configure(config)
        if self._rtx:
            self._set_capabilities(config, fp8)
        self._attach_timings(config)
        self._add_profile(builder, network, config)
        monitor = make_monitor(trt, report, cancelled)
        config.progress_monitor = monitor
        plan = None if cancelled.is_set() else builder.build_serialized_network(network, config)
        if monitor.failure is not None:
            raise monitor.failure
        if plan is None and not cancelled.is_set():
            raise self._failure("build", self._log.errors)
        if self._timings is not None and plan is not None and (note := self._timings.save(config, self._log)):
            self.notes.append(note)
        self.notes += self._log.warnings
        return plan

    def audit(self, plan: Any, nodes: dict[str, str]) -> PlanAudit:
        """What the finished ``plan`` runs; ``nodes`` are the convolutions and matrix products of the graph."""
        listings, memory = self._log.listings, self._log.memory
        layers = parse_layers(listings[-1]) if listings else ()
        if not layers:
            self.notes.append("the builder listed no layers: the precisions of the plan are not known")
        return PlanAudit(
            layers=layers,
            node_precisions=assign_nodes(layers, nodes),
            batch=self._request.profile.opt,
            engine_bytes=plan.nbytes,
            weight_bytes=memory.get("weights"),
            activation_bytes=memory.get("activation"),
            scratch_bytes=memory.get("scratch"),
        )

    def _configure(self, config: Any) -> None:
        trt, request = self._trt, self._request
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # for the layer listing
        if not request.tf32:
            config.clear_flag(trt.BuilderFlag.TF32)
        # The runner takes less scratch memory for smaller batches. The default in RTX; unknown before 10.10.
        if not self._rtx and hasattr(trt.PreviewFeature, "RUNTIME_ACTIVATION_RESIZE_10_10"):
            config.set_preview_feature(trt.PreviewFeature.RUNTIME_ACTIVATION_RESIZE_10_10, True)
        if request.version_compatible:
            config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
            if self._rtx:  # which ships no lean runtime to put into the plan
                config.set_flag(trt.BuilderFlag.EXCLUDE_LEAN_RUNTIME)
        if request.hardware_compatible:
            config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
        if request.workspace is not None:
            config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, request.workspace)
        if request.optimization_level is not None:
            config.builder_optimization_level = request.optimization_level
        if request.max_aux_streams is not None:
            config.max_aux_streams = request.max_aux_streams
        if request.avg_timing_iterations is not None:
            config.avg_timing_iterations = request.avg_timing_iterations

    def _set_capabilities(self, config: Any, fp8: bool) -> None:
        """Set the GPUs of a TensorRT-RTX plan. Compute capability 8.6 is the constant ``SM86``."""
        known = known_capabilities(self._trt)
        wanted = self._request.compute_capabilities
        if wanted is None:
            oldest = OLDEST_FP8 if fp8 else OLDEST_INT8
            wanted = tuple(number for number in known if int(number.replace(".", "")) >= oldest)
        chosen, self.capabilities = choose(known, wanted, self._name)
        if chosen == ("current",):
            known["current"] = self._trt.ComputeCapability.CURRENT
        config.num_compute_capabilities = len(chosen)
        for index, number in enumerate(chosen):
            if not config.set_compute_capability(known[number], index):
                raise self._failure(f"set compute capability {number} for", self._log.errors)

    def _attach_timings(self, config: Any) -> None:
        if self._request.timing_cache is not None and self._rtx:
            self.notes.append("the timing cache has no effect: TensorRT-RTX times no kernels when it builds")
        elif self._timings is not None and (note := self._timings.attach(config, self._log)):
            self.notes.append(note)

    def _add_profile(self, builder: Any, network: Any, config: Any) -> None:
        batch = self._request.profile
        sizes = (batch.min, batch.opt, batch.max)
        profile = builder.create_optimization_profile()
        dynamic = False
        for index in range(network.num_inputs):
            tensor = network.get_input(index)
            shape = tuple(tensor.shape)
            if not shape or -1 in shape[1:]:
                raise InputError(
                    f"input {tensor.name!r}: expected a batch dimension followed by fixed ones, found shape "
                    f"{list(shape)}; export the graph with only the first dimension dynamic"
                )
            if shape[0] == -1:
                profile.set_shape(tensor.name, *((size, *shape[1:]) for size in sizes))
                dynamic = True
            elif set(sizes) != {shape[0]}:
                raise InputError(
                    f"input {tensor.name!r} has the fixed batch {shape[0]}: expected the batch profile "
                    f"{shape[0]}/{shape[0]}/{shape[0]}, found {batch}; or export the graph with a dynamic batch"
                )
        if dynamic and config.add_optimization_profile(profile) < 0:
            raise self._failure(f"use the batch profile {batch} for", self._log.errors)

    def _failure(self, action: str, errors: list[str]) -> BuildError:
        shown: list[str] = []
        for error in errors:
            if not any(error in other for other in shown):
                shown.append(error)
        text = "; ".join(shown[:5]) or "it gave no reason"
        if len(shown) > 5:
            text += f"; and {len(shown) - 5} more errors"
        advice = [todo for pattern, todo in _ADVICE if re.search(pattern, text)] or ["--debug shows the whole log"]
        text = text.rstrip(".")
        return BuildError(f"{self._name} could not {action} {self._request.graph.name}: {text}. {advice[0]}")


def _check(target: str, request: PlanRequest) -> None:
    if not request.plan.parent.is_dir():
        raise InputError(f"folder of the plan: expected {request.plan.parent} to exist; create it")
    if target == RTX and request.hardware_compatible:
        raise InputError(f"hardware_compatible is not for {RTX}: list the GPUs as compute capabilities instead")
    if target != RTX and request.compute_capabilities:
        raise InputError(f"compute capabilities are for {RTX}: a {target} plan is for the GPU it is built on")


def _read_graph(file: Path) -> Any:
    import onnx

    if not file.is_file():
        raise InputError(f"graph: expected an ONNX file, found no file {file}")
    try:
        # Weights may lie in a file beside it; only the nodes are looked at here.
        return onnx.load(str(file), load_external_data=False)
    except Exception as error:  # protobuf's DecodeError has no stable home
        raise InputError(f"graph: expected an ONNX file, but {file} is none: {error}") from error


def _write(file: Path, content: memoryview) -> str:
    """Write ``content`` whole or not at all and return its sha256."""
    with replacing(file) as temporary:
        temporary.write_bytes(content)
    return hashlib.sha256(content).hexdigest()
