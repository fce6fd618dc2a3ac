"""Where accuracy was lost on the way from float32 to a plan: the calibration, the graph, or the kernels.

Three computations of the same images are compared in order: the float32 graph, the precision-typed graph computed as
it is written, and a plan. What the second lacks against the first was lost before any kernel ran: by the scales where
others would have been better for these images, else by the graph itself. What the third lacks against the second was
lost by the kernels that ran it: they compute something else than the graph says.

The build asks it of its checks, and whoever measures a finished bundle may ask it again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from numpy.typing import NDArray

from infer.checks.sqnr import agreement, centred_sqnr

#: A calibration whose scales cost so many dB more than the best for the images at hand is what lost the accuracy.
#: Right ones cost 0 to 9, wrong ones 11 to 35 (docs/gates.md).
CALIBRATION_LOSS = 10.0
# Without the scales' own errors: so much less than on the images of the build, and these are other images.
_OTHER_IMAGES = 6.0


@dataclass(frozen=True)
class Comparison:
    """Two sets of logits of the same images.

    Attributes:
        sqnr_db: that is left, centred by class (:mod:`infer.checks.sqnr`); None where they are equal.
        floor_db: that must be left.
        agreement: images with the same top-1, percent.
        images: how many.
    """

    sqnr_db: float | None
    floor_db: float
    agreement: float
    images: int

    @property
    def missed(self) -> bool:
        """Whether less than the floor is left; NaN counts as nothing."""
        return self.sqnr_db is not None and not self.sqnr_db >= self.floor_db

    def __str__(self) -> str:
        left = "equal" if self.sqnr_db is None else f"{self.sqnr_db:.1f} dB, at least {self.floor_db:.1f} dB are needed"
        return f"{left} (agreement {self.agreement:.1f} % of {self.images} images)"


def compare(found: NDArray[Any], expected: NDArray[Any], floor_db: float) -> Comparison:
    """Two arrays of logits ``[N, C]``, N at least 2, compared."""
    return Comparison(centred_sqnr(found, expected), floor_db, agreement(found, expected), len(expected))


@dataclass(frozen=True)
class ScaleFit:
    """How well the activation scales of a bundle fit some images.

    Attributes:
        method: the calibration's, ``unknown`` for a foreign cache.
        loss_db: how much more error all scales together make than the best for these images would.
        tensor: the one that makes most of it.
        ratio: its scale, over the best.
    """

    method: str
    loss_db: float
    tensor: str
    ratio: float

    def __str__(self) -> str:
        size = f"{self.ratio:.1f} times" if self.ratio >= 1 else f"1/{1 / max(self.ratio, 1e-9):.1f} of"
        return (
            f"its scales (method {self.method}) make {self.loss_db:.1f} dB more error than the best for these images, "
            f"most of it in {self.tensor}, whose scale is {size} the best"
        )


@dataclass(frozen=True)
class Blame:
    """What lost the accuracy, and one line for people that says what was found and what to do."""

    part: Literal["calibration", "graph", "kernels"]
    text: str


def blame(
    precision: str,
    graph: Comparison | None,
    plan: Comparison | None = None,
    *,
    scales: ScaleFit | None = None,
    at_build: float | None = None,
    target: str = "",
    kernels: str = "",
    overflow: bool = False,
) -> Blame | None:
    """Say what lost the accuracy, the first in order; None when no floor is missed.

    Args:
        precision: of the bundle.
        graph: the typed graph as written against the float32 graph.
        plan: the plan against the typed graph as written, on the same images.
        scales: how the calibration fits the images; None where that is not known.
        at_build: SQNR of ``graph`` on the images of the build; judges the calibration where ``scales`` is None.
        target: of the plan.
        kernels: instruction set of the plan's kernels, or the GPU.
        overflow: these kernels add pairs of products in int16, and the weights are not made for that.
    """
    if graph is not None and graph.missed:
        return _graph(precision, graph, scales, at_build)
    if plan is None or not plan.missed:
        return None
    found = f"kernels: {target}{f' ({kernels})' if kernels else ''} computes something else than its graph: {plan}"
    if overflow:
        return Blame(
            "kernels",
            f"{found}. These kernels add pairs of int8 products in 16 bits, which overflows with the weights of this "
            "bundle; build it again for a CPU target, whose weights cannot overflow",
        )
    return Blame(
        "kernels",
        f"{found}. The graph is right; use another target or precision on this machine, or another version of "
        f"{target or 'the library'}",
    )


def _graph(precision: str, graph: Comparison, scales: ScaleFit | None, at_build: float | None) -> Blame:
    found = f"the {precision} graph, computed as it is written, against float32: {graph}"
    advice = "Calibrate again, with images like those the model will see (--data), or with another --method"
    if scales is not None and scales.loss_db >= CALIBRATION_LOSS:
        return Blame("calibration", f"calibration: {found}. The cause is the calibration: {scales}. {advice}")
    if scales is None and at_build is not None and _worse_than(at_build, graph):
        return Blame(
            "calibration",
            f"calibration: {found}. On the images of the build it was {at_build:.1f} dB: the model was calibrated "
            f"with other images than these. {advice}",
        )
    fits = "" if scales is None else " and its scales fit these images"
    what = (
        f"{precision} costs this network so much{fits}. Build PRECISION=auto or fp16"
        if precision in ("int8", "auto", "fp8")
        else f"{precision} cannot hold this network. Build fp32"
    )
    return Blame("graph", f"graph: {found}. {what}, or allow it (--min-sqnr)")


def _worse_than(at_build: float, graph: Comparison) -> bool:
    """Whether the floor was met at the build, and these images keep clearly less."""
    left = graph.sqnr_db
    return left is not None and at_build >= graph.floor_db and at_build - left >= _OTHER_IMAGES
