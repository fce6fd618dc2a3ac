"""mosec with our runner behind it: python mosec_app.py BUNDLE --port PORT --address 127.0.0.1."""

from __future__ import annotations

import os

import msgspec
import numpy as np
from mosec import Server, Worker

from infer.bundle import read_manifest
from infer.images.jpeg import load_input
from infer.predictions import rank
from infer.runner import open_bundle

BUNDLE = os.environ["BUNDLE"]


class Decode(Worker):
    def __init__(self):
        from pathlib import Path

        self.spec = read_manifest(Path(BUNDLE)).preprocessing

    def deserialize(self, data):
        return data

    def forward(self, data):
        image = np.empty((self.spec.crop, self.spec.crop, 3), np.uint8)
        load_input(data, self.spec, image, "image")
        return image


class Infer(Worker):
    def __init__(self):
        self.runner = open_bundle(BUNDLE, allow_untrained=True)
        side = self.runner.preprocessing.crop
        for size in (1, 2, 4, 8):
            self.runner.infer(np.zeros((size, side, side, 3), np.uint8))

    def forward(self, images):
        outputs = self.runner.infer(np.stack(images))
        found = rank(["image"] * len(images), outputs, self.runner.labels)
        return [{"predictions": [one.to_json()]} for one in found]

    def serialize(self, data):
        return msgspec.json.encode(data)


if __name__ == "__main__":
    server = Server()
    server.append_worker(Decode, num=2)
    server.append_worker(Infer, num=1, max_batch_size=8, max_wait_time=2)
    server.run()
