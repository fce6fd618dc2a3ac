# ruff: noqa: E402 -- the folder of the emulator has to be on the path before it is imported
"""The emulated CUDA driver, pycuda on it, and the stand-in for the three versions of TensorRT."""

from __future__ import annotations

import gc
import importlib.util
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

TESTS = Path(__file__).resolve().parents[3]
if str(TESTS) not in sys.path:
    sys.path.insert(0, str(TESTS))

from cuda_emulator.emulator import Emulator, load
from device_user import Device
from trt_stand_in.api import VERSIONS
from trt_stand_in.module import make_module
from trt_stand_in.plan import StandInPlan, write_plan
from trt_stand_in.rows import hash_rows


def missing() -> str | None:
    """Why the tests of this folder cannot run here."""
    if importlib.util.find_spec("pycuda") is None:
        return "pycuda is not installed: python tests/cuda_emulator/build.py"
    if shutil.which("g++") is None and shutil.which("c++") is None:
        return "the emulated CUDA driver needs a C++ compiler (g++)"
    return None


@pytest.fixture(scope="session")
def driver() -> Emulator:
    """The emulator with pycuda loaded on it."""
    if (reason := missing()) is not None:
        pytest.skip(reason)
    emulator = load()
    emulator.enable()
    import pycuda.driver  # noqa: F401

    emulator.enable(False)
    return emulator


@pytest.fixture
def emulator(driver: Emulator) -> Iterator[Emulator]:
    """A fresh device. At the end nothing may be left on it, and no hazard may have been seen."""
    driver.reset()
    driver.enable()
    before = driver.live()
    yield driver
    driver.fail_clear()
    driver.drain()
    gc.collect()
    end = time.monotonic() + 5
    while (after := driver.live()) != before and time.monotonic() < end:  # a thread frees what was held longest
        time.sleep(0.002)
    hazards = driver.hazards()
    driver.reset()
    driver.enable(False)
    assert hazards == []
    assert after == before, "left on the device"


@pytest.fixture
def device(emulator: Any) -> Any:
    user = Device()
    yield user
    user.close()


class Stack:
    """One version of TensorRT on the emulator, and a plan for it."""

    def __init__(self, key: str, emulator: Emulator, folder: Path) -> None:
        self.key, self.emulator, self.folder = key, emulator, folder
        self.target = VERSIONS[key][0]
        self.plan: StandInPlan

    def write(self, name: str = "network.plan", **options: Any) -> Path:
        """Write a plan; see :class:`trt_stand_in.plan.StandInPlan`."""
        path = self.folder / name
        self.plan = write_plan(path, self.key, **options)
        return path

    def open(self, path: Path | None = None, **options: Any) -> Any:
        """A backend for a plan; ``options`` are fields of ``GpuOptions`` and arguments of the backend."""
        from infer.backends.base import GpuOptions
        from infer.backends.tensorrt import TensorRTBackend

        names = [field.name for field in fields(GpuOptions)]
        gpu = GpuOptions(**{name: options.pop(name) for name in names if name in options})
        return TensorRTBackend(path or self.write(), self.target, options=gpu, **options)

    def images(self, rows: int, seed: int = 0) -> NDArray[np.uint8]:
        """Random images of the plan's shape."""
        return np.random.default_rng(seed).integers(0, 256, (rows, *self.plan.image), np.uint8)

    def expected(self, images: NDArray[np.uint8]) -> tuple[NDArray[Any], ...]:
        """What the built-in kernel gives for images."""
        return hash_rows(images, self.plan.num_classes, self.plan.top_k)

    def check(self, images: NDArray[np.uint8], outputs: Any) -> None:
        """Every output equals what is expected, bit for bit."""
        for name, want in zip(("logits", "scores", "classes"), self.expected(images), strict=True):
            have = getattr(outputs, name)
            assert have.dtype == want.dtype and have.shape == want.shape, name
            np.testing.assert_array_equal(have, want, err_msg=name)


@pytest.fixture(params=list(VERSIONS))
def stack(request: pytest.FixtureRequest, emulator: Emulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stack:
    """Each version of TensorRT in turn."""
    return make_stack(request.param, emulator, tmp_path, monkeypatch)


@pytest.fixture
def stack_11(emulator: Emulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stack:
    """TensorRT 11, for what does not depend on the version."""
    return make_stack("tensorrt-11", emulator, tmp_path, monkeypatch)


def make_stack(key: str, emulator: Emulator, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Stack:
    """Put the stand-in in the place of the real module."""
    monkeypatch.setitem(sys.modules, VERSIONS[key][0], make_module(key, emulator))
    return Stack(key, emulator, folder)


@pytest.fixture
def bundle(stack_11: Any, tiny: Path, own: Any) -> Path:
    """The tiny model with a plan for the stand-in, which computes the bundle's graph."""
    from infer.bundle import Plan, file_entry, read_manifest, write_manifest

    folder: Path = own(tiny)
    stack_11.folder = folder
    manifest = read_manifest(folder)
    image, k = tuple(manifest.inputs[0].shape[1:]), manifest.outputs[1].shape[1]
    stack_11.write("tensorrt.plan", image=image, top_k=k, max_batch=16, graph=str(folder / "model.onnx"))
    plan = Plan(target="tensorrt", files=[file_entry(folder, "tensorrt.plan")], version=stack_11.plan.version)
    manifest.plans = [*manifest.plans, plan]
    write_manifest(folder, manifest)
    return folder
