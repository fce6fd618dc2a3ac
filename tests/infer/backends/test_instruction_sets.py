"""The instruction set of int8 kernels: parsed from OpenVINO's words, and reported by OpenVINO itself when limited."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from infer.backends.instruction_sets import adds_in_int16, instruction_set

ISA = "meta=1.0;ov=2026.4.1;isa="
# oneDNN's own list, as OpenVINO 2026.4 prints it.
AVX2, AVX2_VNNI = f"{ISA}Intel AVX2", f"{ISA}Intel AVX2 with Intel DL Boost"
AVX512 = f"{ISA}Intel AVX-512 with AVX512BW, AVX512VL, and AVX512DQ extensions"
AVX512_VNNI = f"{ISA}Intel AVX-512 with Intel DL Boost and bfloat16 support"
AVX10 = f"{ISA}Intel AVX 10.1"
AMX = f"{ISA}Intel AVX10.1 and Intel AMX with bfloat16 and 8-bit integer support"


@pytest.mark.parametrize(
    ("primitives", "requirements", "expected", "int16"),
    [
        (["brgconv_avx512_amx_1x1_i8", "jit_avx512_amx_i8"], AMX, "amx", False),
        (["brgconv_avx512_I8", "brgemm_avx512_i8"], AVX512_VNNI, "avx512_vnni", False),
        (["brgconv_avx512_I8"], AVX10, "avx512_vnni", False),
        (["brgconv_avx512_I8"], AVX512, "avx512", True),  # the kernels' names are those of VNNI
        (["jit_avx2_1x1_I8", "jit_gemm_I8"], AVX2, "avx2", True),
        (["brgconv_avx2_I8", "jit_gemm_I8"], AVX2_VNNI, "avx2_vnni", False),
        (["brgconv_avx512_amx_i8"] * 2 + ["brgconv_avx512_I8"] * 3, AMX, "avx512_vnni+amx", False),
        (["jit_gemm_I8", "ref_any_I8"], AVX512, "avx512", True),  # no family in any name
        (["jit_gemm_I8"], f"{ISA}Intel SSE4.1", "sse42", True),
        (["brgconv_avx2_I8", "brgconv_avx512_f32", "brgconv_avx512_f32"], AVX512, "avx2", True),  # int8 decides
        (["jit_avx512_f32"], AVX512_VNNI, "avx512", True),
        (["brgconv_avx512_I8"], "", "avx512?", False),  # an OpenVINO without the property
        (["acl_I8"], "", "unknown", False),
        ([], "", "unknown", False),
    ],
)
def test_from_what_openvino_says(primitives, requirements, expected, int16):
    found = instruction_set(primitives, requirements)
    assert (found, adds_in_int16(found)) == (expected, int16)


# Reads the bundle twice, once compiled anew and once through a cache that another instruction set may have written.
CODE = """
import sys
from pathlib import Path
import numpy as np
from infer.backends.openvino import OpenVINOBackend, computes_in, make_core
bundle, cache = Path(sys.argv[1]), Path(sys.argv[2])
images = np.random.default_rng(0).integers(0, 255, (8, 64, 64, 3)).astype(np.uint8)
logits = []
for folder in (None, cache):
    backend = OpenVINOBackend(bundle / "openvino.xml", {"INFERENCE_PRECISION_HINT": "f32"}, folder)
    logits.append(backend.infer(images).logits)
    instructions = backend.instruction_set
    backend.close()
print(instructions, computes_in(make_core(), "bf16"), np.array_equal(*logits), int.from_bytes(logits[0].tobytes()))
"""


def ask(bundle: Path, cache: Path, limit: str, variable: str = "ONEDNN_MAX_CPU_ISA") -> list[str]:
    environment = {name: value for name, value in os.environ.items() if not name.endswith("DNN_MAX_CPU_ISA")}
    environment |= {"PYTHONPATH": str(Path(__file__).parents[3])} | ({variable: limit} if limit else {})
    command = [sys.executable, "-c", CODE, str(bundle), str(cache)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.split()


def test_openvino_says_what_its_kernels_are_made_of(shipped, tmp_path):
    """One file under several instruction sets: named, bf16 where there is none left alone, no stale compiled model."""
    own = ask(shipped("int8"), tmp_path, "")
    assert own[0] != "unknown"
    if not {"avx2", "avx512", "amx"} & {own[0].removesuffix("_vnni")}:
        pytest.skip("not an x86 CPU with AVX2")
    avx2 = ask(shipped("int8"), tmp_path, "AVX2")
    assert avx2[:2] == ["avx2", "False"]
    assert [answer[2] for answer in (own, avx2)] == ["True"] * 2  # OpenVINO checks a compiled model's instruction set
    assert ask(shipped("int8"), tmp_path, "avx2", "DNNL_MAX_CPU_ISA") == avx2  # oneDNN's other spelling
    if own[0] == "amx":
        assert ask(shipped("int8"), tmp_path, "AVX512_CORE")[:2] == ["avx512", "False"]
        assert ask(shipped("int8"), tmp_path, "AVX512_CORE_VNNI")[:2] == ["avx512_vnni", "False"]
