"""CUDA graphs of the network: hundreds of kernels launched with one call.

A graph holds the shape and the addresses it was captured with, and TensorRT asks for one execution context a captured
graph. So a slot has one graph, with an execution of its own, for each batch size that is worth it. The copies stay
outside: they are one call each, and their host addresses change from batch to batch.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING

from infer.backends.cuda import driver
from infer.errors import DeviceError

if TYPE_CHECKING:
    from infer.backends.cuda.engine import Execution


class NetworkGraph:
    """The network captured for one batch size.

    Args:
        execution: bound and otherwise unused; the graph owns it from now on, unless an error is raised.
        stream: handle of an idle stream.
        settle: waits until that stream is idle.

    Raises:
        DeviceError: it cannot be captured; the stream is then out of capture and usable again.
    """

    def __init__(self, execution: Execution, stream: int, settle: Callable[[], None]) -> None:
        # The first run of an execution does work that cannot be captured.
        execution.enqueue(stream)
        settle()
        driver.begin_capture(stream)
        try:
            execution.enqueue(stream)
        except BaseException:
            with contextlib.suppress(DeviceError):  # an invalidated capture ends with an error, but it ends
                driver.destroy_graph(driver.end_capture(stream))
            raise
        graph = driver.end_capture(stream)
        try:
            self._executable = driver.instantiate_graph(graph, stream)
        finally:
            driver.destroy_graph(graph)
        self._execution = execution

    def launch(self, stream: int) -> None:
        """Enqueue the network; launches of one graph, also in different streams, run one after the other."""
        driver.launch_graph(self._executable, stream)

    def close(self) -> None:
        """Destroy the graph, then drop its execution."""
        driver.destroy_executable(self._executable)
        self._execution.close()
