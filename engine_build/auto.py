"""Mixed precision that meets a budget: int8 for all layers but the few that cost more accuracy than is allowed.

Three steps. First the int8 graph as it is: within the budget it is the answer. Else every layer's own share of the
error of the logits is computed (:mod:`calibration.sensitivity`), which gives an order. Then the fewest layers of that
order are sought whose return to fp16 brings the *measured* loss within the budget; each trial is the typed graph that
would be shipped, run by OpenVINO where it is installed, else by ONNX Runtime. Images that ranked the layers measure
nothing.

Errors of single layers add up, so the first k of the order are the k layers that take most of the error away. The
order was compared with others on the shipped model: docs/auto.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

import onnx

from calibration.onnx_index import Index
from calibration.sensitivity import logit_errors, roundings
from calibration.tensors import quantisable_nodes, shift_groups
from engine_build.budget import Budget, Meter, Point, split_images
from engine_build.int8 import Int8Graph, Int8Options
from engine_build.precision import to_precision
from engine_build.quantise import insert_qdq
from engine_build.source import Source
from infer.errors import AccuracyError, InputError
from infer.progress import progress

DEFAULT_MAX_DROP = 0.5
_ROUNDING = 1e-9  # of a difference of percentages


@dataclass(frozen=True)
class AutoOptions:
    """How much accuracy int8 may cost.

    Attributes:
        max_drop: points of top-1 against FP32; without labels, points of agreement with FP32. 0 to 100.
        data: images to measure on: folders or tar files, with classes where they have them (see
            :func:`infer.datasets.open_dataset`); empty takes calibration images that rank no layer.
        images: at most so many of ``data`` are used, classes as even as they allow.

    Raises:
        InputError: a value out of range.
    """

    max_drop: float = DEFAULT_MAX_DROP
    data: tuple[str, ...] = ()
    images: int = 2048

    def __post_init__(self) -> None:
        if not 0 <= self.max_drop <= 100:
            raise InputError(f"max drop: expected points from 0 to 100, such as 0.5, found {self.max_drop}")
        if self.images < 1:
            raise InputError(f"budget images: expected at least 1, found {self.images}")


@dataclass(frozen=True)
class AutoGraph(Int8Graph):
    """An int8 graph with layers left in fp16, and how they were found: ``auto``, for the manifest."""

    auto: dict[str, Any]

    def record(self) -> dict[str, Any]:
        """What the manifest keeps."""
        return {**super().record(), "auto": self.auto}


def mixed_precision(
    source: Source,
    int8: Int8Graph,
    int8_options: Int8Options,
    options: AutoOptions,
    labels: tuple[Sequence[str], Sequence[str] | None],
    float32_nodes: Collection[str] = (),
    say: Callable[[str], None] = lambda line: None,
) -> AutoGraph:
    """Give back as few layers of ``int8`` as the budget asks for.

    Args:
        source: the float32 graph.
        int8: the same, every layer quantised.
        int8_options: what ``int8`` was made with.
        options: the budget.
        labels: class names and WordNet ids (or None) of the model.
        float32_nodes: nodes that stay float32 because float16 cannot hold them.
        say: called with one line for people.

    Raises:
        AccuracyError: even with every layer in fp16 the loss is beyond the budget.
        InputError: no images to measure with.
    """
    ranking, budget = split_images(source, int8_options.calibration, options.data, options.images, labels, say)
    total = len(int8.quantised.nodes) + len(int8.quantised.additions)
    search = _Search(source, int8, int8_options, options, float32_nodes, say)
    with Meter(source.graph, budget) as meter:
        say(f"auto: at most {options.max_drop:g} points of {budget.measure}, {_images(budget)}, run by {meter.engine}")
        notes = _notes(source, budget, options.max_drop)
        say(f"auto: {'out of int8':>12} {'drop':>7} {'agreement':>10} {'SQNR':>9}")
        units: list[tuple[str, ...]] = []
        errors: dict[str, float] = {}
        kept = 0
        if not search.fits(meter, (), total):
            everything = (*int8.quantised.nodes, *int8.quantised.additions)
            if not search.fits(meter, everything, total):
                raise AccuracyError(_hopeless(search.points[-1], options.max_drop, budget))
            errors = search.rank(ranking)
            units = order(tied_layers(source.graph, int8), errors)
            kept = least(len(units), lambda count: search.fits(meter, _layers(units[:count]), total))
    layers = _layers(units[:kept])
    graph, quantised = search.graph_without(layers)
    auto = {
        "max_drop": options.max_drop,
        "measure": budget.measure,
        "images": len(budget.images),
        "data": budget.source,
        "ranked_on": len(ranking) if errors else 0,
        "engine": meter.engine,
        "drop": search.point(len(layers)).drop,
        "layers": total,
        "kept": _reasons(source.graph, layers, errors),
        "curve": [point.to_json() for point in sorted(search.points, key=lambda point: point.kept)],
        "errors": errors,
    }
    for line in _summary(auto, budget.measure):
        say(line)
    return AutoGraph(graph, quantised, int8.cache, int8.coverage, (*int8.notes, *notes), auto)


class _Search:
    """Trials: which layers leave int8, and what the graph that follows loses.

    Attributes:
        points: every trial, in order.
    """

    def __init__(
        self,
        source: Source,
        int8: Int8Graph,
        int8_options: Int8Options,
        options: AutoOptions,
        float32_nodes: Collection[str],
        say: Callable[[str], None],
    ) -> None:
        self._source, self._int8, self._int8_options, self._say = source, int8, int8_options, say
        self._limit, self._float32 = options.max_drop, float32_nodes
        self.points: list[Point] = []

    def point(self, kept: int) -> Point:
        return next(point for point in self.points if point.kept == kept)

    def graph_without(self, layers: tuple[str, ...]) -> tuple[onnx.ModelProto, Any]:
        """The float32 graph with Q/DQ at all but ``layers``, and what was quantised."""
        if not layers:
            return self._int8.graph, self._int8.quantised
        exclude = {*self._int8_options.exclude, *layers}
        return insert_qdq(self._source.graph, self._int8.cache.amax(), self._int8_options.placement, exclude)

    def fits(self, meter: Meter, layers: tuple[str, ...], total: int) -> bool:
        if any(point.kept == len(layers) for point in self.points):
            return self.point(len(layers)).fits
        floating = len(layers) == total
        graph = self._source.graph if floating else self.graph_without(layers)[0]
        precision = "fp16" if floating else "int8"
        point = meter.measure(to_precision(graph, precision, self._float32), precision, len(layers))
        point = replace(point, fits=point.drop <= self._limit + _ROUNDING)
        self.points.append(point)
        verdict = "" if point.fits else "  over the budget"
        sqnr = "-" if point.sqnr_db is None else f"{point.sqnr_db:.1f} dB"
        share = f"{point.kept} of {total}"
        self._say(f"auto: {share:>12} {point.drop:>7.2f} {point.agreement:>8.2f} % {sqnr:>9}{verdict}")
        return point.fits

    def rank(self, images: Any) -> dict[str, float]:
        """Error of the logits with each layer rounded alone, in graph order."""
        quantised = self._int8.quantised
        names = [*quantised.nodes, *quantised.additions]
        candidates = roundings(self._int8.graph, quantised.tensors, names)
        with progress("sensitivity", len(names)) as advance:
            return logit_errors(self._source.graph, candidates, images, progress=advance)


def least(count: int, fits: Callable[[int], bool]) -> int:
    """A k in 0 to ``count`` that fits while k - 1 does not, by doubling and then halving.

    If fewer never fit where more do not, it is the least of all. 0 is taken not to fit, and ``count`` to fit: neither
    is asked for.
    """
    low, high = 0, 1
    while high < count and not fits(high):
        low, high = high, 2 * high
    high = min(high, count)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(middle) else (middle, high)
    return high


def tied_layers(graph: onnx.ModelProto, int8: Int8Graph) -> list[tuple[str, ...]]:
    """The quantised layers and additions, in graph order; those that leave int8 only together in one tuple.

    Convolutions that read one ReLU whose result is moved to use the whole int8 range (:mod:`engine_build.shifted`) all
    lose that when one of them needs the plain values.
    """
    index = Index(graph)
    layers = [*int8.quantised.nodes, *int8.quantised.additions]
    together: dict[str, tuple[str, ...]] = {}
    if int8.quantised.shifted:
        readers = [node for node in quantisable_nodes(index) if node.name in int8.quantised.nodes]
        for group in shift_groups(index, int8.quantised.nodes):
            names = tuple(node.name for node in readers if node.input[0] in group.tensors)
            together.update(dict.fromkeys(names, names))
    return list(dict.fromkeys(together.get(name, (name,)) for name in layers))


def order(units: Sequence[tuple[str, ...]], errors: dict[str, float]) -> list[tuple[str, ...]]:
    """``units`` by error a layer, largest first; equal ones as they came."""
    return sorted(units, key=lambda unit: -sum(errors[name] for name in unit) / len(unit))


def _layers(units: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
    return tuple(name for unit in units for name in unit)


def _images(budget: Budget) -> str:
    count = len(budget.images)
    return f"{count} images of {budget.source} (one is {100 / count:.2g} points)"


def _notes(source: Source, budget: Budget, max_drop: float) -> list[str]:
    notes = list(budget.notes)
    one = 100 / len(budget.images)
    if 0 < max_drop < one:
        notes.append(
            f"auto: the budget of {max_drop:g} points is less than one of {len(budget.images)} images ({one:.2g} "
            "points), so it allows no loss at all; pass more images (--budget-data)"
        )
    if not source.info.trained:
        notes.append("auto: the weights are random, so the loss that was measured means nothing")
    return notes


def _hopeless(point: Point, max_drop: float, budget: Budget) -> str:
    return (
        f"even with every layer in fp16 the loss is {point.drop:.2f} points of {budget.measure} on {_images(budget)}; "
        f"at most {max_drop:g} is allowed. Allow more (MAX_DROP=), or build fp32"
    )


def _reasons(graph: onnx.ModelProto, layers: Sequence[str], errors: dict[str, float]) -> list[dict[str, Any]]:
    operators = {node.name: node.op_type for node in graph.graph.node}
    total = math.fsum(errors.values())
    return [
        {"node": name, "operator": operators[name], "share": errors[name] / total if total else 0.0} for name in layers
    ]


def _summary(auto: dict[str, Any], measure: str) -> list[str]:
    count, total = len(auto["kept"]), auto["layers"]
    head = f"auto: {total - count} of {total} layers and additions in int8, drop {auto['drop']:.2f} points of {measure}"
    return [
        head,
        *(
            f"auto: fp16 {entry['node']} ({entry['operator']}): {100 * entry['share']:.1f} % of the error of int8"
            for entry in auto["kept"]
        ),
    ]
