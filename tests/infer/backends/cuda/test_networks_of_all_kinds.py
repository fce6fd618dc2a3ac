"""Auxiliary streams, several compute engines, layouts in which no two batch sizes agree, several devices."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from cuda_emulator.emulator import COMPUTE, ENGINE_COMPUTE

from infer.backends.cuda.buffers import Layout
from infer.errors import InputError

WIDE = {"num_classes": 100, "top_k": 70}
"""Offsets of scores and logits that are others for each batch size; with ten classes and k = 3 they coincide."""


def test_the_layouts_differ() -> None:
    layout = Layout((8, 8, 3), 100, 70)
    places = [layout.place(rows) for rows in range(1, 9)]
    assert len({place.scores for place in places}) == len({place.logits for place in places}) == 8


@pytest.mark.parametrize("options", [{}, {"cuda_graphs": False}, {"graph_batches": tuple(range(1, 9))}])
def test_every_batch_size_has_its_own_offsets(stack: Any, options: Any) -> None:
    with stack.open(stack.write(**WIDE), **options) as backend:
        for rows in (8, 1, 5, 2, 8, 7, 3, 1, 6, 4):
            images = stack.images(rows, rows)
            stack.check(images, backend.infer(images))
            stack.check(images, backend.submit(images).result(10))
            with backend.acquire(rows) as pinned:
                pinned.images[:] = images
                stack.check(images, pinned.submit().result(10))


@pytest.mark.parametrize("graphs", [True, False])
@pytest.mark.parametrize("aux_streams", [1, 3])
def test_a_network_on_auxiliary_streams(stack_11: Any, graphs: bool, aux_streams: int) -> None:
    """Captured with fork and join, it runs on several streams when it is launched too."""
    path = stack_11.write(aux_streams=aux_streams, scratch_bytes=8192)
    stack_11.emulator.engine_width(ENGINE_COMPUTE, 4)
    with stack_11.open(path, cuda_graphs=graphs) as backend:
        assert backend.notes == []
        stack_11.emulator.delays(1, 5, 1)
        with stack_11.emulator.tracing() as operations:
            futures = [(n, backend.submit(stack_11.images(8, n))) for n in range(9)]
            for seed, future in futures:
                stack_11.check(stack_11.images(8, seed), future.result(10))
        networks = [op for op in operations if op.kind == COMPUTE]
        assert len(networks) == 9 * (1 + aux_streams)
        assert len({op.stream for op in networks}) >= 1 + aux_streams
        assert all((op.graph != 0) == graphs for op in networks)


def test_slots_compute_at_once_on_several_engines(stack: Any) -> None:
    stack.emulator.engine_width(ENGINE_COMPUTE, 3)
    with stack.open(stack.write(scratch_bytes=4096, **WIDE), slots=3) as backend:
        stack.emulator.delays(1, 30, 1)
        with stack.emulator.tracing() as operations:
            futures = [(seed, backend.submit(stack.images(8, seed))) for seed in range(6)]
            for seed, future in futures:
                stack.check(stack.images(8, seed), future.result(10))
        networks = sorted((op for op in operations if op.kind == COMPUTE), key=lambda op: op.start)
        assert networks[2].start < networks[0].finish


def test_the_device_that_was_chosen(stack: Any) -> None:
    """Its memory and its context; memory of another device is refused."""
    import pycuda.driver as cuda

    stack.emulator.devices(2)
    with stack.open(device=1) as backend:
        assert "GPU 1 (Emulated CUDA device 1" in backend.device and backend.ordinal == 1
        images = stack.images(8)
        stack.check(images, backend.infer(images))
        contexts = [cuda.Device(number).retain_primary_context() for number in range(2)]
        for number, context in enumerate(contexts):
            context.push()
            memory = cuda.mem_alloc(images.nbytes)
            cuda.memcpy_htod(memory, images)
            cuda.Context.synchronize()
            array = Array(int(memory), images.shape)
            if number == 1:
                results = backend.infer_device(array)
                assert results.logits.__dlpack_device__() == (2, 1)
                np.testing.assert_array_equal(results.logits.get(), stack.expected(images)[0])
                del results
            else:
                with pytest.raises(InputError, match="expected memory of CUDA device 1, found memory of device 0"):
                    backend.infer_device(array)
            cuda.Context.synchronize()
            memory.free()
            cuda.Context.pop()
    from infer.backends.cuda import driver

    for context in contexts:
        context.push()
        driver.pop_context()
        context.detach()


class Array:
    def __init__(self, pointer: int, shape: tuple[int, ...]) -> None:
        data = (pointer, True)
        self.__cuda_array_interface__ = {"shape": shape, "typestr": "|u1", "data": data, "version": 3}


def test_scratch_that_does_not_shrink(stack: Any) -> None:
    """Of a plan without the preview feature; less memory than its largest batch needs is not promised."""
    path = stack.write(resizable=False, scratch_per_image=1000)
    with stack.open(path, max_batch=2) as backend:
        stack.check(stack.images(2), backend.infer(stack.images(2)))


def test_a_batch_of_none_is_refused(stack_11: Any) -> None:
    with stack_11.open() as backend, pytest.raises(InputError, match="1 to 8 images, found 0"):
        backend.infer_device(Array(0, (0, 8, 8, 3)))
