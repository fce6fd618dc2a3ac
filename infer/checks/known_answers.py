"""The known answers of a bundle: a few pictures, and the logits that its graph gives for them.

They are computed at the build by an engine that is none of the bundle's targets, from the graph as it is written. What
a plan gives for the same pictures tells whether it computes that graph, whatever machine runs it.
"""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from infer.backends.base import Outputs
from infer.bundle import Manifest, check_files
from infer.checks.blame import Comparison, compare
from infer.errors import BundleError
from infer.files import replacing

FILE = "known_answers.npz"
#: A floor below this tells nothing: a wrong plan may reach it.
TELLING_DB = 12.0


@dataclass(frozen=True)
class Answers:
    """Pictures and logits.

    Attributes:
        images: uint8 ``[N, H, W, 3]``, N at least 2.
        logits: float32 ``[N, C]``.
    """

    images: NDArray[np.uint8]
    logits: NDArray[np.float32]


def write_answers(folder: Path, answers: Answers) -> None:
    """Write :data:`FILE`; the same bytes for the same answers."""
    with replacing(folder / FILE) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, images=answers.images, logits=answers.logits)


def read_answers(folder: Path, manifest: Manifest, data: bytes | None = None) -> Answers:
    """The answers of a bundle that has some.

    Args:
        folder: of the bundle.
        manifest: its manifest.
        data: what :func:`read_file` gave; None reads it now.

    Raises:
        BundleError: the file is missing, changed, or does not fit the manifest.
    """
    record = manifest.known_answers
    assert record is not None
    path = folder / record.file.file
    try:
        with np.load(io.BytesIO(data or read_file(folder, manifest)), allow_pickle=False) as file:
            images, logits = file["images"], file["logits"]
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise BundleError(f"{path}: not a file of known answers ({error}); build the bundle again") from error
    count, shape = record.images, (*manifest.inputs[0].shape[1:],)
    wanted = [("uint8", (count, *shape)), ("float32", (count, manifest.model.num_classes))]
    found = [(str(array.dtype), array.shape) for array in (images, logits)]
    if found != wanted or count < 2 or not np.isfinite(logits).all():
        raise BundleError(f"{path}: expected finite answers of shape {wanted}, found {found}; build the bundle again")
    return Answers(images, logits)


def read_file(folder: Path, manifest: Manifest) -> bytes:
    """Content of the file, empty for a bundle that has none: small, and what a bundle that is open may need later, when
    another may stand in its place.

    Raises:
        BundleError: the file is missing or changed.
    """
    if (record := manifest.known_answers) is None:
        return b""
    check_files(folder, [record.file])
    return (folder / record.file.file).read_bytes()


def measure(infer: Callable[[NDArray[np.uint8]], Outputs], answers: Answers, batch: int, floor_db: float) -> Comparison:
    """What ``infer`` gives for the pictures in batches of ``batch`` against the answers.

    A batch of more rows than there are pictures is filled with repeats, and the worst set of them counts. The SQNR is
    minus infinity where a logit is not finite.
    """
    count = len(answers.images)
    rows = -(-max(count, batch) // batch) * batch
    order = np.arange(rows) % count
    parts = [infer(answers.images[order[at : at + batch]]).logits for at in range(0, rows, batch)]
    logits = np.concatenate(parts)
    starts = [*range(0, rows - count + 1, count), rows - count]
    found = []
    for at in starts:
        found.append(compare(logits[at : at + count], answers.logits[order[at : at + count]], floor_db))
    return min(found, key=lambda one: math.inf if one.sqnr_db is None else one.sqnr_db)
