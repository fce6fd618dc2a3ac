"""Signs that calibration data are not what the model will see. Each becomes one line of warning."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from calibration.histogram import BINS
from calibration.observers import InputObserver, TensorObserver

ENOUGH_IMAGES = 100
_NAMES_SHOWN = 5
# An unbounded activation spreads out towards its maximum. This share in the bin of the maximum means clipping.
_SATURATED_SHARE = 0.05
_SATURATED_FROM = 1000


def image_warnings(seen: InputObserver) -> list[str]:
    """What looks wrong about the images."""
    count, found = seen.images, []
    if count < ENOUGH_IMAGES:
        found.append(f"only {count} images: ranges are reliable from {ENOUGH_IMAGES}, 500 or more are usual")
    distinct = len(set(seen.digests))
    if distinct < count:
        found.append(f"only {distinct} of {count} images are distinct: some were passed more than once")
    if not seen.values:
        return found
    if seen.flat:
        found.append(f"{seen.flat} of {count} images have one single value everywhere (all black?): were they decoded?")
    if seen.brightest - seen.darkest < 32:
        found.append(
            f"all pixel values lie in {seen.darkest}..{seen.brightest}, expected 0..255: "
            "were the images scaled or normalised before they became uint8?"
        )
    for value, share in ((0, seen.black / seen.values), (255, seen.white / seen.values)):
        if share > 0.9:
            found.append(f"{100 * share:.0f} % of all pixel values are {value}: the images look saturated")
    if 2 * seen.noisy > count:
        found.append(f"{seen.noisy} of {count} images look like noise: adjacent pixels do not correlate")
    return found


def tensor_warnings(tensors: Mapping[str, TensorObserver]) -> list[str]:
    """What looks wrong about the activations."""
    found = []
    zero = [name for name, seen in tensors.items() if seen.amax == 0]
    constant = [name for name, seen in tensors.items() if seen.minimum == seen.maximum != 0]
    saturated = [name for name, seen in tensors.items() if seen.minimum < seen.maximum and _is_saturated(seen)]
    if zero:
        found.append(f"always zero, so without a usable range: {_listed(zero)}")
    if constant:
        found.append(f"constant over all images: {_listed(constant)}")
    if saturated:
        found.append(f"many values at the very end of the range, as if clipped: {_listed(saturated)}")
    return found


def _is_saturated(seen: TensorObserver) -> bool:
    if seen.histogram is None:
        return False
    counts = seen.histogram.counts
    top = counts[min(int(seen.amax / seen.histogram.width), BINS - 1)]
    nonzero = seen.elements - counts[0]
    return bool(nonzero >= _SATURATED_FROM and top > _SATURATED_SHARE * nonzero)


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    more = len(names) - _NAMES_SHOWN
    return ", ".join(names[:_NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")
