"""No pair of int8 weights overflows int16: by arithmetic on the integers, and by a model of the instruction."""

import numpy as np
import pytest
import torch
from graph_checks import saturating_pairs
from hypothesis import given
from hypothesis import strategies as st

from engine_build.network.zoo import MODELS, shape_only
from engine_build.quantise.gptq import round_by_moments
from engine_build.quantise.pairs import clamp_pairs, pair_orders, window
from engine_build.quantise.weight_scales import quantise_weights, weight_rows, weight_scale


def vpmaddubsw(unsigned, signed):
    """Intel's ``vpmaddubsw`` along the last axis: products of u8 and s8, neighbours added into saturating int16."""
    products = unsigned.astype(np.int32) * signed.astype(np.int32)
    return np.clip(products[..., 0::2] + products[..., 1::2], -32768, 32767)


def channels_last(weights):
    """Each position of the window apart, channels padded to an even number: the order of ``jit_avx2``."""
    rows = weights.reshape(*weights.shape[:2], -1).transpose(0, 2, 1)
    return np.pad(rows, ((0, 0), (0, 0), (0, rows.shape[2] % 2)))


def flattened(weights):
    """(row, column, channel) in one, padded to an even number: the order of ``jit_gemm``."""
    rows = weights.reshape(*weights.shape[:2], -1).transpose(0, 2, 1).reshape(len(weights), -1)
    return np.pad(rows, ((0, 0), (0, rows.shape[1] % 2)))


def saturates(weights):
    """Whether any activations at all make the instruction differ from whole arithmetic, in either order."""
    for order in (channels_last(weights), flattened(weights)):
        for activations in (255 * (order > 0), 255 * (order < 0)):  # the largest sums of either sign
            exact = (activations * order.astype(np.int64)).reshape(*order.shape[:-1], -1, 2).sum(-1)
            if (vpmaddubsw(activations, order) != exact).any():
                return True
    return False


def layer_shapes():
    """Every different shape of a convolution's or product's weights in the table of models."""
    shapes = {}
    for row in MODELS.values():
        for module in shape_only(row).modules():
            if isinstance(module, (torch.nn.Conv2d, torch.nn.Linear)):
                shapes[tuple(module.weight.shape)] = None
    return list(shapes)


def test_no_layer_of_any_model_saturates():
    shapes = layer_shapes()
    assert len(shapes) > 40
    generator = np.random.default_rng(0)
    for shape in shapes:
        few = (min(shape[0], 16), *shape[1:])  # rows are alike; what matters lies along the others
        weights = generator.standard_t(4, few).astype(np.float32)
        for method in ("mse", "max"):
            integers, _ = quantise_weights(weights, 0, method)
            assert not saturating_pairs(integers)
            assert not saturates(integers.reshape(*few[:2], -1))


def test_plain_rounding_does_saturate():
    weights = np.random.default_rng(0).standard_normal((16, 64, 3, 3)).astype(np.float32)
    integers, _ = quantise_weights(weights, pair_safe=False)
    assert saturating_pairs(integers) and saturates(integers)


@pytest.mark.parametrize("shape", [(4, 6, 3, 3), (4, 5, 3, 3), (4, 3, 3, 3), (4, 10), (4, 7, 1, 1)])
def test_a_planted_pair_is_found_wherever_it_lies(shape):
    base = np.random.default_rng(1).integers(-60, 61, shape).astype(np.int8)
    assert not saturating_pairs(base) and not saturates(base)
    orders = pair_orders(*window(shape, 0))
    assert len(orders) == (2 if shape[1] % 2 and len(shape) > 2 and shape[2] > 1 else 1)
    for first, second in orders:
        for a, b in zip(first, second, strict=True):
            for sign in (1, -1):
                planted = base.copy().reshape(4, -1)
                planted[2, a], planted[2, b] = sign * 100, sign * 29
                assert saturating_pairs(planted.reshape(shape)) >= 1
                assert saturates(planted.reshape(shape))
                planted[2, b] = sign * 28
                if len(orders) == 1:  # else it may break a pair of the other order
                    assert not saturating_pairs(planted.reshape(shape))


def test_the_limit_is_the_instruction_s():
    full = np.array([255, 255], np.uint8)
    assert vpmaddubsw(full, np.array([64, 64], np.int8))[0] == 32640
    assert vpmaddubsw(full, np.array([65, 64], np.int8))[0] == 32767 < 255 * 129
    assert vpmaddubsw(full, np.array([-64, -64], np.int8))[0] == -32640
    assert vpmaddubsw(full, np.array([-65, -64], np.int8))[0] == -32768 > 255 * -129


def test_one_channel_a_group_has_no_pairs_and_three_leave_one_alone():
    assert pair_orders(1, 9) == []
    (first, second), _ = pair_orders(3, 4)
    assert first.tolist() == [0, 1, 2, 3] and second.tolist() == [4, 5, 6, 7]


def test_products_pair_along_the_reduction_on_either_axis():
    integers = np.zeros((6, 3), np.int8)
    integers[2:4, 1] = 127
    assert saturating_pairs(integers, axis=1) == 1 and saturating_pairs(integers, axis=0) == 0


@given(st.integers(0, 10_000), st.sampled_from([(5, 3), (4, 4), (7, 1), (3, 9)]))
def test_clamping_is_the_nearest_pair_and_keeps_what_fits(seed, size):
    channels, positions = size
    rows = np.random.default_rng(seed).integers(-127, 128, (8, channels * positions)).astype(np.float32)
    orders = pair_orders(channels, positions)
    clamped = clamp_pairs(rows.copy(), orders)
    assert not saturating_pairs(clamped.astype(np.int8).reshape(8, channels, positions))
    assert (np.abs(clamped) <= np.abs(rows)).all() and (clamped * rows >= 0).all()
    first, second = orders[0]
    before, after = rows[:, first] + rows[:, second], clamped[:, first] + clamped[:, second]
    if len(orders) == 1:
        assert (
            np.abs(after) == np.minimum(np.abs(before), np.where(rows[:, first] * rows[:, second] > 0, 128, 999))
        ).all()
        assert (clamped[np.abs(rows) < 1] == 0).all()


@pytest.mark.parametrize("shape", [(12, 8, 3, 3), (12, 5, 3, 3), (12, 40)])
def test_rounding_by_moments_holds_the_pairs(shape):
    generator = np.random.default_rng(3)
    rows = weight_rows(generator.standard_t(3, shape).astype(np.float32), 0)
    orders = pair_orders(*window(shape, 0))
    samples = generator.standard_normal((400, rows.shape[1])) @ generator.standard_normal((rows.shape[1],) * 2)
    for scale in (weight_scale(rows, orders), weight_scale(rows, [])):  # the second wants much clamping
        found = round_by_moments(rows, scale, orders, np.cov(samples.T))
        assert (found == np.rint(found)).all() and np.abs(found).max() <= 127
        assert not saturating_pairs(found.astype(np.int8).reshape(shape))
