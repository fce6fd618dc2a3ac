"""What is kept of the values that stream past: of each activation tensor, and of the images themselves.

Both observers are sums over images of quantities that do not depend on order: minima, maxima, integer counts and
sets. Observers filled apart are merged without loss.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calibration.histogram import Histogram, empty_histogram, magnitude_histogram
from infer.errors import GraphError

# Neighbouring pixels of a photograph correlate by 0.9 and more, those of noise by nothing.
_NOISE_CORRELATION = 0.3


@dataclass
class TensorObserver:
    """Range of one tensor and the histogram of its magnitudes.

    Attributes:
        minimum, maximum: over all elements, exact float32 values; infinities while nothing was observed.
        elements: how many values were seen.
        histogram: of ``|x|``; None where only the range is wanted.
    """

    minimum: float = math.inf
    maximum: float = -math.inf
    elements: int = 0
    histogram: Histogram | None = field(default_factory=empty_histogram)

    @property
    def amax(self) -> float:
        """The largest magnitude."""
        return max(-self.minimum, self.maximum, 0.0)

    def observe(self, name: str, values: NDArray[Any]) -> None:
        """Add one array.

        Args:
            name: the tensor's name, for messages.
            values: float32 or float16, any shape.

        Raises:
            GraphError: NaN or infinity, no elements, or another type than float32 and float16.
        """
        if values.dtype not in (np.float32, np.float16):
            raise GraphError(f"tensor {name!r}: expected float32 or float16 activations, found {values.dtype}")
        if values.size == 0:
            raise GraphError(f"tensor {name!r} has no elements, found shape {values.shape}; remove it from the list")
        if values.dtype == np.float16:
            values = values.astype(np.float32)
        # Adding 0.0 turns -0.0, which equals 0.0, into it: which of both min and max keep would depend on the order.
        low, high = float(values.min()) + 0.0, float(values.max()) + 0.0
        if not (math.isfinite(low) and math.isfinite(high)):
            bad = int(np.count_nonzero(~np.isfinite(values)))
            raise GraphError(
                f"tensor {name!r}: {bad} of {values.size} values are NaN or infinite; expected finite activations. "
                "Check the weights and that the images are what the graph expects"
            )
        self.minimum, self.maximum = min(self.minimum, low), max(self.maximum, high)
        self.elements += values.size
        if self.histogram is not None:
            self.histogram.join(magnitude_histogram(values, max(-low, high)))

    def merge(self, other: TensorObserver) -> None:
        """Add what ``other`` saw."""
        self.minimum, self.maximum = min(self.minimum, other.minimum), max(self.maximum, other.maximum)
        self.elements += other.elements
        if self.histogram is not None and other.histogram is not None:
            self.histogram.join(other.histogram)


@dataclass
class InputObserver:
    """Identity and plain properties of the images.

    Attributes:
        digests: SHA-256 of each image (type, shape, bytes).
        images: how many were seen.
        values: how many pixel values.
        darkest, brightest: extreme values over all images; only of uint8 images, as all that follows.
        flat: images of one single value.
        noisy: images ``[H, W, C]`` whose horizontal neighbours hardly correlate.
        black, white: how many values are 0 and 255.
    """

    digests: list[bytes] = field(default_factory=list)
    values: int = 0
    darkest: int = 255
    brightest: int = 0
    flat: int = 0
    noisy: int = 0
    black: int = 0
    white: int = 0

    @property
    def images(self) -> int:
        """How many images were seen."""
        return len(self.digests)

    def observe(self, image: NDArray[Any]) -> None:
        """Add one image, C-contiguous, without batch axis."""
        digest = hashlib.sha256(f"{image.dtype.str}{image.shape}".encode())
        digest.update(image.data)
        self.digests.append(digest.digest())
        if image.dtype != np.uint8 or not image.size:
            return
        low, high = int(image.min()), int(image.max())
        self.values += image.size
        self.darkest, self.brightest = min(self.darkest, low), max(self.brightest, high)
        self.flat += low == high
        self.black += int(np.count_nonzero(image == 0)) if low == 0 else 0
        self.white += int(np.count_nonzero(image == 255)) if high == 255 else 0
        self.noisy += low < high and image.ndim == 3 and _neighbour_correlation(image) < _NOISE_CORRELATION

    def merge(self, other: InputObserver) -> None:
        """Add what ``other`` saw."""
        self.digests += other.digests
        self.darkest, self.brightest = min(self.darkest, other.darkest), max(self.brightest, other.brightest)
        for name in ("values", "flat", "noisy", "black", "white"):
            setattr(self, name, getattr(self, name) + getattr(other, name))

    def data_hash(self) -> str:
        """SHA-256 over the sorted digests, 64 hex digits: the same images in any order give the same hash."""
        return hashlib.sha256(b"".join(sorted(self.digests))).hexdigest()


def _neighbour_correlation(image: NDArray[np.uint8]) -> float:
    """Correlation of horizontally adjacent pixels of ``[H, W, C]``, from every fourth row.

    ``E[(a - b)^2] = 2 var (1 - r)`` for values ``a``, ``b`` of equal variance and correlation ``r``.
    """
    rows = image[::4].astype(np.float32)
    variance = float(rows.var())
    if rows.shape[1] < 2 or variance == 0:
        return 1.0
    return 1 - float(np.square(np.diff(rows, axis=1)).mean()) / (2 * variance)
