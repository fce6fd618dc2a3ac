"""How long many images take on many machines, and what they wait for: arithmetic on measured figures.

    python benchmarks/cost_model.py [--gpu-images 3000] [--storage 20]

Prints the tables of docs/many-machines.md. A machine does as many images a second as the slowest of its parts; all
machines together no more than the storage gives. What is measured and what is assumed stands in :class:`Figures`.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Figures:
    """Figures for iresnet50 in int8 on JPEG files of 500 x 375.

    Attributes:
        decode_ms: measured, CPU ms an image of a core with AVX-512 (docs/pre-processing.md).
        model_ms: measured, CPU ms an image of a core with AVX-512 VNNI, decoding left out (docs/serving.md).
        image_kb: ImageNet's training set, 138 GB for 1.28 million.
        row_bytes: measured, Parquet with five classes.
        cores, gpus, network_gbit: assumed, of a machine.
        gpu_images: assumed, images/s of a GPU: no GPU has run this here. ``iresnet bench`` on yours says it.
        storage_gb: assumed, GB/s that the storage gives to all machines together.
    """

    decode_ms: float = 0.625
    model_ms: float = 13.0
    image_kb: float = 108.0
    row_bytes: float = 36.0
    cores: int = 64
    gpus: int = 0
    network_gbit: float = 25.0
    gpu_images: float = 3000.0
    storage_gb: float = 20.0

    def machine(self) -> dict[str, float]:
        """Images/s that each part of a machine allows."""
        network = 1e9 * self.network_gbit / 8 / (1e3 * self.image_kb)
        if not self.gpus:
            return {"CPU": 1e3 * self.cores / (self.decode_ms + self.model_ms), "network": network}
        return {"GPU": self.gpus * self.gpu_images, "decoding": 1e3 * self.cores / self.decode_ms, "network": network}

    def together(self, machines: int) -> tuple[float, str]:
        """Images/s of all machines, and what they wait for."""
        part, rate = min(self.machine().items(), key=lambda item: item[1])
        storage = 1e9 * self.storage_gb / (1e3 * self.image_kb)
        return (storage, "storage") if storage < machines * rate else (machines * rate, part)


def duration(seconds: float) -> str:
    """For people."""
    for unit, size in (("years", 365.25 * 86400), ("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.3g} s"


def table(figures: Figures) -> str:
    """Machines against numbers of images, as Markdown."""
    counts = [10**exponent for exponent in (6, 7, 8, 9, 10)]
    lines = [
        "| machines | images/s | waits for | 10^6 | 10^7 | 10^8 | 10^9 | 10^10 |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for machines in (1, 10, 100, 1000):
        rate, part = figures.together(machines)
        times = " | ".join(duration(count / rate) for count in counts)
        lines.append(f"| {machines} | {rate:,.0f} | {part} | {times} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--gpu-images", type=float, default=Figures.gpu_images, help="images/s of a GPU")
    parser.add_argument("--storage", type=float, default=Figures.storage_gb, help="GB/s of the storage, for all")
    options = parser.parse_args()
    plain = Figures(gpu_images=options.gpu_images, storage_gb=options.storage)
    print("Machines of 64 cores\n")
    print(table(plain))
    print("\nMachines of 64 cores, eight GPUs, 100 Gbit/s\n")
    print(table(replace(plain, gpus=8, network_gbit=100)))


if __name__ == "__main__":
    main()
