"""The compiled JPEG kernel: decodes what the crop needs and resizes it in the same pass, as Pillow would, bit for bit.

Optional. ``pip install`` compiles it where it finds a C compiler and libjpeg-turbo's headers (Debian: build-essential,
libjpeg-dev); to do so in a checkout: ``python setup.py build_ext --inplace``.
"""

from __future__ import annotations

import functools
import importlib
from types import ModuleType


@functools.cache
def load_kernel() -> ModuleType | None:
    """The module ``infer.images.native._jpeg``; None where it was not compiled or does not load here."""
    try:
        return importlib.import_module("infer.images.native._jpeg")
    except ImportError:
        return None
