"""Tensors of the v2 protocol, whatever carried them: what an input must be, and what the outputs become.

https://kserve.github.io/website/docs/concepts/architecture/data-plane/v2-protocol, with Triton's extensions for binary
data and classification (https://github.com/triton-inference-server/server/tree/main/docs/protocol).
"""

from __future__ import annotations

import base64
import binascii
import struct
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from infer.backends.base import Outputs
from infer.bundle.tensors import CLASSES, INPUT, LOGITS, SCORES
from infer.serve.limits import Limits
from infer.serve.model import Shape
from infer.serve.refusal import Refusal

#: Names of the types in the protocol.
DATATYPES = {LOGITS: "FP32", SCORES: "FP32", CLASSES: "INT32"}
#: Pixels as JSON numbers are read in the event loop, which nobody else has meanwhile.
MOST_JSON_PIXELS = 2_000_000
_LENGTH = struct.Struct("<I")

Parameters = Mapping[str, object]


class Wanted(NamedTuple):
    """One output of an answer.

    Attributes:
        name: ``logits``, ``scores`` or ``classes``.
        binary: raw bytes behind the JSON.
        best: classes of the classification extension; 0 for the tensor itself.
    """

    name: str
    binary: bool = False
    best: int = 0


class Images(NamedTuple):
    """The images of a request: one of both.

    Attributes:
        pixels: uint8 ``[n, side, side, 3]``.
        files: encoded images.
    """

    pixels: NDArray[np.uint8] | None = None
    files: list[bytes | memoryview] | None = None


class Column(NamedTuple):
    """An output as it is sent: FP32, INT32, or BYTES of the classification extension."""

    wanted: Wanted
    datatype: str
    shape: list[int]
    array: NDArray[np.float32] | NDArray[np.int32] | None
    texts: list[bytes]

    def raw(self) -> bytes:
        """Little-endian, row by row; texts with their lengths before them."""
        if self.array is None:
            return b"".join(_LENGTH.pack(len(text)) + text for text in self.texts)
        return np.ascontiguousarray(self.array, self.array.dtype.newbyteorder("<")).tobytes()


def check_input(field: str, name: str, datatype: str, shape: Sequence[int], model: Shape, limits: Limits) -> int:
    """Look at what a request says of its input.

    Returns:
        Images of the request.

    Raises:
        Refusal: 400; names the field.
    """
    if name != INPUT:
        raise Refusal(400, f"{field}.name: expected {INPUT!r}, found {name[:64]!r}")
    if datatype == "UINT8":
        expected = [model.side, model.side, 3]
        if len(shape) != 4 or list(shape[1:]) != expected:
            raise Refusal(400, f"{field}.shape: expected [N, {', '.join(map(str, expected))}], found {_short(shape)}")
    elif datatype == "BYTES":
        if len(shape) not in (1, 2) or list(shape[1:]) not in ([], [1]):
            raise Refusal(400, f"{field}.shape: expected [N] or [N, 1] encoded images, found {_short(shape)}")
    else:
        raise Refusal(
            400, f"{field}.datatype: expected UINT8 pixels or BYTES of encoded images, found {datatype[:16]!r}"
        )
    if not 1 <= shape[0] <= limits.max_images:
        raise Refusal(400, f"{field}.shape: expected 1 to {limits.max_images} images, found {shape[0]}")
    return int(shape[0])


def from_raw(field: str, datatype: str, rows: int, data: bytes | memoryview, model: Shape) -> Images:
    """Images from the bytes of the binary extension or of gRPC.

    Raises:
        Refusal: 400, not so many bytes as the shape says; names the field.
    """
    if datatype == "BYTES":
        return Images(files=_split(field, rows, memoryview(data)))
    expected = rows * model.side * model.side * 3
    if len(data) != expected:
        raise Refusal(400, f"{field}: expected {expected} bytes for this shape, found {len(data)}")
    return Images(pixels=np.frombuffer(data, np.uint8).reshape(rows, model.side, model.side, 3))


def _split(field: str, rows: int, data: memoryview) -> list[bytes | memoryview]:
    files: list[bytes | memoryview] = []
    at = 0
    while at < len(data):
        if at + 4 > len(data):
            raise Refusal(400, f"{field}: ends within the length of element {len(files)}")
        (length,) = _LENGTH.unpack_from(data, at)
        if at + 4 + length > len(data):
            raise Refusal(400, f"{field}: element {len(files)} has {length} bytes, {len(data) - at - 4} are there")
        if len(files) == rows:
            raise Refusal(400, f"{field}: expected {rows} elements, found more")
        files.append(data[at + 4 : at + 4 + length])
        at += 4 + length
    if len(files) != rows:
        raise Refusal(400, f"{field}: expected {rows} elements, found {len(files)}")
    return files


def from_json(field: str, datatype: str, rows: int, data: bytes, model: Shape) -> Images:
    """Images from ``data`` of a JSON tensor: nested or flat numbers, or base64 texts.

    Raises:
        Refusal: 400 or 413; names the field.
    """
    if datatype == "BYTES":
        try:
            texts = msgspec.json.decode(data, type=list[str])
        except msgspec.DecodeError as error:
            raise Refusal(400, f"{field}: expected a list of base64 texts ({error})") from None
        if len(texts) != rows:
            raise Refusal(400, f"{field}: expected {rows} elements, found {len(texts)}")
        return Images(files=[from_base64(f"{field}[{number}]", text) for number, text in enumerate(texts)])
    expected = rows * model.side * model.side * 3
    if expected > MOST_JSON_PIXELS:
        raise Refusal(413, f"{field}: {expected} numbers, JSON may have {MOST_JSON_PIXELS}; send binary data")
    try:
        values = np.array(msgspec.json.decode(data))
    except (msgspec.DecodeError, ValueError, RecursionError, OverflowError):
        raise Refusal(400, f"{field}: expected {expected} numbers, flat or nested as the shape says") from None
    if values.dtype.kind not in "iu" or values.size != expected:
        raise Refusal(400, f"{field}: expected {expected} whole numbers, found {_kind(values)}")
    if values.min() < 0 or values.max() > 255:
        raise Refusal(400, f"{field}: expected numbers from 0 to 255, found {values.min()} to {values.max()}")
    return Images(pixels=values.astype(np.uint8).reshape(rows, model.side, model.side, 3))


def from_base64(field: str, text: str) -> bytes:
    """Bytes of a base64 text.

    Raises:
        Refusal: 400; names the field.
    """
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise Refusal(400, f"{field}: expected base64 of an encoded image") from None


def wanted(field: str, name: str, parameters: Parameters, binary: bool, model: Shape) -> Wanted:
    """An output that a request names.

    Raises:
        Refusal: 400; names the field.
    """
    if name not in DATATYPES:
        raise Refusal(400, f"{field}.name: expected one of {', '.join(DATATYPES)}, found {name[:64]!r}")
    refuse_shared_memory(field, parameters)
    binary = flag(f"{field}.parameters.binary_data", parameters.get("binary_data", binary))
    best = parameters.get("classification", 0)
    if not isinstance(best, int) or isinstance(best, bool) or best < 0:
        raise Refusal(400, f"{field}.parameters.classification: expected a number of classes, found {best!r:.32}")
    if best and name != LOGITS:
        raise Refusal(400, f"{field}.parameters.classification: expected for {LOGITS} only, found for {name}")
    return Wanted(name, binary, min(best, model.classes))


def flag(field: str, value: object) -> bool:
    """A truth value.

    Raises:
        Refusal: 400; names the field.
    """
    if not isinstance(value, bool):
        raise Refusal(400, f"{field}: expected true or false, found {value!r:.32}")
    return value


def refuse_shared_memory(field: str, parameters: Parameters) -> None:
    """Raise Refusal (400) where a tensor is to lie in shared memory."""
    if any(name.startswith("shared_memory") for name in parameters):
        raise Refusal(400, f"{field}.parameters.shared_memory_region: not supported here; send the data itself")


def columns(outputs: Outputs, all_wanted: Sequence[Wanted], labels: Sequence[str]) -> list[Column]:
    """The outputs in the order in which they are wanted."""
    arrays: dict[str, NDArray[np.float32] | NDArray[np.int32]] = {
        LOGITS: outputs.logits,
        SCORES: outputs.scores,
        CLASSES: outputs.classes,
    }
    found = []
    for one in all_wanted:
        array = arrays[one.name]
        if one.best:
            texts = _classes(outputs.logits, one.best, labels)
            found.append(Column(one, "BYTES", [len(array), one.best], None, texts))
        else:
            found.append(Column(one, DATATYPES[one.name], list(array.shape), array, []))
    return found


def _classes(logits: NDArray[np.float32], best: int, labels: Sequence[str]) -> list[bytes]:
    """``value:index:label`` of the best classes of each row, best first."""
    order = np.argsort(-logits, axis=1, kind="stable")[:, :best]
    return [
        f"{value:f}:{index}:{labels[index]}".encode()
        for row, values in zip(order, logits, strict=True)
        for index, value in ((int(i), float(values[i])) for i in row)
    ]


def _kind(values: NDArray[np.generic]) -> str:
    return f"{values.size} of {values.dtype}" if values.dtype.kind in "iufb" else "something else"


def _short(shape: Sequence[int]) -> str:
    text = str(list(shape[:8]))
    return text if len(shape) <= 8 else f"{text[:-1]}, ...]"
