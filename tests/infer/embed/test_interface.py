"""What crosses the C library's boundary: structs of other versions, arguments out of range, known answers."""

from __future__ import annotations

import ctypes
import math
import os
import shutil

import numpy as np
import pytest
from c_library import (
    INVALID,
    OK,
    WRONG_ANSWERS,
    Info,
    Options,
    Outputs,
    pictures,
    results,
)

from infer.backends import openvino
from infer.backends.openvino import OpenVINOBackend
from infer.bundle import read_manifest
from infer.checks.passed import PASSES
from infer.interop.c_api import CANNOT_TELL, PASSED, UNCHECKED
from infer.runner import open_bundle


@pytest.fixture
def open_one(library):
    """``open_one(bundle, **options)``: a handle, closed at the end."""
    handles = []

    def get(bundle, **options):
        status, handle = library.open(bundle, **options)
        assert status == OK, library.error()
        handles.append(handle)
        return handle

    yield get
    for handle in handles:
        library.lib.iresnet_close(handle)


def call_open(library, bundle, options):
    handle = ctypes.c_void_p()
    status = library.lib.iresnet_open(bundle, options, ctypes.byref(handle))
    if status == OK:
        assert library.lib.iresnet_close(handle) == OK
    return status


def test_smaller_options_are_those_of_an_older_header(library, tiny):
    """What lies behind the size that is told is not read."""
    values = Options(16, b"openvino", -1, 77, -1, -1, -1, -1, b"nonsense")
    assert call_open(library, os.fsencode(tiny), ctypes.byref(values)) == OK, library.error()
    values.size = 8
    values.target = b"nonsense"
    assert call_open(library, os.fsencode(tiny), ctypes.byref(values)) == OK, library.error()


class Newer(ctypes.Structure):
    _fields_ = (("known", Options), ("added", ctypes.c_int64))


def test_larger_options_are_taken_as_long_as_what_is_unknown_is_zero(library, tiny):
    values = Newer(Options(ctypes.sizeof(Newer)), 0)
    assert call_open(library, os.fsencode(tiny), ctypes.byref(values)) == OK, library.error()
    values.added = 1
    assert call_open(library, os.fsencode(tiny), ctypes.byref(values)) == INVALID
    assert f"expected zeros behind byte {ctypes.sizeof(Options)}, found fields of a newer header" in library.error()


@pytest.mark.parametrize("size", [0, 4, 12, 1 << 40])
def test_sizes_that_no_header_has(library, tiny, open_one, size):
    assert call_open(library, os.fsencode(tiny), ctypes.byref(Options(size))) == INVALID
    assert f"found {size}" in library.error()
    handle, (_, outputs) = open_one(tiny), results(1)
    assert library.lib.iresnet_get_info(handle, ctypes.byref(Info(size))) == INVALID
    assert library.error() == f"info.size: expected sizeof(iresnet_info) of the header, 80 here, found {size}"
    outputs.size = size
    assert library.infer(handle, pictures(1), outputs) == INVALID
    assert "iresnet_outputs.size" in library.error()


def test_a_smaller_info_is_filled_as_far_as_it_goes(library, tiny, open_one):
    handle, found = open_one(tiny), Info(16)
    found.channels = found.known_answers = -7
    assert library.lib.iresnet_get_info(handle, ctypes.byref(found)) == OK
    assert (found.size, found.height, found.width, found.channels, found.known_answers) == (16, 32, 32, -7, -7)


def test_a_larger_info_is_zero_behind_what_is_known(library, tiny, open_one):
    class Larger(ctypes.Structure):
        _fields_ = (("known", Info), ("added", ctypes.c_int64))

    found = Larger(Info(ctypes.sizeof(Larger)), 5)
    assert library.lib.iresnet_get_info(open_one(tiny), ctypes.byref(found)) == OK
    assert (found.known.height, found.added) == (32, 0)


def test_smaller_outputs_want_less(library, tiny, open_one):
    arrays, outputs = results(2)
    outputs.size = 24  # logits and their bytes
    assert library.infer(open_one(tiny), pictures(2), outputs) == OK
    assert (arrays[0] != -7).all() and (arrays[1] == -7).all() and (arrays[2] == -7).all()


NOT_UTF8 = (b"/caf\xe9", b"\xc0\xaf", b"\xed\xa0\x80", b"\xf5\x80\x80\x80", b"\xe2\x82")
BAD_TEXTS = [
    (b"", 'expected text, found ""'),
    (b"/" + b"x" * 4095, "expected at most 4095 bytes, found more"),
    *((text, "expected UTF-8, found other bytes") for text in NOT_UTF8),
]


@pytest.mark.parametrize(("text", "message"), BAD_TEXTS)
def test_paths_that_are_none(library, text, message):
    assert call_open(library, text, None) == INVALID
    assert library.error() == f"bundle: {message}"


def test_a_path_of_utf8_is_taken(library, own, tiny, tmp_path):
    bundle = shutil.copytree(own(tiny), tmp_path / "wörld-猫-😺")
    assert call_open(library, os.fsencode(bundle), None) == OK, library.error()


@pytest.mark.parametrize("target", [None, b"openvino", b"onnxruntime", b"tensorrt", b"tensorrt_rtx"])
@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("threads", -1, "options.threads: expected 0 to 4096, found -1"),
        ("threads", 4097, "options.threads: expected 0 to 4096, found 4097"),
        ("device", -1, "options.device: expected 0 to 255, found -1"),
        ("device", 256, "options.device: expected 0 to 255, found 256"),
        ("slots", -3, "options.slots: expected 0 to 64, found -3"),
        ("slots", 65, "options.slots: expected 0 to 64, found 65"),
        ("spin", 2, "options.spin: expected 0 to 1, found 2"),
        ("allow_untrained", -1, "options.allow_untrained: expected 0 to 1, found -1"),
        ("reserved", 1, "options.reserved: expected 0 to 0, found 1"),
        ("self_test", b"", 'options.self_test: expected text, found ""'),
        ("self_test", b"sometimes", "self_test: expected always, new, never, found 'sometimes'"),
    ],
)
def test_options_out_of_range_are_refused_on_every_target(library, tiny, target, field, value, message):
    values = {"size": ctypes.sizeof(Options), "target": target, field: value}
    assert call_open(library, os.fsencode(tiny), ctypes.byref(Options(**values))) == INVALID
    assert library.error() == message


@pytest.mark.parametrize("target", [b"", b"\xff", b"x" * 65])
def test_targets_that_are_no_names(library, tiny, target):
    values = Options(size=ctypes.sizeof(Options), target=target)
    assert call_open(library, os.fsencode(tiny), ctypes.byref(values)) == INVALID
    assert library.error().startswith("options.target: expected")


def test_pictures_that_fit_into_no_memory(library, tiny, open_one):
    handle, image = open_one(tiny), pictures(1)
    call = library.lib.iresnet_preprocess
    data, size = image.ctypes.data, image.nbytes
    assert call(handle, data, 2**31 - 1, 2**31 - 1, 2**63, data, size) == INVALID
    assert (
        "expected a picture that fits into memory, found 2147483647 rows of 9223372036854775808 bytes"
        in library.error()
    )
    assert call(handle, data, 2**31 - 1, 1, 3, data, size) == INVALID
    assert "rows of 3 * width bytes or more" in library.error()


def test_counts_that_overflow(library, tiny, open_one):
    arrays, outputs = results(1)
    handle = open_one(tiny)
    assert library.infer(handle, pictures(1), outputs, batch=2**31 - 1) == INVALID
    assert library.error() == f"images: expected {(2**31 - 1) * 3072} bytes, found 3072"
    outputs.logits_bytes = 2**64 - 1
    assert library.infer(handle, pictures(1), outputs) == INVALID
    assert library.error() == f"logits: expected 40 bytes, found {2**64 - 1}"
    assert all((array == -7).all() for array in arrays)


# --- known answers ---------------------------------------------------------------------------------------------------


def test_known_answers_are_checked_and_told_as_open_bundle_does(library, tiny, open_one):
    found = library.info(open_one(tiny, self_test=b"always"))
    with open_bundle(tiny, self_test="always") as runner:
        checked = runner.self_test.checked
        device = runner.backend.device
    assert found.known_answers == PASSED and (found.target, found.device_name) == (b"openvino", device.encode())
    expected = min(math.inf if one.sqnr_db is None else one.sqnr_db for one in checked)
    assert found.known_answers_db == pytest.approx(expected, abs=0.01)
    assert found.known_answers_floor_db == pytest.approx(read_manifest(tiny).known_answers.floor_db)
    assert found.notes == b""


def test_never_is_told_as_unchecked(library, tiny, open_one):
    found = library.info(open_one(tiny, self_test=b"never"))
    assert found.known_answers == UNCHECKED and math.isnan(found.known_answers_db)


def test_a_floor_that_tells_nothing_is_not_passed(library, own, tiny, open_one):
    from infer.bundle import write_manifest

    bundle = own(tiny)
    shutil.rmtree(bundle / PASSES)
    manifest = read_manifest(bundle)
    manifest.known_answers.floor_db = 3.0
    write_manifest(bundle, manifest)
    assert library.info(open_one(bundle)).known_answers == CANNOT_TELL


@pytest.fixture
def wrong(monkeypatch, own, tiny):
    """A bundle whose kernels compute something else, at the batch sizes that are told."""
    sizes = set()
    original = openvino.Pool._run

    def shifted(self, request, batch, count):
        outputs = original(self, request, batch, count)
        return outputs._replace(logits=np.roll(outputs.logits, 1, axis=1)) if len(batch) in sizes else outputs

    monkeypatch.setattr(openvino.Pool, "_run", shifted)
    bundle = own(tiny)
    shutil.rmtree(bundle / PASSES)
    return bundle, sizes


def test_a_wrong_plan_is_never_used(library, wrong):
    bundle, sizes = wrong
    sizes.update(range(1, 9))
    values = Options(ctypes.sizeof(Options), b"openvino")
    assert call_open(library, os.fsencode(bundle), ctypes.byref(values)) == WRONG_ANSWERS
    assert "known answers at batch" in library.error() and "kernels: openvino" in library.error()


def test_a_batch_size_that_is_new_is_checked_before_it_answers(library, wrong, open_one):
    bundle, sizes = wrong
    handle = open_one(bundle)
    before = library.info(handle).known_answers_db
    sizes.add(2)
    arrays, outputs = results(2)
    assert library.infer(handle, pictures(2), outputs) == WRONG_ANSWERS
    assert "batch 2" in library.error() and (arrays[0] == -7).all()
    assert library.infer(handle, pictures(1), results(1)[1]) == OK
    assert library.info(handle).known_answers == PASSED
    assert library.info(handle).known_answers_db <= before


def test_what_a_new_batch_size_showed_is_told(library, tiny, open_one, monkeypatch):
    """The lowest figure of all sizes, also where it came late."""
    handle = open_one(tiny, self_test=b"always")
    before = library.info(handle).known_answers_db
    original = openvino.Pool._run

    def noisy(self, request, batch, count):
        outputs = original(self, request, batch, count)
        noise = np.random.default_rng(0).standard_normal(outputs.logits.shape).astype(np.float32)
        return outputs._replace(logits=outputs.logits + 1e-3 * outputs.logits.std() * noise)

    monkeypatch.setattr(openvino.Pool, "_run", noisy)
    assert library.infer(handle, pictures(2), results(2)[1]) == OK, library.error()
    assert library.info(handle).known_answers_db < min(before, 70)


def test_targets_that_could_not_be_used_are_noted(library, tiny, open_one, monkeypatch):
    """As open_bundle's automatic choice notes them."""
    from infer.checks.self_test import SelfTest

    original = SelfTest.__init__

    def noting(self, *arguments):
        original(self, *arguments)
        self.notes.append("tensorrt: kernels: ünder the floor")

    monkeypatch.setattr(SelfTest, "__init__", noting)
    monkeypatch.setattr(OpenVINOBackend, "notes", ["fewer streams"], raising=False)
    found = library.info(open_one(tiny)).notes.decode().splitlines()
    assert "tensorrt: kernels: ünder the floor" in found


def test_outputs_of_the_test_are_those_of_the_header(built):
    """Guards the structs of c_library.py."""
    assert (ctypes.sizeof(Options), ctypes.sizeof(Info), ctypes.sizeof(Outputs)) == (48, 80, 56)
