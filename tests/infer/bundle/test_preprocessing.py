"""The record of a model's pre-processing: what is a manifest's, and what is refused with the name of the field."""

from __future__ import annotations

import math

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from infer.bundle.preprocessing import IMAGENET, Preprocessing

finite = st.floats(allow_nan=False, allow_infinity=False)
positive = st.floats(min_value=0, exclude_min=True, allow_infinity=False)


@given(
    st.integers(1, 16384), st.integers(1, 16384), st.tuples(*[finite] * 3), st.tuples(*[positive] * 3),
    st.sampled_from(["bilinear", "bicubic"]),
)  # fmt: skip
def test_json_round_trip(resize, crop, mean, std, interpolation):
    spec = Preprocessing(resize, crop, mean, std, interpolation)
    assert msgspec.json.decode(msgspec.json.encode(spec), type=Preprocessing) == spec
    assert msgspec.convert(spec.to_json(), Preprocessing) == spec


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("resize", 0), ("resize", True), ("resize", 256.5), ("resize", "256"), ("resize", None), ("crop", -1),
        ("crop", 1 << 20), ("mean", 0.5), ("mean", [0.5, 0.5]), ("mean", ["a", 0, 0]), ("mean", [math.nan, 0, 0]),
        ("std", [0.1, 0.0, 0.1]), ("std", [0.1, -1, 0.1]), ("std", [math.inf, 1, 1]), ("std", [True, 1, 1]),
        ("interpolation", "nearest"), ("interpolation", ["bilinear"]),
    ],
)  # fmt: skip
def test_bad_json_names_the_field(field, value):
    with pytest.raises(msgspec.ValidationError, match=rf"`\$\.{field}(\[\d\])?`"):
        msgspec.convert(IMAGENET.to_json() | {field: value}, Preprocessing)


def test_json_with_other_fields_is_refused():
    with pytest.raises(msgspec.ValidationError, match="unknown field `squash`"):
        msgspec.convert(IMAGENET.to_json() | {"squash": True}, Preprocessing)
    for name in IMAGENET.to_json():
        with pytest.raises(msgspec.ValidationError, match=f"missing required field `{name}`"):
            msgspec.convert({key: value for key, value in IMAGENET.to_json().items() if key != name}, Preprocessing)
    with pytest.raises(msgspec.ValidationError, match="got `array`"):
        msgspec.convert([], Preprocessing)


def test_integers_are_accepted_as_mean_and_std():
    spec = msgspec.convert(IMAGENET.to_json() | {"mean": [0, 0, 0], "std": [1, 1, 1]}, Preprocessing)
    assert spec == msgspec.structs.replace(IMAGENET, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
