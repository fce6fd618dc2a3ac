"""Sums of floats without rounding: the same in any order, and however they are cut into parts."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Every finite float64 is a multiple of 2 ** -1074, the smallest one that is not 0.
_SHIFT = 1074


class ExactSum:
    """A sum of float64 values.

    Args:
        text: of another, as :meth:`__str__` gives it.
    """

    def __init__(self, text: str = "0") -> None:
        self._units = int(text, 16)

    def add(self, values: NDArray[np.floating[Any]]) -> None:
        """Add finite values ``[N]``."""
        for value in values.tolist():
            numerator, denominator = value.as_integer_ratio()  # the denominator is a power of 2
            self._units += numerator << (_SHIFT - denominator.bit_length() + 1)

    def merge(self, other: ExactSum) -> None:
        """Add what ``other`` has."""
        self._units += other._units

    def __float__(self) -> float:
        return float(Fraction(self._units, 1 << _SHIFT))

    def __str__(self) -> str:
        return f"{self._units:x}"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ExactSum) and self._units == other._units

    __hash__ = None  # type: ignore[assignment]
