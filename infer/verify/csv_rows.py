"""A row for each image that was verified, as CSV."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

from infer.files import replacing
from infer.names import escape_name
from infer.verify.evaluation import ImageRow


class CsvRows:
    """Writes :class:`~infer.verify.evaluation.ImageRow` to a file, which gets its name when all are there.

    What the disk refuses is kept in ``error`` instead of raised: an evaluation of hours is worth its verdict all the
    same. Then no file is left.

    Args:
        path: the file.
        labels: class names in the order of the model; may be set before the first row.
    """

    def __init__(self, path: Path, labels: Sequence[str] = ()) -> None:
        self._path, self.labels = path, labels
        self._stack = ExitStack()
        self._writer: Any = None
        self.error: OSError | None = None

    def __enter__(self) -> CsvRows:
        self._stack.__enter__()
        try:
            temporary = self._stack.enter_context(replacing(self._path))
            file = self._stack.enter_context(temporary.open("w", encoding="utf-8", newline=""))
            self._writer = csv.writer(file, lineterminator="\n")
            self._writer.writerow((*ImageRow._fields, "true_label", "predicted_label", "reference_label"))
        except OSError as error:
            self._fail(error)
        return self

    def write(self, row: ImageRow, place: int) -> None:
        """Add one; its ``place`` in the set is not written."""
        if self._writer is None:
            return
        names = ("" if i is None else self.labels[i] for i in (row.true, row.predicted, row.reference))
        cells = (f"{x:.7g}" if isinstance(x, float) else x for x in row._replace(name=escape_name(row.name)))
        try:
            self._writer.writerow((*cells, *names))
        except OSError as error:
            self._fail(error)

    def _fail(self, error: OSError) -> None:
        self._writer = None
        try:
            self._stack.__exit__(type(error), error, error.__traceback__)  # the temporary file goes
        except OSError as last:  # closing it fails once more
            error = last
        error.filename = error.filename or str(self._path)
        self.error = error

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._writer is None:
            return
        try:
            self._stack.__exit__(kind, error, trace)
        except OSError as failed:  # what was held back does not fit
            if failed is error:
                raise
            self.error = failed
