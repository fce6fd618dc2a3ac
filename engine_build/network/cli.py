"""``iresnet models``: the table of models."""

from __future__ import annotations

import functools
import json
from typing import Any

from infer.command_line import DebugOption, JsonOption, guarded
from infer.tables import Column, print_table, say


@guarded
def models(as_json: JsonOption = False, debug: DebugOption = False) -> None:
    """List the models: size, work, official accuracy, and whether trained weights are at hand."""
    rows = _rows()
    if as_json:
        print(json.dumps(rows))
        return
    cells = []
    for row in rows:
        published = [f"{row[key]:.2f}" if row[key] else "-" for key in ("top1", "top5")]
        size = [f"{row['parameters']:,}", f"{row['gmac']:.3f}", str(row["input"]), str(row["classes"])]
        cells.append([row["model"], *size, *published, row["weights"]])
    columns = [
        Column("model", left=True),
        Column("parameters", drop=4),
        Column("GMAC", drop=5),
        Column("input", drop=2),
        Column("classes", drop=3),
        Column("top-1"),
        Column("top-5", drop=1),
        Column("weights", left=True),
    ]
    print_table("Models", columns, cells)
    say("GMAC of one image; published ImageNet accuracy; official = to be downloaded")


def _rows() -> list[dict[str, Any]]:
    """One a model, for ``--json``."""
    from engine_build.network.weights import SUFFIXES, cache_folder
    from engine_build.network.zoo import MODELS

    rows = []
    for row in MODELS.values():
        if row.shipped is not None:
            weights = "shipped"
        elif any((cache_folder() / f"{row.name}{suffix}").is_file() for suffix in SUFFIXES):
            weights = "cached"
        else:
            weights = "official" if row.drive_id else "none"
        size = _size(row.name)
        use = {"input": row.preprocessing.crop, "classes": row.num_classes, "top1": row.top1, "top5": row.top5}
        link = {"download": f"https://drive.google.com/uc?id={row.drive_id}" if row.drive_id else None}
        rows.append({"model": row.name, **size, **use, "weights": weights, **link})
    return rows


@functools.cache
def _size(name: str) -> dict[str, float]:
    """Parameters, and 10^9 multiply-accumulates of an image."""
    from engine_build.network.zoo import MODELS, count_macs, count_parameters, shape_only

    row = MODELS[name]
    return {"parameters": count_parameters(shape_only(row)), "gmac": count_macs(row) / 1e9}
