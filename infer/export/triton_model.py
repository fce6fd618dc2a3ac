"""``model.py`` of the decode step in a Triton repository: one image file a request to the pixels of the network.

``infer`` is the copy beside this file, never one that happens to be installed. Runs in Triton's Python backend, which
brings the module ``triton_python_backend_utils``.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import msgspec
import numpy as np
import triton_python_backend_utils as pb_utils

from infer.bundle.preprocessing import Preprocessing
from infer.errors import InputError
from infer.images.jpeg import decoder_name, load_input


class TritonPythonModel:
    """What the Python backend calls; see https://github.com/triton-inference-server/python_backend."""

    def initialize(self, args: dict[str, str]) -> None:
        """Read the pre-processing from the configuration."""
        config = msgspec.json.decode(args["model_config"])
        text = config["parameters"]["preprocessing"]["string_value"]
        self.spec = msgspec.json.decode(text, type=Preprocessing)
        pb_utils.Logger.log_info(f"{args['model_name']}: JPEG files are decoded by {decoder_name()}")

    def execute(self, requests: list[Any]) -> list[Any]:
        """An answer or an error for each request, whatever becomes of the others."""
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        try:
            [data] = pb_utils.get_input_tensor_by_name(request, "file").as_numpy().reshape(-1)
            pixels = np.empty((1, self.spec.crop, self.spec.crop, 3), np.uint8)
            load_input(bytes(data), self.spec, pixels[0], "file")
        except InputError as error:
            return _refusal(str(error), pb_utils.TritonError.INVALID_ARG)
        except Exception as error:
            return _refusal(f"{type(error).__name__}: {error}", pb_utils.TritonError.INTERNAL)
        return pb_utils.InferenceResponse(output_tensors=[pb_utils.Tensor("images", pixels)])


def _refusal(message: str, code: Any) -> Any:
    return pb_utils.InferenceResponse(output_tensors=[], error=pb_utils.TritonError(message, code))
