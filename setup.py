"""What pyproject.toml cannot say: the C kernel, which is optional, and a README that a package index can show."""

import re
import sys
from pathlib import Path

from setuptools import Extension, setup

ROOT = Path(__file__).parent

# Decoding and resizing in one pass. Left out, with a warning, where a compiler or libjpeg-turbo's headers are missing.
NATIVE = Extension(
    "infer.images.native._jpeg",
    [f"infer/images/native/{name}.c" for name in ("module", "jpeg", "exif", "resample", "resample_avx2")],
    depends=[f"infer/images/native/{name}.h" for name in ("jpeg", "exif", "resample")],
    libraries=["jpeg"],
    # No fused multiply-add: the filter weights must be those of Pillow, bit for bit.
    extra_compile_args=[] if sys.platform == "win32" else ["-O3", "-ffp-contract=off", "-std=c11"],
    optional=True,
)


def index_readme() -> str:
    """The README without links to files of the repository, which an index does not have: their text stays."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    return re.sub(r"\[([^\]]+)\]\((?!https?://|#)[^)]+\)", r"\1", text)


setup(ext_modules=[NATIVE], long_description=index_readme(), long_description_content_type="text/markdown")
