"""What :meth:`infer.runner.Runner.classify` takes: one image, several, or an iterator of them, each with a name."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image

from infer.errors import InputError
from infer.images import Decodable

_KINDS = "a path, encoded bytes, a binary file, a PIL image or a uint8 array [H, W, 3] or [H, W]"


def iter_pictures(images: Any) -> Iterator[tuple[str, Decodable]]:
    """Name and image of everything in ``images``, one by one.

    Args:
        images: a path, encoded bytes, a binary file, a PIL image, or a uint8 array ``[H, W]``, ``[H, W, C]``; a uint8
            array ``[N, H, W, C]``; or a list, tuple or iterator of those.

    Raises:
        InputError: something that is no image in any of these forms; says where it stood. A path that leads nowhere
            and bytes that cannot be decoded are forms of an image: what is wrong with them is found when it is decoded.
    """
    if isinstance(images, np.ndarray) and images.ndim == 4:
        _require_pixels(images, images.shape[1:], "images")
        images = iter(images)
    if isinstance(images, (list, tuple)) or (isinstance(images, Iterator) and not hasattr(images, "read")):
        for number, item in enumerate(images):
            yield _picture(item, f"image {number}")
    else:
        yield _picture(images, "image 0")


def _picture(item: Any, name: str) -> tuple[str, Decodable]:
    if isinstance(item, (str, os.PathLike)):
        path = os.fsdecode(item)
        return path, path
    if isinstance(item, (bytes, bytearray, memoryview, Image.Image)):
        return name, item
    if isinstance(item, np.ndarray):
        _require_pixels(item, item.shape, name)
        return name, item
    if callable(read := getattr(item, "read", None)):
        try:
            content = read()
        except (OSError, ValueError) as error:
            raise InputError(f"{name}: {type(item).__name__} cannot be read ({error})") from error
        if not isinstance(content, bytes):
            raise InputError(f"{name}: expected a file opened in binary mode, found {type(content).__name__} in it")
        return name, content
    raise InputError(f"{name}: expected {_KINDS}; or a list or an iterator of those; found {_found(item)}")


def _require_pixels(array: np.ndarray[Any, Any], shape: tuple[int, ...], name: str) -> None:
    if array.dtype != np.uint8 or not (len(shape) == 2 or (len(shape) == 3 and shape[2] in (1, 3, 4))):
        raise InputError(
            f"{name}: expected uint8 pixels [H, W], [H, W, 1], [H, W, 3] or [H, W, 4] of 0 to 255, or a batch "
            f"[N, H, W, C] of them, found {_found(array)}"
        )


def _found(item: Any) -> str:
    kind = f"{type(item).__module__}.{type(item).__name__}".removeprefix("builtins.")
    if (shape := getattr(item, "shape", None)) is None:
        return kind
    hint = "" if isinstance(item, np.ndarray) else ". Pass item.numpy(), or Runner.infer_device for one on a GPU"
    return f"{kind}, {getattr(item, 'dtype', 'of no dtype')} {list(shape)}{hint}"
