"""What labels look like that are not the model's: shifted by one, or in another order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

#: FP32 has to be right on so large a share of the images under another reading of the labels.
_CONVINCING = 0.5


def describe(pairs: Counter[tuple[int, int]], classes: int, names: Sequence[str]) -> str:
    """Words for labels under which FP32 would be right; empty where none is found.

    Args:
        pairs: how many images have a label and are taken by FP32 for a class, ``(label, class)``.
        classes: of the model.
        names: of the classes.
    """
    total = pairs.total()
    if not total:
        return ""
    for shift, words in ((-1, "count from 1"), (1, "are one too small")):
        right = sum(count for (label, found), count in pairs.items() if label + shift == found)
        if right > _CONVINCING * total:
            share = f"{100 * right / total:.1f} %"
            return f"the labels {words}: with {shift:+d} it is right on {share}"
    best: dict[int, tuple[int, int]] = {}
    for (label, found), count in pairs.items():
        if count > best.get(label, (0, -1))[0]:
            best[label] = (count, found)
    right = sum(count for count, _ in best.values())
    distinct = len({found for _, found in best.values()}) == len(best)
    wrong = [(label, found) for label, (_, found) in sorted(best.items()) if label != found]
    if distinct and len(best) > 1 and len(wrong) > 1 and right > _CONVINCING * total:
        label, found = wrong[0]
        return (
            f"the labels are in another order than the model's: what is labelled {names[label]!r} ({label}) is "
            f"{names[found]!r} ({found}), and with such an exchange it is right on {100 * right / total:.1f} %"
        )
    return ""
