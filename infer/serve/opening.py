"""Opening a bundle so that it can answer at once; for the first ones before the server's libraries are imported.

Those imports and the opening take about as long, and leave each other the processor for much of it.
"""

from __future__ import annotations

import os
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, NamedTuple

from infer.serve.options import ServeOptions, Source

if TYPE_CHECKING:
    from infer.runner import Runner


class Opened(NamedTuple):
    """A bundle that is ready to answer.

    Attributes:
        runner: opened, warmed up and checked.
        resident: bytes of the process before.
    """

    runner: Runner
    resident: int


def open_warm(source: Source, options: ServeOptions) -> Opened:
    """Open, warm up and check.

    Raises:
        IResNetError: the bundle cannot be served.
    """
    from infer.runner import open_bundle

    before = resident_bytes()
    runner = open_bundle(
        source.folder,
        target=options.target,
        allow_untrained=options.allow_untrained,
        threads=options.threads,
        gpu=options.gpu,
    )
    try:
        runner.require_trained()
        if options.require_verified:
            runner.require_verified()
        warm_up(runner)
    except BaseException:
        runner.close()
        raise
    return Opened(runner, before)


def warm_up(runner: Runner) -> None:
    """Run every compiled batch size once: each is compiled, and checked by the known answers, when first needed.

    Raises:
        KnownAnswersError: the kernels of a batch size compute something else than the graph.
    """
    import numpy as np

    from infer.pipeline.host import usable_cpus

    side, backend = runner.preprocessing.crop, runner.backend

    def run(size: int) -> None:
        backend.infer(np.zeros((size, side, side, 3), np.uint8))

    with ThreadPoolExecutor(usable_cpus()) as pool:
        list(pool.map(run, backend.compiled_batches or (1, backend.max_batch)))


def resident_bytes() -> int:
    """Memory of this process, 0 where the system does not say."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:  # noqa: PTH123
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


class EarlyOpening:
    """The bundle that a server is started with, opened from now on; only where it is the only one."""

    def __init__(self, options: ServeOptions) -> None:
        self._options = options
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="open")
        self._future: Future[Opened] | None = None
        if len(options.sources) == 1:
            self._future = self._pool.submit(open_warm, options.sources[0], options)

    def take(self, source: Source) -> Opened | None:
        """What was opened, once; None for another bundle.

        Raises:
            IResNetError: it cannot be served.
        """
        if self._future is None or source.folder != self._options.sources[0].folder:
            return None
        future, self._future = self._future, None
        return future.result()

    def close(self) -> None:
        """Release what nobody took."""
        future, self._future = self._future, None
        self._pool.shutdown()
        if future is not None and future.exception() is None:
            future.result().runner.close()
