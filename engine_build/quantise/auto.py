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
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec
import numpy as np
import onnx
from numpy.typing import NDArray

from calibration.onnx_index import Index
from calibration.sensitivity import logit_errors, roundings
from calibration.tensors import quantisable_nodes, shift_groups
from engine_build.choices import DEFAULT_BUDGET_LIMIT, DEFAULT_MAX_DROP
from engine_build.precision.typed_graph import Typing
from engine_build.quantise.budget import Budget, LossMeter, Trial, split_images
from engine_build.quantise.int8 import Int8Graph, Int8Options
from engine_build.quantise.qdq import Quantised, insert_qdq
from engine_build.source import Source
from infer.bundle.build_record import CalibrationRecord
from infer.errors import AccuracyError, InputError
from infer.terminal import progress

_ROUNDING = 1e-9  # of a difference of percentages
_SHOWN = 20  # layers that are printed


@dataclass(frozen=True)
class AutoOptions:
    """How much accuracy int8 may cost.

    Attributes:
        max_drop: points of top-1 against FP32; without labels, points of agreement with FP32. 0 to 100.
        data: images to measure on: folders or tar files, with classes where they have them (see
            :func:`infer.datasets.open_dataset`); empty takes calibration images that rank no layer.
        limit: at most so many of ``data`` are used, classes as even as they allow.

    Raises:
        InputError: a value out of range.
    """

    max_drop: float = DEFAULT_MAX_DROP
    data: tuple[str, ...] = ()
    limit: int = DEFAULT_BUDGET_LIMIT

    def __post_init__(self) -> None:
        if not 0 <= self.max_drop <= 100:
            raise InputError(f"max drop: expected points from 0 to 100, such as 0.5, found {self.max_drop}")
        if self.limit < 1:
            raise InputError(f"budget images: expected at least 1, found {self.limit}")


@dataclass(frozen=True)
class AutoGraph(Int8Graph):
    """An int8 graph with layers left in fp16, and how they were found: ``auto``, for the manifest."""

    auto: dict[str, Any] = field(default_factory=dict)

    def record(self) -> CalibrationRecord:
        """What the manifest keeps."""
        return msgspec.structs.replace(super().record(), auto=self.auto)


def mixed_precision(
    source: Source,
    int8: Int8Graph,
    int8_options: Int8Options,
    options: AutoOptions,
    labels: tuple[Sequence[str], Sequence[str] | None],
    typing: Typing,
    say: Callable[[str], None] = lambda line: None,
) -> AutoGraph:
    """Give back as few layers of ``int8`` as the budget asks for.

    Args:
        source: the float32 graph.
        int8: the same, every layer quantised.
        int8_options: what ``int8`` was made with.
        options: the budget.
        labels: class names and WordNet ids (or None) of the model.
        typing: types the trials as the bundle will be typed.
        say: called with one line for people.

    Raises:
        AccuracyError: even with every layer in fp16 the loss is beyond the budget.
        InputError: no images to measure with.
    """
    layers = (*int8.quantised.nodes, *int8.quantised.additions)
    ranking, budget = split_images(
        source, int8_options.calibration, options.data, options.limit, labels, len(layers), say
    )
    notes = _notes(source, budget, options.max_drop)
    with LossMeter(source.graph, budget) as meter:
        say(f"auto: at most {options.max_drop:g} points of {budget.measure}, {_images(budget)}, run by {meter.engine}")
        search = _Search(source, int8, int8_options, options.max_drop, typing, meter, say)
        kept = search.run(ranking)
    if kept is None:
        raise AccuracyError(_hopeless(search.points[-1], options.max_drop, budget))
    graph, quantised = search.graph_without(kept)
    auto = {
        "max_drop": options.max_drop,
        "measure": budget.measure,
        "images": len(budget.images),
        "data": budget.source,
        "ranked_on": len(ranking) if search.errors else 0,
        "engine": meter.engine,
        "drop": search.point(len(kept)).drop,
        "layers": len(layers),
        "kept": _reasons(source.graph, kept, search.errors),
        "curve": [point.to_json() for point in sorted(search.points, key=lambda point: point.kept)],
        "errors": search.errors,
    }
    for line in _summary(auto):
        say(line)
    return AutoGraph(graph, quantised, int8.cache, int8.coverage, (*int8.notes, *notes), int8.rounded, auto)


class _Search:
    """Trials: which layers leave int8, and what the graph that follows loses.

    Attributes:
        points: every trial, in order.
        errors: of the logits with each layer rounded alone, in graph order; empty until layers were ranked.
    """

    def __init__(
        self,
        source: Source,
        int8: Int8Graph,
        int8_options: Int8Options,
        limit: float,
        typing: Typing,
        meter: LossMeter,
        say: Callable[[str], None],
    ) -> None:
        self._source, self._int8, self._int8_options = source, int8, int8_options
        self._limit, self._typing, self._meter, self._say = limit, typing, meter, say
        self._layers = (*int8.quantised.nodes, *int8.quantised.additions)
        self._latest: tuple[tuple[str, ...], onnx.ModelProto, Quantised] = ((), int8.graph, int8.quantised)
        self.points: list[Trial] = []
        self.errors: dict[str, float] = {}

    def run(self, ranking: NDArray[np.uint8]) -> tuple[str, ...] | None:
        """The layers to leave in fp16; None when not even all of them are enough."""
        self._say(f"auto: {'out of int8':>12} {'drop':>7} {'agreement':>10} {'SQNR':>9}")
        if self._fits(()):
            return ()
        if not self._fits(self._layers):
            return None
        candidates = roundings(self._int8.graph, self._int8.quantised.tensors, list(self._layers))
        with progress("sensitivity", len(candidates)) as advance:
            self.errors = logit_errors(self._source.graph, candidates, ranking, progress=advance)
        units = order(tied_layers(self._source.graph, self._int8), self.errors)
        count = least(len(units), lambda count: self._fits(_flat(units[:count])))
        return _flat(units[:count])

    def point(self, kept: int) -> Trial:
        """The trial with so many layers out of int8."""
        return next(point for point in self.points if point.kept == kept)

    def graph_without(self, layers: tuple[str, ...]) -> tuple[onnx.ModelProto, Quantised]:
        """The float32 graph with Q/DQ at all but ``layers``, and what was quantised."""
        if self._latest[0] != layers:
            exclude = {*self._int8_options.exclude, *layers}
            found = insert_qdq(
                self._source.graph,
                self._int8.cache.amax(),
                self._int8_options.placement,
                exclude,
                pair_safe=self._int8_options.pair_safe,
                rounded=self._int8.rounded.weights,
            )
            self._latest = (layers, *found)
        return self._latest[1:]

    def _fits(self, layers: tuple[str, ...]) -> bool:
        if any(point.kept == len(layers) for point in self.points):
            return self.point(len(layers)).fits
        floating = len(layers) == len(self._layers)
        graph = self._source.graph if floating else self.graph_without(layers)[0]
        typed = self._typing.typed(graph, "fp16" if floating else "int8")
        precision = "fp16" if floating else "auto"
        point = self._meter.measure(typed.graph, precision, len(layers), typed.float32)
        point = replace(point, fits=point.drop <= self._limit + _ROUNDING)
        self.points.append(point)
        verdict = "" if point.fits else "  over the budget"
        sqnr = "-" if point.sqnr_db is None else f"{point.sqnr_db:.1f} dB"
        share = f"{point.kept} of {len(self._layers)}"
        self._say(f"auto: {share:>12} {point.drop:>7.2f} {point.agreement:>8.2f} % {sqnr:>9}{verdict}")
        return point.fits


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

    Convolutions that read one ReLU whose result is moved to use the whole int8 range
    (:mod:`engine_build.quantise.shifted`) all lose that when one of them needs the plain values.
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


def _flat(units: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
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


def _hopeless(point: Trial, max_drop: float, budget: Budget) -> str:
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


def _summary(auto: dict[str, Any]) -> list[str]:
    count, total = len(auto["kept"]), auto["layers"]
    loss = f"drop {auto['drop']:.2f} points of {auto['measure']}"
    head = f"auto: {total - count} of {total} layers and additions in int8, {loss}"
    lines = [
        f"auto: fp16 {entry['node']} ({entry['operator']}): {100 * entry['share']:.1f} % of the error of int8"
        for entry in auto["kept"][:_SHOWN]
    ]
    if count > _SHOWN:
        rest = 100 * math.fsum(entry["share"] for entry in auto["kept"][_SHOWN:])
        lines.append(f"auto: fp16 and {count - _SHOWN} more, {rest:.1f} % of the error; the manifest names them")
    return [head, *lines]
