"""pycuda's own tests of the driver, as far as they launch no kernel, pass on the emulator: it is faithful to them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from cuda_emulator.build import OWN_TESTS, pycuda_folder

#: The others compile CUDA C; ``test_register_host_memory`` is marked by pycuda itself as failing.
WITHOUT_KERNELS = {
    "test_memory", "test_gpuarray_cai", "test_bitlog", "test_mempool", "test_mempool_2", "test_multi_context",
    "test_additional_primary_context", "test_pointer_holder_base", "test_import_pyopencl_before_pycuda",
}  # fmt: skip
PLUGIN = "from cuda_emulator.emulator import load\nload().enable()\n"


@pytest.mark.usefixtures("driver")
def test_without_kernels(tmp_path: Path) -> None:
    own = pycuda_folder() / OWN_TESTS
    if not own.exists():
        pytest.skip("pycuda was not built by tests/cuda_emulator/build.py")
    shutil.copy(own, tmp_path)
    (tmp_path / "on_the_emulator.py").write_text(PLUGIN)
    command = [sys.executable, "-m", "pytest", "-rA", "-q", "-p", "on_the_emulator", "-p", "no:cacheprovider"]
    command += ["-c", os.devnull, "--rootdir", str(tmp_path), "-k", " or ".join(sorted(WITHOUT_KERNELS)), OWN_TESTS]
    path = os.pathsep.join([str(tmp_path), str(Path(__file__).resolve().parents[3])])
    done = subprocess.run(
        command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, timeout=300,
        check=False,
    )  # fmt: skip
    passed = set(re.findall(r"^PASSED \S+::(\w+)$", done.stdout, re.MULTILINE))
    assert passed >= WITHOUT_KERNELS, done.stdout[-4000:] + done.stderr
