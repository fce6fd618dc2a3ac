"""Checkpoints: where they come from, and whether they fit.

Order: the file that was asked for, the weights shipped with the model, the local cache folder, the official
Google Drive file, and at last deterministic random weights, marked as untrained. :mod:`engine_build.network.checkpoint`
reads the files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from engine_build.network.checkpoint import find_weights, read_checkpoint
from engine_build.network.zoo import Model, count_parameters, create_model, shape_only
from engine_build.synthetic import synthetic_images
from infer.errors import WeightsError
from infer.files import cache_root, replacing, sha256_file, write_bytes

if TYPE_CHECKING:
    from engine_build.network.iresnet import IResNet

SUFFIXES = (".safetensors", ".pth", ".pt", ".pth.tar", ".bin", ".ckpt")
_LISTED = 5
#: Of random weights.
BRANCH_DAMPING = 0.2


@dataclass(frozen=True)
class Weights:
    """A network with its weights and their origin.

    Attributes:
        model: the torch module, eval mode, float32.
        source: a file name, ``shipped``, ``official (Google Drive ...)`` or ``random (seed 0)``.
        sha256: of the checkpoint file; empty for random weights.
        trained: False only for random weights.
        notes: what a user should be told.
    """

    model: IResNet
    source: str
    sha256: str
    trained: bool
    notes: tuple[str, ...] = ()


def cache_folder() -> Path:
    """Where downloaded checkpoints are kept: ``$IRESNET_CACHE`` or ``~/.cache/iresnet``, below ``weights/``."""
    return cache_root() / "weights"


def load_weights(
    row: Model,
    path: Path | None = None,
    *,
    key: str | None = None,
    require: bool = False,
    offline: bool = False,
    num_classes: int | None = None,
    width: float | None = None,
    seed: int = 0,
) -> Weights:
    """The network ``row`` with the best weights that can be had.

    Args:
        row: the model.
        path: a checkpoint to use and no other.
        key: which of several sets of weights in it; see :func:`engine_build.network.checkpoint.find_weights`.
        require: random weights are an error.
        offline: do not try to download.
        num_classes: outputs of the classifier; None takes the checkpoint's, else the row's.
        width: channel multiplier; None takes the row's.
        seed: seed of random weights.

    Raises:
        WeightsError: the file is missing, unreadable or does not fit; or ``require`` and no weights.
    """
    if path is not None:
        if not path.is_file():
            raise WeightsError(f"no checkpoint at {path}; pass an existing .safetensors, .pth or .pt file")
        return _from_file(row, path, str(path.name), num_classes, width, key)
    if key is not None:
        raise WeightsError(f"weights key {key!r}: of which checkpoint? Pass WEIGHTS=path (--weights) too")
    standard = num_classes in (None, row.num_classes) and width in (None, row.width)
    tried: list[str] = []
    if row.shipped is not None and standard and (row.shipped / "weights.safetensors").is_file():
        return _from_file(row, row.shipped / "weights.safetensors", "shipped", None, None)
    if standard:
        for suffix in SUFFIXES:
            cached = cache_folder() / f"{row.name}{suffix}"
            if cached.is_file():
                _check_recorded_hash(cached)
                return _from_file(row, cached, f"cache ({cached.name})", None, None)
        tried.append(f"no {row.name}.safetensors or .pth in {cache_folder()}")
        if row.drive_id is None:
            tried.append("no official checkpoint was released")
        elif offline:
            tried.append("download not tried (offline)")
        else:
            try:
                return _from_file(row, _download(row), f"official (Google Drive {row.drive_id})", None, None)
            except WeightsError as error:
                tried.append(str(error))
    reason = "; ".join(tried) or "no checkpoint exists for this num_classes and width"
    if require:
        raise WeightsError(f"no trained weights for {row.name}: {reason}. Pass a checkpoint (WEIGHTS=path, --weights)")
    return random_weights(row, num_classes, width, seed, note=reason)


def random_weights(
    row: Model, num_classes: int | None = None, width: float | None = None, seed: int = 0, note: str = ""
) -> Weights:
    """An untrained network that behaves like a trained one numerically.

    Every BN takes the statistics of a forward pass of synthetic images. Without them the activations of a deep
    iResNet double per block (its middle blocks add to an unnormalised shortcut) and overflow float16. The branch of
    every block is damped: else random weights amplify any rounding, and a right engine cannot be told from a wrong one.
    """
    model = create_model(row.name, num_classes, width, seed)
    damp_branches(model)
    norms = [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None  # cumulative average: the statistics become exactly those of the one batch
    images = torch.from_numpy(synthetic_images(8, row.preprocessing.crop, seed)).permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (row.preprocessing.mean, row.preprocessing.std))
    with torch.no_grad():
        model.train()((images - mean) / std)
    for norm in norms:
        norm.momentum = 0.1
    return Weights(model.eval(), f"random (seed {seed})", "", trained=False, notes=(note,) if note else ())


def damp_branches(model: IResNet, factor: float = BRANCH_DAMPING) -> None:
    """Multiply what each block adds to its shortcut, by its last convolution and the BN that may follow that."""
    from engine_build.network.iresnet import ResidualBlock

    with torch.no_grad():
        for block in model.modules():
            if isinstance(block, ResidualBlock):
                last = f"bn{block.depth}" if block.start else f"conv{block.depth}"
                getattr(block, last).weight.mul_(factor)


def load_strictly(model: torch.nn.Module, tensors: Mapping[str, torch.Tensor], origin: str) -> None:
    """Copy ``tensors`` into ``model``; names and shapes must be equal.

    Raises:
        WeightsError: lists at most five missing, unexpected and wrongly shaped names, each with the count.
    """
    expected = model.state_dict()
    counters = {name for name in expected if name.endswith("num_batches_tracked")}  # older files lack them
    missing = [name for name in expected if name not in tensors and name not in counters]
    unexpected = [name for name in tensors if name not in expected]
    wrong = [
        f"{name} is {list(tensors[name].shape)}, expected {list(value.shape)}"
        for name, value in expected.items()
        if name in tensors and tensors[name].shape != value.shape
    ]
    problems = [
        f"{label} {len(names)}: {', '.join(names[:_LISTED])}{', ...' if len(names) > _LISTED else ''}"
        for label, names in (("missing", missing), ("unexpected", unexpected), ("wrong shape", wrong))
        if names
    ]
    if problems:
        raise WeightsError(f"{origin} does not fit the model ({'; '.join(problems)}). Is it another MODEL or width?")
    broken = [name for name, value in tensors.items() if value.dtype.is_floating_point and not value.isfinite().all()]
    if broken:
        raise WeightsError(f"{origin}: NaN or infinity in {len(broken)} tensors: {', '.join(broken[:_LISTED])}")
    negative = [name for name, value in tensors.items() if name.endswith("running_var") and bool((value < 0).any())]
    if negative:
        raise WeightsError(f"{origin}: negative variances in {len(negative)} tensors: {', '.join(negative[:_LISTED])}")
    model.load_state_dict({**{name: expected[name] for name in counters}, **tensors})


def _from_file(
    row: Model, path: Path, source: str, num_classes: int | None, width: float | None, key: str | None = None
) -> Weights:
    tensors, notes = _read(row, path, str(path), key)
    head = tensors.get("fc.weight")
    if num_classes is None and head is not None and head.ndim == 2:
        num_classes = head.shape[0]
    model = create_model(row.name, num_classes, width)
    load_strictly(model, tensors, str(path))
    return Weights(model, source, sha256_file(path), trained=True, notes=tuple(notes))


def _read(row: Model, path: Path, origin: str, key: str | None = None) -> tuple[dict[str, torch.Tensor], list[str]]:
    link = None if row.drive_id is None else f"https://drive.google.com/uc?id={row.drive_id}"
    return find_weights(read_checkpoint(path, link), list(shape_only(row).state_dict()), origin, key)


def _hash_file(path: Path) -> Path:
    return path.with_name(path.name + ".sha256")


def _check_recorded_hash(path: Path) -> None:
    record = _hash_file(path)
    if record.is_file() and record.read_text().split()[:1] != [sha256_file(path)]:
        raise WeightsError(f"{path} changed since it was downloaded; delete it and {record.name} to fetch it again")


def _download(row: Model) -> Path:
    """Fetch the official checkpoint into the cache folder, with gdown's progress bar.

    No hash was ever published for these files. The check is: at least four bytes a parameter (Drive's quota
    page is a small HTML file), a strict load, and from then on the hash recorded at the first download.
    """
    import gdown

    assert row.drive_id is not None
    target = cache_folder() / f"{row.name}.pth"
    least = 4 * count_parameters(shape_only(row))
    with replacing(target) as temporary:
        try:
            result = gdown.download(id=row.drive_id, output=str(temporary), quiet=False)
        except Exception as error:  # gdown raises its own, requests' and OS errors
            raise WeightsError(f"download from Google Drive failed ({type(error).__name__})") from error
        size = temporary.stat().st_size
        if result is None or size < least:
            raise WeightsError(
                f"Google Drive sent {size} bytes, expected at least {least}; is the quota used up? Open "
                f"https://drive.google.com/uc?id={row.drive_id} in a browser, save it as {target}"
            )
        try:
            tensors, _ = _read(row, temporary, "the downloaded file")
        except WeightsError as error:
            raise WeightsError(str(error).replace(str(temporary), "the downloaded file")) from error
        load_strictly(create_model(row.name), tensors, "the downloaded file")
    write_bytes(_hash_file(target), f"{sha256_file(target)}  {target.name}\n".encode())
    return target
