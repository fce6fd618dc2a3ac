"""What options of a build choose from, and their defaults. Imports nothing heavy, so that ``--help`` is fast."""

from __future__ import annotations

from typing import Literal, get_args

#: How int8 weights are rounded: by what each layer reads of calibration images, or to the nearest integer.
Rounding = Literal["moments", "nearest"]

ROUNDINGS: tuple[Rounding, ...] = get_args(Rounding)
#: Points of top-1 (of agreement, without labels) that ``auto`` may cost against FP32.
DEFAULT_MAX_DROP = 0.5
DEFAULT_BUDGET_LIMIT = 2048
