import math

import numpy as np
import pytest

from infer.checks.sqnr import agreement, centred_sqnr

RNG = np.random.default_rng(0)
LOGITS = RNG.standard_normal((200, 10))


def test_white_noise_of_a_tenth_is_20_decibels():
    noisy = LOGITS + 0.1 * RNG.standard_normal(LOGITS.shape)
    assert centred_sqnr(noisy, LOGITS) == pytest.approx(20, abs=0.3)


def test_what_all_images_share_counts_for_nothing():
    noisy = LOGITS + 0.1 * RNG.standard_normal(LOGITS.shape)
    bias = 1000 * RNG.standard_normal(10)
    assert centred_sqnr(noisy + bias, LOGITS + bias) == pytest.approx(centred_sqnr(noisy, LOGITS))
    assert centred_sqnr(LOGITS + 1, LOGITS) == pytest.approx(0, abs=0.3)  # but a shift of the answers is noise


def test_the_ends():
    assert centred_sqnr(LOGITS, LOGITS) is None
    for bad in (np.nan, np.inf):
        broken = LOGITS.copy()
        broken[3, 3] = bad
        assert centred_sqnr(broken, LOGITS) == centred_sqnr(LOGITS, broken) == -math.inf
    assert centred_sqnr(np.eye(3), np.ones((3, 3))) == -math.inf
    with pytest.raises(ValueError, match="N >= 2"):
        centred_sqnr(LOGITS[:1], LOGITS[:1])


def test_agreement():
    assert agreement(LOGITS, LOGITS) == 100
    assert agreement(np.eye(4), np.eye(4)[[0, 1, 3, 2]]) == 50
