"""Pictures that are out to crash, hang or starve who decodes them, and odd ones that are sound; made from a seed."""

from __future__ import annotations

import io
import random
import struct
import zlib
from collections.abc import Iterator
from itertools import count
from typing import Literal, NamedTuple

import numpy as np
from PIL import Image, ImageCms


class Case(NamedTuple):
    """A file: its name, its bytes, and whether it must classify, must not, or may do either."""

    name: str
    data: bytes
    verdict: Literal["good", "bad", "any"]


def picture(seed: int, size: tuple[int, int] = (61, 47), mode: str = "RGB") -> Image.Image:
    """A smooth picture with some noise, so that every coder has something to do."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), np.uint8)).resize(size, Image.Resampling.BICUBIC)
    noisy = np.clip(np.asarray(coarse).astype(np.int16) + rng.integers(-9, 9, (size[1], size[0], 3)), 0, 255)
    return Image.fromarray(noisy.astype(np.uint8)).convert(mode)


def encoded(image: Image.Image, format_name: str, **options: object) -> bytes:
    """The bytes of a file."""
    buffer = io.BytesIO()
    image.save(buffer, format_name, **options)
    return buffer.getvalue()


def sound(seed: int = 0) -> dict[str, bytes]:
    """One file for each coder and variant, all of them sound."""
    rgb = picture(seed)
    deep = Image.fromarray(np.random.default_rng(seed).integers(0, 65536, (30, 40), np.uint16))
    frames = [picture(seed + i) for i in range(1, 4)]
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    exif = Image.Exif()
    exif[0x0112] = 6
    animated = {"save_all": True, "append_images": frames, "duration": 50}
    return {
        "baseline.jpg": encoded(rgb, "JPEG"),
        "progressive.jpg": encoded(rgb, "JPEG", progressive=True, quality=90, subsampling=2),
        "cmyk.jpg": encoded(picture(seed, mode="CMYK"), "JPEG"),
        "grey.jpeg": encoded(picture(seed, mode="L"), "JPEG"),
        "icc.jpg": encoded(rgb, "JPEG", icc_profile=profile),
        "broken_icc.jpg": encoded(rgb, "JPEG", icc_profile=b"\xff" * 5000),
        "broken_exif.jpg": encoded(rgb, "JPEG", exif=b"Exif\0\0MM\0\x2a\0\0\0\x08\xff\xff" + b"\xff" * 40),
        "turned.jpg": encoded(rgb, "JPEG", exif=exif),
        "restarts.jpg": encoded(rgb, "JPEG", restart_marker_blocks=2),
        "rgb.png": encoded(rgb, "PNG"),
        "alpha.png": encoded(picture(seed, mode="RGBA"), "PNG"),
        "palette.png": encoded(rgb.quantize(17), "PNG", transparency=bytes(range(17))),
        "bits.png": encoded(picture(seed, mode="1"), "PNG"),
        "deep.png": encoded(deep, "PNG"),
        "icc.png": encoded(rgb, "PNG", icc_profile=profile),
        "moving.png": encoded(rgb, "PNG", **animated),
        "moving.gif": encoded(rgb, "GIF", **animated),
        "lossy.webp": encoded(rgb, "WEBP", quality=70),
        "lossless.webp": encoded(picture(seed, mode="RGBA"), "WEBP", lossless=True),
        "moving.webp": encoded(rgb, "WEBP", **animated),
        "rgb.bmp": encoded(rgb, "BMP"),
        "runs.tiff": encoded(rgb, "TIFF", compression="packbits"),
        "lzw.tiff": encoded(rgb, "TIFF", compression="tiff_lzw"),
        "jpeg.tiff": encoded(rgb, "TIFF", compression="jpeg"),
        "pages.tiff": encoded(rgb, "TIFF", compression="tiff_adobe_deflate", save_all=True, append_images=frames),
        "cmyk.tiff": encoded(picture(seed, mode="CMYK"), "TIFF"),
        "rgb.ppm": encoded(rgb, "PPM"),
        "still.avif": encoded(rgb, "AVIF", speed=10),
        "wide.png": encoded(Image.new("RGB", (60_000, 2), (9, 99, 9)), "PNG"),
        "wide.jpg": encoded(Image.new("RGB", (60_000, 8), (9, 99, 9)), "JPEG"),
        "tall.png": encoded(Image.new("L", (1, 60_000), 99), "PNG"),
        "one_pixel.png": encoded(Image.new("RGB", (1, 1)), "PNG"),
    }


def chunk(kind: bytes, data: bytes) -> bytes:
    """A chunk of a PNG file."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, rows: bytes, *extra: bytes) -> bytes:
    """A grey PNG file that says to be of that size; ``rows`` is what is compressed."""
    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    chunks = [chunk(b"IHDR", head), *extra, chunk(b"IDAT", zlib.compress(rows, 9)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def bombs() -> Iterator[Case]:
    """Small files that would be gigabytes, or of impossible sizes."""
    yield Case("bomb.png", png(60_000, 60_000, bytes(20_000_000)), "bad")
    yield Case(
        "bomb_text.png", png(8, 8, bytes(72), chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(90_000_000)))), "any"
    )
    yield Case("bomb_icc.png", png(8, 8, bytes(72), chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(90_000_000)))), "any")
    yield Case("bomb_rows.png", png(8, 8, bytes(50_000_000)), "any")
    yield Case("no_width.png", png(0, 8, b""), "bad")
    yield Case("most.png", png(0x7FFFFFFF, 0x7FFFFFFF, b""), "bad")
    jpeg = bytearray(encoded(picture(0), "JPEG"))
    frame = jpeg.index(b"\xff\xc0")
    jpeg[frame + 5 : frame + 9] = b"\xff\xdc\xff\xdc"
    yield Case("bomb.jpg", bytes(jpeg), "bad")
    gif = bytearray(encoded(picture(0), "GIF"))
    gif[6:10] = b"\xff\xff\xff\xff"
    yield Case("bomb.gif", bytes(gif), "bad")
    bmp = bytearray(encoded(picture(0), "BMP"))
    bmp[18:26] = struct.pack("<ii", 0x7FFFFFFF, -0x7FFFFFFF)
    yield Case("bomb.bmp", bytes(bmp), "bad")
    yield Case("bomb.ppm", b"P6 99999 99999 255\n", "bad")
    yield Case("digits.ppm", b"P6 " + b"9" * 5000 + b" 1 255\n", "bad")
    tiff = bytearray(encoded(picture(0), "TIFF"))
    at = tiff.index(struct.pack("<HHI", 256, 4, 1)) + 8
    tiff[at : at + 4] = struct.pack("<I", 0x7FFFFFFF)
    yield Case("bomb.tiff", bytes(tiff), "bad")
    loop = bytearray(encoded(picture(0), "TIFF"))
    entries = struct.unpack_from("<H", loop, struct.unpack_from("<I", loop, 4)[0])[0]
    after = struct.unpack_from("<I", loop, 4)[0] + 2 + 12 * entries
    loop[after : after + 4] = loop[4:8]
    yield Case("loop.tiff", bytes(loop), "any")


def impostors() -> Iterator[Case]:
    """Files that are not what their names say; those that are another kind of picture are sound."""
    for name, kind in (("jpeg.png", "JPEG"), ("png.jpg", "PNG"), ("gif.webp", "GIF"), ("avif.bmp", "AVIF")):
        yield Case(f"is_{name}", encoded(picture(1), kind), "good")
    yield Case("nothing.jpg", b"", "bad")
    yield Case("zeros.png", bytes(4096), "bad")
    yield Case("text.jpg", b"not a picture\n" * 99, "bad")
    yield Case("page.png", b"<!DOCTYPE html><html><body>404</body></html>", "bad")
    yield Case("drawing.png", b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>', "bad")
    yield Case("script.tiff", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "bad")
    yield Case("archive.jpg", b"PK\x03\x04" + bytes(100), "bad")
    yield Case("signature.png", b"\x89PNG\r\n\x1a\n", "bad")
    yield Case("start.jpg", b"\xff\xd8\xff", "bad")
    yield Case("name\n with \x1b[31m.jpg", b"GIF89a", "bad")


def cut(name: str, data: bytes, at: int) -> Case:
    """The first ``at`` bytes of a file."""
    stem, _, suffix = name.rpartition(".")
    return Case(f"cut_{stem}_{at}.{suffix}", data[:at], "any" if at > 12 else "bad")


def mutated(name: str, data: bytes, rng: random.Random, number: int) -> Case:
    """A file with bytes changed, removed, repeated or put in."""
    stem, _, suffix = name.rpartition(".")
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 5, 40))):
        # Headers decide more than pixels: half of the changes go there.
        at = rng.randrange(min(len(changed), 600) if rng.random() < 0.5 else len(changed)) if changed else 0
        what = rng.randrange(5)
        if what == 0:
            changed[at : at + 1] = bytes([rng.randrange(256)])
        elif what == 1:
            changed[at : at + 1] = bytes([(changed[at] if changed else 0) ^ (1 << rng.randrange(8))])
        elif what == 2:
            changed[at : at + rng.choice((2, 4))] = rng.choice((b"\xff\xff\xff\xff", bytes(4), b"\x7f\xff\xff\xff"))
        elif what == 3:
            del changed[at : at + rng.randrange(1, 30)]
        else:
            changed[at:at] = changed[at : at + rng.randrange(1, 200)]
    return Case(f"mutated_{number}_{stem}.{suffix}", bytes(changed), "any")


def suite_cases() -> list[Case]:
    """A few hundred: every sound variant, every bomb and impostor, each file cut at many places, some changed."""
    files = sound()
    small = {name: data for name, data in files.items() if not name.startswith(("wide", "tall", "one"))}
    cases = [Case(name, data, "good") for name, data in files.items()]
    cases += [*bombs(), *impostors()]
    for name, data in small.items():
        places = {0, 1, 3, 12, 13, 30, len(data) // 3, len(data) // 2, len(data) - 20, len(data) - 1}
        cases += [cut(name, data, at) for at in sorted(places)]
    rng = random.Random(0)
    cases += [mutated(*rng.choice([*small.items()]), rng, number) for number in range(150)]
    return cases


def endless_cases(seed: int) -> Iterator[Case]:
    """Files cut and changed at random, without end."""
    rng = random.Random(seed)
    for number in count():
        if number % 2000 == 0:
            files = [*sound(rng.randrange(1 << 30)).items()]
        name, data = rng.choice(files)
        if rng.random() < 0.3:
            case = cut(name, data, rng.randrange(len(data)))
            yield case._replace(name=f"{number}_{case.name}")
        else:
            yield mutated(name, data, rng, number)
