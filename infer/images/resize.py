"""From a decoded picture to the uint8 input of the network, as torchvision's PIL pipeline does it.

The reference is ``Compose([Resize(resize), CenterCrop(crop)])`` of torchvision on a PIL image: short side to
``resize`` with antialiasing, then the centre ``crop`` x ``crop``, black where the image is smaller. Normalisation is
part of the graph; ``mean`` and ``std`` are only recorded here.

The reference resizes the whole image and throws most of it away. Pillow can resize a box of the source instead, so
only the pixels that survive the crop are computed. The filter weights are the same, but Pillow keeps the edges of a
box in float32, and an edge that float32 cannot hold moves the weights a little. Pillow works in two passes, one an
axis, and rounds to uint8 after each. One pass with moved weights is off by one grey level at most, and the other pass,
being an average, cannot make that two. So both axes are cut where the edges are exact (the short side, whenever
``resize`` is a power of two), and one axis otherwise; the other is then resized in full and cut afterwards.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import Image

from infer.bundle.preprocessing import Preprocessing
from infer.errors import InputError

#: Filter and the half-width of its kernel in output pixels.
FILTERS = {"bilinear": (Image.Resampling.BILINEAR, 1), "bicubic": (Image.Resampling.BICUBIC, 2)}
# Above this coordinate the float32 edges of a box are too coarse; the source is cut at whole pixels first.
_MAX_BOX_EDGE = 16384
#: Whether this Pillow resizes the height of tall images first.
TALL_FIRST = int(PIL.__version__.split(".")[0]) >= 13


@dataclass(frozen=True)
class Axis:
    """One axis of the resize: ``size`` source pixels become ``resized``, of which ``length`` from ``start`` survive.

    They are put behind ``pad`` black pixels.
    """

    size: int
    resized: int
    start: int
    length: int
    pad: int

    @classmethod
    def plan(cls, size: int, resized: int, crop: int) -> Axis:
        """torchvision's CenterCrop of one axis."""
        if resized < crop:
            return cls(size, resized, 0, resized, (crop - resized) // 2)
        # round() goes to the even neighbour at .5, as torchvision's does
        return cls(size, resized, round((resized - crop) / 2.0), crop, 0)

    def edges(self) -> tuple[float, float]:
        """The surviving part in source pixels."""
        return self.start * self.size / self.resized, (self.start + self.length) * self.size / self.resized

    def exact(self) -> bool:
        """Whether float32 holds both edges and their distance, so that a box gives the weights of the full resize."""
        first, last = (np.float32(edge) for edge in self.edges())
        return all(
            float(value) * self.resized == pixels * self.size
            for value, pixels in ((first, self.start), (last, self.start + self.length), (last - first, self.length))
        )

    def region(self, reach: int) -> tuple[int, int]:
        """Whole source pixels, first and one past the last, that the surviving part is computed from."""
        support = reach * max(1.0, self.size / self.resized)
        first, last = self.edges()
        return max(0, math.floor(first - support) - 1), min(self.size, math.ceil(last + support) + 1)

    def full(self) -> Axis:
        """The same axis, resized as a whole."""
        return Axis(self.size, self.resized, 0, self.resized, 0)


def preprocess(image: Image.Image, spec: Preprocessing, out: NDArray[np.uint8] | None = None) -> NDArray[np.uint8]:
    """Resize and centre-crop ``image`` as ``spec`` says.

    Args:
        image: RGB, any size; see :func:`infer.images.decode_image`.
        spec: resize, crop and interpolation; mean and std are not used here.
        out: uint8 ``[crop, crop, 3]`` to write to, of any strides; None allocates.

    Returns:
        ``out``, or a new C-contiguous array. Bilinear: within one grey level of torchvision's Resize + CenterCrop.

    Raises:
        InputError: ``image`` is not RGB or has no pixels, or ``out`` does not fit.
    """
    width, height = image.size
    if image.mode != "RGB" or not width or not height:
        raise InputError(f"expected an RGB image, found mode {image.mode}, {width} x {height}; use decode_image()")
    if out is None:
        out = np.empty((spec.crop, spec.crop, 3), np.uint8)
    check_output(out, spec)
    x, y = plan_axes(width, height, spec)
    place(np.asarray(_resize(image, x, y, spec.interpolation)), x, y, out)
    return out


def check_output(out: NDArray[np.uint8], spec: Preprocessing) -> None:
    """Raise :class:`InputError` unless ``out`` is a writeable uint8 ``[crop, crop, 3]``."""
    shape = (spec.crop, spec.crop, 3)
    if out.shape != shape or out.dtype != np.uint8 or not out.flags.writeable:
        raise InputError(f"expected a writeable uint8 array of shape {shape}, found {out.dtype} {out.shape}")


def plan_axes(width: int, height: int, spec: Preprocessing) -> tuple[Axis, Axis]:
    """What torchvision's Resize + CenterCrop do to an image of this size, along x and along y."""
    short, long = min(width, height), max(width, height)
    resized = int(spec.resize * long / short)  # torchvision's rounding of the long side
    x = Axis.plan(width, spec.resize if width <= height else resized, spec.crop)
    y = Axis.plan(height, resized if width <= height else spec.resize, spec.crop)
    return x, y


def place(pixels: NDArray[np.uint8], x: Axis, y: Axis, out: NDArray[np.uint8]) -> None:
    """Put the surviving pixels, uint8 ``[y.length, x.length, 3 or more]``, into ``out``, on black."""
    if pixels.shape[:2] != out.shape[:2]:
        out[...] = 0
    out[y.pad : y.pad + y.length, x.pad : x.pad + x.length] = pixels[..., :3]


def _resize(image: Image.Image, x: Axis, y: Axis, interpolation: str) -> Image.Image:
    """The surviving ``y.length`` x ``x.length`` pixels of the resized image."""
    resample, reach = FILTERS[interpolation]
    box_x, box_y = x, y
    if not x.exact() and not y.exact():
        # The long axis saves more and cannot always be resized in full: 60,000 pixels beside 1 become 15 million.
        box_x, box_y = (x.full(), y) if x.resized < y.resized else (x, y.full())
    length = (box_x.length, box_y.length)
    order = _vertical_first(image.size, (x.resized, y.resized))

    (left, right), (top, bottom) = box_x.edges(), box_y.edges()
    if max(right, bottom) > _MAX_BOX_EDGE or _vertical_first(image.size, length) != order:
        (x0, x1), (y0, y1) = box_x.region(reach), box_y.region(reach)
        if _vertical_first((x1 - x0, y1 - y0), length) != order:
            resized = image.resize((x.resized, y.resized), resample)
            return resized.crop((x.start, y.start, x.start + x.length, y.start + y.length))
        image = image.crop((x0, y0, x1, y1))
        left, right, top, bottom = left - x0, right - x0, top - y0, bottom - y0
    result = image.resize(length, resample, (left, top, min(right, image.width), min(bottom, image.height)))
    if length == (x.length, y.length):
        return result
    x0, y0 = (x.start if box_x is not x else 0), (y.start if box_y is not y else 0)
    return result.crop((x0, y0, x0 + x.length, y0 + y.length))


def _vertical_first(source: tuple[int, int], target: tuple[int, int]) -> bool:
    """Whether Pillow 13 resizes the height before the width (earlier versions never do); sizes are (width, height).

    It looks at the whole source even when only a box of it is resized. The order shows in the rounding and, for
    bicubic, in the clipping between the passes, so a box must go through in the order of the full resize.
    """
    return TALL_FIRST and source[1] - target[1] > 2 * max(0, source[0] - target[0])
