"""What known answers have passed on this machine: a small file each, under all that decides what a plan computes.

They lie in the bundle, beside its compiled models, or in the user's cache where the bundle cannot be written. Each
appears whole or not at all, so several processes may write the same one, and the last stays.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

import msgspec

from infer.files import cache_root, write_bytes

PASSES = "known_answers.passed"


class Checked(msgspec.Struct, kw_only=True, frozen=True):
    """What one check found.

    Attributes:
        target: that ran.
        device: on which, and with which instructions.
        batch: images at once.
        outcome: ``cannot tell`` where the floor is so low that a wrong plan may reach it.
        sqnr_db: of the logits; None where they are equal.
        floor_db: that was asked for.
        checked: when, UTC, ISO 8601.
        seconds: it took.
        remembered: from an earlier opening.
    """

    target: str
    device: str
    batch: int
    outcome: Literal["passed", "cannot tell"]
    sqnr_db: float | None
    floor_db: float
    checked: str
    seconds: float
    remembered: bool = False


def describe(found: Checked) -> str:
    """For people: ``passed, 35.2 dB (20.0 needed) at batch 8``."""
    sqnr = "exact" if found.sqnr_db is None else f"{found.sqnr_db:.1f} dB"
    return f"{found.outcome}, {sqnr} ({found.floor_db:.1f} needed) at batch {found.batch}"


class Passes:
    """The files of one bundle.

    Args:
        folder: of the bundle.
    """

    def __init__(self, folder: Path) -> None:
        self._folders = (folder / PASSES, cache_root() / PASSES)

    def find(self, key: Mapping[str, str]) -> Checked | None:
        """What passed under this very key."""
        entries = (_read(folder / _name(key)) for folder in self._folders)
        return next((entry.found for entry in entries if entry is not None and entry.key == key), None)

    def all(self) -> Iterator[tuple[dict[str, str], Checked]]:
        """Everything that passed, of other bundles too where it lies in the user's cache."""
        for folder in self._folders:
            for path in sorted(folder.glob("*.json")):
                if (entry := _read(path)) is not None:
                    yield entry.key, entry.found

    def add(self, key: Mapping[str, str], found: Checked) -> None:
        """Write it down where that is possible; where it is not, the next opening checks again."""
        data = msgspec.json.format(msgspec.json.encode(_Entry(dict(key), found)), indent=1) + b"\n"
        for folder in self._folders:
            try:
                write_bytes(folder / _name(key), data)
                return
            except OSError:
                continue


class _Entry(msgspec.Struct):
    key: dict[str, str]
    found: Checked


# As in infer.bundle: msgspec 0.22 crashes when several threads are the first to decode a type.
_ENTRY = msgspec.json.Decoder(_Entry)


def _read(path: Path) -> _Entry | None:
    try:
        return _ENTRY.decode(path.read_bytes())
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
        return None  # not there, or not ours


def _name(key: Mapping[str, str]) -> str:
    return f"{hashlib.sha256(msgspec.json.encode(key, order='sorted')).hexdigest()[:32]}.json"
