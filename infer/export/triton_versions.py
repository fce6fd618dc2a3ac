"""Versions of a Triton model: folders with numbers, which share one configuration."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from infer.errors import InputError

CONFIG = "config.pbtxt"
LABELS = "labels.txt"
# What versions share and a plan depends on; each stands at the beginning of a line of ours, with what belongs to it.
_SHARED = ("platform:", "backend:", "max_batch_size:", "  { name:", 'parameters { key: "preprocessing"')


def versions(folder: Path) -> list[int]:
    """Numbers of the versions in the folder of a model, rising; empty where there is no folder."""
    if not folder.is_dir():
        return []
    return sorted(int(entry.name) for entry in folder.iterdir() if entry.is_dir() and is_version(entry.name))


def is_version(name: str) -> bool:
    """Whether Triton takes a folder of this name for a version: digits that do not begin with 0."""
    return name.isascii() and name.isdigit() and not name.startswith("0")


def keep_versions(folder: Path, work: Path, version: int) -> None:
    """Bring the other versions of ``folder`` along into ``work``, as hard links where that can be.

    Raises:
        InputError: they could not be served with the configuration and the labels that lie in ``work``.
    """
    kept = [number for number in versions(folder) if number != version]
    if not kept:
        return
    for name, of_interest in ((CONFIG, _shared), (LABELS, str.splitlines)):
        old, new = folder / name, work / name
        if not old.is_file() or of_interest(old.read_text("utf-8")) != of_interest(new.read_text("utf-8")):
            numbers = ", ".join(map(str, kept))
            raise InputError(
                f"{folder}: version {numbers} would no longer fit: all versions share {name}, and this bundle's "
                "differs in backend, batch, tensors, pre-processing or labels; pass another --name or remove them"
            )
    for number in kept:
        shutil.copytree(folder / str(number), work / str(number), copy_function=_link_or_copy)


def _link_or_copy(source: str, destination: str) -> None:
    try:
        os.link(source, destination)
    except OSError:
        shutil.copy2(source, destination)


def _shared(text: str) -> list[str]:
    lines = [line for line in text.splitlines() if line.startswith(_SHARED)]
    return [line.rstrip(",") for line in lines if "batch_size: " not in line or line.startswith("max_batch_size:")]
