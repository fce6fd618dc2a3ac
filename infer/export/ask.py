"""Known answers of a running server: does it compute the graph of the bundle?

Speaks the KServe v2 protocol through ``tritonclient``, so Triton and every other server of that protocol can be asked.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from infer.backends.base import Outputs
from infer.bundle import Manifest, read_manifest
from infer.bundle.tensors import INPUT, OUTPUTS
from infer.checks.blame import Comparison
from infer.checks.known_answers import measure, read_answers
from infer.errors import BundleError, InputError, KnownAnswersError, TargetUnavailableError

_URL = re.compile(r"(https?|grpcs?)://([^/?#\s]+[^?#\s]*)")
#: Seconds for one request; a first batch may wait for a server that is still warming up.
TIMEOUT = 120.0


class ServerAnswer(msgspec.Struct, frozen=True):
    """What a server gave for a bundle's known answers in batches of one size.

    Attributes:
        batch: images a request.
        sqnr_db: of the centred logits, in dB; None where they are equal. JSON has null for what is not finite, too.
        floor_db: what it must reach.
        agreement: images with the class of the graph, percent.
        passed: whether it does.
    """

    batch: int
    sqnr_db: float | None
    floor_db: float
    agreement: float
    passed: bool

    def __str__(self) -> str:
        left = "equal" if self.sqnr_db is None else f"{self.sqnr_db:.1f} dB, floor {self.floor_db:.1f}"
        return f"batch {self.batch}: {'passed' if self.passed else 'WRONG'}, {left}, agreement {self.agreement:.1f} %"


def ask(bundle: Path, url: str, model: str, version: str = "", batches: tuple[int, ...] = (1, 4)) -> list[ServerAnswer]:
    """Send the pictures of the known answers to a server and compare its logits.

    Args:
        bundle: folder of the bundle.
        url: ``http://HOST:PORT``, ``https://``, ``grpc://`` or ``grpcs://``.
        model: name on the server; it takes ``images`` uint8 ``[N, H, W, 3]`` and gives ``logits``.
        version: of the model; empty for the server's choice.
        batches: images a request, each size in turn.

    Returns:
        One entry for each size.

    Raises:
        BundleError: damaged, or without known answers.
        InputError: not such an address.
        TargetUnavailableError: no server there, it has no such model, or it refuses the request.
    """
    manifest = read_manifest(bundle)
    if (record := manifest.known_answers) is None:
        raise BundleError(f"{bundle} has no known answers; build it again")
    answers = read_answers(bundle, manifest)
    with _Server(url, model, version, manifest) as server:
        return [_answer(batch, measure(server.infer, answers, batch, record.floor_db)) for batch in batches]


def require_passed(found: list[ServerAnswer], url: str, model: str) -> None:
    """Raise :class:`KnownAnswersError` where an answer of a server is wrong."""
    if wrong := next((one for one in found if not one.passed), None):
        raise KnownAnswersError(
            f"{url}, model {model}, batch {wrong.batch}: {wrong.sqnr_db:.1f} dB, at least {wrong.floor_db:.1f} dB are "
            "needed; it serves another bundle or version, or computes this one wrongly"
        )


def _answer(batch: int, found: Comparison) -> ServerAnswer:
    return ServerAnswer(batch, found.sqnr_db, found.floor_db, found.agreement, not found.missed)


class _Server:
    """A client that gives :class:`Outputs`."""

    def __init__(self, url: str, model: str, version: str, manifest: Manifest) -> None:
        match = _URL.fullmatch(url)
        if match is None:
            raise InputError(f"url: expected http://HOST:PORT or grpc://HOST:PORT, found {url!r}")
        scheme, address = match.groups()
        self._url, self._model, self._version = url, model, version
        self._classes = manifest.model.num_classes
        if scheme.startswith("grpc"):
            import tritonclient.grpc as protocol

            seconds: dict[str, Any] = {}
            self._timeout: dict[str, Any] = {"client_timeout": TIMEOUT}
        else:
            import tritonclient.http as protocol

            seconds, self._timeout = {"connection_timeout": TIMEOUT, "network_timeout": TIMEOUT}, {}
        self._protocol: Any = protocol
        self._client: Any = protocol.InferenceServerClient(address, ssl=scheme in ("https", "grpcs"), **seconds)

    def __enter__(self) -> _Server:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def infer(self, images: NDArray[np.uint8]) -> Outputs:
        """Logits, scores and classes of uint8 ``[N, H, W, 3]``."""
        tensor = self._protocol.InferInput(INPUT, list(images.shape), "UINT8")
        tensor.set_data_from_numpy(np.ascontiguousarray(images))
        wanted = [self._protocol.InferRequestedOutput(name) for name in OUTPUTS]
        try:
            result = self._client.infer(self._model, [tensor], self._version, outputs=wanted, **self._timeout)
        except Exception as error:  # of tritonclient, gevent, grpc and the operating system
            text = " ".join(str(error).split()) or type(error).__name__
            raise TargetUnavailableError(f"{self._url}, model {self._model}: {text[:300]}") from error
        found = Outputs(*(result.as_numpy(name) for name in OUTPUTS))
        expected = (len(images), self._classes)
        if found.logits is None or found.logits.shape != expected:
            shape = None if found.logits is None else list(found.logits.shape)
            raise TargetUnavailableError(
                f"{self._url}, model {self._model}: expected logits of shape {list(expected)}, found {shape}; "
                "it serves another model"
            )
        return found
