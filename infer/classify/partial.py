"""The folder ``OUTPUT.partial``: what a long job has written so far, and which job that was.

Its ``run.json`` is written last and removed first, and it goes when OUTPUT is complete, so a process may be killed at
any moment:

* ``OUTPUT.partial`` with ``run.json`` and its rows: an interrupted job, to be resumed or overwritten;
* OUTPUT without it, or with what is left of it: a finished job.

A lock in the folder, held while a process writes there, keeps a second one out; it ends with its process.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, TypeAlias

from infer.errors import InputError
from infer.files import write_bytes

_RUN, _LOCK = "run.json", "lock"
#: What else jobs have in the folder; nothing else is ever removed.
_FILES = ("rows.*", "part-*.parquet", "joined", ".*.tmp")


#: Called with the complete file before it gets its name.
Recorded: TypeAlias = Callable[[Path], None]


def nothing(path: Path) -> None:
    """Records nothing."""


class PartialOutput:
    """The partial folder of ``output``.

    Args:
        output: the file that the job is to leave.
        rows: name of the file inside that is there until it becomes ``output``; None where several make it.

    Raises:
        InputError: ``output`` is a folder, or lies in what is none.
    """

    def __init__(self, output: Path, rows: str | None) -> None:
        if output.is_dir():
            raise InputError(f"{output}: a folder, expected a file to write")
        if not output.parent.is_dir() and output.parent.exists():
            raise InputError(f"{output}: cannot be written, {output.parent} is no folder")
        self.output = output
        self.folder = output.with_name(f"{output.name}.partial")
        self._rows = rows
        #: Whether :meth:`begin` went on with an interrupted job.
        self.resumed = False
        self._held = False
        self._lock: IO[bytes] | None = None

    @property
    def exists(self) -> bool:
        """Whether there is something to resume."""
        return (self.folder / _RUN).is_file() and (self._rows is None or (self.folder / self._rows).is_file())

    def finished(self, *, resume: bool, overwrite: bool) -> bool:
        """Whether ``resume`` finds the job done already.

        Raises:
            InputError: ``output`` or an interrupted job is there, and nobody said what to do with it.
        """
        if overwrite:
            return False
        if self.exists:
            if resume:
                return False
            raise InputError(
                f"{self.folder}: an interrupted run; pass --resume to go on with it, or --overwrite to discard it"
            )
        if self.output.exists():
            if resume:
                self.discard()
                return True
            raise InputError(f"{self.output} exists already; pass --overwrite to replace it, or name another --output")
        return False

    def begin(self, identity: dict[str, Any], fill: Callable[[Path], None], *, resume: bool) -> bool:
        """Take hold of the folder: the interrupted one under ``resume``, else a new one.

        Args:
            identity: what decides the rows, as JSON: resuming needs the very same.
            fill: makes the first files in a new folder.
            resume: go on if there is something; otherwise it is discarded.

        Returns:
            Whether an interrupted job goes on.

        Raises:
            InputError: another process writes there, it belongs to another job, or it cannot be written.
        """
        identity = json.loads(json.dumps(identity))
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._take_lock()
            if resume and self.exists:
                self.resumed = True
                self._compare(identity)
                self._held = True
                return True
            self._held = True
            self._clear()
            fill(self.folder)
            write_bytes(self.folder / _RUN, json.dumps(identity, indent=1).encode() + b"\n")  # last: now it exists
        except OSError as error:
            with suppress(OSError):
                self.close(keep=False)
            raise InputError(f"{self.output}: cannot be written ({error.strerror})") from error
        return False

    def _take_lock(self) -> None:
        self.release()
        if sys.platform == "win32":
            return
        import fcntl

        self._lock = (self.folder / _LOCK).open("wb")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.release()
            raise InputError(f"{self.output}: another process is writing it; wait for that one, or end it") from None
        except OSError:
            pass  # a file system without locks

    def _compare(self, identity: dict[str, Any]) -> None:
        path = self.folder / _RUN
        try:
            before = json.loads(path.read_bytes())
            changed = [key for key in {**before, **identity} if before.get(key) != identity.get(key)]
        except (OSError, ValueError, TypeError) as error:
            raise InputError(f"{path}: damaged ({error}); pass --overwrite to start again") from error
        if changed:
            shown = "; ".join(_difference(key, before.get(key), identity.get(key)) for key in changed)
            raise InputError(
                f"{self.folder} belongs to another run: {shown}. Repeat that one's command, or pass --overwrite"
            )

    def complete(self, rows: str, recorded: Recorded = nothing) -> None:
        """Put the file ``rows`` of the folder in the place of ``output``, and remove the rest."""
        with (self.folder / rows).open("rb") as file:
            os.fsync(file.fileno())
        recorded(self.folder / rows)
        (self.folder / rows).replace(self.output)
        self.discard()

    def discard(self) -> None:
        """Remove the folder."""
        self._clear()
        (self.folder / _LOCK).unlink(missing_ok=True)
        with suppress(OSError):  # not there, or holds what is not ours
            self.folder.rmdir()
        self.release()

    def _clear(self) -> None:
        """Remove the files of a job. ``run.json`` goes first: what stays, when that is cut short, is no job."""
        (self.folder / _RUN).unlink(missing_ok=True)
        for pattern in _FILES:
            for path in self.folder.glob(pattern):
                path.unlink(missing_ok=True)

    def close(self, *, keep: bool) -> None:
        """Stop: leave the folder for a resume, or remove it if it is this job's."""
        if keep or not self._held:
            self.release()
        else:
            self.discard()

    def release(self) -> None:
        """Let other processes have the folder."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None


def _difference(key: str, before: Any, now: Any) -> str:
    if isinstance(before, list) and isinstance(now, list):
        at = next((i for i, pair in enumerate(zip(before, now, strict=False)) if pair[0] != pair[1]), None)
        if at is None:
            return f"{key}: {len(before)} there, {len(now)} here"
        return f"{key}: {before[at]} there, {now[at]} here"
    if isinstance(before, str) and isinstance(now, str) and len(before) == len(now) == 64:
        return f"another {key} (sha256 {before[:12]}... there, {now[:12]}... here)"
    return f"{key}: {_shown(before)} there, {_shown(now)} here"


def _shown(value: Any) -> str:
    return "none" if value is None else str(value)
