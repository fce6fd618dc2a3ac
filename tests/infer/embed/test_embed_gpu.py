"""The C library on the TensorRT target: emulated CUDA driver, stand-in for TensorRT, real pycuda and runner."""

from __future__ import annotations

import importlib.util
import os
import platform
import subprocess
import sys
import sysconfig
from pathlib import Path

import numpy as np
import pytest
from cpp_example import example, lines

from infer.bundle import Plan, file_entry, read_manifest, write_manifest
from infer.runner import open_bundle

TESTS = Path(__file__).resolve().parents[2]
KEY = "tensorrt-11"
pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("pycuda") is None, reason="pycuda is not installed: python tests/cuda_emulator/build.py"
)

# Loaded by the Python inside the C++ program at its start.
SITE = f"""
import sys
sys.path.append({str(TESTS)!r})
from cuda_emulator.emulator import load
from trt_stand_in.module import make_module
emulator = load()
emulator.enable()
sys.modules["tensorrt"] = make_module({KEY!r}, emulator)
"""


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """Variables that choose a virtual environment with the packages of this one and the emulated GPU."""
    folder = tmp_path_factory.mktemp("environment")
    packages = folder / f"lib/python{sys.version_info.major}.{sys.version_info.minor}/site-packages"
    for made in (folder / "bin", packages):
        made.mkdir(parents=True)
    base = Path(sys.base_prefix, "bin", f"python{sys.version_info.major}.{sys.version_info.minor}")
    (folder / "bin/python").symlink_to(base)
    (folder / "pyvenv.cfg").write_text(f"home = {base.parent}\nversion = {platform.python_version()}\n")
    (packages / "packages.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    (packages / "sitecustomize.py").write_text(SITE)
    return {"IRESNET_PYTHON": str(folder / "bin/python")}


@pytest.fixture
def bundle(shipped, own, monkeypatch):
    """The shipped model with a plan for the stand-in, which computes the bundle's graph."""
    monkeypatch.syspath_prepend(str(TESTS))
    from trt_stand_in.plan import write_plan

    folder = own(shipped("fp32"))
    graph = str(folder / "model.onnx")
    written = write_plan(folder / "tensorrt.plan", KEY, image=(64, 64, 3), top_k=5, max_batch=16, graph=graph)
    manifest = read_manifest(folder)
    plan = Plan(target="tensorrt", files=[file_entry(folder, "tensorrt.plan")], version=written.version)
    manifest.plans = [*manifest.plans, plan]
    write_manifest(folder, manifest)
    return folder


def test_the_example_on_the_gpu_gives_the_classes_of_python(built, bundle, environment, shipped_images, tmp_path):
    images = shipped_images[0][:150]
    images.tofile(tmp_path / "pictures.rgb")
    done = example(
        built, bundle, tmp_path / "pictures.rgb", 64, 64, "--threads", 3, "--batch", 11, "--target", "tensorrt",
        **environment,
    )  # fmt: skip
    with open_bundle(bundle, target="openvino") as runner:
        outputs = runner.infer(images)
    assert [int(row[1]) for row in lines(done.stdout)] == outputs.classes[:, 0].tolist()
    assert [float(row[2]) for row in lines(done.stdout)] == pytest.approx(outputs.scores[:, 0], abs=1e-4)


DEVICE = r"""
// Host memory and device memory must give the same bytes; prints one line a check.
#include <cstdio>
#include <cstring>
#include <dlfcn.h>
#include <fstream>
#include <iterator>
#include "iresnet_infer.hpp"

using Pointer = unsigned long long;

template <class Function> Function driver(const char *name)
{
    static void *library = dlopen("libcuda.so.1", RTLD_NOW);
    return reinterpret_cast<Function>(dlsym(library, name));
}

int main(int, char **values)
{
    iresnet::Options options;
    options.target = "tensorrt";
    options.device = 9;
    try {
        iresnet::Runner(values[1], options);
    } catch (const iresnet::Error &error) {
        std::printf("device %d %s\n", error.status(), error.what());
    }
    options.device = 0;
    options.slots = 2;
    options.spin = true;
    const iresnet::Runner runner(values[1], options);
    std::ifstream file(values[2], std::ios::binary);
    const std::vector<uint8_t> images{std::istreambuf_iterator<char>(file), {}};
    const int batch = static_cast<int>(images.size() / runner.image_bytes());
    const iresnet::Outputs expected = runner.infer(images.data(), batch);

    int device = 0;
    void *context = nullptr, *stream = nullptr;
    driver<int (*)(int)>("cuInit")(0);
    driver<int (*)(void **, int)>("cuDevicePrimaryCtxRetain")(&context, device);
    driver<int (*)(void *)>("cuCtxPushCurrent_v2")(context);
    driver<int (*)(void **, unsigned)>("cuStreamCreate")(&stream, 1);
    auto allocate = driver<int (*)(Pointer *, size_t)>("cuMemAlloc_v2");
    auto to_device = driver<int (*)(Pointer, const void *, size_t, void *)>("cuMemcpyHtoDAsync_v2");
    auto to_host = driver<int (*)(void *, Pointer, size_t, void *)>("cuMemcpyDtoHAsync_v2");
    Pointer input, logits, scores, classes;
    const size_t all = 4 * expected.logits.size(), best = 4 * expected.scores.size();
    allocate(&input, images.size());
    allocate(&logits, all);
    allocate(&scores, best);
    allocate(&classes, best);

    to_device(input, images.data(), images.size(), stream);
    runner.infer_device(reinterpret_cast<void *>(input), batch, reinterpret_cast<float *>(logits),
                        reinterpret_cast<float *>(scores), reinterpret_cast<int32_t *>(classes), stream);
    iresnet::Outputs found = expected;
    std::memset(found.logits.data(), 1, all);
    std::memset(found.scores.data(), 1, best);
    std::memset(found.classes.data(), 1, best);
    to_host(found.logits.data(), logits, all, stream);
    to_host(found.scores.data(), scores, best, stream);
    to_host(found.classes.data(), classes, best, stream);
    driver<int (*)(void *)>("cuStreamSynchronize")(stream);
    std::printf("info %d, %d in flight\n", runner.info().device_pointers, runner.info().in_flight);
    std::printf("equal %d\n", found.logits == expected.logits && found.scores == expected.scores &&
                                  found.classes == expected.classes);
    try {
        runner.infer_device(reinterpret_cast<void *>(input + 1), batch, reinterpret_cast<float *>(logits),
                            reinterpret_cast<float *>(scores), reinterpret_cast<int32_t *>(classes), stream);
    } catch (const iresnet::Error &error) {
        std::printf("odd %d %s\n", error.status(), error.what());
    }
    try {
        runner.infer_device(images.data() - reinterpret_cast<uintptr_t>(images.data()) % 256, batch,
                            reinterpret_cast<float *>(logits), reinterpret_cast<float *>(scores),
                            reinterpret_cast<int32_t *>(classes), stream);
    } catch (const iresnet::Error &error) {
        std::printf("host %d %s\n", error.status(), error.what());
    }
}
"""


def test_device_memory_on_a_stream_of_the_caller(compiled, bundle, environment, shipped_images, tmp_path):
    shipped_images[0][:12].tofile(tmp_path / "pictures.rgb")
    program = compiled(DEVICE, tmp_path / "device")
    done = subprocess.run(
        [program, bundle, tmp_path / "pictures.rgb"], capture_output=True, text=True, check=False,
        timeout=120, env=os.environ | environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    missing, info, equal, odd, host = done.stdout.splitlines()
    assert missing.startswith("device 3 ") and "expected CUDA device 9, found" in missing
    assert (info, equal) == ("info 1, 4 in flight", "equal 1")
    assert odd.startswith("odd 1 images: expected an address on a multiple of 256 bytes")
    assert host.startswith("host 1 images: expected memory of CUDA device 0, found no device memory")


def test_sizes_are_those_of_the_shipped_model(bundle):
    """Guards the numbers in the plan above."""
    manifest = read_manifest(bundle)
    assert manifest.inputs[0].shape == [-1, 64, 64, 3] and manifest.outputs[1].shape == [-1, 5]
    assert np.dtype(manifest.outputs[2].dtype) == np.int32
