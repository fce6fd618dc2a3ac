"""The build pipeline: weights -> ONNX -> passes -> precision -> plans -> bundle."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from calibration.cache import write_cache
from engine_build.int8 import Int8Graph, Int8Options, quantise
from engine_build.targets import BUILDABLE, BuildSettings, build_target, unavailable
from engine_build.zoo import Model, find_model
from infer.bundle import FORMAT, GRAPH, LABELS, MANIFEST, Manifest, ModelInfo, Tensor, file_entry, now, write_manifest
from infer.errors import BuildError, InputError
from infer.files import replacing_folder
from infer.preprocess import Preprocessing

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from engine_build.graph import Logits

RANGE_IMAGES = 16
CACHE = "calibration.cache"


@dataclass(frozen=True)
class BuildOptions:
    """What to build. None means the default that is named.

    Attributes:
        model: row of the zoo; with ``onnx`` the name of the bundle.
        precision: ``fp32``, ``fp16``, ``bf16`` or ``int8``.
        targets: names, or ``("auto",)`` for every target that can be built here.
        weights: checkpoint; None searches (see :func:`engine_build.weights.load_weights`).
        onnx: a user's own float classifier instead of a row of the zoo.
        output: folder of the bundle; None for ``engines/<model>-<precision>``.
        labels: file with class names.
        preprocessing: None for the row's, or ImageNet's with ``onnx``.
        num_classes, width: of the network; None for the checkpoint's and the row's.
        require_weights: random weights are an error.
        offline: do not try to download weights.
        seed: of random weights.
        settings: for the targets.
        int8: calibration and placement, for ``int8``.
    """

    model: str
    precision: str = "fp16"
    targets: tuple[str, ...] = ("auto",)
    weights: Path | None = None
    onnx: Path | None = None
    output: Path | None = None
    labels: Path | None = None
    preprocessing: Preprocessing | None = None
    num_classes: int | None = None
    width: float | None = None
    require_weights: bool = False
    offline: bool = False
    seed: int = 0
    settings: BuildSettings = field(default_factory=BuildSettings)
    int8: Int8Options = field(default_factory=Int8Options)


@dataclass
class Steps:
    """Reports steps and keeps their times, in seconds.

    Attributes:
        say: called with one line for people.
        seconds: step to its duration.
    """

    say: Callable[[str], None] = lambda line: None
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Time a step."""
        started = time.monotonic()
        yield
        self.seconds[name] = time.monotonic() - started


@dataclass(frozen=True)
class _Source:
    """A float graph with what is known about it."""

    graph: onnx.ModelProto
    reference: Logits
    info: ModelInfo
    row: Model | None
    notes: tuple[str, ...] = ()


def build(options: BuildOptions, steps: Steps | None = None) -> tuple[Path, Manifest]:
    """Build a bundle; the folder appears whole or not at all.

    Returns:
        The folder and its manifest.

    Raises:
        InputError: an option cannot be used.
        WeightsError, GraphError, BuildError: see the functions that are called.
    """
    from engine_build.graph import prepare
    from engine_build.labels import class_names
    from engine_build.precision import PRECISIONS, to_precision

    steps = steps or Steps()
    if options.precision not in PRECISIONS:
        raise InputError(f"unknown precision {options.precision!r}; known: {', '.join(PRECISIONS)}")
    targets = resolve_targets(options.targets)
    spec = options.preprocessing or (find_model(options.model).preprocessing if options.onnx is None else Preprocessing())
    folder = options.output or Path("engines") / f"{options.model}-{options.precision}"
    _refuse_to_replace(folder)
    source = _load(options, spec, steps)
    names, wnids = class_names(source.row, source.info.num_classes, options.labels)
    with steps.step("passes"):
        folded = prepare(source.graph, spec, source.info.num_classes, source.reference)
    notes = [*source.notes]
    quantised: Int8Graph | None = None
    if options.precision == "int8":
        with steps.step("calibration"):
            quantised = quantise(
                source.graph, spec, options.int8, row=source.row, trained=source.info.trained,
                default_cache=folder.parent / f"{options.model}.calibration", tool=_tool(), say=steps.say,
            )  # fmt: skip
        notes += quantised.notes
    with steps.step("precision"):
        keep = _overflowing(source, spec) if options.precision in ("fp16", "int8") else []
        typed = to_precision(quantised.graph if quantised else source.graph, options.precision, keep)
        if keep:
            notes.append(f"{len(keep)} nodes stay float32, float16 would overflow: {', '.join(keep[:5])}")
    counts = _op_counts(typed)
    steps.say(f"graph: {counts} ({folded} batch norms folded by the passes)")

    with replacing_folder(folder) as work:
        onnx.save(typed, work / GRAPH)
        (work / LABELS).write_text("\n".join(names) + "\n", encoding="utf-8")
        if quantised is not None:
            write_cache(work / CACHE, quantised.cache)
        int8_nodes = quantised.quantised.nodes if quantised else ()
        plans = []
        for target in targets:
            with steps.step(target):
                plans.append(build_target(target, work, options.precision, options.settings, int8_nodes))
        manifest = Manifest(
            format=FORMAT, created=now(), tool=_tool(), model=source.info, precision=options.precision,
            graph=file_entry(work, GRAPH), inputs=_tensors(typed.graph.input), outputs=_tensors(typed.graph.output),
            batch=options.settings.batch, preprocessing=spec.to_json(), labels=file_entry(work, LABELS), plans=plans,
            wnids=wnids, float32_nodes=keep, calibration=quantised.record() if quantised else None, notes=notes,
        )  # fmt: skip
        write_manifest(work, manifest)
    return folder, manifest


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
        found = tuple(name for name in BUILDABLE if unavailable(name) is None)
        if not found:
            raise BuildError("no target can be built here: " + "; ".join(f"{n}: {unavailable(n)}" for n in BUILDABLE))
        return found
    for name in names:
        if name not in BUILDABLE:
            raise InputError(f"unknown target {name!r}; known: auto, {', '.join(BUILDABLE)}")
        if (missing := unavailable(name)) is not None:
            raise BuildError(f"target {name} cannot be built here: {missing}")
    return tuple(dict.fromkeys(names))


def _load(options: BuildOptions, spec: Preprocessing, steps: Steps) -> _Source:
    if options.onnx is not None:
        from engine_build.export import load_user_graph
        from infer.files import sha256_file

        with steps.step("load"):
            graph, reference, classes = load_user_graph(options.onnx, spec)
        info = ModelInfo(
            name=options.model, num_classes=classes, weights=options.onnx.name,
            weights_sha256=sha256_file(options.onnx), trained=True,
        )  # fmt: skip
        return _Source(graph, reference, info, None)

    from engine_build.export import export_torch
    from engine_build.weights import load_weights

    row = find_model(options.model)
    with steps.step("weights"):
        weights = load_weights(
            row, options.weights, require=options.require_weights, offline=options.offline,
            num_classes=options.num_classes, width=options.width, seed=options.seed,
        )  # fmt: skip
    steps.say(f"weights: {weights.source}" + ("" if weights.trained else " - UNTRAINED"))
    with steps.step("export"):
        graph, reference = export_torch(weights.model, spec)
    info = ModelInfo(
        name=row.name, num_classes=weights.model.fc.out_features, weights=weights.source,
        weights_sha256=weights.sha256, trained=weights.trained, width=options.width or row.width,
        top1=row.top1 if weights.trained and options.weights is None else None,
        top5=row.top5 if weights.trained and options.weights is None else None,
    )  # fmt: skip
    return _Source(graph, reference, info, row, weights.notes)


def _overflowing(source: _Source, spec: Preprocessing) -> list[str]:
    from engine_build.precision import overflowing_nodes
    from engine_build.ranges import activation_ranges

    return overflowing_nodes(source.graph, activation_ranges(source.graph, sample_images(source.row, spec)))


def sample_images(row: Model | None, spec: Preprocessing, count: int = RANGE_IMAGES) -> NDArray[np.uint8]:
    """Inputs like those the model was trained on: the shipped calibration images, else synthetic pictures."""
    if row is not None and row.shipped is not None:
        from infer.decode_pool import load_batches
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


def _tool() -> str:
    from engine_build import __version__

    return f"iresnet-trt {__version__}"
