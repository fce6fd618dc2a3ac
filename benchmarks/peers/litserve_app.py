"""LitServe with our runner behind it: python litserve_app.py BUNDLE PORT."""

from __future__ import annotations

import base64
import sys

import litserve
import numpy as np

from infer.images.jpeg import load_input
from infer.predictions import rank
from infer.runner import open_bundle


class Api(litserve.LitAPI):
    def setup(self, device):
        self.runner = open_bundle(sys.argv[1], allow_untrained=True)
        self.side = self.runner.preprocessing.crop
        for size in (1, 2, 4, 8):
            self.runner.infer(np.zeros((size, self.side, self.side, 3), np.uint8))

    def decode_request(self, request):
        return base64.b64decode(request["image"])  # as its documentation does: bodies are JSON

    def batch(self, inputs):
        images = np.empty((len(inputs), self.side, self.side, 3), np.uint8)
        for image, data in zip(images, inputs, strict=True):
            load_input(data, self.runner.preprocessing, image, "image")
        return images

    def predict(self, images):
        outputs = self.runner.infer(images)
        return rank(["image"] * len(images), outputs, self.runner.labels)

    def unbatch(self, output):
        return output

    def encode_response(self, output):
        return {"predictions": [output.to_json()]}


if __name__ == "__main__":
    server = litserve.LitServer(Api(max_batch_size=8, batch_timeout=0.002), accelerator="cpu", workers_per_device=1)
    server.run(host="127.0.0.1", port=int(sys.argv[2]), generate_client_file=False, log_level="warning")
