"""Damaged JPEG files for the native kernel, under AddressSanitizer and UndefinedBehaviorSanitizer.

    python tests/native_fuzz/run.py [--seconds 60] [--seed 1]

Needs gcc with its sanitizers and libjpeg-turbo's headers. Ends with an error at the first finding.
"""

from __future__ import annotations

import argparse
import io
import itertools
import subprocess
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
NATIVE = ROOT / "infer/images/native"
SOURCES = [Path(__file__).with_name("fuzz_jpeg.c"), *(path for path in NATIVE.glob("*.c") if path.name != "module.c")]
FLAGS = [
    "-std=gnu11", "-O1", "-g", "-Wall", "-Wextra", "-ffp-contract=off", "-fno-omit-frame-pointer",
    "-fsanitize=address,undefined,float-cast-overflow", "-fno-sanitize-recover=all",
]  # fmt: skip


def corpus() -> list[bytes]:
    """Small files of every kind that the kernel decodes."""
    files = []
    sizes = [(1, 1), (40, 24), (97, 33), (30, 120)]
    for (width, height), sampling, progressive in itertools.product(sizes, (0, 1, 2, None), (False, True)):
        pixels = np.random.default_rng(width).integers(0, 256, (height // 4 + 1, width // 4 + 1, 3), np.uint8)
        image = Image.fromarray(pixels).resize((width, height))
        exif = Image.Exif()
        exif[0x0112] = width % 8 + 1
        options = {"exif": exif, "progressive": progressive, "quality": 80}
        if sampling is None:
            image = image.convert("L")
        else:
            options["subsampling"] = sampling
        if not progressive:
            options["restart_marker_blocks"] = 2
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", **options)
        files.append(buffer.getvalue())
    return files


def main() -> None:
    """Build and run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder, "fuzz_jpeg")
        subprocess.run(["gcc", *FLAGS, f"-I{NATIVE}", *SOURCES, "-ljpeg", "-lm", "-o", program], check=True)
        files = []
        for number, data in enumerate(corpus()):
            files.append(Path(folder, f"{number}.jpg"))
            files[-1].write_bytes(data)
        done = subprocess.run([program, str(options.seed), str(options.seconds), *files], check=False)
    if done.returncode:
        raise SystemExit(f"error: the kernel failed with status {done.returncode} (seed {options.seed})")


if __name__ == "__main__":
    main()
