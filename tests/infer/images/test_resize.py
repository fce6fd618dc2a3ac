"""The pre-processing against torchvision itself."""

from __future__ import annotations

import importlib
import importlib.util
import sys

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from specs import sized

from infer.bundle.preprocessing import IMAGENET
from infer.errors import InputError
from infer.images.resize import preprocess


def import_torchvision():
    """torchvision beside a torch build it was not compiled for: its transforms work, only two operators are missing."""
    if importlib.util.find_spec("torchvision") is None:
        pytest.skip("torchvision is not installed")
    import torch

    try:
        return importlib.import_module("torchvision.transforms")
    except RuntimeError:
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        import_torchvision.library = torch.library.Library("torchvision", "FRAGMENT")
        for name in ("nms", "qnms"):
            import_torchvision.library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        return importlib.import_module("torchvision.transforms")


@pytest.fixture(scope="module")
def torchvision_pipeline():
    transforms = import_torchvision()

    def run(image, spec):
        mode = transforms.InterpolationMode(spec.interpolation)
        pipeline = transforms.Compose([transforms.Resize(spec.resize, mode), transforms.CenterCrop(spec.crop)])
        return np.asarray(pipeline(image))

    return run


def noise(width, height, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


def pattern(width, height):
    """Ramps and one-pixel stripes: where rounding errors line up."""
    y, x = np.mgrid[:height, :width]
    ramp = x * 255 // max(1, width - 1), (y % 2) * 255, (x // 2 + y) % 256
    return Image.fromarray(np.stack(ramp, -1).astype(np.uint8))


def photos():
    from skimage import data
    from sklearn.datasets import load_sample_images

    found = {name: getattr(data, name)() for name in ("astronaut", "coffee", "chelsea", "rocket")}
    found["china"], found["flower"] = load_sample_images().images
    return {name: Image.fromarray(np.asarray(pixels)) for name, pixels in found.items()}


def difference(ours, reference):
    assert ours.shape == reference.shape and ours.dtype == np.uint8
    return np.abs(ours.astype(int) - reference)


@pytest.mark.parametrize("turned", [False, True], ids=["as-is", "turned"])
@pytest.mark.parametrize(("resize", "crop"), [(256, 224), (235, 224), (224, 224), (64, 64), (96, 128)])
def test_photos_are_within_one_level_and_mostly_equal(torchvision_pipeline, resize, crop, turned):
    spec = sized(resize, crop)
    for name, photo in photos().items():
        image = photo.transpose(Image.Transpose.ROTATE_90) if turned else photo
        off = difference(preprocess(image, spec), torchvision_pipeline(image, spec))
        assert off.max() <= 1, name
        assert (off > 0).mean() < 0.02, name


SIZES = [
    (1, 1), (1, 300), (300, 1), (2, 499), (3, 3), (223, 224), (224, 224), (225, 224), (256, 256), (257, 255),
    (333, 500), (500, 333), (300, 900), (900, 300), (70, 75), (1024, 31), (31, 1024), (4032, 600),
]  # fmt: skip


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
def test_odd_sizes(torchvision_pipeline, size):
    for spec in (IMAGENET, sized(235, 224), sized(64, 96), sized(64, 64)):
        for image in (noise(*size), pattern(*size)):
            assert difference(preprocess(image, spec), torchvision_pipeline(image, spec)).max() <= 1


@pytest.mark.parametrize("size", [(60000, 150), (150, 60000), (60000, 1200), (1200, 60000)], ids=str)
def test_60000_pixels(torchvision_pipeline, size):
    image = noise(*size)
    assert difference(preprocess(image, IMAGENET), torchvision_pipeline(image, IMAGENET)).max() <= 1


@pytest.mark.parametrize("size", [(60000, 1), (1, 60000), (59999, 3), (3, 59999)], ids=str)
def test_60000_pixels_beside_one(torchvision_pipeline, size):
    spec = sized(9, 7)
    image = noise(*size)
    assert difference(preprocess(image, spec), torchvision_pipeline(image, spec)).max() <= 1


def test_edges_that_float32_cannot_hold(torchvision_pipeline):
    image = noise(2_000_003, 11)
    spec = sized(5, 5)
    assert difference(preprocess(image, spec), torchvision_pipeline(image, spec)).max() <= 1


@pytest.mark.parametrize("turned", [False, True])
def test_one_pixel_wide_is_never_resized_as_a_whole(torchvision_pipeline, turned):
    # As a whole it would become 256 x 15,360,000. One source pixel becomes 256, so 20 of them hold what survives.
    pixels = np.random.default_rng(1).integers(0, 256, (60000, 1, 3), np.uint8)
    part = Image.fromarray(pixels[29990:30010])
    whole_part = torchvision_pipeline(part, sized(256, 256))  # 256 of 5120 rows, from 2432
    image = Image.fromarray(pixels)
    if turned:
        image = image.transpose(Image.Transpose.TRANSPOSE)
    ours = preprocess(image, IMAGENET)
    if turned:
        ours = ours.transpose(1, 0, 2)
    start = (256 * 60000 - 224) // 2 - 29990 * 256 - (5120 - 256) // 2
    assert difference(ours, whole_part[start : start + 224, 16:240]).max() <= 1


@st.composite
def cases(draw):
    short = draw(st.integers(1, 400))
    long = draw(st.integers(short, min(short * 12, 1500)))
    size = (short, long) if draw(st.booleans()) else (long, short)
    resize = draw(st.integers(1, 128))
    return size, sized(resize, draw(st.integers(1, 128)))


@settings(max_examples=150, deadline=None)
@given(cases(), st.booleans())
@example(((333, 500), sized(100, 90)), True)
@example(((64, 67), sized(63, 63)), False)
def test_any_size_is_within_one_level(torchvision_pipeline, case, noisy):
    size, spec = case
    image = noise(*size) if noisy else pattern(*size)
    assert difference(preprocess(image, spec), torchvision_pipeline(image, spec)).max() <= 1


@pytest.mark.parametrize("size", [(20, 442), (442, 20), (375, 500), (333, 700), (66, 80), (120, 400)], ids=str)
def test_bicubic_keeps_the_order_of_the_two_passes(torchvision_pipeline, size):
    # Clipping between the passes makes the order visible: noise is off by 30 levels in the wrong one.
    for resize, crop in ((64, 64), (256, 224), (63, 60)):
        spec = sized(resize, crop, interpolation="bicubic")
        off = difference(preprocess(noise(*size), spec), torchvision_pipeline(noise(*size), spec))
        assert off.max() <= 2 and (off > 0).mean() < 0.02


def test_the_area_beside_a_small_image_is_black():
    out = np.full((10, 10, 3), 77, np.uint8)
    preprocess(Image.new("RGB", (5, 5), (200, 100, 50)), sized(4, 10), out)
    assert (out[3:7, 3:7] == (200, 100, 50)).all()
    out[3:7, 3:7] = 0
    assert not out.any()


def test_writes_to_any_array_of_the_right_shape():
    image = noise(300, 200)
    expected = preprocess(image, IMAGENET)
    batch = np.zeros((2, 230, 230, 3), np.uint8)
    out = batch[1, 2:226, 1:225]
    assert preprocess(image, IMAGENET, out) is out
    assert (batch[1, 2:226, 1:225] == expected).all()
    assert batch.sum(dtype=np.int64) == expected.sum(dtype=np.int64)


def test_does_not_change_the_image():
    image = noise(300, 500)
    before = image.tobytes()
    preprocess(image, IMAGENET)
    assert image.size == (300, 500) and image.tobytes() == before


def test_refuses_what_does_not_fit():
    read_only = np.zeros((224, 224, 3), np.uint8)
    read_only.flags.writeable = False
    outs = [np.zeros((224, 224, 3), np.float32), np.zeros((224, 223, 3), np.uint8), read_only]
    for out in outs:
        with pytest.raises(InputError, match="uint8 array of shape"):
            preprocess(noise(4, 4), IMAGENET, out)
    with pytest.raises(InputError, match="mode L"):
        preprocess(Image.new("L", (4, 4)), IMAGENET)
    with pytest.raises(InputError, match="0 x 4"):
        preprocess(Image.new("RGB", (0, 4)), IMAGENET)
