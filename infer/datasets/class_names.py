"""From what a data set calls a class (WordNet id, name, number) to the index the model gives it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Literal, TypeAlias

from infer.datasets.imagenet import imagenet1k, is_imagenet1k, wnids_of
from infer.errors import InputError

Scheme: TypeAlias = Literal["wnid", "name", "index"]
SCHEMES: tuple[Scheme, ...] = ("wnid", "name", "index")


class ClassNames:
    """The classes of a model, found by WordNet id, by name or by index.

    Names match without regard to case, ``_`` and ``-``: ``ankle_boot`` is ``Ankle boot``. Of a name with synonyms,
    ``great white shark, white shark``, each one matches unless it belongs to two classes.

    Args:
        labels: class names in the order of the model's outputs.
        wnids: WordNet ids in the same order, empty for a class without; None finds them where ``labels`` are classes of
            ImageNet-1k, see :func:`infer.datasets.imagenet.wnids_of`.

    Raises:
        InputError: no labels, or another number of ids than of labels.
    """

    def __init__(self, labels: Sequence[str], wnids: Sequence[str] | None = None) -> None:
        if not labels:
            raise InputError("labels: expected the class names of the model, found none")
        shipped = imagenet1k().wnids
        #: Whether these are the classes of ImageNet-1k in the usual order.
        self.is_imagenet1k = is_imagenet1k(labels) or (wnids is not None and tuple(wnids) == shipped)
        if wnids is None:
            wnids = wnids_of(labels)
        if wnids is not None and len(wnids) != len(labels):
            raise InputError(f"wnids: expected one for each of {len(labels)} labels, found {len(wnids)}")
        self.labels = tuple(labels)
        self.wnids = None if wnids is None else tuple(wnids)
        self._by_wnid = {wnid: index for index, wnid in enumerate(wnids or ()) if wnid}
        self._by_name: dict[str, int | None] = {}  # None: two classes share it
        self._add([(label, index) for index, label in enumerate(labels)])
        synonyms = [(part, index) for index, label in enumerate(labels) for part in label.split(",") if "," in label]
        known = zip(*imagenet1k(), strict=True) if self._by_wnid else ()
        synonyms += [
            (part, self._by_wnid[wnid]) for wnid, name in known if wnid in self._by_wnid for part in name.split(",")
        ]
        self._add(synonyms)

    def _add(self, names: Iterable[tuple[str, int]]) -> None:
        found: dict[str, set[int]] = {}
        for name, index in names:
            found.setdefault(_normal(name), set()).add(index)
        for key, indices in found.items():
            self._by_name.setdefault(key, indices.pop() if len(indices) == 1 else None)

    def __len__(self) -> int:
        return len(self.labels)

    def find(self, text: str, *schemes: Scheme) -> int | None:
        """The index of the class called ``text``, by the first of ``schemes`` that knows one; None when none does.

        A name that two classes share is not known.
        """
        for scheme in schemes:
            index = self._find(text, scheme)
            if index is not None:
                return index
        return None

    def _find(self, text: str, scheme: Scheme) -> int | None:
        if scheme == "wnid":
            return self._by_wnid.get(text)
        if scheme == "name":
            return self._by_name.get(_normal(text))
        index = int(text) if text.isascii() and text.isdigit() and len(text) < 10 else -1
        return index if 0 <= index < len(self) else None

    @property
    def has_wnids(self) -> bool:
        """Whether WordNet ids are known of any class."""
        return bool(self._by_wnid)

    def imagenet_indices(self) -> list[int] | None:
        """The model's index of each class of ImageNet-1k, in the usual order; None when it lacks one of them."""
        found = [self.find(wnid, "wnid") for wnid in imagenet1k().wnids]
        indices = [index for index in found if index is not None]
        return indices if len(indices) == len(found) else None

    def examples(self) -> str:
        """What class names are expected to look like, for messages."""
        shown = [f"{label!r}" for label in self.labels[:2]]
        if self._by_wnid:
            shown.insert(0, f"{next(iter(self._by_wnid))!r}")
        return f"{', '.join(shown)} or an index from 0 to {len(self) - 1}"


def _normal(name: str) -> str:
    return re.sub(r"[\s_-]+", " ", name).strip().casefold()
