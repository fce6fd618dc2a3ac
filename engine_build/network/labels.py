"""Class names of a model: a file, the shipped model's, ImageNet's, or numbers."""

from __future__ import annotations

from pathlib import Path

from engine_build.network.zoo import Model
from infer.errors import InputError
from infer.text_files import read_text, split_lines


def class_names(row: Model | None, num_classes: int, path: Path | None = None) -> tuple[list[str], list[str] | None]:
    """``(names, wnids or None)`` in the order of the logits.

    Args:
        row: the model, None for a user's own graph.
        num_classes: how many names are needed.
        path: a text file with one name a line; None takes the shipped model's, ImageNet's for 1,000 classes, else
            ``class 0`` and so on.

    Raises:
        InputError: the file is missing or has another number of lines.
    """
    if path is None and row is not None and row.shipped is not None and num_classes == row.num_classes:
        path = row.shipped / "labels.txt"
    if path is not None:
        if not path.is_file():
            raise InputError(f"no label file at {path}; expected a text file with one class name a line")
        names = [line.strip() for line in split_lines(read_text(path, "label file"))]
        if len(names) != num_classes:
            raise InputError(f"{path}: expected {num_classes} lines, one a class, found {len(names)}")
        return names, None
    if num_classes == 1000:
        from infer.datasets.imagenet import imagenet1k

        return list(imagenet1k().names), list(imagenet1k().wnids)
    return [f"class {number}" for number in range(num_classes)], None
