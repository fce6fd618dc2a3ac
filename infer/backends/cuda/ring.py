"""The ring of staging buffers: who may use which, how many batches are under way, what happens when one fails."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from queue import Empty, SimpleQueue

from infer.backends.base import Outputs
from infer.backends.cuda.context import PrimaryContext
from infer.backends.cuda.staging import Staging
from infer.errors import InputError, IResNetError

_LOG = logging.getLogger(__name__)

Fill = Callable[[Staging], None]


class Ring:
    """Staging buffers that are handed out first in, first out. Thread-safe.

    A batch whose future is wanted is finished by one thread, in the order of the launches: it waits for the batch,
    copies the results, gives the buffer back and then completes the future. So a buffer never waits for its consumer.

    Args:
        context: of the buffers.
        buffers: idle, those of different slots in turn.
    """

    def __init__(self, context: PrimaryContext, buffers: list[Staging]) -> None:
        self._context, self._size = context, len(buffers)
        self._free = deque(buffers)
        self._held: set[Staging] = set()
        self._changed = threading.Condition()
        self._closing = False
        self._launched: SimpleQueue[tuple[Staging, int, Future[Outputs]] | None] = SimpleQueue()
        self._finisher = threading.Thread(target=self._finish_all, name="iresnet-finisher", daemon=True)
        self._finisher.start()

    def check(self) -> None:
        """Raise when the runner is broken or closed.

        Raises:
            DeviceError: the first sticky error.
            InputError: closed.
        """
        if self._context.failure is not None:
            raise self._context.again()
        if self._closing:
            raise InputError("this runner is closed; open the bundle again")

    def acquire(self, timeout: float | None = None) -> Staging:
        """The buffer that is free longest; waits while all are in use.

        Raises:
            InputError: closed, or nothing became free within ``timeout`` seconds.
            DeviceError: the first sticky error.
        """
        with self._changed:
            if not self._free and not self._changed.wait_for(self._free_or_over, timeout):
                raise InputError(f"all {self._size} buffers are still in use after {timeout} s; submit or release one")
            self.check()
            return self._free.popleft()

    def try_acquire(self) -> Staging | None:
        """A free buffer, already held as by :meth:`hold`; None where none is free or half of all are held.

        Raises:
            InputError: closed.
            DeviceError: the first sticky error.
        """
        with self._changed:
            self.check()
            if not self._free or len(self._held) >= self._size // 2:
                return None
            staging = self._free.popleft()
            self._held.add(staging)
            return staging

    def _free_or_over(self) -> bool:
        return bool(self._free) or self._closing or self._context.failure is not None

    def release(self, staging: Staging) -> None:
        """Give an idle buffer back."""
        with self._changed:
            self._free.append(staging)
            if self._context.failure is None and not self._closing:
                self._changed.notify()
            else:
                self._changed.notify_all()

    def hold(self, staging: Staging) -> None:
        """Leave an acquired buffer to the caller of the runner: :meth:`close` does not wait for it."""
        with self._changed:
            self._held.add(staging)
            self._changed.notify_all()

    def take_back(self, staging: Staging) -> None:
        """End :meth:`hold`; raises as :meth:`check` does, and the buffer is then given back."""
        with self._changed:
            self._held.remove(staging)
            try:
                self.check()
            except IResNetError:
                self._free.append(staging)
                raise

    def submit(self, staging: Staging, rows: int, fill: Fill | None = None) -> Future[Outputs]:
        """Fill and launch an acquired buffer; errors of the device come through the future."""
        future: Future[Outputs] = Future()
        future.set_running_or_notify_cancel()
        failed = self._launch(staging, rows, fill)
        if failed is not None:
            _fail(future, failed)
            return future
        with self._changed:
            queued = not self._closing
            if queued:
                self._launched.put((staging, rows, future))
        if not queued:
            self._complete(staging, rows, future)
        return future

    def run(self, staging: Staging, rows: int, fill: Fill) -> Outputs:
        """As :meth:`submit` with its result, without another thread in between."""
        found: Outputs | BaseException | None = self._launch(staging, rows, fill)
        if found is None:
            found = self._finish(staging, rows)
        try:
            if isinstance(found, BaseException):
                raise found
            return found
        finally:
            del found  # an error would hold its own traceback

    def _launch(self, staging: Staging, rows: int, fill: Fill | None) -> IResNetError | None:
        """Fill and launch; the error, and the buffer is then free again."""
        try:
            with self._context:  # before the memory is touched: it goes with the context
                try:
                    if fill is not None:
                        fill(staging)
                    staging.launch(rows)
                except BaseException as error:
                    raise self._context.explain(error, f"launching a batch of {rows}") from error
        except IResNetError as error:
            self.release(staging)
            return error
        except BaseException:
            self.release(staging)
            raise
        return None

    def _finish(self, staging: Staging, rows: int) -> Outputs | BaseException:
        """Wait and collect the results or the error; the buffer is then free again."""
        try:
            with self._context:
                try:
                    staging.wait()
                    outputs = staging.collect(rows)
                except BaseException as error:
                    staging.slot.settle()
                    raise self._context.explain(error, f"running a batch of {rows}") from error
        except BaseException as error:
            self.release(staging)
            return error
        self.release(staging)
        return outputs

    def _complete(self, staging: Staging, rows: int, future: Future[Outputs]) -> None:
        found = self._finish(staging, rows)
        if isinstance(found, BaseException):
            _fail(future, found)
        else:
            future.set_result(found)

    def _finish_all(self) -> None:
        while (launched := self._launched.get()) is not None:
            self._complete(*launched)
            del launched  # else the last results live until the next batch

    def close(self) -> None:
        """Refuse new batches, finish those under way, end the thread. Buffers that callers hold are not waited for."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        if threading.current_thread() is self._finisher:  # a callback of a future closes the runner
            self._finish_here()
            self._launched.put(None)
            return
        with self._changed:
            self._changed.wait_for(self._all_home)
        self._launched.put(None)
        self._finisher.join()

    def _all_home(self) -> bool:
        return len(self._free) + len(self._held) == self._size

    def _finish_here(self) -> None:
        while not self._all_home():
            try:
                launched = self._launched.get(timeout=0.01)
            except Empty:
                continue
            if launched is not None:
                self._complete(*launched)


def _fail(future: Future[Outputs], error: BaseException) -> None:
    """Complete with an error, without the frames that it came through: they, or their callers, know the future.

    All of it would live until the next collection, and the memory and streams that they know beyond their context.
    """
    _LOG.debug("a batch failed", exc_info=error)
    part: BaseException | None = error
    while part is not None:
        part.__traceback__ = None
        part = part.__cause__ or part.__context__
    future.set_exception(error)
