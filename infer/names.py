"""Names of files as they are, as machines read them, and as a terminal can show them.

A name on a Unix file system is bytes; Python decodes those that are no UTF-8 to lone surrogates (PEP 383), which JSON,
CSV and Parquet cannot hold as text.
"""

from __future__ import annotations

import re

_LOOKS_ESCAPED = re.compile(r"\\x[0-9a-f]{2}")
_ESCAPE = re.compile(r"\\\\|\\x([0-9a-f]{2})")
_SURROGATE = re.compile("[\ud800-\udfff]")


def escape_name(name: str) -> str:
    r"""``name`` as valid text for JSON, CSV and Parquet, the same for no two names.

    Almost every name is itself. Bytes that are no UTF-8 become ``\xe9``, and in such a name (and in one that holds this
    very pattern) each backslash is doubled. :func:`unescape_name` gives the name back.
    """
    if _SURROGATE.search(name) is None and _LOOKS_ESCAPED.search(name) is None:
        return name
    return _SURROGATE.sub(_as_bytes, name.replace("\\", "\\\\"))


def unescape_name(text: str) -> str:
    """The name that :func:`escape_name` made ``text`` of."""
    if _LOOKS_ESCAPED.search(text) is None:
        return text
    return _ESCAPE.sub(lambda match: "\\" if match[1] is None else chr(0xDC00 + int(match[1], 16)), text)


def _as_bytes(match: re.Match[str]) -> str:
    try:
        return "".join(f"\\x{byte:02x}" for byte in match[0].encode("utf-8", "surrogateescape"))
    except UnicodeEncodeError:  # a surrogate that stands for no byte: no file has such a name
        return "\ufffd"


def printable(name: str) -> str:
    """``name`` with control characters and undecodable bytes escaped, fit for a terminal or a log."""
    if name.isprintable():
        return name
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode() for c in name)
