"""A share of a job that several machines do: of ``classify`` and of ``verify``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

from infer.errors import InputError

T = TypeVar("T")


@dataclass(frozen=True)
class Shard:
    """Every ``count``-th record, from the one with this ``index`` (from 0)."""

    index: int = 0
    count: int = 1

    @classmethod
    def parse(cls, text: str) -> Shard:
        """``2/8`` as the third of eight.

        Raises:
            InputError: not that, or an index that is not below the count.
        """
        first, slash, second = text.partition("/")
        if not slash or not all(word.isascii() and word.isdigit() for word in (first, second)):
            raise InputError(f"--shard: expected i/n such as 0/4, found {text!r}")
        shard = cls(int(first), int(second))
        if shard.index >= shard.count:
            hint = f"the last of {shard.count} is {shard.count - 1}/{shard.count}" if shard.count else "n is at least 1"
            raise InputError(f"--shard: i counts from 0, {hint}, found {text}")
        return shard

    def take(self, records: Iterable[T]) -> Iterator[T]:
        """The records of this shard."""
        return islice(records, self.index, None, self.count)

    def share(self, total: int) -> int:
        """How many of ``total`` records are of this shard."""
        return len(range(self.index, total, self.count))

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"
