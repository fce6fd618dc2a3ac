"""Whether a step on a graph left its logits as they were."""

from __future__ import annotations

import numpy as np
import onnx

from engine_build.graph.precision_loss import explain
from engine_build.graph.reference import Logits, graph_logits
from engine_build.synthetic import synthetic_images
from infer.bundle.preprocessing import Preprocessing
from infer.errors import GraphError

# Float rounding only: no step may move a logit by more than this share of the largest one.
TOLERANCE = 1e-3


def check_step(
    step: str,
    model: onnx.ModelProto,
    spec: Preprocessing,
    reference: Logits,
    tolerance: float = TOLERANCE,
    source: onnx.ModelProto | None = None,
) -> None:
    """Compare the graph in ONNX Runtime with ``reference`` at batch sizes 1 and 3.

    Args:
        step: what was done last.
        model: the graph after it.
        spec: its pre-processing.
        reference: the right logits.
        tolerance: share of the largest logit by which one may differ.
        source: the graph before all steps, to tell rounding from a defect.

    Raises:
        GraphError: a logit differs by more than ``tolerance`` of the largest, or the graph does not run.
    """
    try:
        logits = graph_logits(model, spec)
        for batch in (1, 3):
            images = synthetic_images(batch, spec.crop, seed=batch)
            expected, found = reference(images), logits(images)
            if expected.shape != found.shape:
                raise GraphError(f"step {step}: expected logits {expected.shape}, found {found.shape}")
            largest = float(np.abs(expected).max())
            worst = float(np.abs(expected - found).max())
            if worst <= tolerance * largest:
                continue
            moved = (
                f"largest logit difference {worst:.3g} at batch {batch}, allowed {tolerance * largest:.3g} "
                f"({tolerance:g} of the largest logit)"
            )
            rounding = explain(worst, largest, model, source, spec, images)
            if rounding is not None:
                raise GraphError(f"step {step} lost precision: {moved}; {rounding}")
            raise GraphError(f"step {step} changed the results: {moved}. This is a defect; report the model")
    except GraphError:
        raise
    except Exception as error:  # ONNX Runtime raises classes of its own that share no base
        raise GraphError(f"step {step}: ONNX Runtime cannot run the graph ({str(error)[:300]})") from error
