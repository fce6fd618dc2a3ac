"""Python-backend stand-in for Triton's OpenVINO backend, which no wheel brings: the exported model, run by OpenVINO.

It notes each batch that it is given, so that a test sees the warm-up and how requests were gathered.
"""

import json
import os
from pathlib import Path

import numpy as np
import openvino
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        version = Path(args["model_repository"]) / args["model_version"]
        self.model = openvino.Core().compile_model(version / "model.xml", "CPU", {"INFERENCE_NUM_THREADS": 1})
        self.log = Path(os.environ["BATCH_LOG"])

    def execute(self, requests):
        images = [pb_utils.get_input_tensor_by_name(one, "images").as_numpy() for one in requests]
        with self.log.open("a") as file:
            print(json.dumps([[len(one), int(one.astype(np.int64).sum() // len(one))] for one in images]), file=file)
        responses = []
        for one in images:
            outputs = self.model(one)
            tensors = [pb_utils.Tensor(name, outputs[name]) for name in ("logits", "scores", "classes")]
            responses.append(pb_utils.InferenceResponse(output_tensors=tensors))
        return responses
