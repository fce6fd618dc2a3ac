"""Pictures of every kind, sound and broken."""

from __future__ import annotations

import io
import os
import struct
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from infer.errors import ImageError
from infer.images import EXTENSIONS, MAX_PIXELS, decode_image, open_image_file


@pytest.fixture(autouse=True)
def no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def picture(width=40, height=24):
    """Smooth, so that JPEG keeps it, and different in every quadrant and channel."""
    y, x = np.mgrid[:height, :width]
    red, green = 20 + x * 200 // width, 230 - y * 180 // height
    return Image.fromarray(np.stack([red, green, (red + green) // 2], -1).astype(np.uint8))


def encode(image, form, **options):
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def png(colour_type, depth, pixels, **chunks):
    """A PNG file written by hand: Pillow writes none with 16 bits and colour."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width = pixels.shape[:2]
    raw = b"".join(b"\0" + row.tobytes() for row in pixels)
    extra = b"".join(chunk(name.encode(), data) for name, data in chunks.items())
    header = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")
    )


def pixels_of(source, **options):
    image = decode_image(source, **options)
    assert image.mode == "RGB"
    return np.asarray(image).astype(int)


LOSSLESS = {
    "PNG": {}, "BMP": {}, "TIFF": {}, "PPM": {}, "WEBP": {"lossless": True, "exact": True}, "GIF": None,
    "JPEG": None, "AVIF": None,
}  # fmt: skip


@pytest.mark.parametrize("form", LOSSLESS)
def test_every_format_as_the_loaders_of_the_field_read_it(form, tmp_path):
    options = LOSSLESS[form]
    data = encode(picture(), form, **(options or {}))
    with Image.open(io.BytesIO(data)) as reference:
        expected = np.asarray(reference.convert("RGB"))
    path = tmp_path / "no_extension"
    path.write_bytes(data)
    for source in (data, bytearray(data), memoryview(data), path, str(path), Image.open(io.BytesIO(data))):
        assert (pixels_of(source) == expected).all()
    tolerance = 0 if options is not None else 12
    assert np.abs(expected - np.asarray(picture()).astype(int)).mean() <= tolerance


def test_progressive_and_grey_jpeg():
    for image, options in ((picture(), {"progressive": True}), (picture().convert("L"), {})):
        data = encode(image, "JPEG", quality=95, **options)
        assert np.abs(pixels_of(data) - np.asarray(image.convert("RGB"))).mean() < 3


def test_jpeg_is_decoded_at_full_size():
    data = encode(picture(1600, 1200), "JPEG")
    assert decode_image(data).size == (1600, 1200)


def test_cmyk_jpeg_is_not_inverted():
    image = picture()
    data = encode(image.convert("CMYK"), "JPEG", quality=95)
    assert b"Adobe" in data
    assert np.abs(pixels_of(data) - np.asarray(image)).mean() < 3


def test_ycck_jpeg():
    # What Photoshop writes: the inks as YCbCr, told by byte 11 of the Adobe segment. Pillow inverts what it writes.
    image = picture()
    inks = ImageOps.invert(image).convert("YCbCr")
    y, cb, cr = (255 - np.asarray(band) for band in inks.split())
    stored = Image.merge("CMYK", [Image.fromarray(band) for band in (y, cb, cr, np.zeros_like(y))])
    data = bytearray(encode(stored, "JPEG", quality=95, subsampling=0))
    at = data.index(b"Adobe") + 11
    assert data[at] == 0
    data[at] = 2
    assert np.abs(pixels_of(bytes(data)) - np.asarray(image)).mean() < 3


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_orientation_is_applied(form, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(picture(), form, exif=exif)
    with Image.open(io.BytesIO(data)) as image:
        image.load()
        plain = np.asarray(image)
        upright = np.asarray(ImageOps.exif_transpose(image))
    assert (pixels_of(data) == upright).all()
    assert form == "TIFF" or (pixels_of(data, apply_exif=False) == plain).all()
    assert decode_image(data).size == ((24, 40) if orientation >= 5 else (40, 24))
    once = decode_image(data)
    assert decode_image(once).tobytes() == once.tobytes(), "an upright image must not be turned again"


ORIENTATION_AS_TEXT = b"Exif\0\0II*\0" + struct.pack("<IHHHI", 8, 1, 0x0112, 2, 4) + b"abc\0" + bytes(4)


@pytest.mark.parametrize(
    "exif",
    [
        b"",
        b"Exif\0\0",
        b"Exif\0\0II*\0\xff\xff\xff\xff",
        b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12",
        ORIENTATION_AS_TEXT,
    ],
)
def test_damaged_exif_costs_nothing(exif):
    data = encode(picture(), "JPEG", exif=exif)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, of the damage
        assert decode_image(data).size == (40, 24)


def tiff(values, bits, *, photometric=1, order="<"):
    """A grey TIFF file of one strip written by hand, as cameras write it: Pillow writes none of 12 bits."""
    height, width = values.shape
    if bits == 12:  # two samples in three bytes, the first one's high bits first (TIFF 6.0, FillOrder 1)
        pairs = values.reshape(height, -1, 2).astype(int)
        a, b = pairs[..., 0], pairs[..., 1]
        strip = np.stack([a >> 4, (a & 15) << 4 | b >> 8, b & 255], -1).astype(np.uint8).tobytes()
    else:
        strip = values.astype(f"{order}u{bits // 8}").tobytes()
    tags = {256: width, 257: height, 258: bits, 259: 1, 262: photometric, 273: 8 + 2 + 9 * 12 + 4, 277: 1, 278: height,
            279: len(strip)}  # fmt: skip
    entries = b"".join(struct.pack(f"{order}HHII", tag, 4, 1, value) for tag, value in sorted(tags.items()))
    start = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}IH", 8, len(tags))
    return start + entries + bytes(4) + strip


def test_samples_of_a_tiff_have_the_bits_that_it_says():
    values = np.random.default_rng(0).integers(0, 4096, (6, 8))
    assert (pixels_of(tiff(values, 12)) == (values >> 4)[..., None]).all()
    assert pixels_of(tiff(np.full((2, 2), 4095), 12)).min() == 255
    for order in "<>":
        assert (pixels_of(tiff(values * 16, 16, order=order)) == (values >> 4)[..., None]).all()
    assert (pixels_of(tiff(values * 16, 16, photometric=0)) == 255 - (values >> 4)[..., None]).all()
    assert (pixels_of(tiff(values % 256, 8, photometric=0)) == 255 - (values % 256)[..., None]).all()


def test_maxval_of_a_pgm_is_white():
    values = np.array([[0, 2048, 4095]])
    pixels = pixels_of(b"P5 3 1 4095\n" + values.astype(">u2").tobytes())[0, :, 0]
    assert np.abs(pixels - values * 255 / 4095).max() < 1 and pixels[-1] == 255


@pytest.mark.parametrize(
    ("start", "said"),
    [
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1", "HEIC; convert with heif-convert"),
        (b"\xff\x0a\x11", "JPEG XL; convert with djxl"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
        (b"%PDF-1.7 ", "PDF; draw with pdftoppm"), (b"PK\x03\x04", "ZIP; unpack"),
        (b"\x28\xb5\x2f\xfd", "Zstandard; unpack with zstd -d"),
        (b"\x93NUMPY\x01", "NumPy array"), (b"\0\0\0\x14ftypqt  ", "video"),
    ],
)  # fmt: skip
def test_files_of_other_kinds_are_named_with_a_tool(start, said):
    with pytest.raises(ImageError, match=f"x.jpg: expected an image .*, found {said}"):
        decode_image(start + bytes(200), "x.jpg")


def test_sixteen_bit_grey_is_scaled_not_clipped():
    values = np.arange(0, 65536, 257, dtype=np.uint16).reshape(16, 16)
    expected = np.repeat(np.arange(256).reshape(16, 16, 1), 3, 2)
    pgm = b"P5 16 16 65535\n" + values.astype(">u2").tobytes()
    for data in (
        png(0, 16, values.astype(">u2")),
        encode(Image.fromarray(values), "PNG"),
        encode(Image.fromarray(values), "TIFF"),
        pgm,
    ):
        assert (pixels_of(data) == expected).all()


def test_sixteen_bit_colour_and_alpha():
    values = np.random.default_rng(0).integers(0, 65536, (5, 7, 4), np.uint16)
    assert (pixels_of(png(2, 16, values[..., :3].astype(">u2"))) == values[..., :3] >> 8).all()
    assert (pixels_of(png(6, 16, values.astype(">u2"))) == values[..., :3] >> 8).all()
    assert (pixels_of(png(4, 16, values[..., :2].astype(">u2"))) == values[..., :1] >> 8).all()


def test_transparency_is_dropped_not_blended():
    rgba = np.random.default_rng(0).integers(0, 256, (6, 8, 4), np.uint8)
    assert (pixels_of(encode(Image.fromarray(rgba), "PNG")) == rgba[..., :3]).all()
    la = rgba[..., :2]
    assert (pixels_of(encode(Image.fromarray(la, "LA"), "PNG")) == la[..., :1]).all()


@pytest.mark.parametrize("transparency", [None, 1, bytes([0, 128, 255])], ids=["none", "one", "table"])
def test_palette(transparency):
    indices = np.random.default_rng(0).integers(0, 3, (6, 8), np.uint8)
    palette = np.array([[250, 10, 20], [30, 240, 50], [60, 70, 230]], np.uint8)
    image = Image.fromarray(indices).convert("P")
    image.putdata(indices.ravel().tolist())
    image.putpalette(palette.ravel().tolist())
    data = encode(image, "PNG", **({} if transparency is None else {"transparency": transparency}))
    with Image.open(io.BytesIO(data)) as opened:
        assert opened.mode == "P"
        before = dict(opened.info)
        assert (pixels_of(opened) == palette[indices]).all()
        assert opened.mode == "P" and opened.info == before, "the caller's image must stay as it was"
    assert (pixels_of(data) == palette[indices]).all()


def test_bilevel():
    image = Image.fromarray(np.eye(9, dtype=bool))
    for form in ("PNG", "BMP", "TIFF", "PPM"):
        assert (pixels_of(encode(image, form))[..., 0] == np.eye(9) * 255).all()


@pytest.mark.parametrize("form", ["GIF", "WEBP", "PNG", "TIFF"])
def test_first_frame_of_several(form):
    frames = [Image.new("RGB", (16, 16), colour) for colour in ((200, 0, 0), (0, 200, 0), (0, 0, 200))]
    options = {"lossless": True} if form == "WEBP" else {}
    data = encode(frames[0], form, save_all=True, append_images=frames[1:], **options)
    assert (pixels_of(data) == (200, 0, 0)).all()


def test_icc_profile_is_ignored():
    from PIL import ImageCms

    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert (pixels_of(encode(picture(), "PNG", icc_profile=profile)) == np.asarray(picture())).all()


@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 1), (5, 7, 3), (5, 7, 4)])
def test_arrays(shape):
    array = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    expected = array[..., :3] if array.ndim == 3 else array[..., None]
    assert (pixels_of(array) == expected).all()
    assert (pixels_of(array[::-1, ::2]) == expected[::-1, ::2]).all()


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((5, 7), np.float32),
        np.zeros((5, 7, 2), np.uint8),
        np.zeros(5, np.uint8),
        np.zeros((1, 5, 7, 3), np.uint8),
    ],
)
def test_other_arrays_are_refused(array):
    with pytest.raises(ImageError, match=r"^mine: expected uint8 \[H, W\]"):
        decode_image(array, "mine")


def test_pixels_without_a_known_range_are_refused():
    for mode in ("I", "F"):
        with pytest.raises(ImageError, match="32-bit"):
            decode_image(Image.new(mode, (4, 4)))
        with pytest.raises(ImageError, match=r"x\.tif: 32-bit"):
            decode_image(encode(Image.new(mode, (4, 4)), "TIFF"), "x.tif")


def test_what_is_no_image_at_all(tmp_path):
    empty = tmp_path / "empty.jpg"
    empty.touch()
    text = tmp_path / "text.jpg"
    text.write_text("Not a picture, but long enough to be looked at.")
    os.mkfifo(tmp_path / "pipe.jpg")
    cases = {
        tmp_path / "missing.jpg": "no such file", tmp_path: "a folder", empty: "empty file", text: "not an image",
        tmp_path / "pipe.jpg": "not a regular file", text / "x.jpg": "cannot be read", "nul\0.jpg": "cannot be read",
        "n" * 5000: "cannot be read",
    }  # fmt: skip
    for source, reason in cases.items():
        with pytest.raises(ImageError, match=reason) as caught:
            decode_image(source)
        assert str(caught.value).startswith(f"{source}: ")
    with pytest.raises(ImageError, match="0 bytes: empty"):
        decode_image(b"")
    with pytest.raises(ImageError, match="found int"):
        decode_image(5)


def test_a_sparse_file_of_many_gigabytes_is_not_read(tmp_path):
    path = tmp_path / "huge.png"
    with path.open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(ImageError, match="an image file may have"):
        decode_image(path)
    with pytest.raises(ImageError, match="an image file may have"):
        open_image_file(path, "huge")


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "AVIF"])
def test_truncated_anywhere(form):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8))
    data = encode(noise, form)
    for cut in [*range(1, 40), *range(40, len(data) * 9 // 10, max(1, len(data) // 60))]:
        with pytest.raises(ImageError, match=r"^half\.img: "):
            decode_image(data[:cut], "half.img")


def test_a_progressive_jpeg_without_its_last_scans_is_truncated():
    data = encode(picture(200, 160), "JPEG", progressive=True)
    with pytest.raises(ImageError, match=r"p\.jpg: .*truncated"):
        decode_image(data[: len(data) * 2 // 3], "p.jpg")


SAMPLES = [
    encode(picture(), "JPEG", progressive=True), encode(picture(), "PNG"), encode(picture(), "WEBP"),
    encode(picture().quantize(16), "GIF"), encode(picture(), "TIFF", compression="tiff_lzw"), encode(picture(), "BMP"),
]  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(SAMPLES), st.lists(st.tuples(st.integers(0, 1 << 16), st.integers(0, 255)), max_size=8), st.data()
)
def test_damaged_bytes_give_an_image_or_an_image_error(data, edits, draw):
    damaged = bytearray(data[: draw.draw(st.integers(1, len(data)))])
    for place, value in edits:
        damaged[place % len(damaged)] = value
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of damaged TIFF directories
        try:
            image = decode_image(bytes(damaged), "damaged", max_pixels=1 << 22)
        except ImageError as error:
            assert str(error).startswith("damaged: ")
        else:
            assert image.mode == "RGB" and image.width * image.height <= 1 << 22


def headers(side):
    """Files that promise ``side`` x ``side`` pixels and hold next to none."""
    jpeg = bytearray(encode(picture(), "JPEG"))
    at = jpeg.index(b"\xff\xc0") + 5
    jpeg[at : at + 4] = struct.pack(">HH", side, side)
    bmp = bytearray(encode(picture(), "BMP"))
    bmp[18:26] = struct.pack("<ii", side, side)
    gif = bytearray(encode(picture().quantize(4), "GIF"))
    gif[6:10] = struct.pack("<HH", side, side)
    return {
        "JPEG": bytes(jpeg), "BMP": bytes(bmp), "GIF": bytes(gif), "PPM": b"P6 %d %d 255\n" % (side, side),
        "PNG": png(0, 8, np.zeros((1, 1), np.uint8)).replace(struct.pack(">II", 1, 1), struct.pack(">II", side, side)),
    }  # fmt: skip


@pytest.mark.parametrize("form", headers(1))
@pytest.mark.parametrize("side", [10_000, 65_000])
def test_decompression_bombs_are_refused_by_their_headers(form, side, monkeypatch):
    def never(*_args):
        raise AssertionError("decoding began")

    data = headers(side)[form]
    if form == "PNG":  # its checksum covers the size
        data = data[:29] + struct.pack(">I", zlib.crc32(data[12:29])) + data[33:]
    for method in ("new", "fill"):
        monkeypatch.setattr(Image.core, method, never)
    with pytest.raises(ImageError, match=f"^bomb: {side} x {side} pixels, the limit is {MAX_PIXELS}"):
        decode_image(data, "bomb")


def test_webp_bomb():
    data = encode(picture(), "WEBP", lossless=True)
    vp8x = b"VP8X" + struct.pack("<I", 10) + b"\0\0\0\0" + (16383 - 1).to_bytes(3, "little") * 2
    body = b"WEBP" + vp8x + data[12:]
    with pytest.raises(ImageError, match=r"^bomb: "):
        decode_image(b"RIFF" + struct.pack("<I", len(body)) + body, "bomb")


def test_the_limit_is_ours_alone(monkeypatch):
    data = encode(picture(40, 24), "PNG")
    with pytest.raises(ImageError, match="40 x 24 pixels, the limit is 959"):
        decode_image(data, max_pixels=959)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert decode_image(data, max_pixels=960).size == (40, 24)
    assert Image.MAX_IMAGE_PIXELS == 100
    for source in (np.zeros((24, 40), np.uint8), picture(40, 24)):
        with pytest.raises(ImageError, match="the limit is 959"):
            decode_image(source, max_pixels=959)


def test_no_pixels():
    for size in ((0, 3), (3, 0)):
        with pytest.raises(ImageError, match=r"^x: (0 x 3|3 x 0) pixels"):
            decode_image(Image.new("RGB", size), "x")
        with pytest.raises(ImageError, match=r"^x: "):
            decode_image(np.zeros((*size, 3), np.uint8), "x")
        with pytest.raises(ImageError, match=r"^x: "):
            decode_image(png(2, 8, np.zeros((*size, 3), np.uint8)), "x")


def test_many_threads_at_once():
    expected = [pixels_of(data) for data in SAMPLES]
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda i: (decode_image(SAMPLES[i % 6]), i), range(240)))
    for image, i in results:
        assert (np.asarray(image) == expected[i % 6]).all()


def test_a_folder_of_photos_has_known_extensions():
    assert {".jpg", ".jpeg", ".png", ".webp", ".bmp"} <= EXTENSIONS
    assert Path("ILSVRC2012_val_00000001.JPEG").suffix.lower() in EXTENSIONS
