"""Images inside Parquet files, as Hugging Face's datasets and many data lakes keep them: one encoded image a row.

The images lie in a binary column, or in the field ``bytes`` of a struct column. A file is read a few rows at a time,
never as a whole, and only the columns that are needed. Needs pyarrow.
"""

from __future__ import annotations

import json
import threading
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from pathlib import Path
from types import ModuleType
from typing import Any

from infer.errors import ImageError, InputError
from infer.images import MAX_BYTES
from infer.sources.record import Record

#: Names that a column of images usually has, best first; and a column of names for them.
IMAGE_COLUMNS = ("image", "img", "jpg", "jpeg", "png", "webp", "image_bytes", "bytes", "data", "content")
KEY_COLUMNS = ("__key__", "key", "path", "file_path", "file_name", "filename", "file", "name", "id", "image_id")
#: Names that a column of classes usually has.
LABEL_COLUMNS = ("label", "labels", "cls", "class", "target", "class_id", "class_index", "wnid", "synset", "class_name",
                 "label_name", "fine_label", "category")  # fmt: skip
_ROWS = 8  # so many images are in memory at once
_KEYS = 1024


def import_parquet() -> ModuleType:
    """``pyarrow.parquet``.

    Raises:
        InputError: pyarrow is not installed.
    """
    try:
        import pyarrow.parquet
    except ImportError:
        raise InputError("Parquet files need pyarrow, which is not installed; pip install pyarrow") from None
    return pyarrow.parquet


def count_rows(path: Path) -> int:
    """Rows of ``path``, from its footer; at least 1, the record of what is wrong with an empty or damaged file."""
    try:
        return max(1, int(import_parquet().read_metadata(path).num_rows))
    except InputError:
        raise
    except Exception:
        return 1


def iter_rows(path: Path, column: str | None = None, *, labelled: bool = False) -> Iterator[Record]:
    """The rows of ``path``, one record each, named by the column of keys if there is one, else by their number.

    Args:
        path: a Parquet file; a damaged one gives a record with the defect.
        column: the one with the images, also ``column.field``; None finds it by type and name.
        labelled: read the column of classes too, where there is one.

    Raises:
        InputError: no pyarrow; no such column, or none or several that may be meant; says which there are.
    """
    parquet = import_parquet()
    shown = str(path)
    rows = 0
    try:
        file = _open(parquet, path)
        columns = _find_columns(file.schema_arrow, column, shown)
        reader = _ImageReader(file, columns.images)
        labels = columns.labels if labelled else None
        names = _class_names(file.schema_arrow, labels)
        for row, (key, number) in enumerate(_keys(_open(parquet, path), columns.keys, labels)):
            member = f"row {row}" if key is None else key
            name = f"{shown}:{member}"
            rows += 1
            label = names[number] if isinstance(number, int) and 0 <= number < len(names) else number
            yield Record(name, path, member, partial(reader.read, name, row), sequential=True, label=label)
    except InputError:
        raise
    except Exception as error:  # pyarrow raises several families on damaged files
        where = f"damaged after {rows} rows" if rows else "not a Parquet file, or damaged"
        yield Record(shown, path, "", defect=f"{where} ({_brief(error)})")
        return
    if not rows:
        yield Record(shown, path, "", defect="no row in this Parquet file")


def _open(parquet: ModuleType, path: Path) -> Any:
    """Buffered: otherwise pyarrow takes all images of a row group into memory at once."""
    return parquet.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False)


@dataclass(frozen=True)
class _Columns:
    images: str
    keys: str | None
    labels: str | None


def _find_columns(schema: Any, wanted: str | None, shown: str) -> _Columns:
    import pyarrow

    def binary(kind: Any) -> bool:
        tests = (pyarrow.types.is_binary, pyarrow.types.is_large_binary, pyarrow.types.is_binary_view)
        return any(test(kind) for test in tests)

    def keylike(kind: Any) -> bool:
        tests = (pyarrow.types.is_string, pyarrow.types.is_large_string, pyarrow.types.is_string_view)
        return any(test(kind) for test in tests) or pyarrow.types.is_integer(kind)

    images: dict[str, str] = {}  # what people call it: what is read
    keys: dict[str, str] = {}
    for field in schema:
        if binary(field.type):
            images[field.name] = field.name
        elif keylike(field.type):
            keys[field.name] = field.name
        elif pyarrow.types.is_struct(field.type):
            inner = {child.name: child.type for child in field.type}
            images |= {f"{field.name}.{name}": f"{field.name}.{name}" for name, kind in inner.items() if binary(kind)}
            if binary(inner.get("bytes", pyarrow.null())):
                images[field.name] = images.pop(f"{field.name}.bytes")
                if keylike(inner.get("path", pyarrow.null())):
                    keys.setdefault("path", f"{field.name}.path")
    if wanted is not None:
        found = images.get(wanted.removesuffix(".bytes"), images.get(wanted))
        if found is None:
            raise InputError(
                f"{shown}: expected a binary column {wanted!r}, found {', '.join(images) or 'none at all'}"
            )
    else:
        usual = [name for name in IMAGE_COLUMNS if name in images]
        if not usual and len(images) != 1:
            raise InputError(
                f"{shown}: expected one column of encoded images, found {', '.join(images) or 'none'} among "
                f"{', '.join(schema.names)}; name it with --column"
            )
        found = images[usual[0]] if usual else next(iter(images.values()))
    labels = next((name for name in LABEL_COLUMNS if name in schema.names and name != found), None)
    return _Columns(found, next((keys[name] for name in KEY_COLUMNS if name in keys), None), labels)


def _class_names(schema: Any, column: str | None) -> list[str]:
    """Names of the classes in the order of their numbers, as Hugging Face's ``ClassLabel`` keeps them; else none."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return [str(name) for name in features[column]["names"]]
    except (KeyError, TypeError, ValueError):
        return []


def _keys(file: Any, keys: str | None, labels: str | None) -> Iterator[tuple[str | None, int | str | None]]:
    """Key and class of each row, None where there is none."""
    wanted = [column for column in (keys, labels) if column is not None]
    if not wanted:
        for _ in range(file.metadata.num_rows):
            yield None, None
        return
    for batch in file.iter_batches(batch_size=_KEYS, columns=wanted, use_threads=False):
        nothing = [None] * batch.num_rows
        found = [nothing if column is None else _leaf(batch, column) for column in (keys, labels)]
        for key, label in zip(*found, strict=True):
            yield None if key is None else str(key), _label(label)


def _label(value: Any) -> int | str | None:
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if isinstance(value, (int, str)) and not isinstance(value, bool) else None


def _leaf(batch: Any, column: str) -> list[Any]:
    """The values of a column of a batch, or of a field of a struct column."""
    name, _, field = column.partition(".")
    values = batch.column(batch.schema.names.index(name if field else column)).to_pylist()
    return [None if v is None else v[field] if isinstance(v, dict) else v for v in values]


class _ImageReader:
    """The images of a file by row; fast where rows rise, a step back reads its row group anew."""

    def __init__(self, file: Any, column: str) -> None:
        self._file, self._column = file, column
        counts = (file.metadata.row_group(group).num_rows for group in range(file.metadata.num_row_groups))
        self._ends = list(accumulate(counts))
        self._lock = threading.Lock()
        self._batches: Iterator[Any] | None = None
        self._first, self._rows = 0, []  # type: int, list[Any]

    def read(self, name: str, row: int) -> bytes:
        try:
            with self._lock:
                value = self._find(row)
        except Exception as error:
            self._batches = None
            raise ImageError(f"{name}: the Parquet file cannot be read here ({_brief(error)})") from error
        if value is None:
            raise ImageError(f"{name}: no bytes in this row, expected an encoded image")
        if len(value) > MAX_BYTES:
            raise ImageError(f"{name}: {len(value)} bytes, an image file may have {MAX_BYTES}")
        return bytes(value)

    def _find(self, row: int) -> Any:
        here = self._first + len(self._rows)
        group = bisect_right(self._ends, row)
        start = self._ends[group - 1] if group else 0
        if self._batches is None or row < self._first or start > here:  # back, or past whole row groups
            groups = range(group, len(self._ends))
            self._rows = []
            self._first = start
            self._batches = self._file.iter_batches(
                batch_size=_ROWS, row_groups=groups, columns=[self._column], use_threads=False
            )
        while row >= self._first + len(self._rows):
            self._first += len(self._rows)
            self._rows = []
            self._rows = _leaf(next(self._batches), self._column)
        return self._rows[row - self._first]


def _brief(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]
