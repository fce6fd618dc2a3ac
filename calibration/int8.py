"""The integers of int8, as quantised tensors use them."""

from __future__ import annotations

import numpy as np

LOWEST, HIGHEST = int(np.iinfo(np.int8).min), int(np.iinfo(np.int8).max)
#: Steps from 0 to amax, symmetric: -128 is left out.
SYMMETRIC_STEPS = HIGHEST
#: Steps from 0 to amax of a tensor that is never negative and was moved to use the whole range.
SHIFTED_STEPS = HIGHEST - LOWEST
