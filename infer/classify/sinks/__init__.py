"""Where predictions go: standard output, JSON lines, CSV, Parquet.

A sink that writes a file can be killed at any moment and go on later: it then drops a torn row, keeps whole batches,
and says which images its rows are of. Every image has one row, in order; one that cannot be read has an error there.
"""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, Protocol

from infer.classify.partial import PartialOutput, Recorded, nothing
from infer.classify.sinks.rows import Kept, column_names, json_row, row_values, unwritable
from infer.errors import InputError
from infer.names import unescape_name
from infer.predictions import Prediction

SUFFIXES = (".jsonl", ".ndjson", ".csv", ".parquet")


class Sink(Protocol):
    """Takes predictions in order."""

    def write(self, predictions: Sequence[Prediction]) -> None:
        """Add rows, all those of one batch.

        Raises:
            IResNetError: they cannot be written; says how to go on.
        """
        ...


class FileSink(Sink, Protocol):
    """A sink that leaves a file when the job ends, and can go on after it was killed."""

    def begin(self, identity: dict[str, Any], step: int, *, resume: bool) -> int:
        """Start, or go on with an interrupted run.

        Args:
            identity: see :meth:`PartialOutput.begin`.
            step: records a batch: only whole ones are kept, because results may depend on an image's batch.
            resume: go on if there is something to go on with.

        Returns:
            Rows kept, a multiple of ``step``.

        Raises:
            InputError: see :meth:`PartialOutput.begin`.
        """
        ...

    def kept(self) -> Iterator[Kept]:
        """The kept rows, in order.

        Raises:
            InputError: a row among them is damaged.
        """
        ...

    def finish(self, recorded: Recorded = nothing) -> None:
        """Put the output in its place; ``recorded`` is called with the file just before."""
        ...

    def close(self, *, keep: bool) -> None:
        """Stop; ``keep`` what is there for a resume, or leave nothing. Harmless after :meth:`finish`."""
        ...


class StreamSink:
    """Rows as text on standard output.

    Args:
        text: of one prediction, without the line end; None prints nothing for it.
    """

    def __init__(self, text: Callable[[Prediction], str | None]) -> None:
        self._text = text

    def write(self, predictions: Sequence[Prediction]) -> None:
        """See :class:`Sink`."""
        for prediction in predictions:
            if (text := self._text(prediction)) is not None:
                print(text)
        sys.stdout.flush()


def partial_output(output: Path) -> PartialOutput:
    """Where the rows of ``output`` are while the job runs.

    Raises:
        InputError: a folder, or an extension that is none of :data:`SUFFIXES`.
    """
    suffix = output.suffix.lower()
    if suffix not in SUFFIXES:
        raise InputError(f"--output {output}: expected a name that ends in {', '.join(SUFFIXES)}")
    return PartialOutput(output, None if suffix == ".parquet" else f"rows{suffix}")


def open_sink(partial: PartialOutput, top: int) -> FileSink:
    """The sink for a :func:`partial_output`, with ``top`` classes a row. Nothing is touched yet.

    Raises:
        InputError: Parquet without pyarrow.
    """
    suffix = partial.output.suffix.lower()
    if suffix == ".parquet":
        from infer.classify.sinks.parquet import ParquetSink

        return ParquetSink(partial, top)
    return TextSink(partial, partial.folder / f"rows{suffix}", text_form(suffix, top))


class Form(Protocol):
    """How rows are text."""

    header: bytes

    def encode(self, prediction: Prediction) -> str:
        """A row with its end."""
        ...

    def decode(self, line: str) -> Kept:
        """What a row is of; raises ValueError, KeyError, TypeError or csv.Error where it is damaged."""
        ...

    def rows(self, file: IO[bytes]) -> Iterator[bytes]:
        """The rows of a file, each with its end; of the last one it may lack."""
        ...


def text_form(suffix: str, top: int) -> Form:
    """Of ``.csv``, or of JSON lines."""
    return _Csv(top) if suffix == ".csv" else _JsonLines()


class _JsonLines:
    header = b""

    def encode(self, prediction: Prediction) -> str:
        return json_row(prediction) + "\n"

    def decode(self, line: str) -> Kept:
        row = json.loads(line)
        return Kept(unescape_name(row["name"]), "error" in row)

    def rows(self, file: IO[bytes]) -> Iterator[bytes]:
        return iter(file)


class _Csv:
    def __init__(self, top: int) -> None:
        self._top = top
        self.header = (",".join(column_names(top)) + "\n").encode()

    def encode(self, prediction: Prediction) -> str:
        line = io.StringIO()
        csv.writer(line, lineterminator="\n").writerow(row_values(prediction, self._top))
        return line.getvalue()

    def decode(self, line: str) -> Kept:
        (row,) = csv.reader(io.StringIO(line, newline=""), strict=True)
        if len(row) != 3 * self._top + 2:
            raise ValueError(f"{len(row)} cells")
        return Kept(unescape_name(row[0]), bool(row[-1]))

    def rows(self, file: IO[bytes]) -> Iterator[bytes]:
        row = b""
        for line in file:  # a quoted name may hold ends of lines
            row += line
            if row.count(b'"') % 2 == 0:
                yield row
                row = b""
        if row:
            yield row


class TextSink:
    """One line a row, added batch by batch to one file. See :class:`FileSink`."""

    def __init__(self, partial: PartialOutput, path: Path, form: Form) -> None:
        self._partial, self._path, self._form = partial, path, form
        self._file: IO[bytes] | None = None
        self._kept = 0

    def begin(self, identity: dict[str, Any], step: int, *, resume: bool) -> int:
        """See :class:`FileSink`."""
        header = self._form.header

        def fill(folder: Path) -> None:
            (folder / self._path.name).write_bytes(header)

        if self._partial.begin(identity, fill, resume=resume):
            self._kept, end = self._whole_batches(step)
            with self._path.open("r+b") as file:
                file.truncate(end)
        self._file = self._path.open("ab")
        return self._kept

    def _whole_batches(self, step: int) -> tuple[int, int]:
        """Rows of whole batches, and the offset of their end."""
        rows, offset = 0, len(self._form.header)
        kept = rows, offset
        with self._path.open("rb") as file:
            file.seek(offset)
            for line in self._form.rows(file):
                if not line.endswith(b"\n"):
                    break  # torn
                rows, offset = rows + 1, offset + len(line)
                if rows % step == 0:
                    kept = rows, offset
        return kept

    def kept(self) -> Iterator[Kept]:
        """See :class:`FileSink`."""
        with self._path.open("rb") as file:
            file.seek(len(self._form.header))
            lines = self._form.rows(file)
            for row in range(self._kept):
                try:
                    yield self._form.decode(next(lines, b"").decode())
                except (ValueError, KeyError, TypeError, csv.Error):
                    raise InputError(f"{self._path}: row {row} is damaged; pass --overwrite to start again") from None

    def write(self, predictions: Sequence[Prediction]) -> None:
        """See :class:`Sink`."""
        assert self._file is not None
        try:
            self._file.write("".join(map(self._form.encode, predictions)).encode())
            self._file.flush()
        except OSError as error:
            raise unwritable(self._path, error) from error

    def finish(self, recorded: Recorded = nothing) -> None:
        """See :class:`FileSink`."""
        try:
            self._close()
            self._partial.complete(self._path.name, recorded)
        except OSError as error:
            raise unwritable(self._partial.output, error) from error

    def close(self, *, keep: bool) -> None:
        """See :class:`FileSink`."""
        try:
            self._close()  # what could not be written the first time fails again
        finally:
            self._partial.close(keep=keep)

    def _close(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            file.close()
