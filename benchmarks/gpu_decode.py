"""DALI's decoder beside the host's: grey levels over many sizes, and what is left for the host.

    python benchmarks/gpu_decode.py [--device 0]

Without ``--device`` DALI runs the same graph on the CPU, with libjpeg-turbo's pixels; on a GPU they are nvJPEG's.
Levels: photos and noise of random sizes, 16 to 3,000 pixels a side, in three subsamplings, a quarter progressive.
Times: CPU milliseconds an image of 500 x 375, one thread, medians of interleaved rounds, ratios within each round;
images/s on a GPU with all CPUs, decoder alone.
"""

from __future__ import annotations

import argparse
import io
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageFile

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from preprocess import jpegs

from infer.bundle.preprocessing import IMAGENET, Preprocessing
from infer.images.jpeg import decoder_name, load_input
from infer.pipeline.dali import Decoder, PlannedFile, plan_file
from infer.pipeline.host import usable_cpus


def host_pixels(tensor: Any) -> np.ndarray:
    return np.asarray(tensor.as_cpu() if hasattr(tensor, "as_cpu") else tensor)


def plans(files: Sequence[bytes], spec: Preprocessing) -> list[PlannedFile]:
    found = [plan for data in files if (plan := plan_file(data, spec, "image")) is not None]
    assert len(found) == len(files)
    return found


def levels(device: int | None, spec: Preprocessing, count: int) -> np.ndarray:
    """Largest and mean difference of each image, ``[count, 2]``."""
    ImageFile.MAXBLOCK = 1 << 26  # Pillow's buffer for noise in high quality
    rng, rows = np.random.default_rng(1), []
    photo = Image.open(io.BytesIO(jpegs((3000, 2400))[4]))
    decoder = Decoder(spec, 16, device=device, threads=usable_cpus())
    for _ in range(count // 16):
        files = []
        for number in range(16):
            width, height = min(3000, int(2 ** rng.uniform(4, 11.6))), min(2400, int(2 ** rng.uniform(4, 11.6)))
            noise = number % 2 == 0
            image = (
                Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8))
                if noise
                else photo.crop((0, 0, width, height))
            )
            buffer = io.BytesIO()
            options = {"quality": int(rng.integers(60, 95)), "subsampling": number % 3, "progressive": number % 4 == 1}
            image.save(buffer, "JPEG", **options)
            files.append(buffer.getvalue())
        decoder.start(plans(files, spec))
        wanted = np.empty((spec.crop, spec.crop, 3), np.uint8)
        for data, pixels in zip(files, host_pixels(decoder.finish()), strict=True):
            load_input(data, spec, wanted)
            off = np.abs(wanted.astype(int) - pixels)
            rows.append((off.max(), off.mean()))
    return np.array(rows)


def times(device: int | None, rounds: int) -> None:
    files = jpegs((500, 375)) * 6
    out = np.empty((IMAGENET.crop, IMAGENET.crop, 3), np.uint8)
    decoder = Decoder(IMAGENET, len(files), device=device, threads=1)
    spent: dict[str, list[float]] = {"host": [], "plan": [], "DALI": []}
    planned = plans(files, IMAGENET)
    for _ in range(rounds):
        for name, taken in spent.items():
            start = time.process_time()
            if name == "host":
                for data in files:
                    load_input(data, IMAGENET, out)
            elif name == "plan":
                plans(files, IMAGENET)
            else:
                decoder.start(planned)
                decoder.finish()
            taken.append(1e3 * (time.process_time() - start) / len(files))
    for name, values in spent.items():
        ratio = statistics.median(value / base for value, base in zip(values, spent["host"], strict=True))
        label = f"host: {decoder_name()}" if name == "host" else name
        print(f"{label:14} {statistics.median(values):.3f} CPU ms an image, {ratio:.3f} of the host's")


def rate(device: int, rounds: int) -> None:
    files = jpegs((500, 375)) * 40
    decoder, planned = Decoder(IMAGENET, len(files), device=device, threads=usable_cpus()), plans(files, IMAGENET)
    decoder.start(planned)
    found = []
    for _ in range(rounds):
        start = time.perf_counter()
        decoder.start(planned)
        decoder.finish()
        found.append(len(files) / (time.perf_counter() - start))
    print(f"GPU {device}: {statistics.median(found):.0f} images/s, batches of {len(files)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", type=int, help="ordinal of a GPU; without it DALI runs on the CPU")
    parser.add_argument("--limit", type=int, default=192, help="for each pre-processing, a multiple of 16")
    parser.add_argument("--rounds", type=int, default=24)
    options = parser.parse_args()
    for spec in (IMAGENET, Preprocessing(232, 224), Preprocessing(333, 299)):
        found = levels(options.device, spec, options.limit)
        print(
            f"{spec.resize}/{spec.crop}: largest {found[:, 0].max():.0f}, mean {found[:, 1].mean():.3f} levels, "
            f"{len(found)} images"
        )
    times(options.device, options.rounds)
    if options.device is not None:
        rate(options.device, options.rounds)


if __name__ == "__main__":
    main()
