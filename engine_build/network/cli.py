"""``iresnet models``: the table of models."""

from __future__ import annotations

import functools
import json
from typing import Any

from infer.command_line import DebugOption, JsonOption, guarded


@guarded
def models(as_json: JsonOption = False, debug: DebugOption = False) -> None:
    """List the models: size, work, official accuracy, and whether trained weights are at hand."""
    rows = _rows()
    if as_json:
        print(json.dumps(rows))
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(
        title="Models",
        title_justify="left",
        box=box.SIMPLE,
        pad_edge=False,
        padding=0,
        caption="GMAC of one image; published ImageNet accuracy; official = to be downloaded",
    )
    for head in ("model", "parameters", "GMAC", "input", "classes", "top-1", "top-5", "weights"):
        table.add_column(head, justify="left" if head in ("model", "weights") else "right")
    for row in rows:
        published = [f"{row[key]:.2f}" if row[key] else "-" for key in ("top1", "top5")]
        size = [f"{row['parameters']:,}", f"{row['gmac']:.3f}", str(row["input"]), str(row["classes"])]
        table.add_row(row["model"], *size, *published, row["weights"])
    Console().print(table)


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
