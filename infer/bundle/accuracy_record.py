"""What measurements leave in the manifest: comparisons of the build, and of accuracy the verdict and its counts."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

#: ``inconclusive``: too few images to tell.
Outcome = Literal["passed", "failed", "inconclusive"]


class Counts(msgspec.Struct, kw_only=True):
    """Numbers of images; every percentage of a measurement is a quotient of two of them.

    Attributes:
        images: that were run.
        labelled: those of them with a true class.
        unreadable: that could not be decoded, not in ``images``.
        not_finite: with NaN or infinity among the logits, of the bundle or of FP32; they count nowhere else.
        top1, top5: hits of the bundle among ``labelled``.
        reference_images: run through FP32 too: 0, or as many as ``images``.
        reference_top1, reference_top5: hits of FP32 among ``labelled``.
        lost, gained: where only FP32, or only the bundle, is right.
        agreeing: with the same top-1 as FP32.
        real_images: with a reassessed label, of those the hits: ``real_top1``, ``reference_real_top1``.
    """

    images: int
    labelled: int = 0
    unreadable: int = 0
    not_finite: int = 0
    top1: int = 0
    top5: int = 0
    reference_images: int = 0
    reference_top1: int = 0
    reference_top5: int = 0
    lost: int = 0
    gained: int = 0
    agreeing: int = 0
    real_images: int = 0
    real_top1: int = 0
    reference_real_top1: int = 0


class Figures(msgspec.Struct, kw_only=True, omit_defaults=True):
    """What a measurement shows; what the data do not allow is None, and missing in JSON. Percentages are 0 to 100.

    Attributes:
        images, labelled, not_finite: see :class:`Counts`.
        top1, top5, reference_top1, reference_top5: of the bundle, and of FP32.
        top1_interval: 95 % Wilson interval of ``top1``.
        lost, gained: images that only FP32, or only the bundle, gets right.
        agreement, disagreeing: images with the same top-1 as FP32 in percent, and how many have another.
        max_logit_difference, mean_logit_difference, cosine: of the logits against FP32's.
        sqnr_db: of the logits; None (in JSON null) where they are equal, or FP32's are all zero; unset without FP32.
        exact: the logits are equal.
        ece, reference_ece: expected calibration error, percentage points.
        real_images, real_top1, reference_real_top1: by the reassessed labels of ImageNet.
    """

    images: int
    labelled: int = 0
    not_finite: int = 0
    top1: float | None = None
    top5: float | None = None
    top1_interval: tuple[float, float] | None = None
    reference_top1: float | None = None
    reference_top5: float | None = None
    lost: int | None = None
    gained: int | None = None
    agreement: float | None = None
    disagreeing: int | None = None
    max_logit_difference: float | None = None
    mean_logit_difference: float | None = None
    cosine: float | None = None
    sqnr_db: float | msgspec.UnsetType | None = msgspec.UNSET
    exact: bool = False
    ece: float | None = None
    reference_ece: float | None = None
    real_images: int | None = None
    real_top1: float | None = None
    reference_real_top1: float | None = None

    @property
    def sqnr_text(self) -> str:
        """``38.6 dB``; ``exact`` where nothing differs, and words where FP32 gives nothing to compare with."""
        if self.exact:
            return "exact"
        return f"{self.sqnr_db:.1f} dB" if isinstance(self.sqnr_db, float) else "none, FP32's logits are all zero"


class Diagnosis(msgspec.Struct):
    """Where the accuracy went.

    Attributes:
        kind: ``ok``, ``pre-processing``, ``precision``, ``both``, ``subset``, ``labels``, ``unexpected`` or
            ``unknown`` (nothing to compare with).
        text: one line for people.
        cause: of a loss against FP32: ``calibration``, ``graph`` or ``kernels`` (of the machine that ran it); empty
            where nothing was lost or it is not known.
    """

    kind: str = "unknown"
    text: str = ""
    cause: str = ""


class Accuracy(msgspec.Struct, kw_only=True):
    """One measurement of a bundle.

    Attributes:
        target: that ran, on ``device``.
        plan_sha256: of the plan's first file; None for the reference engine.
        data: names of the images' folders or archives.
        reference: FP32 bundle and what ran it; None where there was none.
        outcome: the verdict, and ``verdict`` says why.
        threshold: share of FP32's top-1, or of agreement, that was asked for, 0 to 1.
        measured: UTC, ISO 8601.
        counts: see :class:`Counts`.
        figures: what follows from the counts and what does not (differences of the logits), as they are shown.
        diagnosis: by :func:`infer.verify.diagnosis.diagnose`.
        fast_decode: JPEG files at reduced size for the bundle, exact for FP32.
    """

    target: str
    device: str
    plan_sha256: str | None
    data: str
    reference: str | None
    outcome: Outcome
    verdict: str
    threshold: float
    measured: str
    counts: Counts
    figures: Figures
    diagnosis: Diagnosis = msgspec.field(default_factory=Diagnosis)
    fast_decode: bool = False

    @property
    def key(self) -> tuple[object, ...]:
        """What a newer measurement must share to take this one's place."""
        return self.target, self.data, self.reference, self.fast_decode

    def to_json(self) -> dict[str, Any]:
        """The fields in one JSON object, with the figures beside them."""
        fields: dict[str, Any] = msgspec.to_builtins(self)
        return {**fields.pop("figures"), **fields}


class BuildCheck(msgspec.Struct, kw_only=True):
    """A comparison made at the build.

    Attributes:
        target: whose plan was run, or ``graph`` for the typed graph as it is written.
        precision: of the bundle.
        against: ``float graph`` or ``typed graph``.
        images: how many.
        sqnr_db: of the logits; None when they are equal.
        agreement: images with the same top-1, percent.
        floor_db: SQNR that was asked for.
        engine: that ran it.
        seconds: it took.
    """

    target: str
    precision: str
    against: str
    images: int
    sqnr_db: float | None
    agreement: float
    floor_db: float
    engine: str
    seconds: float = 0.0

    def __str__(self) -> str:
        """For people: ``34.6 dB, agreement 100.0 % of 64 images (at least 20 dB)``."""
        kept = "equal" if self.sqnr_db is None else f"{self.sqnr_db:.1f} dB"
        asked = f"at least {self.floor_db:.3g} dB" if self.floor_db > 0 else "cannot tell: rounding leaves no more"
        return f"{kept}, agreement {self.agreement:.1f} % of {self.images} images ({asked})"
