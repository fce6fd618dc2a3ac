"""The audit's arithmetic, its JSON and the gate; layers made by hand, so that every figure can be checked on paper."""

import io

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from engine_build.targets.audit import (
    NOT_FOUND,
    Layer,
    LayerTensor,
    PlanAudit,
    megabytes,
    require_precision,
)
from infer.bundle.build_record import Audit, AuditSummary
from infer.errors import BuildError, BundleError

IMAGES = LayerTensor("images", (-1, 8, 8, 3), "uint8")  # 192 bytes an image
CONV_IN = LayerTensor("q", (-1, 4, 8, 8), "int8", "NHWC")  # 256
CONV_OUT = LayerTensor("y", (-1, 2, 8, 8), "fp16", "NHWC")  # 256
LOGITS = LayerTensor("logits", (-1, 10), "fp32")  # 40
WEIGHTS = LayerTensor("w", (2, 4, 3, 3), "int8")  # 72
SCALES = LayerTensor("s", (1, 2, 1, 1), "fp32")  # 8

LAYERS = (
    Layer("shapes", "shape_call", "sync", "none"),
    Layer("cast", "kgen", "move", "int8", (IMAGES,), (), (CONV_IN,), ("/Cast", "/Q")),
    Layer("conv", "correlation", "mac", "int8", (CONV_IN,), (WEIGHTS, SCALES), (CONV_OUT,), ("/Conv",)),
    Layer("pool", "kgen", "other", "fp32", (CONV_OUT,), (SCALES,), (LOGITS,), ("/Pool",)),
)
AUDIT = PlanAudit(LAYERS, {"/Conv": "int8", "/Lost": NOT_FOUND}, 4, 123_456, None, 2_000_000, 1_000)


def test_counts():
    assert len(AUDIT.kernels) == 3
    assert AUDIT.layer_types() == {"kgen": 2, "shape_call": 1, "correlation": 1}
    assert AUDIT.layer_precisions() == {"int8": 2, "fp32": 1}
    assert AUDIT.mac_precisions() == {"int8": 1, NOT_FOUND: 1}
    assert AUDIT.reformats == 1
    assert AUDIT.widening == 1


def test_dram_estimate_counts_activations_per_image_and_weights_once_per_batch():
    activations = (192 + 256) + (256 + 256) + (256 + 40)
    assert AUDIT.dram_bytes_per_image() == activations + (72 + 8) // 4, "constants shared by layers count once"
    told = PlanAudit(LAYERS, {}, 4, 1, weight_bytes=4000)
    assert told.dram_bytes_per_image() == activations + 1000


def test_four_bit_tensors_take_half_a_byte():
    assert LayerTensor("x", (-1, 6), "fp4").nbytes(3) == 9


def test_summary_is_json_and_names_every_figure_of_the_table():
    summary = msgspec.json.decode(msgspec.json.encode(AUDIT.summary()), type=AuditSummary)
    assert summary.kernels == 3
    assert summary.engine_bytes == 123_456
    assert summary.activation_bytes == 2_000_000
    assert summary.weight_bytes is None
    assert summary.dram_bytes_per_image == AUDIT.dram_bytes_per_image()


def again(audit):
    """Written and read."""
    return PlanAudit.from_record(msgspec.json.decode(msgspec.json.encode(audit.record()), type=Audit))


def test_json_round_trip():
    assert again(AUDIT) == AUDIT


_texts = st.text(max_size=8)
_tensors = st.lists(
    st.builds(LayerTensor, _texts, st.lists(st.integers(-1, 9), max_size=4).map(tuple), _texts, _texts), max_size=2
).map(tuple)
_layers = st.builds(
    Layer,
    _texts,
    _texts,
    st.sampled_from(["mac", "move", "sync", "other"]),
    _texts,
    _tensors,
    _tensors,
    _tensors,
    st.lists(_texts, max_size=3).map(tuple),
)
_sizes = st.none() | st.integers(0, 2**40)


@given(
    st.builds(
        PlanAudit,
        st.lists(_layers, max_size=4).map(tuple),
        st.dictionaries(_texts, _texts, max_size=3),
        st.integers(1, 512),
        st.integers(0, 2**40),
        _sizes,
        _sizes,
        _sizes,
    )
)
def test_json_round_trip_of_any_audit(audit):
    assert again(audit) == audit


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 99}, "expected format 1, found 99"),
        ({"layers": [["short"]]}, "damaged"),
        ({"layers": None}, "damaged"),
    ],
)
def test_damaged_records_are_bundle_errors(change, message):
    with pytest.raises(BundleError, match=message):
        PlanAudit.from_record(msgspec.structs.replace(AUDIT.record(), **change))


def test_table_shows_the_figures():
    console = Console(file=io.StringIO(), width=120)
    console.print(AUDIT.table("Plan"))
    text = console.file.getvalue()
    for part in ("Plan", "3 (2 int8, 1 fp32)", "1 int8, 1 unlisted", "0.1 MB", "2.0 MB", "estimated at batch 4"):
        assert part in text


def test_scratch_is_shown_only_where_it_says_something_new():
    assert "Scratch, largest layer" in dict(AUDIT.rows())
    same = PlanAudit(LAYERS, {}, 4, 1, None, 1000, 1000)
    assert "Scratch, largest layer" not in dict(same.rows())


def test_gate_passes_when_every_node_is_int8():
    require_precision(AUDIT, ["/Conv"], "int8")


def test_gate_names_what_stayed_floating_point():
    found = {"/a": "int8"} | {f"/n{index}": "fp32" for index in range(7)}
    audit = PlanAudit((), found, 1, 1)
    with pytest.raises(BuildError) as caught:
        require_precision(audit, list(found), "int8")
    message = str(caught.value)
    assert "expected 8 int8 kernels in the plan, found 1" in message
    assert "/n0 (fp32), /n1 (fp32), /n2 (fp32), /n3 (fp32), /n4 (fp32) and 2 more" in message
    assert "scalar (shape [])" in message


def test_gate_fails_for_a_node_without_a_kernel_and_for_one_it_never_heard_of():
    for node in ("/Lost", "/Unknown"):
        with pytest.raises(BuildError, match=rf"{node} \(unlisted\).*printed no layer"):
            require_precision(AUDIT, [node], "int8")


def test_gate_over_nothing_is_an_error():
    with pytest.raises(BuildError, match="given no node"):
        require_precision(AUDIT, [], "int8")


def test_gate_for_another_precision():
    with pytest.raises(BuildError, match=r"expected 1 fp8 kernels.*/Conv \(int8\)"):
        require_precision(AUDIT, ["/Conv"], "fp8")


def test_megabytes():
    assert megabytes(33_540_000) == "33.5 MB"
    assert megabytes(1_439_000_000) == "1439 MB"
