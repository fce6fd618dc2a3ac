"""DLPack without a compiled extension: reading the tensor in a capsule, and making capsules for device memory.

The structures are those of ``dlpack.h`` (https://dmlc.github.io/dlpack/latest/c_api.html): the unversioned one, which
every consumer accepts, and that of version 1, for those who ask for it.
"""

from __future__ import annotations

import ctypes
import itertools
from typing import Any, NamedTuple

from infer.errors import InputError

CPU, CUDA, CUDA_MANAGED = 1, 2, 13
"""Device types of DLPack."""
VERSION = (1, 0)
"""The newest version of the structures here."""

_NAME, _VERSIONED = b"dltensor", b"dltensor_versioned"
_SIGNED, _UNSIGNED, _FLOAT = 0, 1, 2
_CODES = {"i": _SIGNED, "u": _UNSIGNED, "f": _FLOAT}
_READ_ONLY, _COPIED = 1, 2


class _Tensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


class _Managed(ctypes.Structure):
    _fields_ = (("tensor", _Tensor), ("manager", ctypes.c_void_p), ("deleter", ctypes.c_void_p))


class _ManagedVersioned(ctypes.Structure):
    _fields_ = (
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("manager", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
        ("flags", ctypes.c_uint64),
        ("tensor", _Tensor),
    )


class Foreign(NamedTuple):
    """A tensor of somebody else. ``strides`` in elements, None when contiguous; ``owner`` keeps it alive."""

    pointer: int
    shape: tuple[int, ...]
    dtype: str
    strides: tuple[int, ...] | None
    device_type: int
    device: int
    owner: Any
    read_only: bool = False


_api = ctypes.pythonapi
_api.PyCapsule_New.restype = ctypes.py_object
_api.PyCapsule_New.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
# Addresses instead of objects: a destructor gets a capsule that is dying already and must not be referenced.
_is_valid = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p)(("PyCapsule_IsValid", _api))
_pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p)(("PyCapsule_GetPointer", _api))


def read_capsule(capsule: Any) -> Foreign:
    """The tensor in a capsule, which is left unused: its producer's destructor frees it when ``owner`` goes.

    Raises:
        InputError: no capsule of DLPack, or of a type that is no plain integer or float.
    """
    read_only = False
    if _is_valid(id(capsule), _VERSIONED):
        managed = ctypes.cast(_pointer(id(capsule), _VERSIONED), ctypes.POINTER(_ManagedVersioned)).contents
        if managed.major != VERSION[0]:
            raise InputError(f"expected DLPack {VERSION[0]}, found {managed.major}.{managed.minor}")
        tensor, read_only = managed.tensor, bool(managed.flags & _READ_ONLY)
    elif _is_valid(id(capsule), _NAME):
        tensor = ctypes.cast(_pointer(id(capsule), _NAME), ctypes.POINTER(_Managed)).contents.tensor
    else:
        raise InputError("expected an unused DLPack capsule named 'dltensor' or 'dltensor_versioned'")
    kind = {code: letter for letter, code in _CODES.items()}.get(tensor.code)
    if kind is None or tensor.bits % 8 or tensor.lanes != 1:
        raise InputError(f"expected plain numbers, found DLPack type {tensor.code}, {tensor.bits} bits")
    return Foreign(
        pointer=(tensor.data or 0) + tensor.byte_offset,
        shape=tuple(tensor.shape[axis] for axis in range(tensor.ndim)),
        dtype=f"{kind}{tensor.bits // 8}",
        strides=tuple(tensor.strides[axis] for axis in range(tensor.ndim)) if tensor.strides else None,
        device_type=tensor.device_type,
        device=tensor.device_id,
        owner=capsule,
        read_only=read_only,
    )


# Structures and owners of the capsules that are out, by a number kept in the structure.
_exported: dict[int, tuple[Any, Any, Any]] = {}
_numbers = itertools.count(1)


def _forget(structure: type[ctypes.Structure], managed: int) -> None:
    number = ctypes.cast(managed, ctypes.POINTER(structure)).contents.manager  # type: ignore[attr-defined]
    _exported.pop(number, None)


def _delete(managed: int) -> None:
    _forget(_Managed, managed)


def _delete_versioned(managed: int) -> None:
    _forget(_ManagedVersioned, managed)


def _destroy_capsule(capsule: int) -> None:
    # Under another name, somebody has taken the tensor over.
    if _is_valid(capsule, _NAME):
        _delete(_pointer(capsule, _NAME))
    elif _is_valid(capsule, _VERSIONED):
        _delete_versioned(_pointer(capsule, _VERSIONED))


_DELETER = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(_delete)
_DELETER_VERSIONED = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(_delete_versioned)
_DESTRUCTOR = ctypes.PYFUNCTYPE(None, ctypes.c_void_p)(_destroy_capsule)
# A capsule may outlive this module when the interpreter ends.
for _function in (_DELETER, _DELETER_VERSIONED, _DESTRUCTOR):
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(_function))


def make_capsule(
    pointer: int,
    shape: tuple[int, ...],
    dtype: str,
    *,
    device_type: int,
    device: int,
    owner: object,
    versioned: bool = False,
    copied: bool = False,
) -> Any:
    """A capsule for contiguous memory; ``owner`` lives until the consumer is done.

    Args:
        pointer: address of the first element.
        shape: of the tensor.
        dtype: kind and bytes, ``"f4"``.
        device_type: see :data:`CUDA`.
        device: ordinal.
        owner: what keeps the memory.
        versioned: the structure of :data:`VERSION`, for consumers that know it.
        copied: say there that the consumer has the memory for itself.
    """
    extents = (ctypes.c_int64 * len(shape))(*shape)
    # Version 1 has no tensors without strides.
    strides = (ctypes.c_int64 * len(shape))(*contiguous(shape)) if versioned else None
    managed: Any = _ManagedVersioned() if versioned else _Managed()
    tensor = managed.tensor
    tensor.data, tensor.device_type, tensor.device_id = pointer, device_type, device
    tensor.ndim, tensor.shape = len(shape), extents
    if strides is not None:
        tensor.strides = strides
    tensor.code, tensor.bits, tensor.lanes = _CODES[dtype[0]], 8 * int(dtype[1:]), 1
    number = next(_numbers)
    managed.manager = number
    managed.deleter = ctypes.cast(_DELETER_VERSIONED if versioned else _DELETER, ctypes.c_void_p)
    if versioned:
        managed.major, managed.minor = VERSION
        managed.flags = _COPIED if copied else 0
    _exported[number] = (managed, (extents, strides), owner)
    name = _VERSIONED if versioned else _NAME
    return _api.PyCapsule_New(ctypes.addressof(managed), name, ctypes.cast(_DESTRUCTOR, ctypes.c_void_p))


def contiguous(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Strides in elements of a C-contiguous array."""
    strides = [1] * len(shape)
    for axis in range(len(shape) - 2, -1, -1):
        strides[axis] = strides[axis + 1] * shape[axis + 1]
    return tuple(strides)
