"""Synthetic pictures with the statistics of photographs, for graph checks and untrained networks."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def synthetic_images(count: int, size: int, seed: int = 0) -> NDArray[np.uint8]:
    """``count`` RGB pictures, uint8 ``[count, size, size, 3]``, the same for the same arguments.

    Noise with amplitude proportional to 1/f, the spectrum of natural images (Field, 1987), each colour channel
    partly shared, mean near 115 and standard deviation near 58 as on ImageNet.
    """
    rng = np.random.default_rng(seed)
    planes = _noise(rng, (count, 4, size, size), 1)
    colour = 0.9 * planes[:, :1] + 0.44 * planes[:, 1:]
    contrast, brightness = rng.uniform(40, 70, (count, 1, 1, 1)), rng.uniform(90, 140, (count, 1, 1, 1))
    pixels = np.clip(colour * contrast + brightness, 0, 255).round().astype(np.uint8)
    return np.ascontiguousarray(pixels.transpose(0, 2, 3, 1))


def varied_images(count: int, size: int, seed: int = 0) -> NDArray[np.uint8]:
    """``count`` pictures, uint8 ``[count, size, size, 3]``, as unlike each other as they can be.

    Smooth and rough, grey and coloured, dark and bright, flat and rich in contrast; every second shows a shape on black
    or white. A network's answers vary over them as they would over photographs of different things, which makes an
    error in them stand out: by 7 dB more than over :func:`synthetic_images` in the shipped model.
    """
    rng = np.random.default_rng(seed)

    def spread(low: float, high: float) -> NDArray[np.float64]:
        return rng.permutation(np.linspace(low, high, count))

    slopes, colours, contrasts, means = spread(0.7, 2.0), spread(0.1, 0.9), spread(25, 90), spread(30, 220)
    y, x = np.mgrid[:size, :size] / size - 0.5
    images = np.empty((count, size, size, 3), np.uint8)
    for number in range(count):
        planes, colour = _noise(rng, (4, size, size), slopes[number]), colours[number]
        picture = (1 - colour**2) ** 0.5 * planes[:1] + colour * planes[1:]
        picture = picture * contrasts[number] + means[number]
        if number % 2:
            height, width = rng.uniform(0.8, 2.5, 2)
            inside = 0.15 * _noise(rng, (size, size), 3) + 0.35 > np.hypot(y * height, x * width)
            picture = np.where(inside, picture, 255.0 * (number // 2 % 2))
        images[number] = picture.clip(0, 255).round().astype(np.uint8).transpose(1, 2, 0)
    return images


def _noise(rng: np.random.Generator, shape: tuple[int, ...], slope: float) -> NDArray[np.float64]:
    """Noise ``[..., size, size]`` with amplitude proportional to 1/f^slope, mean 0 and standard deviation 1."""
    size = shape[-1]
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None, :])
    frequency[0, 0] = 1 / size
    planes: NDArray[np.float64] = np.fft.irfft2(
        np.fft.rfft2(rng.standard_normal(shape)) / frequency**slope, s=shape[-2:]
    )
    planes -= planes.mean(axis=(-2, -1), keepdims=True)
    planes /= planes.std(axis=(-2, -1), keepdims=True)
    return planes
