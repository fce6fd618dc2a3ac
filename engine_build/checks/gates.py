"""The gates on accuracy of a build: the typed graph against the float32 graph, and every plan against the typed graph.

All three are run on the same images. The typed graph is computed as it is written, by an engine that is none of the
targets, so that a loss can be told apart: what the graph lacks was lost by the calibration or by the graph, what a plan
lacks by the kernels of this machine (:mod:`infer.checks.blame`). docs/gates.md says how the floors were found.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from calibration.from_images import choose_images
from calibration.request import Request
from engine_build.graph.gmac import count_gmac
from engine_build.quantise.int8 import Int8Graph, Int8Options, with_images
from engine_build.source import Source
from infer.backends import open_backend, why_unavailable
from infer.backends.instruction_sets import adds_in_int16
from infer.bundle import Manifest, Plan
from infer.bundle.accuracy_record import BuildCheck
from infer.checks.blame import Comparison, ScaleFit, blame
from infer.checks.self_test import SelfTest
from infer.checks.sqnr import agreement, centred_sqnr
from infer.errors import AccuracyError, GraphError, InputError

GRAPH, FLOAT, TYPED = "graph", "float graph", "typed graph"
#: SQNR in dB that the typed graph must keep of the float32 graph, centred by class.
FLOORS = {"fp32": 60.0, "fp16": 40.0, "bf16": 25.0, "int8": 20.0, "auto": 20.0, "fp8": 15.0}
# So much more is asked for where the scales do not fit the images; so the scales are looked at below that.
_SUSPICIOUS = 10.0
# A network that amplifies rounding, as one with random weights does, keeps less, whatever is done: then as much is
# asked for as legal roundings leave (engine_build/checks/known_answers.py), less so many dB.
_ROOM = 6.0
# Where roundings leave hardly anything no figure tells right from wrong, but NaN and infinity do.
_NOTHING = -99.0
# Between float32 and the typed graph such roundings are those of the precision itself: E4M3 has 3 bits, and a common
# value of int8 is 2^5 steps. Between that graph and a plan they are what its kernels round.
_GRAPH_ROUNDOFF = {
    "fp32": 2.0**-11,
    "fp16": 2.0**-11,
    "bf16": 2.0**-8,
    "int8": 2.0**-6,
    "auto": 2.0**-6,
    "fp8": 2.0**-4,
}
# Images by the work of one: enough to be sharp, few enough to cost seconds.
_GMAC, _FEWEST, _MOST = 64.0, 8, 64
_BATCH = 16


@dataclass(frozen=True)
class GateImages:
    """What the gates look at.

    Attributes:
        images: uint8 ``[N, crop, crop, 3]``, N at least 2.
        source: for people.
    """

    images: NDArray[np.uint8]
    source: str


def gate_images(source: Source, options: Int8Options, gmac: float | None) -> GateImages:
    """Images like those of the calibration where there are any, of the shipped model its own; else synthetic ones.

    Args:
        source: the network.
        options: what it is calibrated with.
        gmac: 10^9 multiply-accumulates of one image.
    """
    from engine_build.synthetic import synthetic_images

    count = int(min(_MOST, max(_FEWEST, _GMAC / gmac if gmac else _FEWEST)))
    shipped = source.row.shipped if source.row is not None else None
    request = replace(options.calibration, limit=count)
    try:  # what the shipped model is calibrated with may be wrong: it is judged by its own images
        request = replace(request, data=()) if shipped is not None else request
        images = _load(source, with_images(source, request))
    except InputError:
        images = np.empty(0, np.uint8)
    if len(images) >= 2:
        return GateImages(images, f"{len(images)} calibration images")
    return GateImages(synthetic_images(count, source.spec.crop, seed=7), f"{count} synthetic pictures")


def _load(source: Source, request: Request) -> NDArray[np.uint8]:
    from infer.pipeline.host import load_batches

    batches = load_batches(choose_images(request), source.spec, _BATCH)
    return np.concatenate([batch.images for batch in batches])


def check_graph(
    source: Source,
    precision: str,
    options: Int8Options,
    typed: onnx.ModelProto,
    quantised: Int8Graph | None,
    min_sqnr: float | None,
) -> Gates:
    """The gates of a build whose graph has passed the first of them; see :meth:`Gates.graph`."""
    gates = Gates(source, precision, gate_images(source, options, count_gmac(source.graph)), min_sqnr)
    gates.graph(typed, quantised)
    return gates


class Gates:
    """The checks of one build.

    Attributes:
        found: what was compared last, whether it passed or not.
        checks: what passed so far, for the manifest.
        notes: what a user should be told.
    """

    def __init__(self, source: Source, precision: str, images: GateImages, min_sqnr: float | None = None) -> None:
        """Nothing is run yet.

        Args:
            source: the float32 graph.
            precision: of the bundle.
            images: to look at.
            min_sqnr: floor of the typed graph in dB; None for that of the precision.
        """
        self._source, self._precision, self._images, self._least = source, precision, images.images, min_sqnr
        self.source = images.source
        self._typed: onnx.ModelProto | None = None
        self._logits = np.empty((0, 0), np.float32)
        self.found: Comparison | None = None
        self.checks: list[BuildCheck] = []
        self.notes: list[str] = []

    def graph(self, typed: onnx.ModelProto, quantised: Int8Graph | None) -> None:
        """Run the typed graph as it is written against the float32 graph.

        Args:
            typed: the graph of the bundle.
            quantised: what it was made from, where it has scales.

        Raises:
            AccuracyError: too little is left; says whether calibration or graph lost it.
            GraphError: the float32 graph itself gives NaN or infinity.
        """
        from engine_build.checks.as_written import as_written, engine_name

        started = time.monotonic()
        expected = self._float()
        self._typed, self._logits = typed, as_written(typed)(self._images)
        found = self._compare(self._logits, expected, FLOORS[self._precision] if self._least is None else self._least)
        strict = found if self._least is not None else replace(found, floor_db=found.floor_db + _SUSPICIOUS)
        scales = self.scale_fit(quantised) if quantised is not None and strict.missed else None
        if (cause := blame(self._precision, strict, scales=scales)) is not None and cause.part == "calibration":
            raise AccuracyError(cause.text)
        if found.missed:
            if self._least is None:
                found = self._eased(found, typed, _GRAPH_ROUNDOFF[self._precision])
            if (cause := blame(self._precision, found, scales=scales)) is not None:
                raise AccuracyError(cause.text)
            self.notes.append(
                f"this network amplifies rounding: {self._precision} keeps {_decibels(found.sqnr_db)} of float32, and "
                f"at least {found.floor_db:.1f} dB were asked for in place of {FLOORS[self._precision]:g} dB"
            )
        self._add(GRAPH, FLOAT, found, engine_name(), started)

    def plan(self, folder: Path, manifest: Manifest, plan: Plan) -> None:
        """Run a plan against the typed graph, after :meth:`graph`; where it does not run here, note that on the plan.

        Raises:
            AccuracyError: this machine's kernels compute something else than the graph.
        """
        if (missing := why_unavailable(plan.target)) is not None:
            plan.notes.append(f"not checked: it does not run here ({missing})")
            return
        from engine_build.checks.known_answers import CAPS, roundoff

        started = time.monotonic()
        test = SelfTest(folder, manifest, "never")  # with fewer images and less to say
        backend = open_backend(folder, manifest, test, plan.target)
        try:
            step = backend.max_batch
            parts = [backend.infer(self._images[at : at + step]) for at in range(0, len(self._images), step)]
            instructions = backend.instruction_set
            engine = backend.device
        finally:
            backend.close()
        found = self._compare(np.concatenate([part.logits for part in parts]), self._logits, CAPS[self._precision])
        if found.missed and self._typed is not None:
            found = self._eased(found, self._typed, roundoff(self._precision))
        int8 = self._precision in ("int8", "auto")
        overflow = int8 and adds_in_int16(instructions) and not manifest.pair_safe
        cause = blame(self._precision, None, found, target=plan.target, kernels=instructions, overflow=overflow)
        if cause is not None:
            raise AccuracyError(cause.text)
        self._add(plan.target, TYPED, found, engine + (f", {instructions}" if instructions else ""), started)

    def _float(self) -> NDArray[np.float32]:
        from engine_build.graph.reference import graph_logits

        run = graph_logits(self._source.graph, self._source.spec)
        parts = [run(self._images[at : at + _BATCH]) for at in range(0, len(self._images), _BATCH)]
        logits = np.concatenate(parts)
        if not np.isfinite(logits).all():
            raise GraphError(f"the float32 graph gives NaN or infinite logits for {self.source}; check its weights")
        return logits

    def _compare(self, found: NDArray[np.float32], expected: NDArray[np.float32], floor: float) -> Comparison:
        varies = float(np.ptp(expected, axis=0).max()) > 0
        # Of a network that gives the same for every image only the plain ratio is left: against an answer of zero.
        rest = np.zeros_like(expected[:1])
        pair = (found, expected) if varies else (np.append(found, rest, 0), np.append(expected, rest, 0))
        self.found = Comparison(centred_sqnr(*pair), floor, agreement(found, expected), len(expected))
        return self.found

    def _eased(self, found: Comparison, typed: onnx.ModelProto, size: float) -> Comparison:
        """``found`` with the floor of a network that amplifies roundings of ``size``, if this is one."""
        from engine_build.checks.as_written import emulated
        from engine_build.checks.known_answers import rounding_cost

        cost = rounding_cost(emulated(typed), self._images, self._logits, size)
        floor = found.floor_db if cost is None else min(found.floor_db, cost - _ROOM if cost >= _ROOM else _NOTHING)
        self.found = Comparison(found.sqnr_db, floor, found.agreement, found.images)
        return self.found

    def scale_fit(self, quantised: Int8Graph) -> ScaleFit | None:
        """How well the scales of a calibration fit the images; None where there is nothing to compare."""
        from calibration.fit import scale_fit
        from calibration.streaming import collect
        from calibration.tensors import activation_steps

        amax = {name: value for name, value in quantised.cache.amax().items() if name in quantised.quantised.tensors}
        if not amax:
            return None
        graph = self._source.graph
        statistics = collect(graph, [self._images], list(amax))
        steps = {name: count for name, count in activation_steps(graph).items() if name in amax}
        origin = quantised.cache.provenance
        method = "unknown" if origin is None else origin.method
        return scale_fit(statistics, amax, steps, method=method, fp8=self._precision == "fp8")

    def _add(self, target: str, against: str, found: Comparison, engine: str, started: float) -> None:
        self.checks.append(
            BuildCheck(
                target=target,
                precision=self._precision,
                against=against,
                images=found.images,
                sqnr_db=found.sqnr_db,
                agreement=found.agreement,
                floor_db=found.floor_db,
                engine=engine,
                seconds=time.monotonic() - started,
            )
        )


def _decibels(value: float | None) -> str:
    return "all" if value is None else f"{value:.1f} dB"
