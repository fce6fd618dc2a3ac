"""The cost model: its arithmetic, and the tables of the document."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.cost_model import Figures, duration, table

PAGE = Path(__file__).parents[2] / "docs/many-machines.md"


def test_the_document_has_what_it_prints():
    text = PAGE.read_text()
    assert table(Figures()) in text
    assert table(replace(Figures(), gpus=8, network_gbit=100)) in text


def test_the_slowest_part_decides():
    figures = Figures(decode_ms=1, model_ms=9, cores=10, network_gbit=8, image_kb=100, storage_gb=100)
    assert figures.together(1) == (1000, "CPU")
    assert replace(figures, network_gbit=0.4).together(2) == (1000, "network")
    assert replace(figures, storage_gb=0.01).together(2) == (100, "storage")
    gpus = replace(figures, gpus=2, gpu_images=4000)
    assert gpus.together(1) == (8000, "GPU")
    assert replace(gpus, gpu_images=9000).together(1) == (10000, "decoding")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(5, "5 s"), (119, "119 s"), (120, "2 min"), (7200, "2 h"), (1e6, "11.6 days"), (1e9, "31.7 years")],
)
def test_durations(seconds, text):
    assert duration(seconds) == text
