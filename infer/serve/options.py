"""What a server is made of."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from infer.backends.base import GpuOptions
from infer.errors import InputError
from infer.serve.limits import Limits

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,127}")
_VERSION = re.compile(r"[1-9][0-9]{0,8}")
#: What metadata of a model by this suffix says: encoded images instead of pixels. See docs/serving.md.
ENCODED = ".encoded"


@dataclass(frozen=True)
class Source:
    """Where a version of a model comes from.

    Attributes:
        folder: the bundle.
        name: of the model; None for ``<model>-<precision>``.
        version: a number from 1, as text; None for the next one of that name.
    """

    folder: Path
    name: str | None = None
    version: str | None = None


@dataclass(frozen=True)
class ServeOptions:
    """How bundles are served.

    Attributes:
        sources: bundles that are loaded at the start, at least one unless there is a ``repository``.
        repository: folder with bundles ``NAME/`` or ``NAME/VERSION/`` that clients may load and unload; None: they
            may not.
        target: as for :func:`infer.runner.open_bundle`.
        threads: CPU threads of a CPU target.
        gpu: how a TensorRT target uses its GPU.
        allow_untrained: serve bundles of random weights.
        require_verified: refuse bundles whose newest verification did not pass.
        max_delay: seconds that a row waits for others while the device is busy but has room.
        decoders: threads that decode; None: one for each usable CPU.
        tokens: file with a token a line; None: everybody may ask.
        access_log: write a JSON line for each request to standard output.
        limits: bounds.
    """

    sources: tuple[Source, ...]
    repository: Path | None = None
    target: str | None = None
    threads: int | None = None
    gpu: GpuOptions | None = None
    allow_untrained: bool = False
    require_verified: bool = False
    max_delay: float = 0.002
    decoders: int | None = None
    tokens: Path | None = None
    access_log: bool = False
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        if not self.sources and self.repository is None:
            raise InputError("expected a bundle to serve, or --repository with bundles to load")
        if self.max_delay < 0:
            raise InputError(f"max_delay: expected no negative number, found {self.max_delay}")
        if self.decoders is not None and self.decoders < 1:
            raise InputError(f"decoders: expected at least 1, found {self.decoders}")


def is_name(text: str) -> bool:
    """Whether ``text`` can be the name of a model."""
    return _NAME.fullmatch(text) is not None and not text.endswith(ENCODED)


def is_version(text: str) -> bool:
    """Whether ``text`` can be a version."""
    return _VERSION.fullmatch(text) is not None


def parse_source(text: str) -> Source:
    """``FOLDER``, ``NAME=FOLDER`` or ``NAME:VERSION=FOLDER``.

    Raises:
        InputError: the name or the version cannot be one.
    """
    head, sign, folder = text.partition("=")
    if not sign or "/" in head:
        return Source(Path(text))
    name, colon, version = head.partition(":")
    if not is_name(name):
        raise InputError(
            f"{text}: expected letters, digits, '.', '-' and '_' as the name, not ending in {ENCODED}, found {name!r}"
        )
    if colon and not is_version(version):
        raise InputError(f"{text}: expected a whole number from 1 as the version, found {version!r}")
    if not folder:
        raise InputError(f"{text}: expected a folder after the equals sign")
    return Source(Path(folder), name, version or None)
