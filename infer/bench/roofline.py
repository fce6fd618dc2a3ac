"""The rate that the hardware allows at most: arithmetic, device memory and PCIe, whichever is slowest.

Three ceilings, each in images per second:

* **compute**: the tensor cores' dense peak / two operations for each multiply-accumulate. The peak is that of the
  fastest accumulate type that TensorRT may use (FP16 for fp16 and fp8), so no choice of kernels can beat it. It holds
  at the boost clock of the source. Work outside convolutions and products is not counted. A plan of several precisions
  is taken to multiply in its fastest.
* **memory**: bandwidth / the bytes that the plan's audit counts for one image. An estimate: every tensor between two
  kernels is taken to be written and read once. A cache that holds such tensors can beat it.
* **transfer**: PCIe in one direction / the bytes of a uint8 image. Does not bind images that are on the device already.

The peak figures are in ``gpus.tsv``, each with its source.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import Any

from infer.bundle import Manifest
from infer.choices import TENSORRT
from infer.errors import BundleError, InputError

#: Precision to the accumulate type of its peak: the fastest that TensorRT may use.
ACCUMULATES = {"fp32": "FP32", "fp16": "FP16", "bf16": "FP32", "fp8": "FP16", "int8": "INT32"}
PRECISIONS = tuple(ACCUMULATES)
_WITH_FP32 = {"fp16": "fp16_acc32", "fp8": "fp8_acc32"}


@dataclass(frozen=True)
class GpuPeaks:
    """Peak figures of a GPU.

    Attributes:
        key: name on the command line.
        devices: what the CUDA driver calls it.
        compute_capability: such as ``8.9``.
        sms: multiprocessors; None where no paper of the board says.
        clock: MHz, the boost clock of the peaks; None where no paper of the board says.
        memory: device-memory bandwidth, GB/s.
        pcie: in one direction, GB/s.
        peaks: precision to dense TFLOPS or TOPS, with the accumulate type of :data:`ACCUMULATES`; a multiply-accumulate
            counts as two. A precision that is not there, or whose peak is unknown, has none.
        with_fp32: the same, of fp16 and fp8 accumulating in FP32.
        source: NVIDIA's paper of the figures.
    """

    key: str
    devices: tuple[str, ...]
    compute_capability: str
    sms: int | None
    clock: int | None
    memory: float
    pcie: float
    peaks: dict[str, float]
    with_fp32: dict[str, float]
    source: str


@cache
def known_gpus() -> tuple[GpuPeaks, ...]:
    """The rows of ``gpus.tsv``."""
    text = files(__package__).joinpath("gpus.tsv").read_text("utf-8")
    head, *rows = (line.split("\t") for line in text.splitlines() if not line.startswith("#"))
    return tuple(_gpu(dict(zip(head, row, strict=True))) for row in rows)


def _gpu(row: dict[str, str]) -> GpuPeaks:
    return GpuPeaks(
        key=row["key"],
        devices=tuple(row["devices"].split("|")),
        compute_capability=row["cc"],
        sms=int(row["sms"]) if row["sms"] else None,
        clock=int(row["clock"]) if row["clock"] else None,
        memory=float(row["memory"]),
        pcie=float(row["pcie"]),
        peaks={name: float(row[name]) for name in PRECISIONS if row[name]},
        with_fp32={name: float(row[column]) for name, column in _WITH_FP32.items() if row[column]},
        source=row["source"],
    )


def find_gpus(names: Sequence[str]) -> list[GpuPeaks]:
    """The GPUs of these keys, in any case.

    Raises:
        InputError: an unknown name; lists the known ones.
    """
    by_key = {gpu.key.lower(): gpu for gpu in known_gpus()}
    for name in names:
        if name.lower() not in by_key:
            raise InputError(f"unknown GPU {name!r}; known: {', '.join(gpu.key for gpu in known_gpus())}")
    return [by_key[name.lower()] for name in names]


def gpu_of(device: str) -> GpuPeaks | None:
    """The GPU whose whole device name stands in a backend's ``device``; None if there is none.

    A name that goes on is another board: ``RTX 4090 Laptop GPU``, ``RTX 4090 D``, a slice such as ``MIG 1g.5gb``.
    """
    for gpu in known_gpus():
        if any(re.search(rf"(?<![\w-]){re.escape(name)}(?!\s*[\w-])", device) for name in gpu.devices):
            return gpu
    return None


@dataclass(frozen=True)
class Work:
    """What one image costs.

    Attributes:
        precisions: what convolutions and products multiply in.
        gmac: 10^9 multiply-accumulates of convolutions and products; None when the manifest does not say.
        moved: bytes of activations between device memory and kernels.
        weights: bytes of weights, read once a batch.
        audited_batch: batch at which the audit counted.
        input: bytes of a uint8 image.
        target: whose plan was audited.
        capabilities: compute capabilities that plan runs on; None for the GPU it was built on.
        notes: what the estimate leaves out.
    """

    precisions: tuple[str, ...]
    gmac: float | None
    moved: float | None
    weights: float
    audited_batch: int
    input: int
    target: str
    capabilities: tuple[str, ...] | None
    notes: tuple[str, ...] = field(default=())

    def bytes_per_image(self, batch: int) -> float | None:
        """Device-memory traffic for one image of a batch: the weights are shared by its images."""
        return None if self.moved is None else self.moved + self.weights / batch


def work_of(manifest: Manifest, target: str | None = None) -> Work:
    """What one image costs, from the manifest: ``gmac`` and the audit of a TensorRT plan.

    Args:
        manifest: of the bundle.
        target: that runs; its audit is preferred.

    Raises:
        BundleError: the bundle has no TensorRT plan and no gmac, so nothing can be said.
    """
    gmac = manifest.gmac
    plans = [plan for plan in manifest.plans if plan.target in TENSORRT]
    plans.sort(key=lambda plan: plan.target != target)
    summary = plans[0].audit.summary if plans and plans[0].audit else None
    if not plans and gmac is None:
        raise BundleError("a roofline needs a TensorRT plan in the bundle; build one with TARGET=tensorrt_rtx")
    height, width, channels = manifest.inputs[0].shape[1:]
    notes, moved = [], None
    if gmac is None:
        notes.append("the manifest has no gmac: the compute ceiling is unknown; build the bundle again")
    if summary and summary.dram_bytes_per_image and summary.batch:
        moved = summary.dram_bytes_per_image - (summary.weight_bytes or 0) / summary.batch
    else:
        notes.append("no audit of a TensorRT plan: the memory ceiling is unknown")
    counts = summary.mac_precisions if summary else {}
    precisions = tuple(word for word in counts if word in PRECISIONS) or (manifest.precision,)
    if len(precisions) > 1:
        listing = ", ".join(f"{counts[word]} in {word}" for word in precisions)
        notes.append(f"convolutions and products run {listing}; the compute ceiling takes the fastest for all")
    capabilities = plans[0].compute_capabilities if plans else None
    return Work(
        precisions,
        gmac,
        moved,
        float(summary.weight_bytes or 0) if summary else 0.0,
        (summary and summary.batch) or manifest.batch.opt,
        height * width * channels,
        plans[0].target if plans else "",
        tuple(capabilities) if capabilities else None,
        tuple(notes),
    )


@dataclass(frozen=True)
class Ceiling:
    """The ceilings of one GPU at one batch size, images per second; None where unknown.

    Attributes:
        precision: that the compute ceiling is of; None where that is unknown.
        runs: False when the audited plan does not run on this GPU, so that the figures are those of another build.
    """

    gpu: GpuPeaks
    batch: int
    precision: str | None
    compute: float | None
    memory: float | None
    transfer: float
    runs: bool

    @property
    def bound(self) -> str:
        """``compute``, ``memory`` or ``transfer``: the lowest of the ceilings that are known."""
        return min((rate, name) for name, rate in self._rates() if rate is not None)[1]

    @property
    def rate(self) -> float:
        """The lowest ceiling."""
        return min(rate for _, rate in self._rates() if rate is not None)

    def _rates(self) -> tuple[tuple[str, float | None], ...]:
        return ("compute", self.compute), ("memory", self.memory), ("transfer", self.transfer)

    @property
    def basis(self) -> str:
        """What the compute ceiling stands on: ``fp16 330.3 TFLOPS, FP16 accumulation, 2520 MHz; NVIDIA ...``."""
        if self.precision is None:
            return f"compute unknown; {self.gpu.source}"
        unit = "TOPS" if self.precision == "int8" else "TFLOPS"
        clock = f"{self.gpu.clock} MHz" if self.gpu.clock else "boost clock not named"
        peak = f"{self.precision} {self.gpu.peaks[self.precision]:g} {unit}"
        return f"{peak}, {ACCUMULATES[self.precision]} accumulation, {clock}; {self.gpu.source}"

    def to_json(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {
            "gpu": self.gpu.key,
            "batch": self.batch,
            "precision": self.precision,
            "accumulate": ACCUMULATES[self.precision].lower() if self.precision else None,
            "peak": self.gpu.peaks[self.precision] if self.precision else None,
            "peak_fp32_accumulate": self.gpu.with_fp32.get(self.precision) if self.precision else None,
            "clock_mhz": self.gpu.clock,
            "compute": self.compute,
            "memory": self.memory,
            "transfer": self.transfer,
            "bound": self.bound,
            "ceiling": self.rate,
            "plan_runs": self.runs,
            "source": self.gpu.source,
        }


def ceiling(work: Work, gpu: GpuPeaks, batch: int | None = None) -> Ceiling:
    """The ceilings of ``gpu`` for batches of ``batch`` images, None for the batch of the audit."""
    batch = batch or work.audited_batch
    known = [word for word in work.precisions if word in gpu.peaks]
    precision = max(known, key=gpu.peaks.__getitem__) if known else None
    traffic = work.bytes_per_image(batch)
    return Ceiling(
        gpu=gpu,
        batch=batch,
        precision=precision if work.gmac else None,
        compute=gpu.peaks[precision] * 1e12 / (2e9 * work.gmac) if precision and work.gmac else None,
        memory=gpu.memory * 1e9 / traffic if traffic else None,
        transfer=gpu.pcie * 1e9 / work.input,
        runs=work.capabilities is None or gpu.compute_capability in work.capabilities,
    )


def above(work: Work, gpu: GpuPeaks, measured: Sequence[tuple[int, float]]) -> list[str]:
    """A note where a rate is above its compute ceiling: then the GPU's clock was above that of the peak.

    Args:
        work: cost of an image.
        gpu: that ran.
        measured: batch size and images per second of each point.
    """
    shares = [
        (rate / top.compute, batch)
        for batch, rate in measured
        if (top := ceiling(work, gpu, batch)).compute and top.bound == "compute"
    ]
    share, batch = max(shares, default=(0.0, 0))
    if share <= 1:
        return []
    clock = f"at {gpu.clock} MHz" if gpu.clock else "at a boost clock that its paper does not name"
    return [f"batch {batch} reaches {100 * share:.0f} % of the ceiling, which holds {clock}: this GPU ran faster"]
