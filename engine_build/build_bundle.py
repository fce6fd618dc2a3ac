"""The build pipeline: weights -> ONNX -> passes -> precision -> plans -> bundle."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from calibration.cache import write_cache
from engine_build.checks.gates import check_graph
from engine_build.checks.known_answers import known_answers, test_plan, warnings
from engine_build.graph.gmac import count_gmac
from engine_build.option_checks import check_calibration, check_data, check_source
from engine_build.precision.typed_graph import Typing
from engine_build.quantise.auto import AutoOptions, mixed_precision
from engine_build.quantise.fp8 import fp8_targets, quantise_fp8
from engine_build.quantise.int8 import Int8Graph, Int8Options, quantise
from engine_build.source import Source, SourceOptions, Steps, load_source
from engine_build.targets import BUILDABLE, BuildSettings, build_target, why_unbuildable
from engine_build.targets.each import build_each, keep_passing
from engine_build.targets.options import check_options
from infer.bundle import FORMAT, GRAPH, LABELS, MANIFEST, Manifest, Plan, Tensor, file_entry, now, write_manifest
from infer.errors import BuildError, InputError
from infer.files import replacing_folder

RANGE_IMAGES = 8
CACHE = "calibration.cache"
QUANTISED = ("int8", "auto", "fp8")
TENSORRT = ("tensorrt", "tensorrt_rtx")


@dataclass(frozen=True)
class BuildOptions(SourceOptions):
    """What to build. None means the default that is named.

    Attributes:
        precision: ``fp32``, ``fp16``, ``bf16``, ``int8``, ``auto`` (int8 within an accuracy budget) or ``fp8``.
        targets: names, or ``("auto",)`` for every target that can be built here.
        output: folder of the bundle; None for ``engines/<model>-<precision>``.
        labels: file with class names.
        settings: for the targets.
        int8: calibration and placement, for ``int8``, ``auto`` and ``fp8``.
        auto: the budget, for ``auto``.
        min_sqnr: dB that the typed graph must keep of float32 (:mod:`engine_build.checks.gates`); None for the
            precision's.
    """

    precision: str = "fp16"
    targets: tuple[str, ...] = ("auto",)
    output: Path | None = None
    labels: Path | None = None
    settings: BuildSettings = field(default_factory=BuildSettings)
    int8: Int8Options = field(default_factory=Int8Options)
    auto: AutoOptions = field(default_factory=AutoOptions)
    min_sqnr: float | None = None

    @property
    def folder(self) -> Path:
        """Where the bundle goes."""
        return self.output or Path("engines") / f"{self.model}-{self.precision}"


def build(options: BuildOptions, steps: Steps | None = None) -> tuple[Path, Manifest]:
    """Build a bundle; the folder appears whole or not at all.

    Returns:
        The folder and its manifest.

    Raises:
        InputError: an option cannot be used.
        WeightsError, GraphError, BuildError, AccuracyError, KnownAnswersError: see the functions that are called.
    """
    from engine_build.network.labels import class_names

    steps = steps or Steps()
    named = tuple(options.targets) != ("auto",)
    targets, notes = _check(options, named)
    folder = options.folder
    source = load_source(options, steps)
    names, wnids = class_names(source.row, source.info.num_classes, options.labels)
    notes = [*source.notes, *notes]
    quantised: Int8Graph | None = None
    # TensorRT adds int8 products in int32; what else runs the graph may have kernels that do not.
    int8 = replace(options.int8, pair_safe=any(target not in TENSORRT for target in targets))
    if options.precision in QUANTISED:
        with steps.step("calibration"):
            make = quantise_fp8 if options.precision == "fp8" else quantise
            quantised = make(source, int8, default_cache(folder.parent, options.model), tool_name(), steps.say)
    with steps.step("ranges"):
        typing = Typing(source, sample_images(source))
        typing.measure(options.precision)
    if options.precision == "auto" and quantised is not None:
        with steps.step("auto"):
            labels = (names, wnids)
            quantised = mixed_precision(source, quantised, int8, options.auto, labels, typing, steps.say)
    with steps.step("precision"):
        # The rest of every quantised graph is typed alike.
        typed = typing.typed(*(quantised.graph, "int8") if quantised else (source.graph, options.precision))
        graph, float32 = typed.graph, list(typed.float32)
        notes += [*(quantised.notes if quantised else ()), *typed.notes()]
    with steps.step("graph check"):
        gates = check_graph(source, options.precision, options.int8, graph, quantised, options.min_sqnr)
    # None for our own models: torch's exporter folded them
    steps.say(
        f"graph: {_op_counts(graph)}"
        + (f" ({source.folded} batch norms folded by the passes)" if source.folded else "")
    )

    with replacing_folder(folder) as work:
        onnx.save(graph, work / GRAPH)
        (work / LABELS).write_text("\n".join(names) + "\n", encoding="utf-8")
        if quantised is not None:
            write_cache(work / CACHE, quantised.cache)
        with steps.step("known answers"):
            answers = known_answers(graph, options.precision, source.spec.crop, work)
        build_one = partial(
            build_target,
            precision=options.precision,
            settings=options.settings,
            quantised_nodes=quantised.quantised.nodes if quantised else (),
            float32_nodes=float32,
        )
        plans, left_out = build_each(targets, named, work, build_one, steps)
        manifest = Manifest(
            format=FORMAT,
            created=now(),
            tool=tool_name(),
            model=source.info,
            precision=options.precision,
            graph=file_entry(work, GRAPH),
            inputs=_tensors(graph.graph.input),
            outputs=_tensors(graph.graph.output),
            batch=options.settings.batch,
            preprocessing=source.spec,
            labels=file_entry(work, LABELS),
            plans=plans,
            wnids=wnids,
            gmac=count_gmac(source.graph),
            float32_nodes=float32,
            known_answers=answers,
            notes=[*notes, *left_out, *warnings(answers)],
            calibration=quantised.record() if quantised else None,
            pair_safe=options.precision in ("int8", "auto") and int8.pair_safe,
        )
        with steps.step("self-test"):

            def check(plan: Plan) -> None:
                test_plan(work, manifest, plan, folder, steps.say)
                gates.plan(work, manifest, plan)

            keep_passing(manifest, named, work, check, steps.say)
            manifest.checks, manifest.notes = gates.checks, [*manifest.notes, *gates.notes]
        write_manifest(work, manifest)
    return folder, manifest


def _check(options: BuildOptions, named: bool) -> tuple[tuple[str, ...], list[str]]:
    """The targets to build, with notes on those that were left out; refuses now what would fail after the work."""
    from engine_build.precision.casts import PRECISIONS

    known = dict.fromkeys((*PRECISIONS, *QUANTISED))
    if options.precision not in known:
        raise InputError(f"unknown precision {options.precision!r}; known: {', '.join(known)}")
    targets, notes = resolve_targets(options.targets), list[str]()
    if options.precision == "fp8":
        targets, notes = fp8_targets(targets, named)
    _refuse_to_replace(options.folder)
    check_options(targets, options.precision, options.settings)
    check_source(options)
    if options.labels is not None and not options.labels.is_file():
        raise InputError(f"no label file at {options.labels}; expected a text file with one class name a line")
    if options.precision in QUANTISED:
        check_calibration(options.int8)
    if options.precision == "auto":
        check_data(options.auto.data)
    if options.min_sqnr is not None and not isfinite(options.min_sqnr):
        raise InputError(f"min sqnr: expected a number of dB, found {options.min_sqnr}")
    return targets, notes


def _refuse_to_replace(folder: Path) -> None:
    """Only a bundle, or nothing, may make room for a bundle: what stands in its place is deleted."""
    if folder.exists() and not folder.is_dir():
        raise InputError(f"output: {folder} is a file; pass a folder that is to become the bundle")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / MANIFEST).is_file():
        raise InputError(f"output: {folder} holds other files and would be replaced; pass a new folder or a bundle")


def resolve_targets(names: Sequence[str]) -> tuple[str, ...]:
    """The targets to build: ``auto`` stands for every one that can be built here.

    Raises:
        InputError: unknown name.
        BuildError: a named target cannot be built here; says what is missing.
    """
    if tuple(names) == ("auto",):
        found = tuple(name for name in BUILDABLE if why_unbuildable(name) is None)
        if not found:
            raise BuildError(
                "no target can be built here: " + "; ".join(f"{n}: {why_unbuildable(n)}" for n in BUILDABLE)
            )
        return found
    for name in names:
        if name not in BUILDABLE:
            raise InputError(f"unknown target {name!r}; known: auto, {', '.join(BUILDABLE)}")
        if (missing := why_unbuildable(name)) is not None:
            raise BuildError(f"target {name} cannot be built here: {missing}")
    return tuple(dict.fromkeys(names))


def default_cache(folder: Path, model: str) -> Path:
    """Where the calibration cache of a model is kept between builds: beside its bundles."""
    return folder / f"{model}.calibration"


def sample_images(source: Source, count: int = RANGE_IMAGES) -> NDArray[np.uint8]:
    """Inputs like those the model was trained on: the shipped calibration images, else synthetic pictures."""
    row, spec = source.row, source.spec
    if row is not None and row.shipped is not None:
        from infer.pipeline.host import load_batches
        from infer.sources import iter_records

        batches = load_batches(iter_records([row.shipped / "calibration.tar.gz"]), spec, count, strict=True)
        return next(iter(batches)).images
    from engine_build.synthetic import synthetic_images

    return synthetic_images(count, spec.crop, seed=7)


def _op_counts(graph: onnx.ModelProto) -> str:
    from calibration.onnx_index import Index

    counts = Index(graph).op_counts()
    return ", ".join(f"{count} {kind}" for kind, count in counts.most_common(5))


def _tensors(values: Any) -> list[Tensor]:
    return [
        Tensor(
            name=value.name,
            dtype=str(np.dtype(onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type))),
            shape=[d.dim_value if d.HasField("dim_value") else -1 for d in value.type.tensor_type.shape.dim],
        )
        for value in values
    ]


def tool_name() -> str:
    """Name and version of this project, for manifests and provenances."""
    from engine_build import __version__

    return f"iresnet-trt {__version__}"
