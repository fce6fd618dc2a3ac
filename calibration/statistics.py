"""What a pass over the calibration images has found, and the scales that follow from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from calibration.int8 import SYMMETRIC_STEPS
from calibration.observers import TensorObserver
from calibration.thresholds import check_method, threshold
from infer.errors import InputError


@dataclass(frozen=True)
class Statistics:
    """Statistics of activations over all images.

    Attributes:
        tensors: by tensor name, in graph order: minimum, maximum, number of elements, histogram of magnitudes.
        images: how many images were seen.
        data_hash: SHA-256 of the images, the same in any order.
        warnings: one line each: what looks wrong about the images or the activations.
    """

    tensors: dict[str, TensorObserver]
    images: int
    data_hash: str
    warnings: list[str]

    def amax(self, method: str, steps: Mapping[str, int] | None = None, **parameters: Any) -> dict[str, float]:
        """The magnitude that the largest integer shall stand for, by tensor name; 0 for a tensor that is always zero.

        Args:
            method: ``minmax``, ``percentile``, ``entropy`` or ``mse``, see :mod:`calibration.thresholds`.
            steps: integers from 0 to amax of tensors that have other than 127
                (:func:`calibration.tensors.activation_steps`).
            parameters: of the method: ``percentile=99.99``.

        Raises:
            InputError: unknown method or parameter, or histograms were not collected.
        """
        check_method(method, parameters)
        found = {}
        for name, seen in self.tensors.items():
            if method == "minmax":
                found[name] = seen.amax
            elif seen.histogram is None:
                raise InputError(f"method {method!r} needs histograms, but only ranges were collected; use minmax")
            else:
                found[name] = threshold(
                    method, seen.histogram, seen.amax, parameters, steps=(steps or {}).get(name, SYMMETRIC_STEPS)
                )
        return found

    def scales(self, method: str, steps: Mapping[str, int] | None = None, **parameters: Any) -> dict[str, np.float32]:
        """Symmetric int8 scales, ``amax / 127`` in float32, by tensor name. Arguments and errors as :meth:`amax`."""
        return {
            name: np.float32(amax / SYMMETRIC_STEPS) for name, amax in self.amax(method, steps, **parameters).items()
        }
