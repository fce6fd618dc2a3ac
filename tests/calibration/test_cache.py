"""The cache file: exact round trip, foreign files, hostile files, and whether it belongs to a graph."""

import json
import os
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calibration import provenance as provenance_module
from calibration.cache import (
    HEADER,
    MAX_BYTES,
    CalibrationCache,
    check_matches,
    coverage,
    format_cache,
    parse_cache,
    provenance_path,
    read_cache,
    write_cache,
)
from calibration.provenance import Provenance
from infer.errors import InputError

GRAPH = "ab" * 32
ORIGIN = Provenance(
    graph_sha256=GRAPH,
    data_sha256="cd" * 32,
    images=512,
    method="percentile",
    created="2026-11-24T04:00:00+00:00",
    tool="iresnet-trt 0.1.0",
    parameters={"percentile": 99.99},
    preprocessing={"resize": 256, "mean": [0.485, 0.456, 0.406]},
    amax={"minmax": {"a": 2.5}, "mse": {"a": 1.25}},
)
names = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=20)
scales = st.floats(0, 2.0**100, width=32).map(np.float32)
tables = st.dictionaries(names, scales, min_size=1, max_size=8)


def bits(table):
    return {name: struct.pack(">f", value) for name, value in table.items()}


@given(tables)
def test_round_trip_is_exact(table):
    cache = CalibrationCache(table)
    again = parse_cache(format_cache(cache), "memory")
    assert bits(again.scales) == bits(table)
    assert list(again.scales) == list(table)
    assert format_cache(again) == format_cache(cache)


@given(tables)
@settings(max_examples=10)
def test_round_trip_through_files(tmp_path_factory, table):
    path = tmp_path_factory.mktemp("cache") / "x.cache"
    write_cache(path, CalibrationCache(table, provenance=ORIGIN))
    again = read_cache(path)
    assert bits(again.scales) == bits(table)
    origin = again.provenance
    assert origin == Provenance(
        **{name: getattr(ORIGIN, name) for name in ORIGIN.__struct_fields__ if name != "cache_sha256"},
        cache_sha256=origin.cache_sha256,
    )
    assert sorted(p.name for p in path.parent.iterdir()) == ["x.cache", "x.cache.json"]


def test_reads_a_foreign_file():
    """The layout of caches of TensorRT, ModelOpt and MLPerf: colons in names, an unpadded zero, CRLF, upper case."""
    text = (
        "TRT-8601-EntropyCalibration2\r\ninput:0: 3f810204\r\n(Unnamed Layer* 3) [Conv]_output: 3C010A14\r\nnone: 0\r\n"
    )
    cache = parse_cache(text.encode(), "foreign")
    assert cache.header == "TRT-8601-EntropyCalibration2"
    assert cache.provenance is None
    assert cache.scales == {
        "input:0": np.float32(1.0078740119934082),
        "(Unnamed Layer* 3) [Conv]_output": np.float32(0.007875937968492508),
        "none": np.float32(0),
    }
    assert cache.amax()["input:0"] == pytest.approx(128, rel=1e-7)
    assert cache.scales["input:0"].dtype == np.float32


def test_format_is_tensorrts():
    cache = CalibrationCache({"x": np.float32(1.0078740119934082), "zero": np.float32(0), "minus": np.float32(-0.0)})
    assert format_cache(cache) == f"{HEADER}\nx: 3f810204\nzero: 00000000\nminus: 00000000\n".encode()
    assert HEADER.startswith("TRT-") and HEADER.endswith("-EntropyCalibration2")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "expected a first line such as"),
        (b"{}", "expected a first line such as"),
        (b"TRT-8601-\na: 3f800000\n", "expected a first line such as"),
        (b"H\n", "it holds no scales"),
        (b"H", "it holds no scales"),
        (b"H\na: 3f80", "line 2: expected a scale of 8 hex digits"),
        (b"H\na: 3f800000\nlayer1.0.con", "line 3: expected 'tensor: hex'"),
        (b"H\na: 3f800000\nb:", "line 3: expected a scale of 8 hex digits"),
        (b"H\na: 3f800000\nb: 3", "was the file cut short"),
        (b"H\na: 7fc00000\n", "tensor 'a' has the scale nan"),
        (b"H\na: 7f800000\n", "has the scale inf"),
        (b"H\na: ff800000\n", "has the scale -inf"),
        (b"H\na: bf800000\n", "has the scale -1.0"),
        (b"H\na: 80000000\n", "has the scale -0.0"),
        (b"H\na: 0x3f8000\n", "expected a scale of 8 hex digits"),
        (b"H\na: 3f8_0000\n", "expected a scale of 8 hex digits"),
        (b"H\na: +3f80000\n", "expected a scale of 8 hex digits"),
        (b"H\na: 3f8000000\n", "expected a scale of 8 hex digits"),
        ("H\na: \uff13f\uff18\uff10\uff10\uff10\uff10\uff10\n".encode(), "expected a scale of 8 hex digits"),
        (b"H\na: 3f800000\nb: 3f800000\na: 3f800000\n", "line 4: tensor 'a' appears a second time"),
        (b"H\n\xff\xfe: 3f800000\n", "not text in UTF-8"),
        (b"H\na\x00b: 3f800000\n", "expected 'tensor: hex'"),
        (b"H\n: 3f800000\n", "expected 'tensor: hex'"),
        (b"H\n" + b"a" * 5000 + b": 3f800000\n", "expected 'tensor: hex'"),
        (b"H\n" + b"\n" * 100_001, "more than 100000 lines"),
        (b"H\n" + b"a" * MAX_BYTES, "larger than 16777216 bytes"),
    ],
)
def test_hostile_files_end_in_one_clear_line(tmp_path, body, message):
    path = tmp_path / "hostile.cache"
    path.write_bytes(HEADER.encode() + body[1:] if body.startswith(b"H") else body)
    with pytest.raises(InputError) as caught:
        read_cache(path)
    text = str(caught.value)
    assert message in text and str(path) in text
    assert "\n" not in text and len(text) < 400


@given(st.binary(max_size=200) | st.binary(max_size=100).map(lambda tail: HEADER.encode() + b"\na: 3f800000\n" + tail))
def test_any_bytes_give_a_sound_cache_or_a_clear_error(data):
    try:
        cache = parse_cache(data, "memory")
    except InputError as error:
        assert "\n" not in str(error)
    else:
        assert cache.scales and all(np.isfinite(s) and s >= 0 for s in cache.scales.values())


@given(st.integers(1, 200))
def test_a_cut_file_never_gives_a_wrong_scale(length):
    """Cut anywhere: every scale that is still read is the one that was written."""
    table = {f"layer{number}:out": np.float32(0.1 * number) for number in range(1, 8)}
    whole = format_cache(CalibrationCache(table))
    try:
        cut = parse_cache(whole[:length], "cut")
    except InputError:
        return
    assert bits(cut.scales).items() <= bits(table).items()


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({}, "at least one scale"),
        ({"": 1.0}, "cannot be written"),
        ({"a\nb": 1.0}, "cannot be written"),
        ({"a\rb": 1.0}, "cannot be written"),
        ({"a" * 5000: 1.0}, "cannot be written"),
        ({"\ud800": 1.0}, "not valid Unicode"),
        ({"a": np.nan}, "expected a finite scale >= 0, found nan"),
        ({"a": np.inf}, "found inf"),
        ({"a": -1.0}, "found -1.0"),
    ],
)
def test_what_cannot_be_written(tmp_path, table, message):
    path = tmp_path / "c.cache"
    path.write_text("old")
    with pytest.raises(InputError, match=message):
        write_cache(path, CalibrationCache({name: np.float32(value) for name, value in table.items()}))
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["c.cache"]


def test_bad_header_is_not_written():
    with pytest.raises(InputError, match="cache header"):
        format_cache(CalibrationCache({"a": np.float32(1)}, "TRT-1-X\ny: 0"))


def test_a_failing_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "c.cache"
    write_cache(path, CalibrationCache({"a": np.float32(1)}))
    before = path.read_bytes()

    def fail(self, target):
        raise KeyboardInterrupt

    monkeypatch.setattr("pathlib.Path.replace", fail)
    with pytest.raises(KeyboardInterrupt):
        write_cache(path, CalibrationCache({"a": np.float32(2)}))
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["c.cache"]


def test_missing_file_and_folder(tmp_path):
    for path in (tmp_path / "none.cache", tmp_path):
        with pytest.raises(InputError, match="no calibration cache at"):
            read_cache(path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_does_not_block(tmp_path):
    os.mkfifo(tmp_path / "pipe.cache")
    with pytest.raises(InputError, match="no calibration cache at"):
        read_cache(tmp_path / "pipe.cache")


def written(tmp_path, **changes):
    path = tmp_path / "c.cache"
    write_cache(path, CalibrationCache({"a": np.float32(1)}, provenance=ORIGIN))
    beside = provenance_path(path)
    value = json.loads(beside.read_text())
    value.update(changes)
    beside.write_text(json.dumps(value))
    return path, beside


def test_a_changed_cache_does_not_pass_under_its_old_provenance(tmp_path):
    path, _ = written(tmp_path)
    path.write_bytes(path.read_bytes().replace(b"3f800000", b"3f900000"))
    with pytest.raises(InputError, match="describes another cache"):
        read_cache(path)


def test_writing_without_provenance_removes_the_old_one(tmp_path):
    path, beside = written(tmp_path)
    write_cache(path, CalibrationCache({"a": np.float32(3)}))
    assert not beside.exists()
    assert read_cache(path).provenance is None


def test_later_fields_are_ignored(tmp_path):
    path, _ = written(tmp_path, added_later=[1, 2])
    assert read_cache(path).provenance.images == 512


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 2}, "expected provenance of format 1, found 2"),
        ({"graph_sha256": "short"}, "graph_sha256"),
        ({"images": 0}, "images"),
        ({"images": True}, "images"),
        ({"method": None}, "method"),
        ({"amax": {"mse": {"a": -1}}}, "amax"),
        ({"amax": [1]}, "amax"),
    ],
)
def test_damaged_provenance(tmp_path, changes, message):
    path, beside = written(tmp_path, **changes)
    with pytest.raises(InputError) as caught:
        read_cache(path)
    assert message in str(caught.value) and str(beside) in str(caught.value)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"null", b'{"format": NaN}', b"\xff", b"[" * 100_000, b'{"format": 1}']
)
def test_hostile_provenance(tmp_path, content):
    path, beside = written(tmp_path)
    beside.write_bytes(content)
    with pytest.raises(InputError) as caught:
        read_cache(path)
    assert str(beside) in str(caught.value) and len(str(caught.value)) < 400


def test_huge_provenance(tmp_path, monkeypatch):
    path, _ = written(tmp_path)
    monkeypatch.setattr(provenance_module, "MAX_BYTES", 100)
    with pytest.raises(InputError, match="larger than 100 bytes"):
        read_cache(path)


def cache(provenance=ORIGIN, **table):
    return CalibrationCache({name: np.float32(value) for name, value in table.items()}, provenance=provenance)


def test_a_matching_cache():
    fit = check_matches(cache(a=1, b=2, extra=3), GRAPH, ["b", "a"])
    assert (fit.covered, fit.missing, fit.unknown) == (["b", "a"], [], ["extra"])


def test_zero_scales_cover_nothing_but_are_no_mismatch():
    fit = check_matches(cache(a=1, dead=0, tiny=1e-42), GRAPH, ["a", "dead", "tiny"])
    assert (fit.covered, fit.missing) == (["a"], ["dead", "tiny"])


@pytest.mark.parametrize(
    ("found", "graph", "tensors", "message"),
    [
        (cache(a=1), "ef" * 32, ["a"], "made from graph abababababab, this is efefefefefef"),
        (cache(a=1, x=1), "ef" * 32, ["a", "b"], r"1 missing \(b\), 1 unknown to the graph \(x\)"),
        (cache(a=1), GRAPH, ["a", "b", "c"], r"lacks tensors of this very graph.*2 missing \(b, c\)"),
        (cache(None, a=1), GRAPH, ["a"], "its origin is unknown"),
    ],
)
def test_a_mismatch_is_refused_unless_accepted(found, graph, tensors, message):
    with pytest.raises(InputError, match=message + ".*--accept-cache"):
        check_matches(found, graph, tensors)
    fit = check_matches(found, graph, tensors, accept=True)
    assert fit.covered == ["a"] and fit.missing == tensors[1:]


def test_a_cache_that_covers_nothing_is_never_accepted():
    with pytest.raises(
        InputError, match=r"0 of 2 tensors covered, 2 missing \(a, b\), 5 unknown .*\(k0, k1, k2, \.\.\.\)"
    ):
        check_matches(cache(None, **{f"k{n}": 1 for n in range(5)}), GRAPH, ["a", "b"], accept=True)


@given(tables, st.lists(names, max_size=6))
def test_coverage_partitions_both_sides(table, wanted):
    fit = coverage(table, [*wanted, *list(table)[:2]])
    asked = set(wanted) | set(list(table)[:2])
    assert set(fit.covered) | set(fit.missing) == asked and not set(fit.covered) & set(fit.missing)
    assert set(fit.unknown) == set(table) - asked
