"""The list of deliberate faults fits the code; ``mutations.py`` itself runs them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from mutations import MUTATIONS, ROOT, apply


@pytest.mark.parametrize("mutant", MUTATIONS, ids=lambda mutant: mutant.name)
def test_every_fault_can_be_made(mutant: Any, tmp_path: Path) -> None:
    target = tmp_path / mutant.file
    target.parent.mkdir(parents=True)
    shutil.copy(ROOT / mutant.file, target)
    before = target.read_text()
    apply(mutant, tmp_path)
    assert target.read_text() != before
    compile(target.read_text(), mutant.file, "exec")


def test_names_are_unique() -> None:
    assert len({mutant.name for mutant in MUTATIONS}) == len(MUTATIONS)
