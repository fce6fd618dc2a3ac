"""Files that are no image of a format that is read here, but that a person may take for one: what they are and which
tool turns them into one."""

from __future__ import annotations

#: What a file of an extension is, and what to do with it; the extension in lower case.
BY_EXTENSION = {
    **dict.fromkeys((".heic", ".heif", ".hif"), ("HEIC", "convert with heif-convert or ImageMagick")),
    **dict.fromkeys((".jxl",), ("JPEG XL", "convert with djxl")),
    **dict.fromkeys((".jp2", ".j2k", ".jpx"), ("JPEG 2000", "convert with ImageMagick")),
    **dict.fromkeys(
        (".cr2", ".cr3", ".nef", ".arw", ".dng", ".orf", ".rw2", ".raf"), ("raw photo", "develop with darktable-cli")
    ),
    **dict.fromkeys((".svg", ".svgz"), ("SVG", "draw with rsvg-convert")),
    ".pdf": ("PDF", "draw with pdftoppm"),
    ".psd": ("PSD", "convert with ImageMagick"),
    ".exr": ("OpenEXR", "convert with ImageMagick"),
    ".npy": ("NumPy array", "pass it to Runner.infer"),
    **dict.fromkeys((".mp4", ".mov", ".avi", ".mkv", ".webm"), ("video", "take frames with ffmpeg")),
    **dict.fromkeys((".tar.zst", ".tzst"), ("Zstandard tar", "unpack with zstd -d")),
    **dict.fromkeys((".tar.lz4", ".tar.lzma", ".tar.z"), ("compressed tar", "unpack it")),
    ".zip": ("ZIP", "unpack with unzip"),
    ".7z": ("7z", "unpack with 7z x"),
    ".rar": ("RAR", "unpack with unrar x"),
    ".gz": ("gzip", "unpack with gunzip"),
    ".zst": ("Zstandard", "unpack with zstd -d"),
}
#: The same by the first bytes; of a box file (ISO/IEC 14496-12), the brand that stands behind its first size.
_BY_START = (
    (b"\xff\x0a", ".jxl"),
    (b"\0\0\0\x0cJXL ", ".jxl"),
    (b"\0\0\0\x0cjP  ", ".jp2"),
    (b"%PDF", ".pdf"),
    (b"8BPS", ".psd"),
    (b"\x76\x2f\x31\x01", ".exr"),
    (b"\x93NUMPY", ".npy"),
    (b"\x28\xb5\x2f\xfd", ".zst"),
    (b"PK\x03\x04", ".zip"),
    (b"7z\xbc\xaf\x27\x1c", ".7z"),
    (b"Rar!", ".rar"),
    (b"\x1f\x8b", ".gz"),
    (b"<svg", ".svg"),
)
_BRANDS = {b"heic": ".heic", b"heix": ".heic", b"heif": ".heic", b"mif1": ".heic", b"msf1": ".heic", b"hevc": ".heic",
           b"isom": ".mp4", b"mp42": ".mp4", b"qt  ": ".mov", b"crx ": ".cr3"}  # fmt: skip


def what_it_is(start: bytes) -> str | None:
    """``HEIC; convert with ...`` by the first 16 bytes of a file; None for anything not known here."""
    extension = _BRANDS.get(start[8:12]) if start[4:8] == b"ftyp" else None
    extension = extension or next((kind for mark, kind in _BY_START if start.startswith(mark)), None)
    return None if extension is None else "{}; {}".format(*BY_EXTENSION[extension])
