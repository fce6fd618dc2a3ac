"""A compiled OpenVINO model with as many requests as it has streams."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from infer.backends.base import Outputs
from infer.errors import TargetUnavailableError

if TYPE_CHECKING:
    import openvino


class Pool:
    """A compiled model with a request and a thread for each of its streams.

    The threads are Python's own, not those that OpenVINO's asynchronous calls report from: such a thread needs the
    interpreter's lock until its task is destroyed, and releasing a compiled model joins it while holding that lock.
    """

    def __init__(self, compiled: openvino.CompiledModel) -> None:
        self.compiled = compiled
        self.size: int = compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS")
        self._idle: SimpleQueue[openvino.InferRequest] = SimpleQueue()
        for _ in range(self.size):
            self._idle.put(compiled.create_infer_request())
        self._threads = ThreadPoolExecutor(self.size, thread_name_prefix="openvino")

    def start(self, batch: NDArray[np.uint8], count: int) -> Future[Outputs]:
        """Run ``batch``, of which the first ``count`` rows are wanted; blocks while every stream is busy."""
        request = self._idle.get()
        try:
            return self._threads.submit(self._run, request, batch, count)
        except RuntimeError as error:
            self._idle.put(request)
            raise TargetUnavailableError("this backend is closed") from error

    def _run(self, request: openvino.InferRequest, batch: NDArray[np.uint8], count: int) -> Outputs:
        try:
            request.infer({0: batch}, share_inputs=True)
            return Outputs(*(request.get_output_tensor(i).data[:count].copy() for i in range(3)))
        finally:
            self._idle.put(request)

    def close(self) -> None:
        """Wait for what is under way."""
        self._threads.shutdown()
