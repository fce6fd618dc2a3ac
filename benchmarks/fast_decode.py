"""What fast mode, the decoding of large JPEG files at a reduced size, changes: top-1 of a trained model, grey levels.

    python benchmarks/fast_decode.py engines/iresnet50_fashion-fp32 [--limit 2000] [--json]

The model is the shipped one, whose test images have 28 x 28 pixels: they are enlarged, smoothly (bicubic) and with
hard edges (nearest), and written as JPEG, quality 93. That is no ImageNet; the photos say what happens to sharp ones.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parent))
from preprocess import jpegs

from infer import open_bundle
from infer.bundle.preprocessing import IMAGENET
from infer.datasets import LabelledDataset, open_dataset
from infer.images import decode_image, jpeg, scale_of
from infer.runner import Runner

ENLARGED = {"bicubic": Image.Resampling.BICUBIC, "nearest": Image.Resampling.NEAREST}
SIDES, MARGINS = (448, 1024), (1, 2, 4)


def enlarged(dataset: LabelledDataset, side: int, how: Image.Resampling) -> LabelledDataset:
    """The same images as JPEG files of side x side pixels."""

    def read(record) -> bytes:
        buffer = io.BytesIO()
        decode_image(record.load()).resize((side, side), how).save(buffer, "JPEG", quality=93)
        return buffer.getvalue()

    return replace(dataset, records=tuple(replace(r, read=lambda r=r: read(r)) for r in dataset.records))


def effect(runner: Runner, dataset: LabelledDataset) -> dict[str, float]:
    """Top-1 with exact and with fast decoding, agreement between them, in percent; mean difference in grey levels."""
    spec, size = runner.preprocessing, runner.backend.max_batch
    hits = np.zeros(3)
    levels = []
    for (exact, targets), (fast, _) in zip(
        dataset.batches(spec, size, strict=True), dataset.batches(spec, size, strict=True, fast=True), strict=True
    ):
        levels.append(np.abs(exact.images.astype(np.int16) - fast.images).mean(axis=(1, 2, 3)))
        one, two = (runner.infer(batch.images).classes[:, 0] for batch in (exact, fast))
        hits += [(one == targets).sum(), (two == targets).sum(), (one == two).sum()]
    exact_hits, fast_hits, same = 100 * hits / len(dataset)
    mean = float(np.concatenate(levels).mean())
    return {"top1_exact": exact_hits, "top1_fast": fast_hits, "agreement": same, "mean_levels": mean}


def model_rows(bundle: str, images: int) -> list[dict]:
    """Top-1 and agreement with exact decoding, for each size and margin."""
    rows = []
    shipped = Path(__file__).resolve().parents[1] / "engine_build/shipped/iresnet50_fashion"
    with open_bundle(bundle) as runner:
        dataset = open_dataset([shipped / "test.tar.gz"], runner.labels, limit=images)
        for how, filter_ in ENLARGED.items():
            for side in SIDES:
                files = enlarged(dataset, side, filter_)
                for margin in MARGINS:
                    jpeg.FAST_MARGIN = margin
                    scale = scale_of((side, side), margin * runner.preprocessing.resize)
                    if scale > 1:
                        found = effect(runner, files)
                        rows.append({"enlarged": how, "side": side, "margin": margin, "scale": scale, **found})
    return rows


def photo_rows() -> list[dict]:
    """Grey levels between fast and exact decoding of photos."""
    rows = []
    exact, fast = (np.empty((224, 224, 3), np.uint8) for _ in range(2))
    for width, height in ((2000, 1500), (4000, 3000)):
        files = jpegs((width, height), mosaic=True)
        for margin in MARGINS:
            jpeg.FAST_MARGIN = margin
            off = []
            for data in files:
                jpeg.load_input(data, IMAGENET, exact)
                jpeg.load_input(data, IMAGENET, fast, fast=True)
                off.append(np.abs(exact.astype(int) - fast))
            rows.append(
                {
                    "photos": f"{width}x{height}", "margin": margin,
                    "scale": scale_of((width, height), margin * IMAGENET.resize),
                    "mean": float(np.mean(off)), "p99": float(np.percentile(off, 99)), "max": int(np.max(off)),
                }
            )  # fmt: skip
    return rows


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle")
    parser.add_argument("--limit", type=int, default=2000)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    results = {
        "decoder": jpeg.decoder_name(),
        "model": model_rows(options.bundle, options.limit),
        "photos": photo_rows(),
    }
    if options.json:
        print(json.dumps(results, indent=2))
        return
    print(f"decoder: {results['decoder']}")
    for rows in (results["model"], results["photos"]):
        print("\n| " + " | ".join(rows[0]) + " |\n|" + "---|" * len(rows[0]))
        for row in rows:
            print("| " + " | ".join(f"{v:.2f}" if isinstance(v, float) else str(v) for v in row.values()) + " |")


if __name__ == "__main__":
    main()
