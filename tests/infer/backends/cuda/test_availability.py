"""What is missing is said before TensorRT is touched; processes end cleanly whatever state the runner is in."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from infer.backends.tensorrt import why_unavailable
from infer.errors import InputError, TargetUnavailableError

ROOT = Path(__file__).resolve().parents[4]


def test_everything_is_there(stack: Any) -> None:
    assert why_unavailable(stack.target) is None


def test_no_device(stack: Any) -> None:
    assert "device 1" in (why_unavailable(stack.target, 1) or "")
    stack.emulator.devices(0)
    stack.emulator.enable(False)
    assert "no usable GPU" in (why_unavailable(stack.target) or "")
    with pytest.raises(TargetUnavailableError, match="no usable GPU"):
        stack.open()


def test_no_module(stack: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, stack.target, None)
    assert why_unavailable(stack.target) == (
        f"the Python module {stack.target} is not installed: pip install "
        + ("tensorrt" if stack.target == "tensorrt" else "tensorrt-rtx-cu13")
    )
    monkeypatch.setitem(sys.modules, "pycuda.driver", None)
    assert "pip install pycuda" in (why_unavailable(stack.target) or "")


def test_unknown_target() -> None:
    with pytest.raises(InputError, match="tensorrt_rtx"):
        why_unavailable("cuda")


def run(code: str, *, emulator: bool = True) -> subprocess.CompletedProcess[str]:
    """Run a script in a process of its own, with the stand-in and an open backend where asked for."""
    head = f"import sys; sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / 'tests')!r}]\n"
    if emulator:
        head += textwrap.dedent(
            """
            import atexit, pathlib, tempfile, threading, numpy as np
            from cuda_emulator.emulator import load
            from trt_stand_in.module import make_module
            from trt_stand_in.plan import write_plan
            emulator = load(); emulator.enable()
            atexit.register(lambda: print("left", {k: v for k, v in emulator.live().items() if v}, emulator.hazards()))
            sys.modules["tensorrt"] = make_module("tensorrt-11", emulator)
            from infer.backends.tensorrt import TensorRTBackend
            folder = tempfile.TemporaryDirectory()
            path = pathlib.Path(folder.name, "plan")
            write_plan(path, "tensorrt-11")
            images = np.zeros((8, 8, 8, 3), np.uint8)
            backend = TensorRTBackend(path, "tensorrt")
            """
        )
    command = [sys.executable, "-c", head + textwrap.dedent(code)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize(
    "code",
    [
        "",
        "backend.close()",
        "emulator.delays(20, 20, 20); futures = [backend.submit(images) for _ in range(3)]",
        "pinned = backend.acquire(4); view = pinned.images; view[:] = 1; del view",
        "emulator.break_contexts(); backend.submit(images).exception()",
        "emulator.delays(5, 5, 5); emulator.fail('op:compute'); backend.submit(images)",
        """
        def work():
            while True:
                try:
                    backend.infer(images)
                except Exception:
                    return
        for _ in range(4):
            threading.Thread(target=work, daemon=True).start()
        """,
    ],
    ids=["open", "closed", "under way", "acquired", "broken", "breaking", "threads"],
)
@pytest.mark.usefixtures("driver")
def test_a_process_ends_cleanly(code: str) -> None:
    done = run(code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "left {} []", done.stdout + done.stderr
    assert done.stderr == ""


@pytest.mark.usefixtures("driver")
def test_an_unhandled_error_ends_with_its_own_message_only() -> None:
    done = run("raise RuntimeError('mine')")
    assert done.returncode == 1
    assert done.stdout.strip() == "left {} []"
    assert done.stderr.strip().endswith("RuntimeError: mine") and "pycuda" not in done.stderr.lower()


def test_without_a_driver_nothing_is_loaded() -> None:
    done = run(
        """
        import ctypes
        try:
            ctypes.CDLL("libcuda.so.1")
        except OSError:
            from infer.backends.tensorrt import why_unavailable
            print(why_unavailable("tensorrt_rtx"))
            print([name for name in ("pycuda", "tensorrt_rtx", "tensorrt", "torch", "onnx") if name in sys.modules])
        else:
            print("driver")
        """,
        emulator=False,
    )
    if done.stdout.strip() == "driver":
        pytest.skip("this machine has an NVIDIA driver")
    first, second = done.stdout.strip().splitlines()
    assert "driver is not installed" in first
    assert second == "[]"
