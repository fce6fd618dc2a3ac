"""Whatever people have as a picture becomes an 8-bit RGB image, or an :class:`ImageError` that names it.

The pixels are those of the field's loaders (torchvision's and timm's ``Image.open(path).convert("RGB")``), because
that is what the published accuracies were measured with: transparency is dropped, not blended with a background; ICC
profiles are ignored; CMYK goes through Pillow's plain conversion; JPEG is decoded at full size, and with the scaled
DCT of ``draft``, which is not exact, only when asked for. Two things differ, on purpose:

* The EXIF orientation is applied. Those loaders do not, and see a phone's portrait lying on its side; a person who
  classifies a photo means the upright one. Few files of the ImageNet validation set carry a rotation; pass
  ``apply_exif=False`` to decode them as the loaders do. (TIFF files are always upright: Pillow turns them itself.)
* Grey of more than 8 bits is scaled to 8 by the bits that a sample has (16, in TIFF also 12): ``value >> 8``, as Pillow
  does for 16-bit colour; ``convert("RGB")`` would clip it. White-is-zero is turned round there too, as for 8 bits.

Nothing here changes state of the process: no warning filter, no limit of Pillow. Every function may be called from
many threads at once. Files are opened with the drivers of :data:`FORMATS` only, so a picture cannot reach rarer ones.
"""

from __future__ import annotations

import io
import os
import stat
from pathlib import Path
from typing import IO, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    JpegImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from infer.errors import ImageError
from infer.images.foreign import what_it_is

Decodable: TypeAlias = "bytes | bytearray | memoryview | str | os.PathLike[str] | Image.Image | NDArray[np.uint8]"

#: Largest accepted image, in pixels: Pillow's own default. Decoded it takes 358 MB.
MAX_PIXELS = 89_478_485
#: Largest accepted file, in bytes.
MAX_BYTES = 1 << 30
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "AVIF")
#: File name extensions of :data:`FORMATS`, lower case.
EXTENSIONS = frozenset(
    (
        ".jpg",
        ".jpeg",
        ".jpe",
        ".jfif",
        ".png",
        ".apng",
        ".webp",
        ".bmp",
        ".dib",
        ".gif",
        ".tif",
        ".tiff",
        ".ppm",
        ".pgm",
        ".pbm",
        ".pnm",
        ".avif",
    )
)

_PLUGINS = (  # importing a plugin registers its driver in Image.OPEN
    AvifImagePlugin,
    BmpImagePlugin,
    GifImagePlugin,
    JpegImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

# EXIF tag 0x0112 (EXIF 2.32, 4.6.4 A): how the stored image must be turned to stand upright.
_ORIENTATION = 0x0112
# Tags of TIFF 6.0, section 8.
_BITS_PER_SAMPLE, _PHOTOMETRIC = 258, 262
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def decode_image(
    source: Decodable,
    name: str | None = None,
    *,
    max_pixels: int = MAX_PIXELS,
    apply_exif: bool = True,
    shortest: int = 0,
) -> Image.Image:
    """Decode ``source`` to an 8-bit RGB image; of an animation or a multi-page file, the first frame.

    A PIL image that is RGB and upright already is returned itself, not copied.

    Args:
        source: encoded bytes, a path, a PIL image, or a uint8 array ``[H, W, 3]`` (RGB), ``[H, W, 4]`` (RGBA),
            ``[H, W, 1]`` or ``[H, W]`` (grey). Nothing of it is changed, save that a lazy PIL image gets loaded.
        name: what errors call it; None takes the path, or the kind of ``source``.
        max_pixels: more raise, before memory for them is used.
        apply_exif: turn the image upright as its EXIF orientation says.
        shortest: decode encoded JPEG at 1/2, 1/4 or 1/8 of its size, the least at which the short side keeps so many
            pixels; see :func:`scale_of`. Faster, not exact. 0: at full size.

    Raises:
        ImageError: missing, not a regular file, empty, not an image, truncated, damaged, too large, of no pixels, or
            of a kind that has no 8-bit equivalent. The message starts with the name.
    """
    if isinstance(source, np.ndarray):
        return _from_array(source, name or "array", max_pixels)
    if isinstance(source, Image.Image):
        return _to_rgb(source, name or getattr(source, "filename", "") or "PIL image", max_pixels, apply_exif)
    if isinstance(source, bytes | bytearray | memoryview):
        name = name or f"{len(source)} bytes"
        if len(source) == 0:
            raise ImageError(f"{name}: empty, expected an image")
        return _decode(io.BytesIO(source), name, max_pixels, apply_exif, shortest)
    if isinstance(source, str | os.PathLike):
        name = name or os.fspath(source)
        with open_image_file(Path(source), name) as file:
            return _decode(file, name, max_pixels, apply_exif, shortest)
    raise ImageError(
        f"{name or 'image'}: expected a path, bytes, a PIL image or a uint8 array, found {type(source).__name__}"
    )


def open_image_file(path: Path, name: str) -> IO[bytes]:
    """Open a regular, non-empty file of at most :data:`MAX_BYTES` for reading.

    Raises:
        ImageError: it is missing, empty, too large, not a regular file, or not readable.
    """
    try:
        status = path.stat()  # before opening: to open a pipe waits for its writer
        if stat.S_ISDIR(status.st_mode):
            raise ImageError(f"{name}: a folder, expected an image file")
        if not stat.S_ISREG(status.st_mode):
            raise ImageError(f"{name}: not a regular file, expected an image file")
        if status.st_size == 0:
            raise ImageError(f"{name}: empty file, expected an image")
        if status.st_size > MAX_BYTES:
            raise ImageError(f"{name}: {status.st_size} bytes, an image file may have {MAX_BYTES}")
        return path.open("rb")
    except FileNotFoundError:
        raise ImageError(f"{name}: no such file") from None
    except (OSError, ValueError) as error:  # ValueError: a null character in the path
        raise ImageError(f"{name}: cannot be read ({error})") from error


def _decode(file: IO[bytes], name: str, max_pixels: int, apply_exif: bool, shortest: int) -> Image.Image:
    image = open_image(file, name)
    check_size(image.size, name, max_pixels)  # before draft() changes it
    if shortest and isinstance(image, JpegImagePlugin.JpegImageFile):
        image.draft("RGB", (shortest, shortest))
    return _to_rgb(image, name, max_pixels, apply_exif)


def open_image(file: IO[bytes], name: str) -> Image.Image:
    """Read the header of an image of one of :data:`FORMATS`; its pixels and size are not yet looked at.

    Not ``Image.open``: that one warns and raises by a limit of the whole process, and tries every driver.

    Raises:
        ImageError: of no known format, or a damaged header.
    """
    prefix = file.read(16)
    for format_name in FORMATS:
        factory, accept = Image.OPEN[format_name]
        verdict = accept(prefix) if accept else True
        if not verdict:
            continue
        if isinstance(verdict, str):
            raise ImageError(f"{name}: {verdict}; install a Pillow with {format_name} support")
        file.seek(0)
        try:
            image: Image.Image = factory(file, "")
        except Exception as error:
            raise ImageError(f"{name}: damaged {format_name} file ({_reason(error)})") from error
        return image
    if (foreign := what_it_is(prefix)) is not None:
        raise ImageError(f"{name}: expected an image ({', '.join(FORMATS)}), found {foreign}")
    raise ImageError(f"{name}: not an image, or of no known format ({', '.join(FORMATS)})")


def _to_rgb(image: Image.Image, name: str, max_pixels: int, apply_exif: bool) -> Image.Image:
    check_size(image.size, name, max_pixels)
    # Drivers raise a dozen kinds of exceptions on damaged files (OSError, SyntaxError, ValueError, struct.error,
    # EOFError, MemoryError, ...) and add new ones. None may cost more than this image.
    try:
        image.load()
        turn = upright_turn(image) if apply_exif else None
        if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM"):
            image = Image.fromarray(_eight_bits(image))
        elif image.mode in ("I", "F"):
            raise ImageError(f"{name}: 32-bit pixels of unknown range; convert the image to 8 or 16 bits first")
        elif image.mode == "P" and isinstance(image.info.get("transparency"), bytes):
            image = image.convert("RGBA")  # the same colours; straight to RGB, Pillow warns
        if image.mode != "RGB":
            image = image.convert("RGB")
        if turn is not None:
            image = image.transpose(turn)
            image.info = {}  # a copy of the metadata came along, and would have the image turned again elsewhere
        return image
    except ImageError:
        raise
    except Exception as error:
        raise ImageError(f"{name}: cannot be decoded, truncated or damaged ({_reason(error)})") from error


def _eight_bits(image: Image.Image) -> NDArray[np.uint8]:
    """Grey of 9 to 16 bits a sample as 8 bits. Pillow keeps the samples of a 12-bit TIFF as they are."""
    bits, white_is_zero = 16, False
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        bits = image.tag_v2.get(_BITS_PER_SAMPLE, (16,))[0]
        white_is_zero = image.tag_v2.get(_PHOTOMETRIC) == 0
    grey = (np.asarray(image) >> (bits - 8)).astype(np.uint8)
    return 255 - grey if white_is_zero else grey


def check_size(size: tuple[int, int], name: str, max_pixels: int) -> None:
    """Raise :class:`ImageError` unless ``size`` (width, height) has 1 to ``max_pixels`` pixels."""
    width, height = size
    if width < 1 or height < 1:
        raise ImageError(f"{name}: {width} x {height} pixels, expected at least 1 x 1")
    if width * height > max_pixels:
        raise ImageError(f"{name}: {width} x {height} pixels, the limit is {max_pixels}; scale it down first")


def upright_turn(image: Image.Image) -> Image.Transpose | None:
    """What its EXIF orientation asks for; None for an upright one. Damaged metadata must not cost a sound picture."""
    try:
        value: Any = image.getexif().get(_ORIENTATION, 1)
        return _UPRIGHT.get(int(value))
    except Exception:
        return None


def scale_of(size: tuple[int, int], shortest: int) -> int:
    """1, 2, 4 or 8: the largest divisor that leaves the short side of ``size`` at least ``shortest`` pixels, or 1."""
    return next((scale for scale in (8, 4, 2) if shortest and min(size) // scale >= shortest), 1)


def _from_array(array: NDArray[Any], name: str, max_pixels: int) -> Image.Image:
    grey = array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 1)
    if array.dtype != np.uint8 or not (grey or (array.ndim == 3 and array.shape[2] in (3, 4))):
        raise ImageError(
            f"{name}: expected uint8 [H, W], [H, W, 1], [H, W, 3] or [H, W, 4], found {array.dtype} {list(array.shape)}"
        )
    check_size((array.shape[1], array.shape[0]), name, max_pixels)
    pixels = np.broadcast_to(array.reshape(*array.shape[:2], 1), (*array.shape[:2], 3)) if grey else array[..., :3]
    return Image.fromarray(np.ascontiguousarray(pixels))


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
