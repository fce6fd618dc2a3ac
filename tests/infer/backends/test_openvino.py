"""The CPU target: batches of every size, threads, its cache, and what it says when it cannot."""

from __future__ import annotations

import importlib.util
import locale
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import openvino
import pytest
from small_models import pictures

from infer import open_bundle
from infer.backends.openvino import LARGEST_BATCH, OpenVINOBackend, computes_in, make_core
from infer.errors import TargetUnavailableError

FULL_PRECISION = {"INFERENCE_PRECISION_HINT": "f32"}


@pytest.fixture(scope="module")
def backend(tiny):
    opened = OpenVINOBackend(tiny / "openvino.xml", FULL_PRECISION)
    yield opened
    opened.close()


def test_runners_opened_at_once_leave_the_locale_alone(own, tiny):
    """OpenVINO takes another while it reads its cache, and Python's files follow it."""
    folder = own(tiny)

    def work(_):
        for _ in range(3):
            with open_bundle(folder) as runner:
                runner.infer(pictures(1))

    work(0)  # fills the cache
    assert list(folder.glob("openvino.cache/*"))
    before = locale.setlocale(locale.LC_ALL)
    try:
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(work, range(8)))
        assert locale.setlocale(locale.LC_ALL) == before
    finally:
        locale.setlocale(locale.LC_ALL, before)


def test_batches_of_every_size_give_the_same(backend):
    images = pictures(LARGEST_BATCH)
    single = [backend.infer(image[None]) for image in images]
    for count in range(1, LARGEST_BATCH + 1):  # 3, 5, 6 and 7 are filled up to a power of two
        found = backend.infer(images[:count])
        assert [len(array) for array in found] == [count] * 3
        for row in range(count):
            np.testing.assert_allclose(found.logits[row], single[row].logits[0], atol=1e-4)
            assert np.array_equal(found.classes[row], single[row].classes[0])


def test_types(backend):
    found = backend.infer(pictures(2))
    assert [array.dtype for array in found] == [np.float32, np.float32, np.int32]
    assert all(array.base is None for array in found)  # copies, not the engine's own memory


def test_many_submitted_at_once_keep_their_results(backend):
    images = pictures(64)
    futures = [backend.submit(images[n : n + 1]) for n in range(64)]
    several = backend.submit(images[:7])
    found = np.concatenate([future.result(60).logits for future in futures])
    np.testing.assert_allclose(several.result(60).logits, found[:7], atol=1e-4)
    assert np.unique(found.round(3), axis=0).shape[0] == 64


def test_device_and_limits(backend):
    assert backend.max_batch == LARGEST_BATCH
    assert backend.in_flight >= 1
    assert backend.device.startswith("CPU (")
    assert f"{backend.in_flight} streams" in backend.device
    assert backend.input_shape == (32, 32, 3)


def test_one_thread(tiny):
    backend = OpenVINOBackend(tiny / "openvino.xml", FULL_PRECISION, threads=1)
    assert "1 threads, 1 streams" in backend.device
    backend.close()


def test_an_onnx_graph_is_accepted(tiny, backend):
    direct = OpenVINOBackend(tiny / "model.onnx", FULL_PRECISION)
    np.testing.assert_allclose(direct.infer(pictures(2)).logits, backend.infer(pictures(2)).logits, atol=1e-4)
    direct.close()


def test_the_runtime_model_shows_what_runs(backend):
    kinds = [op.get_rt_info()["layerType"].astype(str) for op in backend.runtime_model().get_ordered_ops()]
    assert "Convolution" in kinds


def test_bf16_is_left_out_where_it_would_be_emulated(tiny, monkeypatch):
    def hint():
        opened = OpenVINOBackend(tiny / "openvino.xml", {"INFERENCE_PRECISION_HINT": "bf16"})
        try:
            return opened._pool(8).compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
        finally:
            opened.close()

    assert hint() == ("bf16" if computes_in(make_core(), "bf16") else "f32")
    monkeypatch.setattr("infer.backends.openvino.cpu_flags", lambda: frozenset({"avx512f", "avx512_vnni"}))
    assert hint() == "f32"


def test_compiled_models_are_cached(tiny, tmp_path):
    for name in ("openvino.xml", "openvino.bin"):
        shutil.copy(tiny / name, tmp_path / name)
    cache = tmp_path / "cache"
    for _ in range(2):
        OpenVINOBackend(tmp_path / "openvino.xml", FULL_PRECISION, cache).close()
        assert len(list(cache.glob("*.blob"))) == 1  # the second time it is found


def test_the_cache_of_the_build_is_used(own, tiny):
    bundle = own(tiny)
    before = sorted(path.name for path in (bundle / "openvino.cache").glob("*.blob"))
    assert before
    OpenVINOBackend(bundle / "openvino.xml", FULL_PRECISION, bundle / "openvino.cache").close()
    assert sorted(path.name for path in (bundle / "openvino.cache").glob("*.blob")) == before


def test_a_folder_that_cannot_be_written_is_done_without(tiny, tmp_path):
    (tmp_path / "file").touch()
    backend = OpenVINOBackend(tiny / "openvino.xml", FULL_PRECISION, tmp_path / "file" / "cache")
    assert backend.infer(pictures(1)).logits.shape == (1, 10)
    backend.close()


def test_closing(tiny, monkeypatch):
    backend = OpenVINOBackend(tiny / "openvino.xml", FULL_PRECISION)
    infer = openvino.InferRequest.infer
    monkeypatch.setattr(openvino.InferRequest, "infer", lambda *args, **kw: time.sleep(0.2) or infer(*args, **kw))
    futures = [backend.submit(pictures(8)) for _ in range(backend.in_flight)]
    backend.close()
    assert all(future.done() for future in futures)  # what was under way is finished
    backend.close()
    with pytest.raises(TargetUnavailableError, match="this backend is closed"):
        backend.submit(pictures(1))


def test_closing_does_not_wait_for_itself(tiny):
    """Releasing a model while one of its threads still wants the interpreter's lock hung about once in thirty times."""
    code = f"""
import sys
from pathlib import Path
import numpy as np
from infer import open_bundle
from infer.backends.openvino import OpenVINOBackend
bundle, images = Path({str(tiny)!r}), np.zeros((9, 32, 32, 3), np.uint8)
for _ in range(60):
    backend = OpenVINOBackend(bundle / "openvino.xml", cache=bundle / "openvino.cache")
    futures = [backend.submit(images[:8]), backend.submit(images[8:])]
    [future.result() for future in futures]
    backend.close()
    del backend
"""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, timeout=120)


def test_the_first_calls_may_come_from_several_threads(tiny):
    """OpenVINO's first conversion of an array, made by two threads at once, hung one process in six."""
    code = f"""
import sys
from pathlib import Path
import numpy as np
from infer import open_bundle
from infer.backends.openvino import OpenVINOBackend
bundle, images = Path({str(tiny)!r}), np.zeros((8, 32, 32, 3), np.uint8)
backend = OpenVINOBackend(bundle / "openvino.xml", cache=bundle / "openvino.cache")
sys.setswitchinterval(1e-6)
[future.result() for future in [backend.submit(images) for _ in range(4)]]
"""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    for _ in range(12):
        subprocess.run([sys.executable, "-c", code], env=environment, check=True, timeout=60)


def test_a_model_that_cannot_be_read(tmp_path):
    (tmp_path / "openvino.xml").write_text("<net>")
    with pytest.raises(TargetUnavailableError, match=r"OpenVINO cannot read .*openvino.xml") as caught:
        OpenVINOBackend(tmp_path / "openvino.xml")
    assert "\n" not in str(caught.value)


def test_a_model_that_cannot_be_compiled(monkeypatch, tiny):
    def refuse(*_args, **_kwargs):
        raise RuntimeError("Check failed\n\nno such primitive\n")

    monkeypatch.setattr(openvino.Core, "compile_model", refuse)
    with pytest.raises(TargetUnavailableError, match=r"cannot compile the model \(no such primitive\)"):
        OpenVINOBackend(tiny / "openvino.xml")


def test_options_that_openvino_does_not_know(tiny):
    with pytest.raises(TargetUnavailableError, match="OpenVINO cannot compile the model"):
        OpenVINOBackend(tiny / "openvino.xml", {"NO_SUCH_OPTION": "1"})


def test_without_openvino(monkeypatch, tiny):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(TargetUnavailableError, match="openvino is not installed; pip install openvino"):
        OpenVINOBackend(tiny / "openvino.xml")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_bundle(own, tiny):
    bundle = own(tiny)
    shutil.rmtree(bundle / "openvino.cache")
    bundle.chmod(0o555)
    try:
        OpenVINOBackend(bundle / "openvino.xml", FULL_PRECISION, bundle / "openvino.cache").close()
    finally:
        bundle.chmod(0o755)


SIGNAL = """
import gc, signal, sys, threading
from infer import open_bundle
from infer.backends.openvino import OpenVINOBackend

caught = []
signal.signal(signal.SIGUSR1, lambda *args: caught.append(1))
held = [OpenVINOBackend(sys.argv[1], {})]
held[0].close()
thread = threading.Thread(target=lambda: (held.clear(), gc.collect()))  # the plugin goes on another thread
thread.start()
thread.join()
signal.raise_signal(signal.SIGUSR1)
print(caught)
"""


def test_a_signal_after_the_model_is_gone(tiny):
    """OpenVINO leaves this thread with a signal stack in freed memory, unless it is put back."""
    command = [sys.executable, "-c", SIGNAL, str(tiny / "openvino.xml")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout.strip()) == (0, "[1]"), done.stderr
