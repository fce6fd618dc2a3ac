"""Files that hold several images, by the ends of their names, lower case."""

from __future__ import annotations

from pathlib import Path

TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
PARQUET_SUFFIXES = (".parquet", ".parq", ".pq")


def is_tar(path: Path) -> bool:
    """Whether ``path`` is called like a tar file that is read here."""
    return path.name.lower().endswith(TAR_SUFFIXES)


def is_parquet(path: Path) -> bool:
    """Whether ``path`` is called like a Parquet file."""
    return path.name.lower().endswith(PARQUET_SUFFIXES)


def is_archive(path: Path) -> bool:
    """Whether ``path`` is called like either."""
    return is_tar(path) or is_parquet(path)
