"""JSON of a request into a typed record, or one line that names the field."""

from __future__ import annotations

from typing import TypeVar

import msgspec

from infer.serve.refusal import Refusal

T = TypeVar("T")


def decode(decoder: msgspec.json.Decoder[T], data: bytes | memoryview) -> T:
    """Decode ``data``.

    Raises:
        Refusal: 400.
    """
    try:
        return decoder.decode(data)
    except msgspec.ValidationError as error:
        raise Refusal(400, _field_first(str(error))) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Refusal(400, f"body: expected JSON ({str(error)[:120]})") from None


def _field_first(message: str) -> str:
    """Of msgspec's ``Expected `int`, got `str` - at `$.inputs[0].shape[1]```: the field, then what is wrong."""
    text, sign, field = message.partition(" - at `$")
    text = text[:1].lower() + text[1:]
    return f"{field.rstrip('`').lstrip('.') or 'body'}: {text}" if sign else f"body: {text}"
