"""The calibration cache: int8 scales of activations in TensorRT's text format.

TensorRT up to 10 writes and reads it, ModelOpt and MLPerf's tools use it too. The first line is
``TRT-<version>-<calibrator>``, every other line ``tensor: hex``, where ``hex`` holds the bits of the scale
(``amax / 127``) as a big-endian float32. Zero stands for a tensor without a range; some writers leave it unpadded.
The JSON file ``<cache>.json`` beside it says where ours came from, see :mod:`calibration.provenance`.
"""

from __future__ import annotations

import hashlib
import math
import re
import struct
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import numpy as np

from calibration import provenance as provenance_file
from calibration.int8 import SYMMETRIC_STEPS
from calibration.provenance import Provenance
from infer.errors import InputError
from infer.files import write_bytes

# TensorRT's calibrators check the algorithm, so the name is that of the calibrator that will read the file.
HEADER = "TRT-101401-EntropyCalibration2"
MAX_BYTES = 16 << 20
MAX_LINES = 100_000
MAX_LINE = 4096
_HEADER = re.compile(r"TRT-[0-9]{1,9}-[A-Za-z0-9]{1,64}")
_SCALE = re.compile(r"0|[0-9a-fA-F]{8}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_TINY = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True)
class CalibrationCache:
    """Scales by tensor name.

    Attributes:
        scales: symmetric int8 scales, float32, finite, >= 0; 0 for a tensor without a usable range.
        header: first line of the file.
        provenance: where it came from, None for a foreign cache.
    """

    scales: dict[str, np.float32]
    header: str = HEADER
    provenance: Provenance | None = None

    def amax(self) -> dict[str, float]:
        """The magnitude that 127 stands for, by tensor name."""
        return {name: SYMMETRIC_STEPS * float(scale) for name, scale in self.scales.items()}


@dataclass(frozen=True)
class Coverage:
    """How a cache fits a list of tensors.

    Attributes:
        covered: have a scale > 0.
        missing: have none, or a zero; they stay in higher precision.
        unknown: only the cache knows them.
    """

    covered: list[str]
    missing: list[str]
    unknown: list[str]

    def __str__(self) -> str:
        total = len(self.covered) + len(self.missing)
        return (
            f"{len(self.covered)} of {total} tensors covered, "
            f"{_named(self.missing, 'missing')}, {_named(self.unknown, 'unknown to the graph')}"
        )


def provenance_path(path: Path) -> Path:
    """The JSON file that belongs to the cache at ``path``."""
    return path.with_name(f"{path.name}.json")


def format_cache(cache: CalibrationCache) -> bytes:
    """The cache file's content.

    Raises:
        InputError: a name or scale that the format cannot hold, or no scales.
    """
    if not cache.scales:
        raise InputError("a calibration cache needs at least one scale, found none")
    if not _HEADER.fullmatch(cache.header):
        raise InputError(f"cache header: expected {HEADER!r} or alike, found {cache.header!r:.80}")
    lines = [cache.header]
    for name, scale in cache.scales.items():
        if not name or _CONTROL.search(name) or len(name.encode("utf-8", "replace")) > MAX_LINE - 16:
            raise InputError(f"tensor name {name!r:.80} cannot be written: empty, too long or with control characters")
        value = float(np.float32(scale))
        if not math.isfinite(value) or value < 0:
            raise InputError(f"tensor {name!r}: expected a finite scale >= 0, found {value}")
        lines.append(f"{name}: {struct.pack('>f', abs(value)).hex()}")
    try:
        return ("\n".join(lines) + "\n").encode()
    except UnicodeEncodeError as error:
        raise InputError(f"a tensor name is not valid Unicode ({error.reason})") from None


def parse_cache(data: bytes, source: str) -> CalibrationCache:
    """The inverse of :func:`format_cache`; also reads other tools' files, with LF or CRLF.

    Args:
        data: the file's content.
        source: its name, for messages.

    Raises:
        InputError: not such a file, damaged, or with NaN, infinite, negative or repeated entries.
    """
    if len(data) > MAX_BYTES:
        raise InputError(f"{source}: expected a calibration cache of at most {MAX_BYTES} bytes; this is none")
    try:
        lines = data.decode("utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise InputError(f"{source}: not text in UTF-8 (byte {error.start}); this is no calibration cache") from None
    lines = [line.removesuffix("\r") for line in lines]
    if not _HEADER.fullmatch(lines[0]):
        raise InputError(f"{source}: expected a first line such as {HEADER!r}, found {lines[0]!r:.60}")
    if len(lines) > MAX_LINES:
        raise InputError(f"{source}: more than {MAX_LINES} lines; this is no calibration cache")
    scales: dict[str, np.float32] = {}
    for number, line in enumerate(lines[1:], 2):
        if not line.strip():
            continue
        name, scale = _parse_line(line, f"{source}, line {number}")
        if name in scales:
            raise InputError(f"{source}, line {number}: tensor {name!r:.80} appears a second time; keep one of them")
        scales[name] = scale
    if not scales:
        raise InputError(f"{source}: it holds no scales; was it cut short? Calibrate again")
    return CalibrationCache(scales, lines[0])


def _parse_line(line: str, place: str) -> tuple[str, np.float32]:
    # Tensor names hold colons, so the last one counts.
    name, colon, digits = line.rpartition(":")
    digits = digits.strip(" \t")
    if not colon or not name or len(line) > MAX_LINE or _CONTROL.search(name):
        raise InputError(f"{place}: expected 'tensor: hex', found {line!r:.60}; the file is damaged")
    if not _SCALE.fullmatch(digits):
        raise InputError(
            f"{place}: expected a scale of 8 hex digits (or 0), found {digits!r:.30}; was the file cut short?"
        )
    value = struct.unpack(">f", int(digits, 16).to_bytes(4, "big"))[0]
    if not math.isfinite(value) or math.copysign(1, value) < 0:
        raise InputError(
            f"{place}: tensor {name!r:.80} has the scale {value}, expected a finite one >= 0; calibrate again"
        )
    return name, np.float32(value)


def write_cache(path: Path, cache: CalibrationCache) -> None:
    """Write the cache, and its provenance beside it; each file appears whole or not at all.

    Without provenance a JSON file that lies beside is removed: it would describe another cache.

    Raises:
        InputError: a name or scale that the format cannot hold.
    """
    data = format_cache(cache)
    beside = provenance_path(path)
    if cache.provenance is None:
        beside.unlink(missing_ok=True)
    else:
        origin = msgspec.structs.replace(cache.provenance, cache_sha256=hashlib.sha256(data).hexdigest())
        write_bytes(beside, provenance_file.to_json(origin))
    write_bytes(path, data)


def read_cache(path: Path) -> CalibrationCache:
    """Read a cache, with its provenance if there is one beside it.

    Raises:
        InputError: missing, damaged, or the provenance belongs to another cache.
    """
    data = _read(path, MAX_BYTES, "calibration cache")
    cache = parse_cache(data, str(path))
    beside = provenance_path(path)
    if not beside.exists():
        return cache
    origin = provenance_file.from_json(_read(beside, provenance_file.MAX_BYTES, "provenance"), str(beside))
    if origin.cache_sha256 != hashlib.sha256(data).hexdigest():
        raise InputError(
            f"{beside} describes another cache than {path} (its SHA-256 differs): the cache was changed after it was "
            "written. Calibrate again, or delete the JSON file and accept the cache as a foreign one"
        )
    return replace(cache, provenance=origin)


def _read(path: Path, limit: int, what: str) -> bytes:
    if not path.is_file():
        raise InputError(f"no {what} at {path}; make one with `iresnet calibrate`")
    try:
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    if len(data) > limit:
        raise InputError(f"{path}: larger than {limit} bytes; this is no {what}")
    return data


def coverage(scales: Mapping[str, np.float32], tensors: Collection[str]) -> Coverage:
    """Compare names; a scale that is zero or below the smallest normal float32 covers nothing."""
    wanted = dict.fromkeys(tensors)
    covered = [name for name in wanted if float(scales.get(name, 0)) >= _TINY]
    return Coverage(
        covered=covered,
        missing=[name for name in wanted if name not in set(covered)],
        unknown=[name for name in scales if name not in wanted],
    )


def check_matches(
    cache: CalibrationCache, graph_sha256: str, tensors: Collection[str], *, accept: bool = False
) -> Coverage:
    """Check that ``cache`` was made from this graph and covers its tensors.

    Scales the graph does not ask for are no fault as long as the graph is the same, nor are tensors that were
    always zero: they are reported as missing.

    Args:
        cache: the cache.
        graph_sha256: of the float graph.
        tensors: the activations that shall be quantised.
        accept: take a cache of another or unknown origin, whatever it covers.

    Returns:
        What is covered.

    Raises:
        InputError: another graph, unknown origin or missing tensors without ``accept``; nothing covered at all.
    """
    fit = coverage(cache.scales, tensors)
    origin = cache.provenance
    faults = []
    if origin is None:
        faults.append("its origin is unknown (no JSON file beside it)")
    elif origin.graph_sha256 != graph_sha256:
        faults.append(f"it was made from graph {origin.graph_sha256[:12]}, this is {graph_sha256[:12]}")
    elif any(name not in cache.scales for name in fit.missing):
        faults.append("it lacks tensors of this very graph")
    if not fit.covered:
        raise InputError(f"the calibration cache fits nothing of this graph: {fit}; calibrate with this graph")
    if faults and not accept:
        raise InputError(
            f"the calibration cache does not match: {'; '.join(faults)}; {fit}. "
            "Calibrate again, or take it as it is with --accept-cache"
        )
    return fit


def _named(names: list[str], what: str) -> str:
    shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
    return f"{len(names)} {what}" + (f" ({shown})" if names else "")
