"""JPEG files to network inputs, by each decoder, against Pillow's decoding, resize and crop of the whole image."""

from __future__ import annotations

import io
import struct
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile, ImageOps
from specs import sized

from infer.bundle.preprocessing import IMAGENET
from infer.errors import ImageError, InputError
from infer.images import decode_image, jpeg
from infer.images.jpeg import decoder_name, load_input
from infer.images.native import load_kernel
from infer.images.resize import FILTERS, TALL_FIRST

KERNEL = load_kernel()
needs_kernel = pytest.mark.skipif(KERNEL is None, reason="infer.images.native is not compiled here")
DECODERS = ["pillow", "simplejpeg", pytest.param("native", marks=needs_kernel)]
SMALL = sized(48, 40)


@pytest.fixture(params=DECODERS)
def decoder(request, monkeypatch):
    if request.param == "simplejpeg":
        pytest.importorskip("simplejpeg")
        pytest.importorskip("cykooz_resizer")
    monkeypatch.setenv(jpeg.ENVIRONMENT_VARIABLE, request.param)
    assert decoder_name() == request.param
    return request.param


@pytest.fixture
def native(monkeypatch):
    """Files that the kernel leaves to another decoder are an error."""
    monkeypatch.setenv(jpeg.ENVIRONMENT_VARIABLE, "native")

    def never(*args, **options):
        raise AssertionError("not decoded by the kernel")

    monkeypatch.setattr(jpeg, "decode_image", never)


def photo(name="china"):
    from sklearn.datasets import load_sample_image

    return Image.fromarray(load_sample_image(f"{name}.jpg"))


def noise(width, height, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


def encode(image, **options):
    buffer = io.BytesIO()
    ImageFile.MAXBLOCK = 1 << 20  # Pillow's buffer is too short for noise in one progressive scan
    image.save(buffer, "JPEG", **{"quality": 90, **options})
    return buffer.getvalue()


def reference(data, spec, **options):
    """torchvision's Resize and CenterCrop on the whole image, by their formulas."""
    image = decode_image(data, **options)
    width, height = image.size
    long = int(spec.resize * max(width, height) / min(width, height))
    width, height = (spec.resize, long) if width <= height else (long, spec.resize)
    image = image.resize((width, height), FILTERS[spec.interpolation][0])
    left, top = (
        round((side - spec.crop) / 2.0) if side > spec.crop else -((spec.crop - side) // 2) for side in (width, height)
    )
    return np.asarray(image.crop((left, top, left + spec.crop, top + spec.crop))).astype(int)


def loaded(data, spec=IMAGENET, **options):
    out = np.full((spec.crop, spec.crop, 3), 77, np.uint8)
    load_input(data, spec, out, **options)
    return out.astype(int)


def subsampled(image, kind):
    """4:4:0 is not among what Pillow writes."""
    if kind != "4:4:0":
        return encode(image, subsampling=kind)
    simplejpeg = pytest.importorskip("simplejpeg")
    return simplejpeg.encode_jpeg(np.asarray(image), 90, colorsubsampling="440")


KINDS = ("4:4:4", "4:2:2", "4:2:0", "4:4:0")


# --- pixels ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [*KINDS, "grey", "progressive", "restart"])
def test_every_decoder_is_within_one_level_of_torchvisions_pipeline(decoder, kind):
    image = photo().crop((3, 5, 550, 400))
    if kind == "grey":
        data = encode(image.convert("L"))
    elif kind in KINDS:
        data = subsampled(image, kind)
    else:
        data = encode(image, **({"progressive": True} if kind == "progressive" else {"restart_marker_blocks": 7}))
    for spec in (IMAGENET, sized(300, 299), sized(64, 96)):
        off = np.abs(loaded(data, spec) - reference(data, spec))
        assert off.max() <= (0 if decoder == "native" else 1)


@needs_kernel
@settings(max_examples=120, deadline=None)
@given(st.data())
def test_the_kernel_equals_pillow_bit_for_bit(data):
    """Edges of the decoded region, of the image and of its blocks, in every subsampling, both passes, both filters."""
    width, height = data.draw(st.integers(1, 220)), data.draw(st.integers(1, 220))
    seed = data.draw(st.integers(0, 9))
    image = noise(width, height, seed)
    if data.draw(st.booleans()):
        image = noise(-(-width // 5), -(-height // 5), seed).resize((width, height))
    options = {"quality": data.draw(st.sampled_from([30, 75, 95])), "progressive": data.draw(st.booleans())}
    kind = data.draw(st.sampled_from(["4:4:4", "4:2:2", "4:2:0", "grey"]))
    if kind == "grey":
        image = image.convert("L")
    else:
        options["subsampling"] = kind
    if (blocks := data.draw(st.sampled_from([0, 1, 5]))) and not options["progressive"]:
        options["restart_marker_blocks"] = blocks
    exif = Image.Exif()
    exif[0x0112] = data.draw(st.integers(1, 8))
    encoded = encode(image, exif=exif, **options)
    resize = data.draw(st.integers(1, 120))
    spec = sized(resize, data.draw(st.integers(1, 120)), interpolation=data.draw(st.sampled_from(sorted(FILTERS))))
    assert KERNEL is not None
    for portable in (False, True):
        out = np.full((spec.crop, spec.crop, 3), 77, np.uint8)
        reach = FILTERS[spec.interpolation][1]
        assert KERNEL.load(encoded, out, resize, spec.crop, reach, TALL_FIRST, 1e6, portable=portable) is None
        assert (out == reference(encoded, spec)).all()


@needs_kernel
@pytest.mark.parametrize(
    "size", [(1, 1), (1, 3000), (3000, 1), (8, 8), (15, 17), (16, 16), (17, 33), (640, 31), (31, 640)]
)
def test_the_kernel_on_odd_sizes_and_4_4_0(native, size):
    for kind in KINDS:
        data = subsampled(noise(*size), kind)
        for spec in (SMALL, sized(7, 40), sized(16, 15, interpolation="bicubic")):
            assert (loaded(data, spec) == reference(data, spec)).all(), kind


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("order", ["<", ">"])
def test_orientation(decoder, orientation, order):
    exif = Image.Exif()
    exif.endian = order
    exif[0x010F] = "maker"
    exif[0x0112] = orientation
    data = encode(photo("flower").crop((0, 0, 301, 97)), exif=exif.tobytes())
    with Image.open(io.BytesIO(data)) as image:
        upright = ImageOps.exif_transpose(image)
    assert (upright.size == (97, 301)) == (orientation >= 5)
    # PNG: the same pixels, without the metadata
    buffer = io.BytesIO()
    upright.save(buffer, "PNG")
    off = np.abs(loaded(data, SMALL) - reference(buffer.getvalue(), SMALL))
    assert off.max() <= (0 if decoder == "native" else 1)


def with_segments(data, *segments):
    """A JPEG file with APP1 segments put in front."""
    return data[:2] + b"".join(b"\xff\xe1" + struct.pack(">H", len(s) + 2) + s for s in segments) + data[2:]


def exif_entry(kind, count, value, order="<"):
    head = b"II*\0" if order == "<" else b"MM\0*"
    return b"Exif\0\0" + head + struct.pack(f"{order}IHHHIHHI", 8, 1, 0x0112, kind, count, value, 0, 0)


XMP = b'http://ns.adobe.com/xap/1.0/\0<x tiff:Orientation="6"/>'
ODD_METADATA = {
    "short": (exif_entry(3, 1, 6),),
    "big-endian": (exif_entry(3, 1, 6, ">"),),
    "as long": (exif_entry(4, 1, 6),),
    "two values": (exif_entry(3, 2, 6),),
    "out of range": (exif_entry(3, 1, 9),),
    "zero": (exif_entry(3, 1, 0),),
    "twice": (exif_entry(3, 1, 6), exif_entry(3, 1, 3)),
    "cut off": (exif_entry(3, 1, 6)[:20],),
    "far away": (b"Exif\0\0II*\0\xff\xff\xff\xff",),
    "empty": (b"Exif\0\0",),
    "no TIFF": (b"Exif\0\0what is this",),
    "XMP": (XMP,),
    "XMP and EXIF": (XMP, exif_entry(3, 1, 3)),
    "XMP without": (b"http://ns.adobe.com/xap/1.0/\0<x/>",),
    "other": (b"something else", b""),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore")  # Pillow's, of the damage
@pytest.mark.parametrize("kind", ODD_METADATA)
def test_odd_metadata_is_read_as_pillow_does(decoder, kind):
    data = with_segments(encode(photo().crop((0, 0, 120, 70))), *ODD_METADATA[kind])
    assert np.abs(loaded(data, SMALL) - reference(data, SMALL)).max() <= 1


def test_what_is_no_ordinary_jpeg_file(decoder):
    image = photo().crop((0, 0, 120, 90))
    buffers = [io.BytesIO() for _ in range(3)]
    image.save(buffers[0], "PNG")
    image.convert("CMYK").save(buffers[1], "JPEG")
    image.save(buffers[2], "JPEG", subsampling="4:1:1")
    rgb = bytearray(encode(image, subsampling=0))  # Adobe's mark for RGB, without a conversion to YCbCr
    rgb[2:2] = b"\xff\xee\x00\x0eAdobe\0\x64\0\0\0\0\0"
    for data in (*(buffer.getvalue() for buffer in buffers), bytes(rgb)):
        assert np.abs(loaded(data, SMALL) - reference(data, SMALL)).max() <= 1


def test_sources_of_every_kind(decoder, tmp_path):
    data = encode(photo())
    path = tmp_path / "a.jpg"
    path.write_bytes(data)
    wanted = loaded(data)
    for source in (bytearray(data), memoryview(data), path, str(path)):
        assert (loaded(source) == wanted).all()
    for source in (Image.open(path), np.asarray(decode_image(data))):
        assert np.abs(loaded(source) - wanted).max() <= 1
    padded = loaded(data + bytes(5000) + b"what cameras append")
    assert (padded == wanted).all()


def test_writes_to_any_array_of_the_right_shape(decoder):
    data = encode(photo())
    batch = np.zeros((2, 230, 230, 3), np.uint8)
    load_input(data, IMAGENET, batch[1, 2:226, 1:225])
    wanted = loaded(data)
    assert (batch[1, 2:226, 1:225] == wanted).all() and batch.sum(dtype=int) == wanted.sum()
    for out in (np.zeros((224, 223, 3), np.uint8), np.zeros((224, 224, 3), np.int8)):
        with pytest.raises(InputError, match="uint8 array of shape"):
            load_input(data, IMAGENET, out)


# --- fast mode -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", [511, 512, 1023, 1024, 2047, 2048])
def test_fast_mode_decodes_at_the_scale_that_keeps_twice_the_resize(decoder, side):
    spec = sized(256, 224)
    data = encode(photo("flower").resize((side, side), Image.Resampling.BICUBIC))
    exact, fast = loaded(data, spec), loaded(data, spec, fast=True)
    scaled = reference(data, spec, shortest=512)
    assert np.abs(fast - scaled).max() <= (0 if decoder == "native" else 1)
    assert (
        decode_image(data, shortest=512).width
        == {511: 511, 512: 512, 1023: 1023, 1024: 512, 2047: 1024, 2048: 512}[side]
    )
    assert (fast == exact).all() == (side < 1024)
    assert np.abs(fast - exact).mean() < 0.5


@needs_kernel
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(401, 303), (98, 777), (640, 97)])
def test_the_kernel_equals_pillow_at_every_scale(native, kind, size):
    data = subsampled(noise(*size), kind)
    for resize in (12, 24, 48, 60):
        spec = sized(resize, resize - 3)
        assert (loaded(data, spec, fast=True) == reference(data, spec, shortest=2 * resize)).all()


# --- damage ----------------------------------------------------------------------------------------------------------


def test_truncated_anywhere(decoder):
    data = encode(noise(64, 48))
    for cut in [*range(1, 40), *range(40, len(data) - 2, len(data) // 40)]:
        with pytest.raises(ImageError, match=r"^half\.jpg: "):
            loaded(data[:cut], SMALL, name="half.jpg")


def test_truncated_below_the_rows_that_are_used(decoder):
    for progressive in (False, True):
        data = encode(noise(64, 640), progressive=progressive)
        loaded(data, SMALL)
        with pytest.raises(ImageError, match="truncated"):
            loaded(data[: len(data) * 9 // 10], SMALL)


SAMPLES = [
    encode(noise(90, 60)),
    encode(noise(90, 60), progressive=True, subsampling=0),
    encode(noise(60, 90), restart_marker_blocks=3, subsampling=1),
    with_segments(encode(noise(60, 60).convert("L")), exif_entry(3, 1, 6)),
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", DECODERS)
@settings(max_examples=150, deadline=None)
@given(
    data=st.sampled_from(SAMPLES),
    edits=st.lists(st.tuples(st.integers(0, 1 << 16), st.integers(0, 255)), min_size=1, max_size=6),
)
def test_damage_gives_an_image_or_an_image_error(name, data, edits):
    damaged = bytearray(data)
    for place, value in edits:
        damaged[place % len(damaged)] = value
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(jpeg.ENVIRONMENT_VARIABLE, name)
        try:
            load_input(bytes(damaged), SMALL, np.empty((40, 40, 3), np.uint8), "damaged", max_pixels=1 << 22)
        except ImageError as error:
            assert str(error).startswith("damaged: ")


@pytest.mark.filterwarnings("ignore")
@needs_kernel
def test_the_kernel_never_answers_differently_from_pillow():
    """What it takes, damaged or not, has Pillow's pixels; what it refuses, it leaves to Pillow."""
    generator = np.random.default_rng(0)
    spec, taken = sized(40, 40), 0
    assert KERNEL is not None
    for round_ in range(400):
        damaged = bytearray(SAMPLES[round_ % 4])
        for _ in range(generator.integers(1, 4)):
            damaged[generator.integers(2, len(damaged))] = generator.integers(256)
        out = np.empty((40, 40, 3), np.uint8)
        if KERNEL.load(bytes(damaged), out, 40, 40, 1, TALL_FIRST, 1 << 20) is None:
            try:
                wanted = reference(bytes(damaged), spec)
            except ImageError:
                continue  # damage behind the last row that is needed
            taken += 1
            assert (out == wanted).all()
    assert taken > 50


def test_decompression_bombs_are_refused_by_their_headers(decoder):
    data = bytearray(encode(noise(40, 24)))
    at = data.index(b"\xff\xc0") + 5
    data[at : at + 4] = struct.pack(">HH", 60_000, 60_000)
    with pytest.raises(ImageError, match=r"^bomb: 60000 x 60000 pixels, the limit is"):
        loaded(bytes(data), name="bomb")


def test_thousands_of_scans_are_refused(decoder):
    data = encode(noise(40, 24), progressive=True)
    at = data.rindex(b"\xff\xda")
    scan = data[at:-2]
    with pytest.raises(ImageError, match=r"^slow: 5\d\d\d scans in a JPEG file, the limit is 500"):
        loaded(data[:-2] + scan * 5000 + data[-2:], name="slow")


def test_errors_are_the_same_with_every_decoder(decoder, tmp_path):
    with pytest.raises(ImageError, match=r"gone\.jpg: no such file"):
        loaded(tmp_path / "gone.jpg")
    for source, reason in ((b"", "0 bytes: empty"), (b"text", "4 bytes: not an image"), (b"\xff\xd8\xff", "3 bytes: ")):
        with pytest.raises(ImageError, match=reason):
            loaded(source)
    with pytest.raises(ImageError, match="found int"):
        loaded(5)


# --- choosing --------------------------------------------------------------------------------------------------------


def test_the_decoder_is_chosen(monkeypatch):
    monkeypatch.delenv(jpeg.ENVIRONMENT_VARIABLE, raising=False)
    assert decoder_name() == ("native" if KERNEL else "simplejpeg")
    monkeypatch.setenv(jpeg.ENVIRONMENT_VARIABLE, "turbo")
    with pytest.raises(InputError, match="IRESNET_DECODER: expected one of native, simplejpeg, pillow, found 'turbo'"):
        decoder_name()
    jpeg._choose.cache_clear()
    monkeypatch.setattr(jpeg, "load_kernel", lambda: None)
    monkeypatch.setattr(jpeg, "_simplejpeg", lambda: None)
    monkeypatch.delenv(jpeg.ENVIRONMENT_VARIABLE)
    assert decoder_name() == "pillow"
    for name, advice in (("native", "compile it"), ("simplejpeg", "pip install simplejpeg cykooz-resizer")):
        monkeypatch.setenv(jpeg.ENVIRONMENT_VARIABLE, name)
        with pytest.raises(InputError, match=f"{name} is not here; {advice}"):
            decoder_name()
    jpeg._choose.cache_clear()


def test_many_threads_at_once(decoder):
    data = [encode(noise(90 + n, 60), subsampling=n % 3) for n in range(6)]
    wanted = [loaded(d, SMALL) for d in data]
    wrong = []

    def work(start):
        for n in range(start, start + 60):
            if (loaded(data[n % 6], SMALL) != wanted[n % 6]).any():
                wrong.append(n)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@needs_kernel
def test_the_kernel_refuses_wrong_arguments():
    assert KERNEL is not None
    assert KERNEL.kernel() in ("avx2", "portable")
    data, out = encode(noise(9, 9)), np.zeros((4, 4, 3), np.uint8)
    for wrong in ((0, 4, 1), (20000, 4, 1), (4, 5, 1), (4, -4, 1), (4, 4, 3)):
        with pytest.raises(ValueError, match="out of range"):
            KERNEL.load(data, out, *wrong, True, 1e6)
    out.flags.writeable = False
    with pytest.raises(TypeError, match="read-write"):
        KERNEL.load(data, out, 4, 4, 1, True, 1e6)
