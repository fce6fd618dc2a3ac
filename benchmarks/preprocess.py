"""JPEG to the network's uint8 input: our decoders beside Pillow's and torch's, in one interleaved run.

    python benchmarks/preprocess.py [--rounds 30] [--json]

The baseline is what torchvision's Resize + CenterCrop do on a PIL image: Pillow decodes, resizes everything, crops.
Photos are those of scikit-image and scikit-learn, quality 93: 500 x 375 resized from about that size. No photo of
4000 x 3000 comes with a package: "soft" ones are enlarged, "sharp" ones are mosaics of them at their own size, mirrored
at the seams, with detail in every pixel. A camera's files are in between, and nearer to the sharp ones in bytes.
CPU milliseconds an image are medians over the rounds, each peer once a round. Threads: the whole pool, load_batches.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from infer.bundle.preprocessing import IMAGENET
from infer.images.jpeg import ENVIRONMENT_VARIABLE, load_input
from infer.images.native import load_kernel
from infer.images.resize import TALL_FIRST
from infer.pipeline.host import load_batches, usable_cpus
from infer.sources import Record

SPEC = IMAGENET
SETS = {
    "500x375": ((500, 375), False),
    "4000x3000 soft": ((4000, 3000), False),
    "4000x3000 sharp": ((4000, 3000), True),
}
BASELINE = "Pillow, whole image"
Peer = Callable[[bytes], object]


def photos() -> list[np.ndarray]:
    """Photos that come with packages, uint8 [H, W, 3]."""
    from skimage import data
    from sklearn.datasets import load_sample_images

    return [np.asarray(getattr(data, name)()) for name in ("astronaut", "coffee", "chelsea", "rocket")] + list(
        load_sample_images().images
    )


def jpegs(size: tuple[int, int], mosaic: bool = False) -> list[bytes]:
    """One file of each photo, resized to ``size`` or repeated to fill it."""
    width, height = size
    files = []
    for pixels in photos():
        if mosaic:
            times = -(-height // pixels.shape[0]) + 1, -(-width // pixels.shape[1]) + 1
            mirrored = np.block([[[pixels], [pixels[:, ::-1]]], [[pixels[::-1]], [pixels[::-1, ::-1]]]])
            image = Image.fromarray(np.tile(mirrored, ((times[0] + 1) // 2, (times[1] + 1) // 2, 1)))
        else:
            image = Image.fromarray(pixels)
            scale = max(width / image.width, height / image.height)
            image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
        buffer = io.BytesIO()
        image.crop((0, 0, width, height)).save(buffer, "JPEG", quality=93)
        files.append(buffer.getvalue())
    return files


def plan(width: int, height: int) -> tuple[int, int, int, int]:
    """Size after torchvision's Resize, and left and top of its CenterCrop."""
    short, long = min(width, height), max(width, height)
    resized = int(SPEC.resize * long / short)
    w, h = (SPEC.resize, resized) if width <= height else (resized, SPEC.resize)
    return w, h, round((w - SPEC.crop) / 2.0), round((h - SPEC.crop) / 2.0)


def whole_image(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as opened:
        image = opened.convert("RGB")
    w, h, left, top = plan(*image.size)
    image = image.resize((w, h), Image.Resampling.BILINEAR)
    return np.asarray(image.crop((left, top, left + SPEC.crop, top + SPEC.crop)))


def ours(decoder: str, **options: bool) -> Peer:
    out = np.empty((SPEC.crop, SPEC.crop, 3), np.uint8)

    def run(data: bytes) -> np.ndarray:
        os.environ[ENVIRONMENT_VARIABLE] = decoder
        load_input(data, SPEC, out, **options)
        return out

    return run


def portable_kernel() -> Peer:
    kernel, out = load_kernel(), np.empty((SPEC.crop, SPEC.crop, 3), np.uint8)

    def run(data: bytes) -> np.ndarray:
        kernel.load(data, out, SPEC.resize, SPEC.crop, 1, TALL_FIRST, 1e9, portable=True)
        return out

    return run


def with_torch(decode: Callable[[bytes], np.ndarray]) -> Peer:
    """What torchvision v2 does with a uint8 tensor: torch's antialiased resize of the whole image, then a crop."""
    import torch
    from torch.nn.functional import interpolate

    torch.set_num_threads(1)

    def run(data: bytes) -> np.ndarray:
        pixels = decode(data)
        w, h, left, top = plan(pixels.shape[1], pixels.shape[0])
        tensor = torch.from_numpy(pixels).permute(2, 0, 1)[None]
        tensor = interpolate(tensor, (h, w), mode="bilinear", antialias=True)
        return tensor[0, :, top : top + SPEC.crop, left : left + SPEC.crop].permute(1, 2, 0).contiguous().numpy()

    return run


def torchvision_decoder() -> Callable[[bytes], np.ndarray]:
    import torch
    from torchvision.io import decode_jpeg

    return lambda data: decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8)).permute(1, 2, 0).numpy()


def decode_only() -> Peer:
    """The limit: libjpeg-turbo decodes the whole image into memory that is there already."""
    import simplejpeg

    buffer = bytearray(4000 * 3000 * 3)
    return lambda data: simplejpeg.decode_jpeg(data, "RGB", buffer=buffer)


def peers() -> tuple[dict[str, Peer], dict[str, str]]:
    """Peers that run here, and why others do not."""
    import simplejpeg

    makers: dict[str, Callable[[], Peer]] = {
        BASELINE: lambda: whole_image,
        "ours: pillow (box)": lambda: ours("pillow"),
        "torchvision v2": lambda: with_torch(torchvision_decoder()),
        "simplejpeg + torch": lambda: with_torch(lambda data: simplejpeg.decode_jpeg(data, "RGB")),
        "ours: simplejpeg": lambda: ours("simplejpeg"),
        "ours: native": lambda: ours("native"),
        "native without AVX2": portable_kernel,
        "ours: pillow, fast": lambda: ours("pillow", fast=True),
        "ours: simplejpeg, fast": lambda: ours("simplejpeg", fast=True),
        "ours: native, fast": lambda: ours("native", fast=True),
        "decode only, Pillow": lambda: lambda data: Image.open(io.BytesIO(data)).load(),
        "decode only, simplejpeg": decode_only,
    }
    found, missing = {}, {}
    sample = jpegs((64, 48))[0]
    for name, make in makers.items():
        try:
            found[name] = make()
            found[name](sample)
        except Exception as error:
            found.pop(name, None)
            missing[name] = str(error).splitlines()[0]
    return found, missing


def measure(files: list[bytes], rounds: int) -> tuple[dict[str, dict[str, float]], dict[str, str]]:
    """CPU ms an image, speed against the baseline, largest difference from it in grey levels."""
    found, missing = peers()
    times: dict[str, list[float]] = {name: [] for name in found}
    for _ in range(rounds):
        for name, peer in found.items():
            start = time.process_time_ns()
            for data in files:
                peer(data)
            times[name].append((time.process_time_ns() - start) / 1e6 / len(files))
    medians = {name: statistics.median(values) for name, values in times.items()}
    limit = medians["decode only, simplejpeg"]
    table = {}
    for name, peer in found.items():
        ratios = [base / value for base, value in zip(times[BASELINE], times[name], strict=True)]
        table[name] = {
            "ms": medians[name],
            "speed": statistics.median(ratios),
            "of_decode_limit": limit / medians[name],
        }
        if not name.startswith("decode only"):
            off = [np.abs(np.asarray(peer(data)).astype(int) - whole_image(data)) for data in files]
            table[name] |= {
                "max_off": max(int(o.max()) for o in off),
                "mean_off": float(np.mean([o.mean() for o in off])),
            }
    return table, missing


@contextlib.contextmanager
def decoder(name: str) -> Iterator[None]:
    os.environ[ENVIRONMENT_VARIABLE] = name
    yield
    del os.environ[ENVIRONMENT_VARIABLE]


def pool(files: list[bytes], rounds: int, seconds: float, ms: float) -> list[dict[str, float]]:
    """Images/s of the whole pool for several numbers of threads."""
    count = max(4, int(seconds * 1e3 / ms))
    records = [Record(str(n), Path(), "", lambda n=n: files[n % len(files)]) for n in range(count)]
    workers = sorted({1, 2, usable_cpus(), 2 * usable_cpus()})
    batch = 32 if count >= 64 else 4
    rates: dict[int, list[float]] = {n: [] for n in workers}
    cpu: dict[int, list[float]] = {n: [] for n in workers}
    for _ in range(rounds):
        for n in workers:
            start, busy = time.perf_counter(), time.process_time()
            for _ in load_batches(records, SPEC, batch, workers=n):
                pass
            rates[n].append(count / (time.perf_counter() - start))
            cpu[n].append(1e3 * (time.process_time() - busy) / count)
    return [
        {
            "workers": n,
            "images_per_s": statistics.median(rates[n]),
            "against_one": statistics.median(a / b for a, b in zip(rates[n], rates[1], strict=True)),
            "best_against_one": max(rates[n]) / max(rates[1]),
            "cpu_ms": statistics.median(cpu[n]),
        }
        for n in workers
    ]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--set", choices=SETS, help="only this set")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    results: dict[str, object] = {"machine": f"{platform.machine()}, {usable_cpus()} CPUs", "pillow": Image.__version__}
    for size, (pixels, mosaic) in SETS.items():
        if options.set not in (None, size):
            continue
        files = jpegs(pixels, mosaic)
        rounds = options.rounds if size == "500x375" else max(3, options.rounds // 6)
        table, missing = measure(files, rounds)
        pools = {}
        for name in ("native", "simplejpeg"):
            if f"ours: {name}" in table:
                with decoder(name):
                    pools[name] = pool(files, max(3, rounds // 3), 0.5, table[f"ours: {name}"]["ms"])
        results[size] = {
            "kilobytes": [len(data) // 1024 for data in files], "peers": table, "missing": missing, "pool": pools,
        }  # fmt: skip
        if not options.json:
            show(size, results[size])
    if options.json:
        print(json.dumps(results, indent=2))


def show(size: str, result: dict) -> None:
    print(f"\n{size}, files of {min(result['kilobytes'])} to {max(result['kilobytes'])} kB")
    print("| peer | CPU ms | speed | of the decode limit | max off | mean off |\n|---|---|---|---|---|---|")
    for name, row in result["peers"].items():
        off = f"{row['max_off']} | {row['mean_off']:.3f}" if "max_off" in row else "|"
        print(f"| {name} | {row['ms']:.3f} | {row['speed']:.2f} | {100 * row['of_decode_limit']:.0f} % | {off} |")
    for name, why in result["missing"].items():
        print(f"{name}: not here ({why})")
    for name, rows in result["pool"].items():
        for row in rows:
            print(
                f"pool, {name}, {row['workers']} threads: {row['images_per_s']:.0f} images/s, "
                f"{row['against_one']:.2f} x one thread (best rounds {row['best_against_one']:.2f}), "
                f"{row['cpu_ms']:.3f} CPU ms an image"
            )


if __name__ == "__main__":
    main()
