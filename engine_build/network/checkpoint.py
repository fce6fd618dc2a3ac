"""Checkpoint files as people have them: read without running code, the network's tensors found under any wrapping.

Nothing is ever unpickled: ``.safetensors`` by safetensors, everything else by torch's restricted loader
(``weights_only=True``), which builds tensors, plain containers and the few harmless classes of :data:`_HARMLESS`.
"""

from __future__ import annotations

import argparse
import pathlib
import pickle
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from infer.errors import WeightsError

_DEPTH = 4  # of mappings in mappings
_LISTED = 5
#: Last part of names that are no weights: the counter of torch's AveragedModel, and what profilers (thop) leave.
_COUNTERS = frozenset(("n_averaged", "total_ops", "total_params"))
#: Classes whose construction runs nothing: training scripts leave scores, arguments and paths beside the weights.
_HARMLESS: tuple[Any, ...] = (
    np.float64(0).__reduce__()[0],  # the function that makes scalars, wherever this numpy keeps it
    np.dtype,
    *(type(np.dtype(kind)) for kind in ("?", "i4", "i8", "f2", "f4", "f8")),
    argparse.Namespace,
    pathlib.PosixPath,
)


@dataclass(frozen=True)
class _Set:
    """Tensors of one mapping that share a prefix: perhaps the network."""

    key: str
    tensors: Mapping[str, torch.Tensor]
    others: tuple[str, ...]
    matches: int

    @property
    def averaged(self) -> bool:
        """Whether its name says that it holds averages over the training."""
        return any(word in self.key.lower() for word in ("ema", "averag", "swa", "teacher"))


def find_weights(
    content: object, names: Collection[str], origin: str, key: str | None = None
) -> tuple[dict[str, torch.Tensor], list[str]]:
    """The network's tensors in what :func:`read_checkpoint` gave.

    A set of weights is called by the keys that lead to it and by its prefix, joined by dots: ``state_dict.module``,
    ``state_dict_ema``, nothing for a plain state_dict.

    Args:
        content: mappings of mappings of tensors.
        names: of the network's own state_dict.
        origin: what errors call the file.
        key: the set to take; None takes the one that fits, of several the one that is no average.

    Returns:
        The tensors, floats as float32, and what a user should be told. Whether they fit is not checked.

    Raises:
        WeightsError: no tensor of the network is there, or no set is called ``key``; names the keys that are.
    """
    wanted = [name for name in names if not name.endswith("num_batches_tracked")]  # older files lack them
    sets = [part for path, mapping in _mappings(content) for part in _sets(path, mapping, wanted)]
    if not sets:
        raise WeightsError(f"{origin}: expected a state_dict, found {_described(content)}")
    most = max(part.matches for part in sets)
    fitting = [part for part in sets if part.matches == most]
    if key is not None:
        fitting = [part for part in sets if part.key == key]
        if not fitting:
            raise WeightsError(f"{origin}: no weights under {key!r}; found {', '.join(_call(part) for part in sets)}")
    chosen = next((part for part in fitting if not part.averaged), fitting[0])
    notes = []
    if others := [_call(part) for part in fitting if part is not chosen]:
        notes.append(
            f"{origin} has several sets of weights, took {_call(chosen)}; also there: {', '.join(others)} "
            "(--weights-key)"
        )
    if chosen.others:
        notes.append(f"{origin}: not of the network, left out: {_list(chosen.others)}")
    quantised = [name for name, tensor in chosen.tensors.items() if tensor.is_quantized]
    if quantised:
        notes.append(f"{origin}: quantised tensors, taken as the floats they stand for: {_list(quantised)}")
    return {name: _float32(tensor) for name, tensor in chosen.tensors.items()}, notes


def read_checkpoint(path: Path, link: str | None = None) -> object:
    """What a checkpoint file holds.

    Args:
        path: the file.
        link: where a person gets it, for the error about a web page that was saved in its place.

    Raises:
        WeightsError: not a checkpoint, damaged, or one that only unpickling could read.
    """
    _refuse_text(path, link)
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            raise WeightsError(f"{path}: not a readable safetensors file ({error})") from error
    try:
        with torch.serialization.safe_globals(list(_HARMLESS)):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "global" not in str(error).lower():  # torch names the class it refuses; without one it is no checkpoint
            raise WeightsError(f"{path}: not a PyTorch checkpoint, or a damaged one") from error
        raise WeightsError(
            f"{path}: holds more than tensors, which this project refuses to unpickle. "
            "Save the state_dict alone: torch.save(model.state_dict(), path)"
        ) from error
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read ({error.strerror or error})") from error
    except Exception as error:  # of a damaged file: RuntimeError, EOFError, KeyError, IndexError, struct.error, ...
        reason = str(error).strip().splitlines()[:1]
        said = f" ({reason[0][:200]})" if isinstance(error, RuntimeError) and reason else ""
        raise WeightsError(f"{path}: not a PyTorch checkpoint, or a damaged one{said}") from error


def _refuse_text(path: Path, link: str | None) -> None:
    """Files that are saved in place of a checkpoint more often than others."""
    try:
        with path.open("rb") as file:
            start = file.read(512).lstrip().lower()
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read ({error.strerror or error})") from error
    if start.startswith((b"<!doctype", b"<html", b"<?xml")):
        cause = "Google Drive sends one instead of a large file when its quota is used up or it asks to confirm"
        where = (
            f" Open {link} in a browser and save the file" if link else " Open its link in a browser and save the file"
        )
        raise WeightsError(f"{path}: not a checkpoint but a web page. {cause}.{where}")
    if start.startswith(b"version https://git-lfs"):
        raise WeightsError(f"{path}: not a checkpoint but a Git LFS pointer to one. Run: git lfs pull")


def _mappings(content: object, path: str = "", depth: int = 0) -> Iterator[tuple[str, Mapping[Any, Any]]]:
    if isinstance(content, Mapping):
        yield path, content
        if depth < _DEPTH:
            for key, value in content.items():
                yield from _mappings(value, f"{path}.{key}".lstrip("."), depth + 1)


def _sets(path: str, mapping: Mapping[Any, Any], names: Collection[str]) -> Iterator[_Set]:
    """A set for each prefix under which names of the network are found, however many wrappers made it."""
    tensors = {str(key): value for key, value in mapping.items() if isinstance(value, torch.Tensor)}
    anchors = {name.rpartition(".")[0].partition(".")[0] for name in names}  # conv1, layer1, fc: one hit is enough
    prefixes: set[str] = set()
    for key in tensors:
        parts = key.split(".")
        prefixes.update(".".join(parts[:at]) + "." * (at > 0) for at, part in enumerate(parts) if part in anchors)
    counts = {prefix: sum(f"{prefix}{name}" in tensors for name in names) for prefix in prefixes}
    # layer1.0.conv1 looks like conv1 behind a prefix; the network's own prefix has by far the most names.
    whole = sorted(prefix for prefix, count in counts.items() if count and count * 2 > max(counts.values()))
    weights = {key: value for key, value in tensors.items() if key.rpartition(".")[2] not in _COUNTERS}
    owners = {key: max((p for p in whole if key.startswith(p)), key=len, default=None) for key in weights}
    outside = tuple(key for key, owner in owners.items() if owner is None)
    for prefix in whole:
        inside = {key.removeprefix(prefix): value for key, value in weights.items() if owners[key] == prefix}
        yield _Set(f"{path}.{prefix}".strip("."), inside, outside, counts[prefix])


def _described(content: object) -> str:
    if not isinstance(content, Mapping):
        return type(content).__name__
    tensors = [f"{path}.{key}".lstrip(".") for path, mapping in _mappings(content) for key, value in mapping.items()
               if isinstance(value, torch.Tensor)]  # fmt: skip
    if tensors:
        return f"{len(tensors)} tensors of another network: {_list(tensors)}"
    return f"no tensor in it, only the keys {_list([str(key) for key in content])}" if content else "nothing in it"


def _call(part: _Set) -> str:
    return repr(part.key)


def _list(names: Collection[str]) -> str:
    return ", ".join(list(names)[:_LISTED]) + (f", ... ({len(names)})" if len(names) > _LISTED else "")


def _float32(tensor: torch.Tensor) -> torch.Tensor:
    if tensor.is_quantized:
        return tensor.dequantize()
    return tensor.float() if tensor.dtype.is_floating_point else tensor
