"""Encoded images straight to the input of the network, JPEG files by the fastest decoder that is here.

``native``      :mod:`infer.native`: region-of-interest decoding and Pillow's resize in one pass. Pillow's bytes.
``simplejpeg``  libraries alone: simplejpeg decodes, cykooz_resizer resizes. Within one grey level.
``pillow``      Pillow alone. Within one grey level.

The first two are for sound, ordinary JPEG files. All else goes through :mod:`infer.images`, so that errors are the same
everywhere: other formats, CMYK, rare subsampling, odd metadata, and what is damaged or truncated. Of a JPEG file that
ends as it should, ``native`` reads no more than the rows it needs: damage below them is not seen.

The environment variable ``IRESNET_DECODER`` names one of the three; without it the first that is installed is taken.
"""

from __future__ import annotations

import functools
import io
import os
import threading
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from infer.errors import ImageError, InputError
from infer.images import (
    MAX_PIXELS,
    Decodable,
    check_size,
    decode_image,
    open_image,
    open_image_file,
    scale_of,
    upright_turn,
)
from infer.native import load_kernel
from infer.preprocess import FILTERS, TALL_FIRST, Preprocessing, check_output, place, plan_axes, preprocess

ENVIRONMENT_VARIABLE = "IRESNET_DECODER"
#: Fast mode keeps the short side of the decoded image at least so many times ``resize``.
FAST_MARGIN = 2
#: Encoders write about ten scans; each costs a pass over the whole image for a few bytes of file.
MAX_SCANS = 500
_MAGIC = b"\xff\xd8\xff"
_SCAN = b"\xff\xda"  # never among coded pixels
_per_thread = threading.local()

#: data, pre-processing, output, name for errors, least short side: whether it took the file.
_Decoder = Callable[[bytes, Preprocessing, NDArray[np.uint8], str, int], bool]


def decoder_name() -> str:
    """What decodes JPEG files here: ``native``, ``simplejpeg`` or ``pillow``.

    Raises:
        InputError: ``IRESNET_DECODER`` asks for something unknown, or not installed.
    """
    return _choose(os.environ.get(ENVIRONMENT_VARIABLE, ""))


@functools.cache
def _choose(wish: str) -> str:
    missing = {
        "native": None if load_kernel() else "compile it: python setup.py build_ext --inplace",
        "simplejpeg": None if _simplejpeg() else "pip install simplejpeg cykooz-resizer",
        "pillow": None,
    }
    if not wish:
        return next(name for name, reason in missing.items() if reason is None)
    if wish not in missing:
        raise InputError(f"{ENVIRONMENT_VARIABLE}: expected one of {', '.join(missing)}, found {wish!r}")
    if missing[wish]:
        raise InputError(f"{ENVIRONMENT_VARIABLE}: {wish} is not here; {missing[wish]}")
    return wish


def load_input(
    source: Decodable, spec: Preprocessing, out: NDArray[np.uint8], name: str | None = None, *, fast: bool = False
) -> None:
    """Decode ``source``, resize and crop it as ``spec`` says, and write the result to ``out``.

    Within one grey level of torchvision's pipeline on Pillow's pixels; JPEG files that ``native`` takes, equal to it.

    Args:
        source: see :func:`infer.images.decode_image`.
        spec: the model's pre-processing.
        out: uint8 ``[crop, crop, 3]``, of any strides. After an error it holds anything.
        name: what errors call the image.
        fast: decode JPEG at 1/2, 1/4 or 1/8 of its size where the short side stays at least twice ``spec.resize``.
            Pixels differ by a few grey levels; smaller files are decoded exactly.

    Raises:
        ImageError: as :func:`infer.images.decode_image`.
        InputError: ``out`` does not fit.
    """
    check_output(out, spec)
    shortest = FAST_MARGIN * spec.resize if fast else 0
    data = _jpeg_bytes(source, name)
    if data is not None:
        name = name or (str(source) if isinstance(source, str | os.PathLike) else f"{len(data)} bytes")
        decoder = _DECODERS[decoder_name()]
        if decoder is not None and decoder(data, spec, out, name, shortest):
            return
        _check_scans(data, name)
    image = decode_image(source if data is None else data, name, shortest=shortest)
    preprocess(image, spec, out)


def _jpeg_bytes(source: Decodable, name: str | None) -> bytes | None:
    """The bytes of a JPEG file; None for all else."""
    if isinstance(source, str | os.PathLike):
        name = name or os.fspath(source)
        with open_image_file(Path(source), name) as file:
            try:
                head = file.read(len(_MAGIC))
                return head + file.read() if head == _MAGIC else None
            except OSError as error:
                raise ImageError(f"{name}: cannot be read ({error})") from error
    if isinstance(source, bytearray | memoryview):
        return bytes(source) if bytes(source[: len(_MAGIC)]) == _MAGIC else None
    return source if isinstance(source, bytes) and source.startswith(_MAGIC) else None


def _check_scans(data: bytes, name: str) -> None:
    if (scans := data.count(_SCAN)) > MAX_SCANS:
        raise ImageError(f"{name}: {scans} scans in a JPEG file, the limit is {MAX_SCANS}; save it again")


def _with_kernel(data: bytes, spec: Preprocessing, out: NDArray[np.uint8], name: str, shortest: int) -> bool:
    kernel: Any = load_kernel()
    target = out if out.flags.c_contiguous else np.empty(out.shape, np.uint8)
    reach = FILTERS[spec.interpolation][1]
    refused = kernel.load(data, target, spec.resize, spec.crop, reach, TALL_FIRST, MAX_PIXELS, shortest=shortest)
    if refused is None and target is not out:
        out[...] = target
    return refused is None


@functools.cache
def _simplejpeg() -> tuple[ModuleType, ModuleType] | None:
    try:
        import cykooz_resizer
        import simplejpeg
    except ImportError:
        return None
    return simplejpeg, cykooz_resizer


def _with_simplejpeg(data: bytes, spec: Preprocessing, out: NDArray[np.uint8], name: str, shortest: int) -> bool:
    modules = _simplejpeg()
    assert modules is not None
    image = open_image(io.BytesIO(data), name)
    check_size(image.size, name, MAX_PIXELS)
    _check_scans(data, name)
    if image.mode not in ("RGB", "L"):
        return False
    scale = scale_of(image.size, shortest)
    width, height = (-(-side // scale) for side in image.size)
    try:
        pixels = modules[0].decode_jpeg(data, "RGBX", min_height=height, min_width=width)
    except ValueError:  # any damage, and kinds that it does not know
        return False
    if pixels.shape[:2] != (height, width):
        return False
    if (turn := upright_turn(image)) is not None:
        image = Image.frombuffer("RGBX", (width, height), pixels, "raw", "RGBX", 0, 1).transpose(turn)
        pixels = np.asarray(image)
    if spec.interpolation == "bilinear":
        _resize(modules[1], pixels, spec, out)
    else:  # bicubic depends on the order of the passes, which is Pillow's own
        height, width = pixels.shape[:2]
        preprocess(Image.frombuffer("RGBX", (width, height), pixels, "raw", "RGBX", 0, 1), spec, out)
    return True


def _resize(library: Any, pixels: NDArray[np.uint8], spec: Preprocessing, out: NDArray[np.uint8]) -> None:
    """As :func:`infer.preprocess.preprocess`, bilinear only, from RGBX pixels ``[H, W, 4]``."""
    if not hasattr(_per_thread, "resizer"):
        _per_thread.resizer = library.Resizer()
    height, width = pixels.shape[:2]
    x, y = plan_axes(width, height, spec)
    (left, right), (top, bottom) = x.edges(), y.edges()
    (x0, x1), (y0, y1) = x.region(1), y.region(1)
    kind = library.PixelType.U8x4
    source = library.ImageData(x1 - x0, y1 - y0, kind, pixels[y0:y1, x0:x1].tobytes())
    target = library.ImageData(x.length, y.length, kind)
    # The box must lie inside; what rounding adds at the edge is far below one level.
    box = library.CropBox(left - x0, top - y0, min(right, x1) - left, min(bottom, y1) - top)
    bilinear = library.ResizeAlg.convolution(library.FilterType.bilinear)
    options = library.ResizeOptions(resize_alg=bilinear, crop_box=box, use_alpha=False)
    _per_thread.resizer.resize(source, target, options)
    place(np.frombuffer(target.get_buffer(), np.uint8).reshape(y.length, x.length, 4), x, y, out)


_DECODERS: dict[str, _Decoder | None] = {"native": _with_kernel, "simplejpeg": _with_simplejpeg, "pillow": None}
