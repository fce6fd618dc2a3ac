"""The bundle: a folder with a manifest, the graph, the plans and the labels of one model at one precision.

``manifest.json`` holds everything a loader has to know before it hands a file to a backend. It is read with
msgspec, which names the field that is wrong. A plan file is never wrapped: trtexec, Triton and C++ load it as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from infer.bundle.accuracy_record import Accuracy, BuildCheck
from infer.bundle.build_record import Audit, CalibrationRecord
from infer.bundle.preprocessing import Preprocessing
from infer.bundle.tensors import CLASSES, INPUT, LOGITS, SCORES
from infer.errors import BundleError
from infer.files import sha256_file, write_bytes
from infer.text_files import split_lines

FORMAT = 2
#: Of our own networks. 1 added x in the second block of every stage where the official network adds ReLU(x).
NETWORK_REVISION = 2
MANIFEST = "manifest.json"
GRAPH = "model.onnx"
LABELS = "labels.txt"
_SIGNATURE = [(INPUT, "uint8", 4), (LOGITS, "float32", 2), (SCORES, "float32", 2), (CLASSES, "int32", 2)]


class _Record(msgspec.Struct, kw_only=True, forbid_unknown_fields=False):
    """A JSON object; unknown fields are ignored so that a later minor addition stays readable."""


class FileEntry(_Record):
    """A file of the bundle, relative to its folder."""

    file: str
    sha256: str
    size: int


class ModelInfo(_Record):
    """Which network this is and where its weights came from.

    ``top1`` and ``top5`` are the published ImageNet accuracy of these very weights in percent, and ``published`` says
    by whom; all None where there is none. ``network_revision`` says which form of our own network the graph has; None
    for a graph that a user brought.
    """

    name: str
    num_classes: int
    weights: str
    weights_sha256: str
    trained: bool
    network_revision: int | None = None
    width: float = 1.0
    top1: float | None = None
    top5: float | None = None
    published: str | None = None


class Tensor(_Record):
    """An input or output of the graph; ``-1`` stands for the batch."""

    name: str
    dtype: str
    shape: list[int]


class BatchProfile(_Record, kw_only=False):
    """Batch sizes a plan was built for: smallest, the one it is tuned for, largest."""

    min: int = 1
    opt: int = 32
    max: int = 128

    def __str__(self) -> str:
        """``1/32/128``."""
        return f"{self.min}/{self.opt}/{self.max}"


class Plan(_Record):
    """What one target built.

    Attributes:
        target: ``openvino``, ``tensorrt`` or ``tensorrt_rtx``.
        files: the plan first, then what belongs to it.
        version: of the library that built it, which for TensorRT must be the one that loads it.
        gpu: the device it was built on, where it only runs on its like.
        compute_capabilities: GPUs it runs on, where it is portable.
        version_compatible: later TensorRT versions of the same major version load it too.
        hardware_compatible: other GPUs from compute capability 8.0 load it too.
        audit: what the plan really runs.
        options: properties to open the plan with.
        seconds: build time.
        notes: what a user should be told.
    """

    target: str
    files: list[FileEntry]
    version: str
    gpu: str | None = None
    compute_capabilities: list[str] | None = None
    version_compatible: bool = False
    hardware_compatible: bool = False
    audit: Audit | None = None
    options: dict[str, str] = {}
    seconds: float = 0.0
    notes: list[str] = []


class KnownAnswers(_Record):
    """A few inputs with the logits that the graph gives for them, by an engine that is none of its targets.

    Attributes:
        file: inputs and logits, see :mod:`infer.checks.known_answers`.
        images: how many.
        engine: that computed the logits.
        rounding_db: SQNR of the centred logits under legal roundings, in dB; None where they change nothing.
        floor_db: SQNR that a plan must reach.
    """

    file: FileEntry
    images: int
    engine: str
    rounding_db: float | None
    floor_db: float


class Manifest(_Record):
    """Contents of ``manifest.json``.

    Attributes:
        gmac: 10^9 multiply-accumulates of convolutions and products an image.
        pair_safe: no two neighbouring int8 weights can overflow the int16 sums of CPUs without VNNI.
        known_answers: None for a bundle whose answers cannot be checked.
        checks: comparisons made at the build.
        accuracy: measurements of :mod:`infer.verify.run`.
    """

    format: int
    created: str
    tool: str
    model: ModelInfo
    precision: str
    graph: FileEntry
    inputs: list[Tensor]
    outputs: list[Tensor]
    batch: BatchProfile
    preprocessing: Preprocessing
    labels: FileEntry
    plans: list[Plan]
    wnids: list[str] | None = None
    gmac: float | None = None
    float32_nodes: list[str] = []
    calibration: CalibrationRecord | None = None
    pair_safe: bool = False
    known_answers: KnownAnswers | None = None
    checks: list[BuildCheck] = []
    accuracy: list[Accuracy] = []
    notes: list[str] = []


def now() -> str:
    """UTC time as ISO 8601 to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def file_entry(folder: Path, name: str) -> FileEntry:
    """Size and hash of ``folder/name``."""
    path = folder / name
    return FileEntry(file=name, sha256=sha256_file(path), size=path.stat().st_size)


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write ``manifest.json`` in one step."""
    data = msgspec.json.format(msgspec.json.encode(manifest), indent=2)
    write_bytes(folder / MANIFEST, data + b"\n")


# Made while one thread imports this: msgspec 0.22 crashes when several threads are the first to decode a type.
_MANIFEST = msgspec.json.Decoder(Manifest)


def read_manifest(folder: Path) -> Manifest:
    """Read and validate ``manifest.json``.

    Raises:
        BundleError: no bundle, not JSON, of another format or network revision, or a field that is missing or of the
            wrong type.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise BundleError(f"{folder} is not a bundle: it has no {MANIFEST}. Build one with: make engine MODEL=...")
    data = path.read_bytes()
    try:
        raw = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BundleError(f"{path} is not valid JSON ({error}); build the bundle again") from error
    version = raw.get("format") if isinstance(raw, dict) else None
    if version != FORMAT:
        raise BundleError(f"{path}: expected manifest format {FORMAT}, found {version!r}; {_other_format(version)}")
    try:
        manifest = _MANIFEST.decode(data)
    except msgspec.ValidationError as error:
        raise BundleError(f"{path}: {error}; build the bundle again") from error
    if (revision := manifest.model.network_revision) not in (None, NETWORK_REVISION):
        raise BundleError(
            f"{path}: expected network revision {NETWORK_REVISION}, found {revision}; {other_network(revision)}"
        )
    found = [(tensor.name, tensor.dtype, len(tensor.shape)) for tensor in (*manifest.inputs, *manifest.outputs)]
    if found != _SIGNATURE:
        raise BundleError(
            f"{path}: expected the inputs and outputs {_SIGNATURE}, found {found}; build the bundle again"
        )
    if (classes := manifest.outputs[0].shape[1]) != manifest.model.num_classes:
        raise BundleError(f"{path}: {manifest.model.num_classes} classes but {classes} logits; build the bundle again")
    return manifest


def _other_format(version: object) -> str:
    if version == 1 and version is not True:
        return "it was built from a network that differs from the official one, build the bundle again"
    if isinstance(version, int) and version > FORMAT:
        return "it was built by a newer version of this package, upgrade it"
    return "build the bundle again"


def other_network(revision: int | None) -> str:
    """What is wrong with ``revision`` and what to do."""
    if revision is not None and revision > NETWORK_REVISION:
        return "it was made by a newer version of this package, upgrade it"
    return (
        "its network differs from the official one (the second block of each stage added x, not ReLU(x)), make it again"
    )


def check_files(folder: Path, entries: Sequence[FileEntry]) -> None:
    """Make sure that every entry is there, of its size and with its hash.

    Raises:
        BundleError: names the first file that is not, or that points out of the folder.
    """
    for entry in entries:
        path = folder / entry.file
        if Path(entry.file).is_absolute() or ".." in Path(entry.file).parts:
            raise BundleError(f"{folder / MANIFEST}: {entry.file!r} points out of the bundle")
        if not path.is_file():
            raise BundleError(f"{path} is missing; copy the whole folder or build it again")
        size = path.stat().st_size
        if size != entry.size:
            raise BundleError(f"{path}: expected {entry.size} bytes, found {size}; copy it again or rebuild")
        if (found := sha256_file(path)) != entry.sha256:
            raise BundleError(
                f"{path}: expected sha256 {entry.sha256[:12]}..., found {found[:12]}...; the file changed"
            )


def read_labels(folder: Path, manifest: Manifest) -> list[str]:
    """Class names in the order of the logits.

    Raises:
        BundleError: the file is damaged or its count is not ``num_classes``.
    """
    check_files(folder, [manifest.labels])
    try:
        labels = split_lines((folder / manifest.labels.file).read_bytes().decode())
    except UnicodeDecodeError as error:
        raise BundleError(f"{folder / LABELS}: expected UTF-8 text ({error}); build the bundle again") from error
    if len(labels) != manifest.model.num_classes:
        raise BundleError(f"{folder / LABELS}: expected {manifest.model.num_classes} lines, found {len(labels)}")
    return labels


def find_plan(folder: Path, manifest: Manifest, target: str) -> Plan:
    """The plan of ``target``.

    Raises:
        BundleError: this bundle has none; says which it has.
    """
    for plan in manifest.plans:
        if plan.target == target:
            return plan
    built = ", ".join(plan.target for plan in manifest.plans) or "none"
    raise BundleError(f"{folder} has no plan for {target}; it has: {built}. Build one with TARGET={target}")


def newest_accuracy(manifest: Manifest, target: str) -> Accuracy | None:
    """The newest measurement of the plan that ``target`` has now; None where there is none."""
    plan = next((plan for plan in manifest.plans if plan.target == target), None)
    sha256 = plan.files[0].sha256 if plan and plan.files else None
    found = [one for one in manifest.accuracy if one.target == target and one.plan_sha256 == sha256]
    return max(found, key=lambda one: one.measured, default=None)


def add_accuracy(folder: Path, record: Accuracy) -> None:
    """Store a measurement; an older one of the same target, data, reference and way of decoding is replaced."""
    manifest = read_manifest(folder)
    manifest.accuracy = [*(old for old in manifest.accuracy if old.key != record.key), record]
    write_manifest(folder, manifest)
