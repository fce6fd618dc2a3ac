"""NVIDIA's pytriton (Triton's own server) with our runner behind it: python pytriton_app.py BUNDLE PORT."""

from __future__ import annotations

import sys

import numpy as np
from pytriton.decorators import batch
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig

from infer.images.jpeg import load_input
from infer.runner import open_bundle

runner = open_bundle(sys.argv[1], allow_untrained=True)
SIDE = runner.preprocessing.crop
for size in (1, 2, 4, 8):
    runner.infer(np.zeros((size, SIDE, SIDE, 3), np.uint8))


@batch
def infer(images):
    pixels = np.empty((len(images), SIDE, SIDE, 3), np.uint8)
    for out, data in zip(pixels, images.reshape(-1), strict=True):
        load_input(data, runner.preprocessing, out, "image")
    return {"classes": runner.infer(pixels).classes}


if __name__ == "__main__":
    local, port = "127.0.0.1", int(sys.argv[2])
    config = TritonConfig(
        http_address=local,
        http_port=port,
        grpc_address=local,
        grpc_port=port + 1,
        metrics_address=local,
        metrics_port=port + 2,
    )
    with Triton(config=config) as triton:
        triton.bind(
            "m",
            infer,
            inputs=[Tensor(name="images", dtype=bytes, shape=(1,))],
            outputs=[Tensor(name="classes", dtype=np.int32, shape=(-1,))],
            config=ModelConfig(max_batch_size=8, batcher=DynamicBatcher(max_queue_delay_microseconds=2000)),
        )
        triton.serve()
