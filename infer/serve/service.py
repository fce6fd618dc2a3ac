"""What HTTP and gRPC share: models, limits, tokens, metrics, and whether the server is ready."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Callable
from typing import Literal

from infer import __version__
from infer.errors import InputError, IResNetError
from infer.pipeline.host import usable_cpus
from infer.serve.access_log import AccessLog
from infer.serve.auth import Tokens
from infer.serve.decoders import Decoders
from infer.serve.limits import Budget
from infer.serve.metrics import Metrics
from infer.serve.models import Models
from infer.serve.opening import EarlyOpening
from infer.serve.options import ServeOptions
from infer.serve.refusal import Refusal

_LOG = logging.getLogger(__name__)
State = Literal["loading", "ready", "draining", "failed"]
NAME = "iresnet"


class Service:
    """One server without its sockets. Made and used in one event loop; models are loaded by :meth:`start`.

    Args:
        options: see there.

    Attributes:
        failure: what made the server unusable for good; None while it is not.
        on_failure: called once, in the event loop, when ``failure`` is set.
        on_ready: called once, in the event loop, when every model is loaded.
        early: a bundle that is being opened already; to be set before :meth:`start`.

    Raises:
        InputError: the file of the tokens cannot be used.
    """

    def __init__(self, options: ServeOptions) -> None:
        self.options, self.limits = options, options.limits
        self.tokens = Tokens(options.tokens)
        self.metrics = Metrics(__version__)
        self.log = AccessLog(None, self.metrics.dropped.inc)
        self.bodies = Budget(options.limits.max_buffered, "bodies of requests (bytes)")
        self.failure: Exception | None = None
        self.on_failure: Callable[[Exception], None] | None = None
        self.on_ready: Callable[[], None] | None = None
        self.early: EarlyOpening | None = None
        self._state: State = "loading"
        self._broken_model = False
        self._loader: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._decoders = Decoders(options.decoders or usable_cpus())
        self._models: Models | None = None

    @property
    def models(self) -> Models:
        """The models; from :meth:`start` on."""
        assert self._models is not None, "the service was not started"
        return self._models

    @property
    def state(self) -> State:
        """``loading``, then ``ready``, and in the end ``draining`` or ``failed``."""
        return self._state

    @property
    def ready(self) -> bool:
        """Every model is loaded, warmed up and gave its known answers; nothing is broken; the server is not ending."""
        return self._state == "ready"

    @property
    def broken(self) -> bool:
        """A model that was loaded failed for good; its engine cannot even be closed."""
        return self._broken_model

    def require_usable(self) -> None:
        """Refuse work before the models are loaded and after one broke; while draining, what still comes is done.

        Raises:
            Refusal: 503.
        """
        if self._state in ("loading", "failed"):
            raise Refusal(503, f"the server is {self._state}; try again later", retry_after=5)

    def start(self) -> None:
        """Begin to load the models; in the event loop, which goes on meanwhile."""
        self._loop = asyncio.get_running_loop()
        if self.options.access_log:
            self.log = AccessLog(sys.stdout.buffer, self.metrics.dropped.inc)
        self._models = Models(self.options, self._decoders, self.metrics, self._broken, self.early)
        self._loader = self._loop.create_task(self._load())

    async def loaded(self) -> None:
        """Wait for the models of the start.

        Raises:
            IResNetError: a bundle cannot be served.
        """
        assert self._loader is not None, "the service was not started"
        await asyncio.wait([self._loader])
        if self.failure is not None:
            raise self.failure

    def drain(self) -> None:
        """From now on the server is not ready; what it has taken, and still takes, is done."""
        if self._state in ("loading", "ready"):
            self._set("draining")

    async def close(self) -> None:
        """Finish what is under way and release everything."""
        self.drain()
        if self._loader is not None:
            await asyncio.wait([self._loader])  # a load cannot be stopped in the middle
        if self._models is not None and not self._broken_model:
            await self._models.close()
        self._decoders.close()
        await asyncio.to_thread(self.log.close)

    async def _load(self) -> None:
        try:
            await self.models.load_first()
        except Refusal as refusal:
            self._fail(InputError(refusal.message))
        except Exception as error:
            if not isinstance(error, IResNetError):
                _LOG.exception("a bundle cannot be loaded")
            self._fail(error)
        else:
            if self._state == "loading":
                self._set("ready")
                if self.on_ready is not None:
                    self.on_ready()

    def _broken(self, error: Exception) -> None:
        """A model failed for good; from any thread."""
        assert self._loop is not None
        self._broken_model = True
        self._loop.call_soon_threadsafe(self._fail, error)

    def _fail(self, error: Exception) -> None:
        if self.failure is not None:
            return
        self.failure = error
        self._set("failed")
        if self.on_failure is not None:
            self.on_failure(error)

    def _set(self, state: State) -> None:
        self._state = state
        self.metrics.ready.set(state == "ready")
