"""What TensorRT says while it builds: errors collected into one message, the layer listing and the memory figures kept.

TensorRT reports most failures through its logger and returns None or False, so nothing can be raised without reading
the log. The logger itself is the process's only one, ``infer/backends/cuda/logger.py``.
"""

from __future__ import annotations

import logging
import re
from typing import Any

from engine_build.targets.tensorrt.layers import LISTING

_LOG = logging.getLogger(__name__)
_MEMORY = re.compile(r"^(?:Total|Max) (Activation|Scratch|Weights) Memory: (\d+) bytes")

# Every builder without a GPU prints that it cannot read the GPU's properties, and every error path asks CUDA once more.
# TensorRT-RTX needs no GPU to build, so there these lines say nothing about the failure.
_GPU_LESS = re.compile(
    r"CUDA GPU properties|CUDA driver version is insufficient|no CUDA-capable device|cudaError (35|100)\b"
)

# Said when the program that we are part of has given TensorRT a logger of its own before.
_OTHER_LOGGER = "differs from one already registered"

# The ONNX parser logs its position around each error; the error itself, with node and operator, is asked of the parser.
_PARSER_CHATTER = re.compile(r"^ModelImporter\.cpp:\d+: ")

_SOURCE = re.compile(r"\s*\bIn [\w:<>~]+ at [\w/.]+:\d+")
_CODE = re.compile(r"^(?:[\w:]+: |\[[\w.:]+\] )?Error Code \d+: ")


class BuildLog:
    """The collected log of one build, a listener of the process's logger.

    Everything also goes to Python's ``logging``, so that ``--debug`` shows it.

    Args:
        trt: the module.
        gpu_less: drop the complaints about a missing GPU.

    Attributes:
        errors: messages of severity ERROR and INTERNAL_ERROR, shortened, each once.
        warnings: messages of severity WARNING, each once.
        listings: the layer listings, one a finished plan.
        memory: bytes by ``activation``, ``scratch`` and ``weights``, the latest figures.
    """

    def __init__(self, trt: Any, *, gpu_less: bool) -> None:
        self._severe = (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR)
        self._warning, self._gpu_less = trt.ILogger.WARNING, gpu_less
        self.errors: list[str] = []
        self.warnings: list[str] = []
        self.listings: list[str] = []
        self.memory: dict[str, int] = {}

    def __call__(self, severity: Any, msg: str) -> None:
        """Sort one message in."""
        if severity in self._severe:
            _LOG.debug("TensorRT error: %s", msg)
            if not (_PARSER_CHATTER.match(msg) or (self._gpu_less and _GPU_LESS.search(msg))):
                _add(self.errors, shorten(msg))
        elif severity == self._warning:
            _LOG.debug("TensorRT warning: %s", msg)
            if _OTHER_LOGGER not in msg:
                _add(self.warnings, shorten(msg))
        elif msg.startswith(LISTING):
            self.listings.append(msg)
        elif figure := _MEMORY.match(msg):
            self.memory[figure.group(1).lower()] = int(figure.group(2))
        else:
            _LOG.debug("TensorRT: %s", msg)


def shorten(message: str) -> str:
    """``message`` on one line, without error codes and places in TensorRT's own source."""
    text = _SOURCE.sub("", " ".join(message.split()))
    return _CODE.sub("", text).strip()


def parser_errors(parser: Any, *, gpu_less: bool) -> list[str]:
    """The errors of an ``OnnxParser``, each with node and operator."""
    found: list[str] = []
    for index in range(parser.num_errors):
        error = parser.get_error(index)
        lines = [line for line in error.desc().splitlines() if not (gpu_less and _GPU_LESS.search(line))]
        where = f"node {error.node_name()!r} ({error.node_operator()}): " if error.node_operator() else ""
        _add(found, where + "; ".join(text for text in map(shorten, lines) if text))
    return found


def _add(messages: list[str], message: str) -> None:
    if message not in messages:
        messages.append(message)
