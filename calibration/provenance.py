"""Where a calibration cache came from: the JSON file beside it. Read with msgspec, which names a wrong field."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from infer.errors import InputError

FORMAT = 1
MAX_BYTES = 64 << 20

Sha256 = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
Magnitude = Annotated[float, msgspec.Meta(ge=0)]


class Provenance(msgspec.Struct, kw_only=True, frozen=True):
    """What made a cache.

    Attributes:
        graph_sha256: SHA-256 of the float graph, 64 hex digits.
        data_sha256: SHA-256 of the calibration images, order-independent (``Statistics.data_hash``).
        images: how many.
        method: of :data:`calibration.choices.METHODS`.
        created: date and time, ISO 8601.
        tool: name and version of what made it.
        parameters: the method's parameters.
        preprocessing: what turned files into the graph's input.
        amax: by method, by tensor: what the other methods found in the same pass. May be empty.
        cache_sha256: SHA-256 of the cache file's bytes; set when the cache is written.
        network_revision: ``infer.bundle.NETWORK_REVISION`` of a graph of ours, None for another. Files that do not say
            are older than revision 2.
        format: version of this layout.
    """

    graph_sha256: Sha256
    data_sha256: Sha256
    images: Annotated[int, msgspec.Meta(ge=1)]
    method: str
    created: str
    tool: str
    parameters: dict[str, Any] = {}
    preprocessing: dict[str, Any] = {}
    amax: dict[str, dict[str, Magnitude]] = {}
    cache_sha256: Sha256 = "0" * 64
    network_revision: int | None = 1
    format: int = FORMAT


def to_json(provenance: Provenance) -> bytes:
    """Content of the file."""
    return msgspec.json.format(msgspec.json.encode(provenance), indent=1) + b"\n"


# As in infer.bundle: msgspec 0.22 crashes when several threads are the first to decode a type.
_PROVENANCE = msgspec.json.Decoder(Provenance)


def from_json(data: bytes, source: str) -> Provenance:
    """The inverse of :func:`to_json`; unknown fields are ignored.

    Args:
        data: content of the file.
        source: its name, for messages.

    Raises:
        InputError: not JSON, another version of the layout, or a field is missing or has a wrong value.
    """
    try:
        raw = msgspec.json.decode(data)
        found = raw.get("format") if isinstance(raw, dict) else None
        if found != FORMAT:
            raise InputError(f"{source}: expected provenance of format {FORMAT}, found {found!r:.40}; calibrate again")
        return _PROVENANCE.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"{source}: damaged ({error}); delete it or calibrate again") from None
