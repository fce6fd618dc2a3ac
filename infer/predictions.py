"""What the runner says about an image."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from infer.backends.base import Outputs

_NOT_FINITE = "the network gave NaN or infinite scores; verify the bundle, or build a higher precision"


@dataclass(frozen=True)
class Ranked:
    """One class of a prediction: index into the logits, name, softmax probability."""

    index: int
    label: str
    score: float


@dataclass(frozen=True)
class Prediction:
    """The best classes of one image, best first; or why it could not be read.

    Attributes:
        name: of the image.
        top: the classes; empty when ``error`` is set.
        error: one line, None for a good image that the network gave finite scores for.
    """

    name: str
    top: tuple[Ranked, ...] = ()
    error: str | None = None

    def to_json(self) -> dict[str, Any]:
        """As a JSON object: ``{"name", "top": [{"index", "label", "score"}]}`` or ``{"name", "error"}``."""
        if self.error is not None:
            return {"name": self.name, "error": self.error}
        top = [{"index": r.index, "label": r.label, "score": round(r.score, 6)} for r in self.top]
        return {"name": self.name, "top": top}


def rank(names: Sequence[str], outputs: Outputs, labels: Sequence[str], top: int | None = None) -> list[Prediction]:
    """One prediction a row of ``outputs``, with at most ``top`` classes each; NaN is no answer but an error."""
    scores, classes = outputs.scores[:, :top].tolist(), outputs.classes[:, :top].tolist()
    return [
        Prediction(name, tuple(Ranked(i, labels[i], s) for i, s in zip(row, values, strict=True)))
        if all(map(math.isfinite, values))
        else Prediction(name, error=f"{name}: {_NOT_FINITE}")
        for name, row, values in zip(names, classes, scores, strict=True)
    ]
