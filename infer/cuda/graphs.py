"""CUDA graphs of a whole batch: copy in, network, copy out, launched with one call.

A graph holds the shapes and addresses it was captured with, and TensorRT asks for one execution context a captured
graph. So a slot has one graph, with an execution of its own, for each batch size that is worth it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from infer.cuda import driver

if TYPE_CHECKING:
    from collections.abc import Callable

    from infer.cuda.engine import Execution


class BatchGraph:
    """A captured batch of a fixed size.

    Args:
        execution: bound already, and run once on this stream: TensorRT's first run does work that cannot be captured.
        stream: handle of an idle stream.
        enqueue: enqueues the batch on that stream.

    Raises:
        Exception: whatever ``enqueue`` or the driver raise; the stream is then out of capture and usable again.
    """

    def __init__(self, execution: Execution, stream: int, enqueue: Callable[[], None]) -> None:
        self._execution, self._stream = execution, stream
        driver.begin_capture(stream)
        try:
            enqueue()
        except BaseException:
            self._abandon()
            raise
        self._executable = driver.instantiate_graph(driver.end_capture(stream), stream)

    def _abandon(self) -> None:
        try:
            if graph := driver.end_capture(self._stream):
                driver.library().cuGraphDestroy(graph)
        except driver.DeviceError:
            pass  # a capture that was invalidated ends with an error; it ends all the same

    def launch(self) -> None:
        """Enqueue the batch on the stream it was captured on."""
        driver.launch_graph(self._executable, self._stream)

    def close(self) -> None:
        """Destroy the graph, then drop its execution."""
        driver.destroy_graph(self._executable)
        self._execution.close()
