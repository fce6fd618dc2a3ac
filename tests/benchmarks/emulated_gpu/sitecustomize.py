"""Puts the emulated driver and the stand-in for TensorRT into every process that has this folder on its PYTHONPATH."""

import os
import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parents[2]

if key := os.environ.get("EMULATED_GPU"):
    sys.path[:0] = [str(TESTS.parent), str(TESTS)]
    from cuda_emulator.emulator import load
    from trt_stand_in.api import VERSIONS
    from trt_stand_in.module import make_module

    emulator = load()
    emulator.enable()
    sys.modules[VERSIONS[key][0]] = make_module(key, emulator)
