"""What ``iresnet doctor`` finds, asked of whoever knows: the driver, the backends, the installed packages."""

from __future__ import annotations

import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import msgspec

from engine_build.targets import BUILDABLE, why_unbuildable
from infer.backends import REFERENCE, TARGETS, why_unavailable
from infer.backends.cpu import cpu_flags, processor_name
from infer.backends.cuda.gpus import driver_version, find_gpus
from infer.command_line import DISTRIBUTION, EXTRAS
from infer.errors import InputError
from infer.files import cache_root, folder_size
from infer.images.jpeg import decoder_name, missing_decoders
from infer.pipeline.host import usable_cpus

#: What int8 and 16-bit kernels of CPUs are made of, as Linux calls them (docs/int8.md).
_INSTRUCTIONS = (
    "avx2",
    "avx_vnni",
    "avx512f",
    "avx512_vnni",
    "avx512_bf16",
    "avx512_fp16",
    "amx_tile",
    "amx_int8",
    "amx_bf16",
    "asimd",
    "asimddp",
    "i8mm",
    "bf16",
    "sve",
)
#: Distributions that hold the packages of other names.
_DISTRIBUTIONS = {"nvidia": "nvidia-dali-cuda130"}
_OWN = ("numpy", "pillow", "msgspec", "typer", "rich")


class Target(msgspec.Struct):
    """One target: why it does not run here and cannot be built here; None where it does."""

    name: str
    not_running: str | None
    not_buildable: str | None


class Missing(msgspec.Struct):
    """What is not there, and the command that adds it."""

    what: str
    command: str


class Report(msgspec.Struct):
    """What was found.

    Attributes:
        version: of this project.
        python, system, machine: of the interpreter.
        cpu: its name.
        cpus: cores that this process may use.
        instructions: of :data:`_INSTRUCTIONS`, those the processor has; int8 needs VNNI, AMX or dot products to be
            fast.
        isa_limit: ``ONEDNN_MAX_CPU_ISA``.
        driver: CUDA version of the NVIDIA driver; None where there is none.
        gpus: name and compute capability of each.
        no_gpu: why there is none.
        targets: the three, and the reference.
        jpeg: what decodes JPEG files.
        jpeg_missing: the faster ways, and what adds them.
        packages: installed version, None where it is missing.
        cache, cache_bytes: the user's cache folder and what lies in it.
        missing: what could be added.
    """

    version: str
    python: str
    system: str
    machine: str
    cpu: str
    cpus: int
    instructions: list[str]
    isa_limit: str | None
    driver: str | None
    gpus: list[str]
    no_gpu: str | None
    targets: list[Target]
    jpeg: str
    jpeg_missing: dict[str, str]
    packages: dict[str, str | None]
    cache: str
    cache_bytes: int
    missing: list[Missing]

    @property
    def runs(self) -> bool:
        """Whether some target runs here."""
        return any(target.not_running is None for target in self.targets if target.name in TARGETS)


def examine() -> Report:
    """Ask everybody."""
    from engine_build import __version__

    gpus, no_gpu = find_gpus()
    flags = cpu_flags() or frozenset()
    packages = {name: _version(name) for name in (*_OWN, *EXTRAS)}
    try:
        jpeg = decoder_name()
    except InputError as error:  # IRESNET_DECODER asks for what is not here
        jpeg = str(error)
    report = Report(
        version=__version__,
        python=f"{platform.python_version()} ({sys.executable})",
        system=platform.platform(),
        machine=platform.machine(),
        cpu=processor_name(),
        cpus=usable_cpus(),
        instructions=[name for name in _INSTRUCTIONS if name in flags],
        isa_limit=os.environ.get("ONEDNN_MAX_CPU_ISA"),
        driver=driver_version() or None,
        gpus=[f"{gpu.name}, compute capability {gpu.compute_capability}" for gpu in gpus],
        no_gpu=no_gpu or None,
        targets=[_target(name) for name in (*TARGETS, REFERENCE)],
        jpeg=jpeg,
        jpeg_missing=missing_decoders(),
        packages=packages,
        cache=str(cache_root()),
        cache_bytes=folder_size(cache_root()),
        missing=[],
    )
    report.missing = _missing(report)
    return report


def _target(name: str) -> Target:
    not_buildable = why_unbuildable(name) if name in BUILDABLE else "the reference runs the graph itself"
    return Target(name, why_unavailable(name), not_buildable)


def _version(package: str) -> str | None:
    try:
        return version(_DISTRIBUTIONS.get(package, package))
    except PackageNotFoundError:
        return None


def _missing(report: Report) -> list[Missing]:
    """Extras that are not whole, in the order in which people need them; what needs a GPU only where there is one."""
    found: list[Missing] = []
    for extra in dict.fromkeys(EXTRAS.values()):
        absent = [name for name, owner in EXTRAS.items() if owner == extra and report.packages[name] is None]
        if absent and (report.gpus or extra not in ("gpu", "dali")):
            found.append(Missing(f"{', '.join(absent)} (extra {extra})", f"pip install '{DISTRIBUTION}[{extra}]'"))
    if report.jpeg == "pillow":
        found += [Missing(f"JPEG decoder {name}", how) for name, how in report.jpeg_missing.items()]
    return found


def writable(folder: Path) -> bool:
    """Whether files can be made in ``folder``, or in the first folder above it that is there."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return os.access(folder, os.W_OK)
