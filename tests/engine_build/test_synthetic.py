"""Synthetic pictures: repeatable, and as bright, as contrasted and as smooth as photographs."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from engine_build.synthetic import synthetic_images


@pytest.mark.parametrize(("count", "size"), [(1, 32), (3, 224), (2, 33)])
def test_shape(count, size):
    images = synthetic_images(count, size)
    assert images.shape == (count, size, size, 3)
    assert images.dtype == np.uint8
    assert images.flags.c_contiguous


def test_repeatable():
    assert np.array_equal(synthetic_images(2, 32, 1), synthetic_images(2, 32, 1))
    assert not np.array_equal(synthetic_images(2, 32, 1), synthetic_images(2, 32, 2))


def test_statistics_of_photographs():
    images = synthetic_images(32, 128).astype(float)
    assert 105 < images.mean() < 125
    assert 48 < images.std() < 66
    red, green = images[..., 0].ravel(), images[..., 1].ravel()
    assert 0.7 < np.corrcoef(red, green)[0, 1] < 0.98  # neither grey nor colour noise
    neighbours = np.corrcoef(images[:, :, 1:, 0].ravel(), images[:, :, :-1, 0].ravel())[0, 1]
    assert neighbours > 0.7  # white noise has 0


def test_amplitude_falls_as_one_over_frequency():
    pictures = synthetic_images(32, 128)[..., 1].astype(float)
    power = (np.abs(np.fft.fft2(pictures - pictures.mean((1, 2), keepdims=True))) ** 2).mean(0)
    radius = np.hypot(*np.meshgrid(np.fft.fftfreq(128), np.fft.fftfreq(128)))
    rings = np.geomspace(2 / 128, 0.25, 8)
    mean = [power[(radius >= a) & (radius < b)].mean() for a, b in pairwise(rings)]
    slope = np.polyfit(np.log(rings[:-1]), np.log(mean), 1)[0]
    assert -2.4 < slope < -1.6  # power is amplitude squared; clipping to 0..255 flattens it a little
