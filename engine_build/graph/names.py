"""Names in the deployed graph: its inputs and outputs, the nodes that the passes add, and what a name may hold."""

from __future__ import annotations

import re

from infer.bundle.tensors import CLASSES, INPUT, LOGITS, SCORES

#: Nodes that normalise the image; float32 at every precision.
PROLOGUE = ("normalise.cast", "normalise.sub", "normalise.mul")
#: Nodes behind the logits; float32 at every precision.
EPILOGUE = ("softmax", "top_k", "scores.gather", "classes.cast")

#: What passes call nodes and tensors, alone or before a dot: an exporter's node of such a name gets a number.
RESERVED = frozenset(
    {*PROLOGUE, *EPILOGUE, INPUT, LOGITS, SCORES, CLASSES, "normalise", "normalise.nchw", "normalised", "quantise"}
)

_FORBIDDEN = re.compile(r"[^\w./:\-]")
_LONGEST = 200


def clean(name: str) -> str:
    """``name`` as every text format carries it: letters, digits and ``_ . / : -``, at most 200 of them.

    Calibration caches are lines of text, TensorRT lists fused nodes with spaces, plus signs and brackets, OpenVINO with
    commas.
    """
    return _FORBIDDEN.sub("_", name)[:_LONGEST]
