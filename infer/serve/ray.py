"""The same application on a Ray cluster: Ray Serve's proxies in front, replicas of the application behind.

    serve run infer.serve.ray:build bundle=/shared/engines/iresnet50-int8 replicas=2

or, so that a new bundle is rolled out, ``serve deploy examples/serve/ray.yaml``. See docs/many-machines.md.
"""

# No "from __future__ import annotations": Ray looks at the class in the signature of `build`.
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator
from ray import serve
from ray.serve import Application
from ray.serve.grpc_util import RayServegRPCContext
from starlette.applications import Starlette

from infer.serve.app import application
from infer.serve.limits import MAX_PIXELS, MIB, Limits
from infer.serve.options import ServeOptions, parse_source
from infer.serve.ray_grpc import CALLS, answer
from infer.serve.service import Service
from infer.serve.v2_grpc import V2Grpc

_REPLICAS = re.compile(r"([1-9][0-9]*)(?:-([1-9][0-9]*))?")


class Arguments(BaseModel):
    """What :func:`build` takes; Ray reads it from ``serve run``'s command line, or from ``args`` of a YAML file.

    Attributes:
        bundle: one, or several: ``FOLDER``, ``NAME=FOLDER`` or ``NAME:VERSION=FOLDER``; a path that every node has.
        replicas: their number, or ``MIN-MAX``: as many as requests that are under way or wait ask for.
        requests: under way at each replica that autoscaling aims at.
        cpus: of a replica: cores that Ray keeps for it, threads of a CPU target and of decoding.
        gpus: of a replica.
        target: as for ``iresnet serve``, like all that follow.
        max_delay: milliseconds.
        tokens: file, on every node.
        max_body: MiB.
        timeout: seconds.
    """

    model_config = ConfigDict(extra="forbid")

    bundle: list[str] = Field(min_length=1)
    replicas: str = "1"
    requests: int = Field(16, ge=1)
    cpus: int = Field(1, ge=1)
    gpus: int = Field(0, ge=0)
    target: str | None = None
    allow_untrained: bool = False
    require_verified: bool = False
    max_delay: float = Field(2.0, ge=0)
    tokens: Path | None = None
    max_body: int = Field(32, ge=1)
    max_pixels: int = Field(MAX_PIXELS, ge=1)
    max_images: int = Field(128, ge=1)
    queue: int | None = Field(None, ge=1)
    timeout: float = Field(30.0, gt=0)

    @field_validator("bundle", mode="before")
    @classmethod
    def _one_or_several(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @field_validator("replicas", mode="before")
    @classmethod
    def _number_or_range(cls, value: Any) -> str:
        text = str(value)
        found = _REPLICAS.fullmatch(text)
        if found is None or int(found[1]) > int(found[2] or found[1]):
            raise ValueError(f"expected a number from 1, or MIN-MAX, found {text!r}")
        return text

    def options(self) -> ServeOptions:
        """Of the application in each replica.

        Raises:
            InputError: one of them cannot be used.
        """
        limits = Limits(
            max_body=self.max_body * MIB,
            max_buffered=max(512, self.max_body) * MIB,
            max_pixels=self.max_pixels,
            max_images=self.max_images,
            queue=self.queue,
            timeout=self.timeout,
        )
        return ServeOptions(
            tuple(parse_source(text) for text in self.bundle),
            target=self.target,
            threads=self.cpus,
            allow_untrained=self.allow_untrained,
            require_verified=self.require_verified,
            max_delay=self.max_delay / 1e3,
            decoders=self.cpus,
            tokens=self.tokens,
            limits=limits,
        )

    def deployment(self) -> dict[str, Any]:
        """Options of the deployment, by Ray's names."""
        first, _, last = self.replicas.partition("-")
        scale: dict[str, Any] = {"num_replicas": int(first)}
        if last:
            scale = {"autoscaling_config": {"min_replicas": int(first), "max_replicas": int(last),
                                            "target_ongoing_requests": self.requests}}  # fmt: skip
        return {
            **scale,
            "ray_actor_options": {"num_cpus": self.cpus, "num_gpus": self.gpus},
            "graceful_shutdown_timeout_s": self.timeout + 5,
        }


class Classifier:
    """A replica: it is there when its models are warmed up and gave their known answers.

    Args:
        options: of the application.

    Raises:
        RuntimeError: a bundle cannot be served; ``serve status`` says why.
    """

    async def __init__(self, options: ServeOptions) -> None:  # type: ignore[misc]  # Ray awaits it
        app = application(options)
        service: Service = app.state.service
        service.start()
        try:
            await service.loaded()
        except Exception as error:
            await service.close()
            # As text: errors of ours are not what Ray can carry over to another process.
            raise RuntimeError(f"{type(error).__name__}: {error}") from None

        @asynccontextmanager
        async def ending(app: Starlette) -> AsyncIterator[None]:
            try:
                yield
            finally:
                await service.close()

        app.router.lifespan_context = ending
        self._service, self._grpc = service, V2Grpc(service)
        _replica.append(app)

    async def check_health(self) -> None:
        """Asked by Ray every few seconds: a replica whose model failed for good is replaced.

        Raises:
            RuntimeError: it did.
        """
        if self._service.failure is not None:
            raise RuntimeError(f"a model failed for good: {self._service.failure}")


#: The application of this process, which is a replica; Ray asks for it after the constructor.
_replica: list[Starlette] = []


def _application() -> Starlette:
    return _replica[-1]


def _call(name: str) -> Any:
    async def call(self: Classifier, request: bytes, grpc_context: RayServegRPCContext) -> Any:
        return await answer(self._grpc, name, request, grpc_context, self._service.limits.max_body)

    return call


for _name in CALLS:
    setattr(Classifier, _name, _call(_name))


def build(arguments: Arguments) -> Application:
    """The application for ``serve run``, ``serve deploy`` and ``ray.serve.run``.

    Raises:
        InputError: an argument cannot be used.
    """
    options = arguments.options()
    # A replica takes what fills its batches; the rest waits in Ray's proxies. See docs/many-machines.md.
    made = serve.deployment(
        serve.ingress(_application)(Classifier),
        name="classifier",
        max_ongoing_requests=max(64, 2 * arguments.requests),
        max_queued_requests=256,
        health_check_period_s=5.0,
        **arguments.deployment(),
    )
    return made.bind(options)
