"""What options of a calibration choose from, and their defaults. Imports nothing heavy, so that ``--help`` is fast."""

from __future__ import annotations

from typing import Literal, get_args

#: How the range of a tensor is chosen.
Method = Literal["minmax", "percentile", "entropy", "mse"]
#: Inputs of residual additions that are quantised.
Residual = Literal["none", "identity", "both"]

METHODS: tuple[Method, ...] = get_args(Method)
RESIDUALS: tuple[Residual, ...] = get_args(Residual)
#: Chosen by measurement on the shipped model, see docs/int8.md.
DEFAULT_METHOD: Method = "mse"
DEFAULT_LIMIT = 512
