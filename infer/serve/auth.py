"""Who may ask: bearer tokens or API keys from a file, the same for HTTP, gRPC and metrics."""

from __future__ import annotations

import hashlib
import hmac
from pathlib import Path

from infer.errors import InputError
from infer.serve.refusal import Refusal

_SHORTEST = 16


class Tokens:
    """The tokens of a file; None for a server that asks for none.

    The file has a token a line; empty lines and those that begin with ``#`` are passed over.

    Raises:
        InputError: it cannot be read, has no token, or one that is shorter than 16 characters or not ASCII.
    """

    def __init__(self, path: Path | None) -> None:
        self._hashes: list[bytes] | None = None
        if path is None:
            return
        try:
            lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{path}: expected a text file with a token a line ({error})") from error
        tokens = [line for line in lines if line and not line.startswith("#")]
        if not tokens:
            raise InputError(f"{path}: expected a token a line, found none")
        for number, token in enumerate(tokens, 1):
            if len(token) < _SHORTEST or not token.isascii() or not token.isprintable() or " " in token:
                raise InputError(
                    f"{path}: token {number}: expected at least {_SHORTEST} printable ASCII characters without spaces"
                )
        self._hashes = [_hash(token) for token in tokens]

    @property
    def required(self) -> bool:
        """Whether a token is asked for."""
        return self._hashes is not None

    def check(self, authorization: str | None, key: str | None) -> None:
        """Look at ``Authorization`` and ``X-API-Key``; one good token is enough.

        Raises:
            Refusal: 401.
        """
        if self._hashes is None:
            return
        given = [key] if key else []
        scheme, _, token = (authorization or "").partition(" ")
        if scheme.lower() == "bearer" and token:
            given.append(token.strip())
        # Hashes of one length, and all of them: the time says nothing of the tokens.
        good = [hmac.compare_digest(_hash(one), known) for one in given for known in self._hashes]
        if not any(good):
            raise Refusal(401, "authorization: expected a bearer token or an x-api-key that this server knows")


def _hash(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()
