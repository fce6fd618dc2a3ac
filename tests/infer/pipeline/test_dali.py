"""JPEG files by DALI against the host's decoding: by the graph for a GPU, run on the CPU, and on a GPU where one is."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hostile_images import bombs, sound
from PIL import Image
from specs import sized

from infer.bundle.preprocessing import IMAGENET
from infer.errors import ImageError, InputError, TargetUnavailableError
from infer.images.jpeg import load_input
from infer.pipeline.dali import Decoder, plan_file, require_dali

HERE = importlib.util.find_spec("nvidia") is not None and importlib.util.find_spec("nvidia.dali") is not None
needs_dali = pytest.mark.skipif(not HERE, reason="NVIDIA DALI is not installed: pip install nvidia-dali-cuda130")


def photo(name="china"):
    from sklearn.datasets import load_sample_image

    return Image.fromarray(load_sample_image(f"{name}.jpg"))


def encode(image, **options):
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", **{"quality": 90, **options})
    return buffer.getvalue()


def photos():
    """Both orientations, odd sizes, much larger and smaller than the input, every subsampling, progressive."""
    china, flower = photo(), photo("flower")
    return [
        encode(china),
        encode(flower, subsampling="4:4:4"),
        encode(china.crop((3, 5, 550, 400)), subsampling="4:2:2"),
        encode(china.crop((3, 5, 104, 400)), progressive=True),
        encode(flower.crop((0, 0, 639, 131)), restart_marker_blocks=7),
        encode(china.resize((2001, 1333))),
        encode(flower.resize((427, 1283))),
        encode(china.crop((0, 0, 101, 77))),
        encode(flower.crop((0, 0, 640, 20))),
        encode(flower.crop((0, 0, 256, 256))),
    ]


def by_host(data, spec):
    out = np.empty((spec.crop, spec.crop, 3), np.uint8)
    load_input(data, spec, out)
    return out


def planned(files, spec=IMAGENET):
    plans = [plan_file(data, spec, "image") for data in files]
    assert None not in plans
    return plans


def off(pixels, files, spec):
    """Grey levels between the rows of ``pixels`` and what the host makes of ``files``."""
    return np.abs(pixels.astype(int) - np.stack([by_host(data, spec) for data in files]))


@pytest.fixture
def decoder():
    made = []

    def make(spec=IMAGENET, batch=16):
        made.append(Decoder(spec, batch, device=None, threads=2))
        return made[-1]

    yield make
    for one in made:
        one.close()


# --- pixels ----------------------------------------------------------------------------------------------------------


@needs_dali
@pytest.mark.parametrize("spec", [IMAGENET, sized(300, 299), sized(232, 224), sized(50, 33)])
def test_within_one_level_of_the_host(decoder, spec):
    files, work = photos(), decoder(spec)
    work.start(planned(files, spec))
    pixels = np.asarray(work.finish())
    assert pixels.dtype == np.uint8 and pixels.flags.c_contiguous
    levels = off(pixels, files, spec)
    assert levels.max() <= 1 and levels.mean() < 0.2


@needs_dali
def test_batches_under_way_keep_their_order_and_outputs_stay(decoder):
    files, work = photos(), decoder(batch=4)
    parts = [files[:4], files[4:5], files[5:8], files[8:]]
    work.start(planned(parts[0]))
    held = []
    for following in [*parts[1:], None]:
        if following:
            work.start(planned(following))
        held.append(work.finish())
    for pixels, part in zip(held, parts, strict=True):  # read when all are done: nothing was written over
        assert off(np.asarray(pixels), part, IMAGENET).max() <= 1


@needs_dali
def test_a_batch_that_dali_fails_costs_that_batch_alone(decoder, caplog):
    good = photos()[:3]
    broken = bytearray(good[0])
    table = broken.index(b"\xff\xc4")
    broken[table + 5 : table + 15] = b"\xff" * 10  # more codes than a Huffman table can have
    work = decoder(batch=4)
    for _ in range(2):
        work.start(planned([good[0], bytes(broken), good[1]]))
        work.start(planned(good))
        assert work.finish() is None
        assert off(np.asarray(work.finish()), good, IMAGENET).max() <= 1
    assert [record.message for record in caplog.records] == [
        "DALI failed a batch (Failed to decode sample #1); batches that it fails are decoded on the host"
    ]


# --- what it is given ------------------------------------------------------------------------------------------------


PLAIN = {"baseline.jpg", "progressive.jpg", "icc.jpg", "broken_icc.jpg", "broken_exif.jpg", "restarts.jpg", "wide.jpg"}


def test_plain_files_alone_are_taken():
    spec = sized(40, 36)
    assert {name for name, data in sound().items() if plan_file(data, spec, name) is not None} == PLAIN


@needs_dali
def test_what_is_taken_decodes_as_on_the_host(decoder):
    spec = sized(40, 36)
    files, work = [sound()[name] for name in sorted(PLAIN)], decoder(sized(40, 36))
    work.start(planned(files, spec))
    assert off(np.asarray(work.finish()), files, spec).max() <= 1


@needs_dali
def test_damage_among_coded_pixels_is_judged_as_on_the_host(decoder):
    rng, work, outcomes = np.random.default_rng(0), decoder(batch=1), []
    sources = [encode(photo()), encode(photo("flower"), progressive=True)]
    for number in range(200):
        data = bytearray(sources[number % 2])
        for at in rng.integers(700, len(data) - 2, rng.integers(1, 20)):
            data[at] = rng.integers(0, 256)
        plan = plan_file(bytes(data), IMAGENET, "image")
        if plan is None:
            continue  # to the host
        work.start([plan])
        pixels = work.finish()
        outcomes.append(pixels is not None)
        if pixels is not None:
            assert off(np.asarray(pixels), [bytes(data)], IMAGENET).max() <= 1
    assert 20 < sum(outcomes) < 200


@pytest.mark.parametrize("orientation", range(1, 9))
def test_turned_images_are_left_to_the_host(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert (plan_file(encode(photo(), exif=exif), IMAGENET, "x") is None) == (orientation > 1)


def test_images_smaller_than_the_crop_are_left_to_the_host():
    assert plan_file(encode(photo()), sized(100, 120), "x") is None


def test_colour_that_is_not_ycbcr_is_left_to_the_host():
    data = encode(photo(), keep_rgb=True)  # marked by Adobe's segment or the numbers of the components
    assert plan_file(data, IMAGENET, "x") is None
    assert plan_file(encode(photo()), IMAGENET, "x") is not None
    adobe = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00"
    plain = encode(photo())
    for transform in (0, 1):
        marked = plain[:2] + adobe + bytes([transform]) + plain[2:]
        assert (plan_file(marked, IMAGENET, "x") is None) == (transform == 0)


def test_what_does_not_end_as_it_should_is_left_to_the_host():
    for options in ({}, {"progressive": True}):
        data = encode(photo(), **options)
        middle = len(data) * 2 // 3
        assert plan_file(data[:middle], IMAGENET, "x") is None
        assert plan_file(data[:-2], IMAGENET, "x") is None
        assert plan_file(data[:middle] + b"\xff\x49\x00\x02" + data[middle:], IMAGENET, "x") is None
        assert plan_file(data + b"trailing", IMAGENET, "x") is not None


def test_gigantic_images_and_thousands_of_scans_are_left_to_the_host():
    assert all(plan_file(case.data, IMAGENET, case.name) is None for case in bombs())


def test_other_sources_are_left_to_the_host():
    assert plan_file(photo(), IMAGENET, "x") is None
    assert plan_file(b"", IMAGENET, "x") is None


def test_damaged_headers_raise_nothing_but_image_errors():
    data, rng, taken = encode(photo().crop((0, 0, 300, 300))), np.random.default_rng(0), 0
    for _ in range(2000):
        bad = bytearray(data)
        for at in rng.integers(2, 620, rng.integers(1, 5)):
            bad[at] = rng.integers(0, 256)
        if rng.random() < 0.2:
            del bad[rng.integers(3, len(bad)) :]
        with contextlib.suppress(ImageError):
            taken += plan_file(bytes(bad), IMAGENET, "image") is not None
    assert taken > 100


# --- refusals --------------------------------------------------------------------------------------------------------


def test_bicubic_is_refused():
    with pytest.raises(InputError, match="expected a bilinear model, this one is bicubic"):
        require_dali(sized(interpolation="bicubic"))


def test_without_dali_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "nvidia.dali", None)
    with pytest.raises(TargetUnavailableError, match="pip install nvidia-dali-cuda130"):
        require_dali(IMAGENET)


NO_GPU = """
from infer.pipeline.dali import Decoder
from infer.images.resize import IMAGENET
try:
    Decoder(IMAGENET, 4, device=0, threads=1)
except Exception as error:
    print(type(error).__name__, error)
"""


@needs_dali
def test_a_gpu_that_is_not_there():
    # in a process of its own, which sees no GPU and no emulated driver
    done = in_python(NO_GPU, CUDA_VISIBLE_DEVICES="")
    assert done.stdout.startswith("TargetUnavailableError decoding with DALI: it does not start on GPU 0 ("), (
        done.stdout
    )
    assert done.stdout.count("\n") == 1


# --- on a GPU --------------------------------------------------------------------------------------------------------


ON_GPU = """
import sys
from pathlib import Path
import numpy as np
from infer.pipeline.dali import Decoder, plan_file
from infer.images.resize import IMAGENET
files = [path.read_bytes() for path in sorted(Path(sys.argv[1]).glob("*.jpg"))]
decoder = Decoder(IMAGENET, len(files), device=0, threads=2)
decoder.start([plan_file(data, IMAGENET, "image") for data in files])
pixels = decoder.finish()
interface = pixels.__cuda_array_interface__
assert interface["data"][0] % 256 == 0 and interface.get("strides") is None, "as infer_device needs it"
np.save(sys.argv[2], np.asarray(pixels.as_cpu()))
"""


def in_python(code, *arguments, **environment):
    root = Path(__file__).parents[3]
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True, text=True, cwd=root, env={**os.environ, **environment}, timeout=120, check=False,
    )  # fmt: skip


@pytest.mark.gpu
@needs_dali
def test_on_a_gpu(tmp_path):
    asked = in_python("from infer.backends.cuda.gpus import find_gpus; print(find_gpus()[1] or '')")
    if missing := asked.stdout.strip():
        pytest.skip(missing)
    files = photos()
    for number, data in enumerate(files):
        (tmp_path / f"{number:02}.jpg").write_bytes(data)
    done = in_python(ON_GPU, tmp_path, tmp_path / "pixels.npy")
    assert done.returncode == 0, done.stderr
    # nvJPEG's inverse DCT is not libjpeg-turbo's: a mean level is asked for, single pixels may differ by more
    assert off(np.load(tmp_path / "pixels.npy"), files, IMAGENET).mean() < 1
