"""A row of the output: its columns, its values, and what is known of one that an interrupted run left."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infer.errors import IResNetError
from infer.names import escape_name
from infer.predictions import Prediction


@dataclass(frozen=True)
class Kept:
    """A row that an interrupted run left: the image it is of, and whether that could not be read."""

    name: str
    failed: bool


def column_names(top: int) -> list[str]:
    """Columns of CSV and Parquet files: ``name``, ``class_1``, ``label_1``, ``score_1``, ... , ``error``."""
    return ["name", *(f"{kind}_{i + 1}" for i in range(top) for kind in ("class", "label", "score")), "error"]


def row_values(prediction: Prediction, top: int) -> list[Any]:
    """Values of :func:`column_names`; None where there is none."""
    cells = [cell for r in prediction.top for cell in (r.index, r.label, round(r.score, 6))]
    return [escape_name(prediction.name), *cells, *[None] * (3 * top - len(cells)), prediction.error]


def json_row(prediction: Prediction) -> str:
    """:meth:`Prediction.to_json` as a line of JSON, with the name as :func:`infer.names.escape_name` has it."""
    return json.dumps(
        prediction.to_json() | {"name": escape_name(prediction.name)}, ensure_ascii=False, allow_nan=False
    )


def unwritable(path: Path, error: OSError) -> IResNetError:
    """The error for rows that find no place."""
    return IResNetError(f"{path}: cannot be written ({error.strerror or error}); make room and go on with --resume")
