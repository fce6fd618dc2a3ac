"""The benchmark on the emulated GPU, whose stages take known times."""

from __future__ import annotations

from typing import Any

from infer.bench.measure import Options, measure, warnings_of

OPTIONS = Options(batches=[8], in_flight=[1, 3], duration=0.5, warm_up=0.1)


def points(stack: Any, h2d: float, compute: float, d2h: float) -> dict[int, Any]:
    """The measured points by batches in flight."""
    with stack.open() as backend:
        assert backend.on_device is backend
        stack.emulator.delays(h2d, compute, d2h)
        found = measure(backend, tuple(stack.plan.image), OPTIONS)
        stack.emulator.delays(0, 0, 0)
    return {point.in_flight: point for point in found}


def test_stages_latency_and_overlap(stack_11: Any) -> None:
    """One in flight takes the sum of the stages, three overlap up to the slowest."""
    by_depth = points(stack_11, 6.0, 12.0, 3.0)
    stages = by_depth[1].stages
    for found, set_to in ((stages.h2d, 6), (stages.compute, 12), (stages.d2h, 3)):
        assert set_to <= found < 1.6 * set_to
    assert by_depth[1].latencies.min() >= 20.9
    assert 0.6 * 8 / 0.021 < by_depth[1].throughput < 1.05 * 8 / 0.021
    assert 1.2 * 8 / 0.021 < by_depth[3].throughput < 1.08 * 8 / 0.012
    assert not any(word.startswith(("copy-bound", "enqueue-bound")) for word in warnings_of(by_depth[3]))


def test_a_slow_copy_is_named(stack_11: Any) -> None:
    words = " ".join(warnings_of(points(stack_11, 10.0, 2.0, 1.0)[3]))
    assert "copy-bound: the copy to the device takes 1" in words
