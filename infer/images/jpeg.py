"""Encoded images straight to the input of the network, JPEG files by the fastest decoder that is here.

``native``      :mod:`infer.images.native`: region-of-interest decoding and Pillow's resize in one pass. Pillow's bytes.
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
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from infer.bundle.preprocessing import Preprocessing
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
from infer.images.native import load_kernel
from infer.images.resize import FILTERS, TALL_FIRST, check_output, place, plan_axes, preprocess

ENVIRONMENT_VARIABLE = "IRESNET_DECODER"
#: Fast mode keeps the short side of the decoded image at least so many times ``resize``.
FAST_MARGIN = 2
#: Encoders write about ten scans; each costs a pass over the whole image for a few bytes of file.
MAX_SCANS = 500
#: Decoded pixels that each thread keeps memory for, bytes: 16 megapixels.
KEPT_BYTES = 64 << 20
# Up to here the copies that cykooz_resizer makes of bytes cost less than its access to Pillow's images.
_COPIED_BYTES = 4 << 20
_FASTEST_FIRST = ("native", "simplejpeg", "pillow")
_MAGIC = b"\xff\xd8\xff"
SCAN = b"\xff\xda"
"""Starts a scan; never among coded pixels."""
_SAMPLINGS = b"\x11\x21\x22\x12"  # of Y against Cb and Cr: 4:4:4, 4:2:2, 4:2:0, 4:4:0
_per_thread = threading.local()

#: data, pre-processing, output, name for errors, least short side, most pixels: whether it took the file.
_Decoder = Callable[[bytes, Preprocessing, NDArray[np.uint8], str, int, int], bool]


def decoder_name() -> str:
    """What decodes JPEG files here: ``native``, ``simplejpeg`` or ``pillow``.

    Raises:
        InputError: ``IRESNET_DECODER`` asks for something unknown, or not installed.
    """
    return _choose(os.environ.get(ENVIRONMENT_VARIABLE, ""))


def missing_decoders() -> dict[str, str]:
    """The decoders that are not here, fastest first, and what adds each."""
    missing = {}
    if not load_kernel():
        missing["native"] = "compile it: python setup.py build_ext --inplace"
    if not _simplejpeg():
        missing["simplejpeg"] = "pip install simplejpeg cykooz-resizer"
    return missing


@functools.cache
def _choose(wish: str) -> str:
    missing = missing_decoders()
    if not wish:
        return next(name for name in _FASTEST_FIRST if name not in missing)
    if wish not in _FASTEST_FIRST:
        raise InputError(f"{ENVIRONMENT_VARIABLE}: expected one of {', '.join(_FASTEST_FIRST)}, found {wish!r}")
    if wish in missing:
        raise InputError(f"{ENVIRONMENT_VARIABLE}: {wish} is not here; {missing[wish]}")
    return wish


def load_input(
    source: Decodable,
    spec: Preprocessing,
    out: NDArray[np.uint8],
    name: str | None = None,
    *,
    fast: bool = False,
    max_pixels: int = MAX_PIXELS,
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
        max_pixels: of an encoded image or an array; more raise, before memory for them is used.

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
        if decoder is not None and decoder(data, spec, out, name, shortest, max_pixels):
            return
        _check_scans(data, name)
    image = decode_image(source if data is None else data, name, shortest=shortest, max_pixels=max_pixels)
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
    if (scans := data.count(SCAN)) > MAX_SCANS:
        raise ImageError(f"{name}: {scans} scans in a JPEG file, the limit is {MAX_SCANS}; save it again")


def _with_kernel(
    data: bytes, spec: Preprocessing, out: NDArray[np.uint8], name: str, shortest: int, max_pixels: int
) -> bool:
    kernel: Any = load_kernel()
    target = out if out.flags.c_contiguous else np.empty(out.shape, np.uint8)
    reach = FILTERS[spec.interpolation][1]
    refused = kernel.load(data, target, spec.resize, spec.crop, reach, TALL_FIRST, max_pixels, shortest=shortest)
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


def _with_simplejpeg(
    data: bytes, spec: Preprocessing, out: NDArray[np.uint8], name: str, shortest: int, max_pixels: int
) -> bool:
    modules = _simplejpeg()
    assert modules is not None
    header = read_header(data)
    if header is None:
        return False
    check_size(header.size, name, max_pixels)
    if header.progressive:
        _check_scans(data, name)
    turn = upright_turn(open_image(io.BytesIO(data), name)) if header.metadata else None
    scale = scale_of(header.size, shortest)
    width, height = (-(-side // scale) for side in header.size)
    try:
        pixels = modules[0].decode_jpeg(
            data, "RGBX", min_height=height, min_width=width, buffer=_buffer(width * height * 4)
        )
    except ValueError:  # any damage, and kinds that it does not know
        return False
    if pixels.shape[:2] != (height, width):
        return False
    # RGBA, because cykooz_resizer takes no RGBX; alpha is not used
    image = Image.frombuffer("RGBA", (width, height), pixels, "raw", "RGBA", 0, 1)
    if turn is not None:
        image = image.transpose(turn)
        pixels = np.asarray(image)
    if spec.interpolation == "bilinear":
        _resize(modules[1], image, pixels, spec, out)
    else:  # bicubic depends on the order of the passes, which is Pillow's own
        preprocess(image.convert("RGB"), spec, out)
    return True


class JpegHeader(NamedTuple):
    """What the segments before the first scan say.

    Attributes:
        size: width and height, pixels, 0 included.
        progressive: there may be many scans.
        metadata: there may be an orientation.
        plain: colour stored as YCbCr, 4:4:4, 4:2:2, 4:2:0 or 4:4:0.
        scan: where the first scan starts, bytes from the start of the file.
    """

    size: tuple[int, int]
    progressive: bool
    metadata: bool
    plain: bool
    scan: int


def read_header(data: bytes) -> JpegHeader | None:
    """None for what is not 8-bit grey or colour. A tenth of the time of Pillow's, which looks into every segment."""
    at, metadata, stored_as_rgb, frame, progressive = 2, False, False, b"", False
    while at + 10 <= len(data) and data[at] == 0xFF:
        marker, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4])
        if marker == 0xDA:
            break
        if marker in (0xC0, 0xC1, 0xC2):
            if frame:
                return None
            frame, progressive = data[at + 4 : at + 2 + length], marker == 0xC2
        elif marker not in (0xC4, 0xDB, 0xDD, 0xFE) and not 0xE0 <= marker <= 0xEF:
            return None
        metadata = metadata or marker == 0xE1
        # Adobe's segment: five letters, version, two flags, the colour transform (1 is YCbCr)
        stored_as_rgb = stored_as_rgb or (marker == 0xEE and data[at + 4 : at + 16][11:] != b"\x01")
        at += 2 + length
    # precision, height, width, components, and of each its number, sampling and table
    if len(frame) < 6 or frame[0] != 8 or frame[5] not in (1, 3) or len(frame) != 6 + 3 * frame[5]:
        return None
    size = int.from_bytes(frame[3:5]), int.from_bytes(frame[1:3])
    plain = frame[6::3] == b"\x01\x02\x03" and frame[7] in _SAMPLINGS and frame[10::3] == b"\x11\x11"
    return JpegHeader(size, progressive, metadata, plain and not stored_as_rgb, at)


def _buffer(size: int) -> bytearray | None:
    """Memory of this thread for decoded pixels; to take it anew for every large image costs as much as decoding."""
    if size > KEPT_BYTES:
        return None
    if len(getattr(_per_thread, "pixels", b"")) < size:
        _per_thread.pixels = bytearray(size)
    return _per_thread.pixels


def _resize(
    library: Any, image: Image.Image, pixels: NDArray[np.uint8], spec: Preprocessing, out: NDArray[np.uint8]
) -> None:
    """As :func:`infer.images.resize.preprocess`, bilinear only, from an RGBA image, whose alpha means nothing.

    ``pixels`` are those of ``image``, uint8 ``[H, W, 4]``.
    """
    if not hasattr(_per_thread, "resizer"):
        _per_thread.resizer = library.Resizer()
    x, y = plan_axes(*image.size, spec)
    (left, right), (top, bottom) = x.edges(), y.edges()
    # The box must lie inside; what rounding adds at the edge is far below one level.
    box = library.CropBox(left, top, min(right, image.width) - left, min(bottom, image.height) - top)
    bilinear = library.ResizeAlg.convolution(library.FilterType.bilinear)
    options = library.ResizeOptions(resize_alg=bilinear, crop_box=box, use_alpha=False)
    if pixels.nbytes <= _COPIED_BYTES:
        kind = library.PixelType.U8x4
        copied = library.ImageData(x.length, y.length, kind)
        _per_thread.resizer.resize(library.ImageData(*image.size, kind, pixels.tobytes()), copied, options)
        result = np.frombuffer(copied.get_buffer(), np.uint8).reshape(y.length, x.length, 4)
    else:
        target = Image.new("RGBA", (x.length, y.length))
        _per_thread.resizer.resize_pil(image, target, options)
        result = np.asarray(target)
    place(result, x, y, out)


_DECODERS: dict[str, _Decoder | None] = {"native": _with_kernel, "simplejpeg": _with_simplejpeg, "pillow": None}
