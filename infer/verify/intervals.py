"""Confidence intervals of shares of images, from counts.

Wilson (1927) for one share. For the difference of two shares on the same images Tango's score interval (Tango,
"Equivalence test and confidence interval for the difference in proportions for the paired-sample design", Statistics in
Medicine 17, 1998): only the images that one gets right and the other wrong move it, and it holds for few images too.
"""

from __future__ import annotations

import math

#: Standard normal deviate of a two-sided 95 % interval, and of 99.9 %.
Z95, Z999 = 1.959963984540054, 3.2905267314919255
_STEPS = 60  # of bisection: 2^-60 is below what a float tells


def wilson(hits: int, images: int, z: float = Z95) -> tuple[float, float]:
    """Interval of the share ``hits / images``, both ends from 0 to 1.

    Raises:
        ValueError: no images.
    """
    if images < 1:
        raise ValueError("an interval needs at least one image")
    share, z2 = hits / images, z * z
    centre = (share + z2 / (2 * images)) / (1 + z2 / images)
    half = z / (1 + z2 / images) * math.sqrt(share * (1 - share) / images + z2 / (4 * images**2))
    return max(0.0, centre - half), min(1.0, centre + half)


def tango(lost: float, gained: float, images: float, z: float = Z95) -> tuple[float, float]:
    """Interval of the difference of two shares on the same images, both ends from -1 to 1.

    Args:
        lost: images that only the first gets right.
        gained: images that only the second gets right.
        images: all of them. Whole numbers but for :func:`images_needed`.
        z: deviate of the confidence.

    Returns:
        Bounds of the first share less the second: (lost - gained) / images lies between them.

    Raises:
        ValueError: no images, or more that differ than there are.
    """
    if images <= 0 or lost < 0 or gained < 0 or lost + gained > images:
        raise ValueError(f"expected 0 <= lost + gained <= images, found {lost}, {gained} of {images}")
    found = (lost - gained) / images

    def edge(end: float) -> float:
        inside, outside = found, end
        for _ in range(_STEPS):
            middle = (inside + outside) / 2
            if _score(lost, gained, images, middle) <= z:
                inside = middle
            else:
                outside = middle
        return (inside + outside) / 2

    return edge(-1.0), edge(1.0)


def _score(lost: float, gained: float, images: float, difference: float) -> float:
    """Magnitude of the score statistic for a true ``difference``; its variance under that by maximum likelihood."""
    a = 2 * images
    b = -lost - gained + (2 * images - lost + gained) * difference
    c = -gained * difference * (1 - difference)
    only_second = max(0.0, (math.sqrt(max(0.0, b * b - 4 * a * c)) - b) / (2 * a))
    variance = images * (2 * only_second + difference * (1 - difference))
    distance = abs(lost - gained - images * difference)
    if variance <= 0:
        return 0.0 if distance == 0 else math.inf
    return distance / math.sqrt(variance)


def images_needed(lost: int, gained: int, images: int, allowed: float) -> int | None:
    """How many images would put :func:`tango` wholly on one side of ``allowed``, if they came out in these shares.

    None where no number would: the difference is ``allowed`` itself, or all but.
    """
    factor = 1.0
    while factor < 2**20:
        low, high = tango(lost * factor, gained * factor, images * factor)
        if high <= allowed or low > allowed:
            break
        factor *= 2
    else:
        return None
    if factor == 1:
        return images
    low_factor = factor / 2
    while factor - low_factor > 0.005 * factor:
        middle = (factor + low_factor) / 2
        low, high = tango(lost * middle, gained * middle, images * middle)
        if high <= allowed or low > allowed:
            factor = middle
        else:
            low_factor = middle
    return math.ceil(images * factor)
