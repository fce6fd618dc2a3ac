"""Predictions as a Parquet file.

A Parquet file cannot be gone on with after a kill: its index stands at the end. So rows are written as numbered part
files, each of them whole or not there, and joined at the end into row groups of a fixed size: the file is the same
however often the run was interrupted. Needs pyarrow.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from infer.classify.partial import PartialOutput, Recorded, nothing
from infer.classify.sinks.rows import Kept, column_names, row_values, unwritable
from infer.errors import InputError
from infer.files import replacing
from infer.names import unescape_name
from infer.predictions import Prediction
from infer.sources.parquet import import_parquet

#: Rows of a row group of the output.
GROUP_ROWS = 16384
#: A part is written when it has so many rows, or when so many seconds passed: what a kill may cost.
PART_ROWS, PART_SECONDS = 4096, 5.0


class ParquetSink:
    """See :class:`infer.classify.sinks.FileSink`.

    Raises:
        InputError: pyarrow is not installed.
    """

    def __init__(self, partial: PartialOutput, top: int, clock: Callable[[], float] = time.monotonic) -> None:
        import_parquet()
        import pyarrow

        kinds = {"class": pyarrow.int32(), "score": pyarrow.float32()}
        self._schema = pyarrow.schema(
            [(name, kinds.get(name.partition("_")[0], pyarrow.string())) for name in column_names(top)]
        )
        self._partial, self._top, self._clock = partial, top, clock
        self._parts: list[Path] = []
        self._written = 0  # rows in parts
        self._rows: list[Prediction] = []
        self._since = clock()

    def begin(self, identity: dict[str, Any], step: int, *, resume: bool) -> int:
        """See :class:`FileSink`."""
        self._since = self._clock()
        if not self._partial.begin(identity, lambda folder: None, resume=resume):
            return 0
        found = sorted(self._partial.folder.glob("part-*.parquet"))
        for path in found:
            rows = self._sound_rows(path)
            if path != self._part(self._written) or rows == 0 or rows % step:
                break  # torn by a power cut, or the last one of a run that was all but finished
            self._parts.append(path)
            self._written += rows
        for path in found[len(self._parts) :]:
            path.unlink()
        return self._written

    def _sound_rows(self, path: Path) -> int:
        try:
            file = import_parquet().ParquetFile(path)
            return int(file.metadata.num_rows) if file.schema_arrow.equals(self._schema) else 0
        except Exception:
            return 0

    def _part(self, first: int) -> Path:
        return self._partial.folder / f"part-{first:012d}.parquet"

    def kept(self) -> Iterator[Kept]:
        """See :class:`FileSink`."""
        for path in self._parts:
            try:
                table = import_parquet().read_table(path, columns=["name", "error"])
            except Exception:
                raise InputError(f"{path}: damaged; pass --overwrite to start again") from None
            for name, error in zip(table["name"].to_pylist(), table["error"].to_pylist(), strict=True):
                yield Kept(unescape_name(name), error is not None)

    def write(self, predictions: Sequence[Prediction]) -> None:
        """See :class:`Sink`."""
        self._rows.extend(predictions)
        if len(self._rows) >= PART_ROWS or self._clock() - self._since >= PART_SECONDS:
            self._flush()

    def _flush(self) -> None:
        self._since = self._clock()
        rows, self._rows = self._rows, []  # before the rest: Ctrl-C may come here, and rows must not be written twice
        if not rows:
            return
        import pyarrow

        columns = zip(*(row_values(prediction, self._top) for prediction in rows), strict=True)
        arrays = [pyarrow.array(c, field.type) for c, field in zip(columns, self._schema, strict=True)]
        path = self._part(self._written)
        try:
            with replacing(path) as temporary:
                import_parquet().write_table(pyarrow.Table.from_arrays(arrays, schema=self._schema), temporary)
        except OSError as error:
            raise unwritable(path, error) from error
        self._parts.append(path)
        self._written += len(rows)

    def finish(self, recorded: Recorded = nothing) -> None:
        """See :class:`FileSink`."""
        self._flush()
        try:
            self._join(self._partial.folder / "joined")
            self._partial.complete("joined", recorded)
        except OSError as error:
            raise unwritable(self._partial.output, error) from error

    def _join(self, output: Path) -> None:
        parquet = import_parquet()
        write_groups((parquet.read_table(path, schema=self._schema) for path in self._parts), output, self._schema)

    def close(self, *, keep: bool) -> None:
        """See :class:`FileSink`; rows that are still in memory are kept too."""
        if keep:
            self._flush()
        self._partial.close(keep=keep)


def write_groups(tables: Iterable[Any], output: Path, schema: Any) -> None:
    """Write pyarrow tables as one file in row groups of :data:`GROUP_ROWS`: the same bytes however they were cut."""
    import pyarrow

    waiting = schema.empty_table()
    with import_parquet().ParquetWriter(output, schema) as writer:
        for table in tables:
            waiting = pyarrow.concat_tables([waiting, table])
            while len(waiting) >= GROUP_ROWS:
                writer.write_table(waiting.slice(0, GROUP_ROWS).combine_chunks(), GROUP_ROWS)
                waiting = waiting.slice(GROUP_ROWS).combine_chunks()
        if len(waiting):
            writer.write_table(waiting.combine_chunks(), GROUP_ROWS)
