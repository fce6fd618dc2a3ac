"""The C library: the C++ example as a user runs it, and every function through ctypes in this process."""

from __future__ import annotations

import ctypes
import os
import re
import subprocess
import threading
from pathlib import Path

import numpy as np
import pytest
from c_library import (
    BUNDLE,
    DEVICE,
    INTERNAL,
    INVALID,
    OK,
    UNAVAILABLE,
    UNSUPPORTED,
    UNTRAINED,
    WRONG_ANSWERS,
    Info,
    Outputs,
    pictures,
    results,
)
from cpp_example import example, lines

from infer.backends.openvino import OpenVINOBackend
from infer.errors import KnownAnswersError
from infer.interop.c_api import ABI
from infer.runner import open_bundle

ROOT = Path(__file__).resolve().parents[3]
U8 = ctypes.c_uint8


@pytest.fixture
def tiny_handle(library, tiny):
    status, handle = library.open(tiny)
    assert status == OK, library.error()
    yield handle
    library.lib.iresnet_close(handle)


def test_the_example_gives_the_classes_of_python(built, shipped, shipped_images, tmp_path):
    images, truth = shipped_images
    images, truth = images[:300], truth[:300]
    images.tofile(tmp_path / "pictures.rgb")
    done = example(built, shipped("fp32"), tmp_path / "pictures.rgb", 64, 64, "--threads", 4, "--batch", 7)
    with open_bundle(shipped("fp32")) as runner:
        outputs, labels = runner.infer(images), runner.labels
    rows = lines(done.stdout)
    assert [int(row[0]) for row in rows] == list(range(300))
    assert [int(row[1]) for row in rows] == outputs.classes[:, 0].tolist()
    assert [float(row[2]) for row in rows] == pytest.approx(outputs.scores[:, 0], abs=1e-5)
    assert [row[3] for row in rows] == [labels[index] for index in outputs.classes[:, 0]]
    assert np.mean([int(row[1]) for row in rows] == truth) > 0.9
    assert "300 pictures, 4 threads" in done.stderr


def test_the_example_preprocesses_as_python_does(built, shipped, tmp_path):
    images = pictures(21, 90, 131)
    images.tofile(tmp_path / "pictures.rgb")
    done = example(built, shipped("fp32"), tmp_path / "pictures.rgb", 131, 90, "--target", "openvino")
    with open_bundle(shipped("fp32")) as runner:
        best = [prediction.top[0] for prediction in runner.classify(list(images), top=1)]
    assert [(int(row[1]), row[3]) for row in lines(done.stdout)] == [(one.index, one.label) for one in best]
    assert [float(row[2]) for row in lines(done.stdout)] == pytest.approx([one.score for one in best], abs=1e-5)


def test_the_example_says_what_is_wrong(built, tiny, untrained, tmp_path):
    pictures(2).tofile(tmp_path / "two.rgb")
    two = tmp_path / "two.rgb"
    assert "is not a bundle" in example(built, tmp_path, two, 32, 32, expect=10 + BUNDLE).stderr
    assert "random weights" in example(built, untrained, two, 32, 32, expect=10 + UNTRAINED).stderr
    done = example(built, tiny, two, 32, 32, "--target", "tensorrt", expect=10 + UNAVAILABLE)
    assert done.stderr.startswith("error: tensorrt cannot run here") and done.stderr.count("\n") == 1
    assert "expected whole pictures" in example(built, tiny, two, 31, 32, expect=2).stderr
    assert "usage" in example(built, tiny, expect=2).stderr


LOCAL = r"""
#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include "iresnet_infer.h"

static void *library;
static iresnet_runner *runner;
static const char *bundle;

static void *open_it(void *unused)
{
    iresnet_status (*open)(const char *, const iresnet_options *, iresnet_runner **);
    const char *(*last_error)(void);
    *(void **)&open = dlsym(library, "iresnet_open");
    *(void **)&last_error = dlsym(library, "iresnet_last_error");
    if (open(bundle, NULL, &runner))
        printf("%s\n", last_error());
    return unused;
}

int main(int count, char **values)
{
    static uint8_t image[32 * 32 * 3];
    float scores[5];
    iresnet_outputs outputs = {.size = sizeof outputs};
    pthread_t thread;
    iresnet_status (*infer)(iresnet_runner *, const uint8_t *, size_t, int32_t, const iresnet_outputs *);

    bundle = values[count - 1];
    library = dlopen(values[1], RTLD_NOW | RTLD_LOCAL);
    pthread_create(&thread, NULL, open_it, NULL);
    pthread_join(thread, NULL);
    *(void **)&infer = dlsym(library, "iresnet_infer");
    outputs.scores = scores;
    outputs.scores_bytes = sizeof scores;
    const iresnet_status status = infer(runner, image, sizeof image, 1, &outputs);
    printf("%d %d\n", status, scores[0] > 0.1f);
    dlclose(library);
    return 0; /* without a close */
}
"""


def test_a_plugin_host_may_load_it_locally_and_open_it_on_a_thread_that_ends(built, compiled, tiny, tmp_path):
    command = [compiled(LOCAL, tmp_path / "host", link=False), built / "lib/libiresnet_infer.so", tiny]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout) == (0, "0 1\n"), done.stderr


WRAPPER = r"""
#include <iostream>
#include <vector>
#include "iresnet_infer.hpp"

static_assert(!std::is_copy_constructible_v<iresnet::Runner> && std::is_nothrow_move_constructible_v<iresnet::Runner>);

int main(int, char **values)
{
    std::vector<iresnet::Runner> runners;
    runners.emplace_back(values[1]);
    runners.emplace_back(values[1], iresnet::Options{"openvino", 1, false, 0, 0, false, "always"});
    runners.front() = std::move(runners.back());
    runners.pop_back();
    const std::vector<uint8_t> images(3 * runners[0].image_bytes());
    std::cout << runners[0].infer(images.data(), 3).classes.size() << "\n";
    try {
        runners[0].infer(images.data(), -1);
    } catch (const iresnet::Error &error) {
        std::cout << error.status() << " " << error.what() << "\n";
    }
    try {
        iresnet::Runner("/nowhere");
    } catch (const std::runtime_error &error) {
        std::cout << error.what() << "\n";
    }
}
"""


def test_the_cpp_wrapper(compiled, tiny, tmp_path):
    done = subprocess.run(
        [compiled(WRAPPER, tmp_path / "use"), tiny], capture_output=True, text=True, check=True, timeout=60
    )
    first, second, third = done.stdout.splitlines()
    assert (first, second) == ("15", f"{INVALID} batch: expected 1 or more, found -1")
    assert third.startswith("/nowhere is not a bundle")


def test_only_the_header_is_exported(built):
    header = (built / "include/iresnet_infer.h").read_text()
    declared = set(re.findall(r"(iresnet_\w+)\(", re.sub(r"/\*.*?\*/", "", header, flags=re.DOTALL)))
    listing = subprocess.run(
        ["nm", "-D", "--defined-only", built / "lib/libiresnet_infer.so"], capture_output=True, text=True, check=True
    )  # fmt: skip
    assert {line.split()[-1] for line in listing.stdout.splitlines()} == declared


def test_versions(library):
    assert library.lib.iresnet_abi_version() == ABI
    assert re.fullmatch(rb"\d+\.\d+.*", library.lib.iresnet_version())


def test_info_and_labels(library, tiny, tiny_handle):
    info = Info()
    assert library.lib.iresnet_get_info(tiny_handle, ctypes.byref(info)) == OK
    with open_bundle(tiny) as runner:
        expected = (32, 32, 3, 10, 5, runner.backend.max_batch, runner.backend.in_flight, 1, 0)
        names = runner.labels
    assert tuple(getattr(info, name) for name in Info.names) == expected
    label = ctypes.c_char_p()
    for index, name in enumerate(names):
        assert library.lib.iresnet_label(tiny_handle, index, ctypes.byref(label)) == OK
        assert label.value.decode() == name
    for index in (-1, 10):
        assert library.lib.iresnet_label(tiny_handle, index, ctypes.byref(label)) == INVALID
        assert library.error() == f"class: expected 0 to 9, found {index}"


def test_results_are_those_of_python_for_any_batch(library, tiny, tiny_handle):
    with open_bundle(tiny) as runner:
        for batch in (1, 3, 8, 21):
            images = pictures(batch, seed=batch)
            arrays, outputs = results(batch)
            assert library.infer(tiny_handle, images, outputs) == OK
            for found, expected in zip(arrays, runner.infer(images), strict=True):
                np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_outputs_that_are_not_wanted_are_left_out(library, tiny_handle):
    arrays, _ = results(2)
    only = Outputs(classes=arrays[2].ctypes.data, classes_bytes=arrays[2].nbytes)
    assert library.infer(tiny_handle, pictures(2), only) == OK
    assert (arrays[2] >= 0).all() and (arrays[0] == -7).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": 2 * 3072 - 1}, "images: expected 6144 bytes, found 6143"),
        ({"size": 2 * 3072 + 1}, "images: expected 6144 bytes, found 6145"),
        ({"batch": 3}, "images: expected 9216 bytes, found 6144"),
        ({"batch": 0}, "batch: expected 1 or more, found 0"),
        ({"batch": -5}, "batch: expected 1 or more, found -5"),
        ({"logits_bytes": 79}, "logits: expected 80 bytes, found 79"),
        ({"scores_bytes": 0}, "scores: expected 40 bytes, found 0"),
        ({"classes_bytes": 80}, "classes: expected 40 bytes, found 80"),
    ],
)
def test_sizes_are_checked_and_nothing_is_written(library, tiny_handle, change, message):
    arrays, outputs = results(2)
    call = {key: value for key, value in change.items() if key in ("size", "batch")}
    for key in change.keys() - call.keys():
        setattr(outputs, key, change[key])
    assert library.infer(tiny_handle, pictures(2), outputs, **call) == INVALID
    assert library.error() == message
    assert all((array == -7).all() for array in arrays)
    assert library.infer(tiny_handle, pictures(2), results(2)[1]) == OK
    assert library.error() == ""


def test_null_pointers(library, tiny, tiny_handle):
    lib, (_, outputs) = library.lib, results(1)
    image = pictures(1)
    data, show = image.ctypes.data, ctypes.byref(outputs)
    info, label, handle = Info(), ctypes.c_char_p(), ctypes.c_void_p()
    assert lib.iresnet_open(os.fsencode(tiny), None, ctypes.byref(handle)) == OK
    assert lib.iresnet_close(handle) == lib.iresnet_close(None) == OK
    for status, name in (
        (lib.iresnet_open(None, None, ctypes.byref(handle)), "bundle"),
        (lib.iresnet_open(b"x", None, None), "runner"),
        (lib.iresnet_get_info(tiny_handle, None), "info"),
        (lib.iresnet_label(tiny_handle, 0, None), "label"),
        (lib.iresnet_preprocess(tiny_handle, None, 1, 1, 3, data, 3072), "rgb"),
        (lib.iresnet_preprocess(tiny_handle, data, 1, 1, 3, None, 3072), "image"),
        (lib.iresnet_infer(tiny_handle, None, 3072, 1, show), "images"),
        (lib.iresnet_infer(tiny_handle, data, 3072, 1, None), "outputs"),
        (lib.iresnet_infer_device(tiny_handle, None, 3072, 1, show, None), "images"),
        (lib.iresnet_infer_device(tiny_handle, data, 3072, 1, None, None), "outputs"),
    ):
        assert status == INVALID, name
    assert library.error() == "outputs: expected a pointer, found NULL"
    for status in (
        lib.iresnet_get_info(None, ctypes.byref(info)),
        lib.iresnet_label(None, 0, ctypes.byref(label)),
        lib.iresnet_infer(None, data, 3072, 1, show),
        lib.iresnet_infer(ctypes.c_void_p(0xDEADBEEF), data, 3072, 1, show),
    ):
        assert status == INVALID and "expected an open one" in library.error()


def test_opening_fails_with_a_status_of_its_own(library, tiny, untrained, own, tmp_path):
    damaged = own(tiny)
    (damaged / "openvino.bin").write_bytes(b"short")
    for bundle, options, status, text in (
        (tmp_path, {}, BUNDLE, "is not a bundle"),
        (damaged, {}, BUNDLE, "openvino.bin"),
        (untrained, {}, UNTRAINED, "random weights"),
        (tiny, {"target": b"tensorrt"}, UNAVAILABLE, "tensorrt cannot run here"),
        (tiny, {"target": b"vulkan"}, INVALID, "unknown target 'vulkan'"),
    ):
        found, handle = library.open(bundle, **options)
        assert (found, handle.value) == (status, None)
        assert text in library.error()
    status, handle = library.open(untrained, allow_untrained=1)
    assert status == OK and library.lib.iresnet_close(handle) == OK


def test_a_closed_runner_is_an_error_and_not_a_crash(library, tiny):
    _, handle = library.open(tiny)
    _, outputs = results(1)
    assert library.infer(handle, pictures(1), outputs) == OK
    assert library.lib.iresnet_close(handle) == OK
    assert library.infer(handle, pictures(1), outputs) == INVALID
    assert library.lib.iresnet_close(handle) == INVALID
    assert "was closed" in library.error()


def test_the_last_error_belongs_to_its_thread(library, tiny_handle):
    assert library.infer(tiny_handle, pictures(1), results(1)[1], batch=0) == INVALID
    seen = {}

    def other():
        seen["before"] = library.error()
        library.infer(tiny_handle, pictures(1), results(1)[1], batch=-3)
        seen["after"] = library.error()

    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    assert seen == {"before": "", "after": "batch: expected 1 or more, found -3"}
    assert library.error() == "batch: expected 1 or more, found 0"


def test_many_threads_share_a_runner(library, tiny, tiny_handle):
    images = pictures(40)
    with open_bundle(tiny) as runner:
        expected = runner.infer(images).logits
    wrong = []

    def work(seed):
        rng = np.random.default_rng(seed)
        for _ in range(30):
            first = int(rng.integers(0, 30))
            rows = int(rng.integers(1, 10))
            arrays, outputs = results(rows)
            status = library.infer(tiny_handle, images[first : first + rows], outputs)
            if status != OK or not np.allclose(arrays[0], expected[first : first + rows], rtol=1e-5, atol=1e-6):
                wrong.append((seed, status))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_close_waits_for_calls_under_way(library, tiny, monkeypatch):
    _, handle = library.open(tiny)
    entered, go_on, closed = threading.Event(), threading.Event(), threading.Event()
    real = OpenVINOBackend.submit

    def slow(self, batch):
        entered.set()
        assert go_on.wait(20)
        return real(self, batch)

    monkeypatch.setattr(OpenVINOBackend, "submit", slow)
    statuses = []
    arrays, outputs = results(1)
    user = threading.Thread(target=lambda: statuses.append(library.infer(handle, pictures(1), outputs)))
    user.start()
    assert entered.wait(20)

    def close():
        statuses.append(library.lib.iresnet_close(handle))
        closed.set()

    closer = threading.Thread(target=close)
    closer.start()
    assert not closed.wait(0.1)
    go_on.set()
    user.join()
    closer.join()
    assert statuses == [OK, OK] and (arrays[2] >= 0).all()


def test_preprocess_reads_rows_with_padding(library, shipped):
    status, handle = library.open(shipped("fp32"))
    assert status == OK
    try:
        wide = pictures(1, 80, 120)[0]
        view = wide[:, :101]
        image = np.zeros((64, 64, 3), np.uint8)
        call = library.lib.iresnet_preprocess
        assert call(handle, wide.ctypes.data, 101, 80, 360, image.ctypes.data, image.nbytes) == OK
        with open_bundle(shipped("fp32")) as runner:
            from PIL import Image

            from infer.images.resize import preprocess

            assert np.array_equal(image, preprocess(Image.fromarray(np.ascontiguousarray(view)), runner.preprocessing))
        for arguments, message in (
            ((101, 80, 302, image.nbytes), "rows of 302 bytes"),
            ((0, 80, 360, image.nbytes), "found 0 x 80"),
            ((101, -1, 360, image.nbytes), "found 101 x -1"),
            ((101, 80, 360, 100), "image: expected 12288 bytes, found 100"),
        ):
            *shape, size = arguments
            assert call(handle, wide.ctypes.data, *shape, image.ctypes.data, size) == INVALID
            assert message in library.error()
    finally:
        library.lib.iresnet_close(handle)


def test_device_pointers_on_a_target_without_device_memory(library, tiny_handle):
    _, outputs = results(1)
    assert library.infer(tiny_handle, pictures(1), outputs, device=True) == UNSUPPORTED
    assert "openvino target has no device memory" in library.error()


def test_device_pointers_reach_the_backend(library, tiny, monkeypatch):
    """The device's memory is the host's here, so that the call can be followed to its results."""
    calls = []

    def enqueue(self, input_ptr, batch, output_ptrs, stream_handle):
        calls.append((input_ptr, batch, list(output_ptrs), stream_handle))
        images = np.ctypeslib.as_array((U8 * (batch * 3072)).from_address(input_ptr)).reshape(batch, 32, 32, 3)
        for found, pointer in zip(self.infer(images.copy()), output_ptrs, strict=True):
            ctypes.memmove(pointer, found.ctypes.data, found.nbytes)

    monkeypatch.setattr(OpenVINOBackend, "enqueue", enqueue, raising=False)
    monkeypatch.setattr(OpenVINOBackend, "on_device", property(lambda self: self))
    _, handle = library.open(tiny)
    info = Info()
    library.lib.iresnet_get_info(handle, ctypes.byref(info))
    assert info.device == 1
    images = pictures(3)
    arrays, outputs = results(3)
    assert library.infer(handle, images, outputs, device=True, stream=0x7F00_0000_1230) == OK, library.error()
    assert calls == [(images.ctypes.data, 3, [array.ctypes.data for array in arrays], 0x7F00_0000_1230)]
    with open_bundle(tiny) as runner:
        np.testing.assert_allclose(arrays[0], runner.infer(images).logits, rtol=1e-5, atol=1e-6)
        most = runner.backend.max_batch

    for change, message in (
        ({"size": 1}, "images: expected 9216 bytes, found 1"),
        ({"batch": 0}, f"batch: expected 1 to {most}, found 0"),
        ({"batch": most + 1}, f"batch: expected 1 to {most}, found {most + 1}"),
    ):
        assert library.infer(handle, images, outputs, device=True, **change) == INVALID
        assert library.error() == message
    outputs.scores_bytes = 3
    assert library.infer(handle, images, outputs, device=True) == INVALID and "scores" in library.error()
    outputs.scores = None
    assert library.infer(handle, images, outputs, device=True) == INVALID and "found NULL" in library.error()
    assert len(calls) == 1
    library.lib.iresnet_close(handle)


def test_unforeseen_errors_do_not_cross(library, tiny, monkeypatch):
    from infer.errors import DeviceError

    _, handle = library.open(tiny)
    _, outputs = results(1)
    for error, status, message in (
        (KnownAnswersError("2.0 dB"), WRONG_ANSWERS, "2.0 dB"),
        (ZeroDivisionError("boom"), INTERNAL, "ZeroDivisionError: boom"),
        (KeyboardInterrupt(), INTERNAL, "KeyboardInterrupt: "),
        (DeviceError("the GPU fell off the bus"), DEVICE, "the GPU fell off the bus"),
        (ValueError("é" * 5000), INTERNAL, "ValueError: " + "é" * 1017),
    ):

        def fail(self, batch, error=error):
            raise error

        monkeypatch.setattr(OpenVINOBackend, "submit", fail)
        assert library.infer(handle, pictures(1), outputs) == status
        assert library.error() == message
    library.lib.iresnet_close(handle)
