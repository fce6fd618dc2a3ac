"""INT8 of a prepared graph: find or make the calibration cache, then write Q/DQ pairs into the graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import msgspec
import numpy as np
import onnx
from numpy.typing import NDArray

from calibration.cache import CalibrationCache, Coverage, check_matches, read_cache, write_cache
from calibration.from_images import calibrate, choose_images, graph_sha256
from calibration.int8 import SYMMETRIC_STEPS
from calibration.onnx_index import Index
from calibration.request import Request
from calibration.tensors import activation_tensors, floating_products, quantisable_nodes
from engine_build.choices import ROUNDINGS
from engine_build.network.zoo import find_model
from engine_build.quantise.qdq import Placement, Quantised, insert_qdq, layer_scales
from engine_build.quantise.rounding import IMAGES, RoundedLayers, round_layers
from engine_build.source import Source
from infer.bundle import other_network
from infer.bundle.build_record import CalibrationRecord, TensorScale
from infer.bundle.preprocessing import Preprocessing
from infer.errors import InputError
from infer.pipeline.host import load_batches
from infer.terminal import progress

SHIPPED = "iresnet50_fashion"
_NAMED = 3
UNTRAINED_IMAGES = 64


@dataclass(frozen=True)
class Int8Options:
    """Where the activation ranges come from, and how the graph is quantised.

    Attributes:
        cache: calibration cache to use and no other.
        accept_cache: take a cache of another graph or unknown origin.
        calibration: images and method; ``data`` empty: found by the rules of :func:`find_cache`.
        placement: where activations are quantised.
        exclude: layers to keep in floating point.
        rounding: of the weights: ``moments``, by what each layer reads of calibration images, where there are any; or
            ``nearest``.
        pair_safe: weights that int8 kernels without VNNI cannot saturate with, see :mod:`engine_build.quantise.pairs`.
    """

    cache: Path | None = None
    accept_cache: bool = False
    calibration: Request = field(default_factory=lambda: Request(()))
    placement: Placement = field(default_factory=Placement)
    exclude: tuple[str, ...] = ()
    rounding: str = "moments"
    pair_safe: bool = True

    def __post_init__(self) -> None:
        if self.rounding not in ROUNDINGS:
            raise InputError(f"rounding: expected one of {', '.join(ROUNDINGS)}, found {self.rounding!r}")


@dataclass(frozen=True)
class Int8Graph:
    """A quantised float32 graph and what is known about it."""

    graph: onnx.ModelProto
    quantised: Quantised
    cache: CalibrationCache
    coverage: Coverage
    notes: tuple[str, ...]
    rounded: RoundedLayers = field(default_factory=lambda: RoundedLayers({}))

    def record(self) -> CalibrationRecord:
        """What the manifest keeps."""
        found = CalibrationRecord(
            tensors={name: TensorScale(*found) for name, found in self.quantised.tensors.items()},
            tensors_missing=list(self.coverage.missing),
            int8_nodes=list(self.quantised.nodes),
            int8_additions=list(self.quantised.additions),
            shifted_tensors=len(self.quantised.shifted),
            float_nodes=dict(self.quantised.skipped),
            weights=self.rounded.record(),
        )
        if (origin := self.cache.provenance) is not None:
            found.method, found.parameters, found.images = origin.method, origin.parameters, origin.images
            found.data_sha256, found.graph_sha256 = origin.data_sha256, origin.graph_sha256
            found.created = origin.created
        return found


def quantise(
    source: Source, options: Int8Options, default_cache: Path, tool: str, say: Callable[[str], None]
) -> Int8Graph:
    """Find or make the calibration cache of a source and quantise its graph.

    Args:
        source: the float32 graph.
        options: see :class:`Int8Options`.
        default_cache: where a cache is looked for, and where a new one is written.
        tool: name and version for the provenance.
        say: called with one line for people.

    Raises:
        InputError: no images to calibrate with, or a cache that does not match.
    """
    cache, notes = find_cache(source, options, default_cache, tool, say)
    tensors = activation_tensors(source.graph, options.placement.residual)
    fit = check_matches(cache, graph_sha256(source.graph), tensors, accept=options.accept_cache)
    if fit.missing:
        notes.append(f"the calibration cache does not cover every tensor: {fit}; what reads them stays float")
    rounded = _rounded(source, cache, options, say)
    graph, quantised = insert_qdq(
        source.graph,
        cache.amax(),
        options.placement,
        options.exclude,
        pair_safe=options.pair_safe,
        rounded=rounded.weights,
    )
    if formless := floating_products(Index(source.graph)):
        notes.append(
            f"{len(formless)} convolutions and products have no int8 form and stay floating point: {_named(formless)}"
        )
    return Int8Graph(graph, quantised, cache, fit, tuple(notes), rounded)


def _named(reasons: Mapping[str, str]) -> str:
    return ", ".join(f"{name} ({reason})" for name, reason in list(reasons.items())[:_NAMED])


def _rounded(
    source: Source, cache: CalibrationCache, options: Int8Options, say: Callable[[str], None]
) -> RoundedLayers:
    """The weights, rounded by the moments of calibration images; empty, with the reason, where they are to nearest."""
    images, reason = None, "asked for"
    if options.rounding == "moments":
        images, reason = _rounding_images(source, options), "no calibration images, only a cache"
    if images is None:
        say(f"weights: rounded to nearest ({reason})")
        return RoundedLayers({}, reason=reason)
    with progress("round weights", len(images)) as advance:
        rounded = round_layers(
            source.graph,
            images,
            layer_scales(Index(source.graph), cache.amax(), options.placement, options.exclude),
            exclude=options.exclude,
            method=options.placement.weights,
            pair_safe=options.pair_safe,
            progress=advance,
        )
    say(f"weights: {len(rounded.weights)} layers rounded by the second moments of {rounded.images} images")
    return rounded


def _rounding_images(source: Source, options: Int8Options) -> NDArray[np.uint8] | None:
    """Some of the calibration images; None where there is only a cache."""
    request = options.calibration
    if options.cache is not None and not request.data:
        return None
    try:
        request = with_images(source, request)
    except InputError:  # the cache of an earlier build serves without images
        return None
    return load_images(request, source.spec, IMAGES if source.info.trained else UNTRAINED_IMAGES)


def load_images(request: Request, spec: Preprocessing, count: int) -> NDArray[np.uint8]:
    """At most ``count`` of the images that ``request`` calibrates with, uint8 ``[N, crop, crop, 3]``.

    Raises:
        InputError: not one can be read.
    """
    records = choose_images(replace(request, limit=min(count, request.limit)))
    parts = [batch.images for batch in load_batches(records, spec, 32)]
    images = np.concatenate(parts) if parts else np.empty((0, spec.crop, spec.crop, 3), np.uint8)
    if not len(images):
        raise InputError(f"not one of {len(records)} calibration images could be read")
    return images


def find_cache(
    source: Source, options: Int8Options, default_cache: Path, tool: str, say: Callable[[str], None]
) -> tuple[CalibrationCache, list[str]]:
    """The calibration cache, by the first rule that applies, and notes for the user.

    The cache that was asked for; images that were asked for; the cache of this same graph at ``default_cache``; else
    as :func:`make_cache`.

    Raises:
        InputError: none applies; says what to pass. Or no layer of the graph can be quantised.
    """
    index = Index(source.graph)
    if not quantisable_nodes(index):
        floating = _named(floating_products(index)) or "no convolution or product"
        raise InputError(f"expected a layer that can be quantised, found none: {floating}; build fp16 or fp32")
    nodes = {node.name for node in source.graph.graph.node}
    if unknown := [name for name in options.exclude if name not in nodes]:
        raise InputError(f"exclude: the graph has no node {', '.join(unknown[:5])}; a bundle's manifest names them")
    request = options.calibration
    if options.cache is not None:
        cache = read_cache(options.cache)
        if (problem := network_problem(cache, source)) is not None:
            raise InputError(f"{options.cache}: {problem}")
        return cache, []
    if not request.data and default_cache.is_file():
        found = read_cache(default_cache)
        known = with_method(found, graph_sha256(source.graph), request)
        if known is not None and known.provenance is not None:
            say(f"calibration: {default_cache} ({request.method}, {known.provenance.images} images)")
            return known, []
        problem = network_problem(found, source) or "it is of another graph or method"
        say(f"calibration: {default_cache} is not used ({problem}), calibrating again")
    return make_cache(source, request, default_cache, tool, say)


def network_problem(cache: CalibrationCache, source: Source) -> str | None:
    """What is wrong with a cache of ours that was made from another form of the network; None for every other one."""
    origin, revision = cache.provenance, source.info.network_revision
    if origin is None or revision is None or origin.graph_sha256 == graph_sha256(source.graph):
        return None
    if origin.network_revision in (None, revision):
        return None
    return (
        f"expected a calibration cache of network revision {revision}, found {origin.network_revision}: "
        f"{other_network(origin.network_revision)}"
    )


def with_images(source: Source, request: Request) -> Request:
    """``request``; where it names no images, with the calibration images shipped with the model, or, for random
    weights, those of another model.

    Raises:
        InputError: trained weights and no images; says what to pass.
    """
    if request.data:
        return request
    row = source.row
    if row is not None and row.shipped is not None:
        return replace(request, data=(str(row.shipped / "calibration.tar.gz"),))
    if source.info.trained:
        raise InputError(
            "int8 needs calibration images of the kind the model was trained on: pass DATA=folder or tar "
            "(--data), or CACHE=file (--cache). 500 images are enough"
        )
    shipped = find_model(SHIPPED).shipped
    assert shipped is not None
    return replace(request, data=(str(shipped / "calibration.tar.gz"),))


def make_cache(
    source: Source, request: Request, target: Path, tool: str, say: Callable[[str], None]
) -> tuple[CalibrationCache, list[str]]:
    """Calibrate on the images of :func:`with_images` and write the cache.

    Raises:
        InputError: trained weights and no images; says what to pass.
    """
    notes: list[str] = []
    if not request.data and not source.info.trained:
        notes.append(
            "random weights were calibrated with pictures of clothing: the scales serve inspection and benchmarks"
        )
        request = replace(request, limit=min(request.limit, UNTRAINED_IMAGES))
    request = with_images(source, request)
    with progress("calibrate", request.limit) as advance:
        result = calibrate(
            source.graph,
            source.spec,
            request,
            tool=tool,
            network_revision=source.info.network_revision,
            progress=lambda done: advance(1),
        )
    for line in (*result.failures, *result.statistics.warnings):
        say(f"calibration: {line}")
    write_cache(target, result.cache)
    say(f"calibration: {result.statistics.images} images, method {request.method}, written to {target}")
    return read_cache(target), notes


def with_method(cache: CalibrationCache, graph: str, request: Request) -> CalibrationCache | None:
    """``cache`` with the scales of the requested method, which the same pass found; None if it is not of ``graph``."""
    origin = cache.provenance
    if origin is None or origin.graph_sha256 != graph:
        return None
    if (origin.method, origin.parameters) == (request.method, request.parameters):
        return cache
    if request.parameters or request.method not in origin.amax:
        return None
    amax = origin.amax[request.method]
    scales = {name: np.float32(amax.get(name, 0.0) / SYMMETRIC_STEPS) for name in cache.scales}
    return CalibrationCache(scales, provenance=msgspec.structs.replace(origin, method=request.method, parameters={}))
