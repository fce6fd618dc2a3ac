"""Copies and network of different slots overlap: the rate is that of the slowest stage, on the emulator's timeline."""

from __future__ import annotations

import time
from typing import Any

import pytest
from cuda_emulator.emulator import COMPUTE, D2H, H2D, Operation


def ideal_ms(stages: tuple[float, ...], batches: int) -> float:
    """Fill of the pipeline, then one batch each time the slowest stage is done."""
    return sum(stages) + (batches - 1) * max(stages)


def span_ms(operations: list[Operation]) -> float:
    """From the first operation's start to the last one's end."""
    return max(op.finish for op in operations) - min(op.start for op in operations)


def measure(stack: Any, stages: tuple[float, float, float], batches: int, slots: int, path: Any) -> float:
    """Share of the ideal rate that ``stream`` reaches, the better of two runs."""
    best = 0.0
    for _ in range(2):
        with stack.open(path, slots=slots) as backend:
            images = stack.images(8)
            stack.emulator.delays(*stages)
            with stack.emulator.tracing() as operations:
                for _ in backend.stream(images for _ in range(batches)):
                    pass
            stack.emulator.delays(0, 0, 0)
        assert len(operations) == 3 * batches
        best = max(best, ideal_ms(stages, batches) / span_ms(operations))
        if best > 0.98:
            break
    return best


@pytest.mark.parametrize(
    ("stages", "share"),
    [((20.0, 20.0, 20.0), 0.95), ((6.0, 20.0, 2.0), 0.97), ((20.0, 8.0, 2.0), 0.97)],
)
def test_the_slowest_stage_sets_the_rate(stack_11: Any, stages: tuple[float, float, float], share: float) -> None:
    assert measure(stack_11, stages, 50, 3, stack_11.write()) >= share


def test_fewer_slots_overlap_less(stack_11: Any) -> None:
    """The measurement can fail: one slot is serial, two leave a third of the time unused."""
    stages, path = (10.0, 10.0, 10.0), stack_11.write()
    assert measure(stack_11, stages, 12, 1, path) < 0.45
    assert 0.5 < measure(stack_11, stages, 12, 2, path) < 0.8


@pytest.mark.parametrize("cuda_graphs", [True, False])
def test_each_batch_is_three_operations_from_pinned_memory(stack: Any, cuda_graphs: bool) -> None:
    with stack.open(cuda_graphs=cuda_graphs) as backend:
        with stack.emulator.tracing() as operations:
            for rows in (8, 3, 1):
                backend.infer(stack.images(rows))
        layout = backend._layout
    assert [op.kind for op in operations] == [H2D, COMPUTE, D2H] * 3
    assert not any(op.pageable for op in operations)
    for rows, copy_in, copy_out in zip((8, 3, 1), operations[::3], operations[2::3], strict=True):
        assert copy_in.bytes == rows * 8 * 8 * 3  # the valid rows and no more
        assert copy_out.bytes == layout.place(rows).total
    captured = cuda_graphs and stack.target == "tensorrt"
    assert [op.graph != 0 for op in operations[1::3]] == [captured, False, captured]


def test_submit_returns_before_the_batch_has_run(stack: Any) -> None:
    with stack.open() as backend:
        stack.emulator.delays(60, 60, 60)
        start = time.perf_counter()
        future = backend.submit(stack.images(8))
        assert time.perf_counter() - start < 0.055
        assert not future.done()
        future.result()
        assert time.perf_counter() - start > 0.175
