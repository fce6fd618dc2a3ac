"""Ray Serve with ``@serve.batch`` and our runner behind it: python ray_app.py BUNDLE PORT."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor

os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
import numpy as np
import ray
from ray import serve
from starlette.requests import Request


@serve.deployment(num_replicas=1, max_ongoing_requests=64, ray_actor_options={"num_cpus": 1})
class App:
    def __init__(self, bundle):
        from infer.runner import open_bundle

        self.runner = open_bundle(bundle, allow_untrained=True)
        self.side = self.runner.preprocessing.crop
        self.decoders, self.device = ThreadPoolExecutor(2), ThreadPoolExecutor(1)
        for size in (1, 2, 4, 8):
            self.runner.infer(np.zeros((size, self.side, self.side, 3), np.uint8))

    def decode(self, data):
        from infer.images.jpeg import load_input

        image = np.empty((self.side, self.side, 3), np.uint8)
        load_input(data, self.runner.preprocessing, image, "image")
        return image

    @serve.batch(max_batch_size=8, batch_wait_timeout_s=0.002)
    async def infer(self, images):
        from infer.predictions import rank

        loop = asyncio.get_running_loop()
        outputs = await loop.run_in_executor(self.device, lambda: self.runner.infer(np.stack(images)))
        return rank(["image"] * len(images), outputs, self.runner.labels)

    async def __call__(self, request: Request):
        data = await request.body()
        image = await asyncio.get_running_loop().run_in_executor(self.decoders, self.decode, data)
        return {"predictions": [(await self.infer(image)).to_json()]}


if __name__ == "__main__":
    ray.init(num_cpus=2, include_dashboard=False, object_store_memory=200 << 20, log_to_driver=False,
             _node_ip_address="127.0.0.1")  # fmt: skip
    serve.start(http_options={"host": "127.0.0.1", "port": int(sys.argv[2])}, logging_config={"log_level": "WARNING"})
    serve.run(App.bind(sys.argv[1]), route_prefix="/")
    while True:
        time.sleep(1)
