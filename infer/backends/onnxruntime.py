"""The reference engine: ONNX Runtime runs the bundle's ``model.onnx`` itself, independent of every plan."""

from __future__ import annotations

from concurrent.futures import Future
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from infer.backends.base import HostBackend, Outputs, PlanCheck
from infer.backends.cpu import processor
from infer.bundle.tensors import INPUT, OUTPUTS
from infer.errors import TargetUnavailableError

_TESTED_BATCH = 8


def why_unavailable() -> str | None:
    """None when ONNX Runtime is installed, else one sentence that says what is missing."""
    return None if find_spec("onnxruntime") else "onnxruntime is not installed; pip install onnxruntime"


class OnnxRuntimeBackend(HostBackend):
    """ONNX Runtime on the CPU, one batch at a time; see :class:`infer.backends.base.Backend`.

    Args:
        model: an ONNX graph with the bundle's input and outputs.
        threads: CPU threads; None for all.
        optimise: let ONNX Runtime rewrite the graph; False computes every node as it is written.
        test: checks what it computes before its first answer.

    Raises:
        TargetUnavailableError: ONNX Runtime is missing or refuses the graph.
        KnownAnswersError: see ``test``.
    """

    target = "onnxruntime"
    max_batch = 32  # kernels do not depend on it
    in_flight = 1
    compiled_batches: tuple[int, ...] = ()

    def __init__(
        self, model: Path, threads: int | None = None, *, optimise: bool = True, test: PlanCheck | None = None
    ) -> None:
        super().__init__()
        if (missing := why_unavailable()) is not None:
            raise TargetUnavailableError(missing)
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or 0
        if not optimise:
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # another engine runs beside it
        try:
            self._session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its exceptions share no base class
            raise TargetUnavailableError(f"ONNX Runtime cannot run {model}: {str(error)[:300]}") from error
        self._closed = False
        self.device = f"CPU (ONNX Runtime {onnxruntime.__version__})"
        if test is not None:
            library = f"onnxruntime {onnxruntime.__version__}"
            options = f"threads {threads or 0}, optimise {optimise}"
            test(_TESTED_BATCH, self.infer, {"device": processor(), "library": library, "options": options})

    def submit(self, batch: NDArray[np.uint8]) -> Future[Outputs]:
        """Runs at once; the future is done when this returns."""
        future: Future[Outputs] = Future()
        try:
            future.set_result(self.infer(batch))
        except Exception as error:
            future.set_exception(error)
        return future

    def infer(self, batch: NDArray[np.uint8]) -> Outputs:
        """See :meth:`infer.backends.base.Backend.infer`."""
        if self._closed:
            raise TargetUnavailableError("this backend is closed")
        return Outputs(*self._session.run(list(OUTPUTS), {INPUT: batch}))

    def try_acquire(self, rows: int) -> None:
        """None: nothing would be gained, the batch is read where it is."""

    def close(self) -> None:
        """Refuse further calls; the session goes with the last reference to it."""
        self._closed = True
