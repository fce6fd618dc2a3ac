"""The C library through ctypes: its structs and functions, and buffers for results."""

from __future__ import annotations

import ctypes
import os

import numpy as np

OK, INVALID, BUNDLE, UNAVAILABLE, UNTRAINED, UNSUPPORTED, DEVICE, INTERNAL, WRONG_ANSWERS = range(9)
NO_INTERPRETER, SHUT_DOWN = 9, 10
F32, I32 = ctypes.c_float, ctypes.c_int32


class Options(ctypes.Structure):
    _fields_ = (
        ("size", ctypes.c_size_t),
        ("target", ctypes.c_char_p),
        ("threads", I32),
        ("allow_untrained", I32),
        ("device", I32),
        ("slots", I32),
        ("spin", I32),
        ("reserved", I32),
        ("self_test", ctypes.c_char_p),
    )


class Info(ctypes.Structure):
    names = ("height", "width", "channels", "num_classes", "top_k", "max_batch", "in_flight", "trained", "device")
    _fields_ = (
        ("size", ctypes.c_size_t),
        *((name, I32) for name in names),
        ("known_answers", I32),
        ("known_answers_db", F32),
        ("known_answers_floor_db", F32),
        ("target", ctypes.c_char_p),
        ("device_name", ctypes.c_char_p),
        ("notes", ctypes.c_char_p),
    )

    def __init__(self, size=None):
        super().__init__(ctypes.sizeof(Info) if size is None else size)


class Outputs(ctypes.Structure):
    _fields_ = (
        ("size", ctypes.c_size_t),
        *(
            (name, kind)
            for output in ("logits", "scores", "classes")
            for name, kind in ((output, ctypes.c_void_p), (f"{output}_bytes", ctypes.c_size_t))
        ),
    )

    def __init__(self, *values, **named):
        super().__init__(ctypes.sizeof(Outputs), *values, **named)


class Library:
    """The library in this process."""

    def __init__(self, path, kind=ctypes.CDLL):
        self.lib = lib = kind(str(path))
        for name in ("version", "last_error"):
            getattr(lib, f"iresnet_{name}").restype = ctypes.c_char_p
        size, pointer = ctypes.c_size_t, ctypes.c_void_p
        lib.iresnet_open.argtypes = [ctypes.c_char_p, pointer, pointer]
        lib.iresnet_get_info.argtypes = [pointer, pointer]
        lib.iresnet_label.argtypes = [pointer, I32, pointer]
        lib.iresnet_preprocess.argtypes = [pointer, pointer, I32, I32, size, pointer, size]
        lib.iresnet_infer.argtypes = [pointer, pointer, size, I32, pointer]
        lib.iresnet_infer_device.argtypes = [pointer, pointer, size, I32, pointer, pointer]
        lib.iresnet_close.argtypes = [pointer]

    def error(self):
        return self.lib.iresnet_last_error().decode()

    def open(self, bundle, **options):
        """Status and handle; the options as they are named in the header."""
        handle = ctypes.c_void_p()
        values = Options(**{"size": ctypes.sizeof(Options), **options})
        status = self.lib.iresnet_open(os.fsencode(bundle), ctypes.byref(values), ctypes.byref(handle))
        return status, handle

    def info(self, handle):
        found = Info()
        assert self.lib.iresnet_get_info(handle, ctypes.byref(found)) == OK, self.error()
        return found

    def infer(self, handle, images, outputs, *, device=False, size=None, batch=None, stream=None):
        size = images.nbytes if size is None else size
        batch = len(images) if batch is None else batch
        if device:
            return self.lib.iresnet_infer_device(handle, images.ctypes.data, size, batch, ctypes.byref(outputs), stream)
        return self.lib.iresnet_infer(handle, images.ctypes.data, size, batch, ctypes.byref(outputs))


def results(rows, classes=10, k=5):
    """Buffers for the outputs and the structure that shows them."""
    arrays = np.full((rows, classes), -7, F32), np.full((rows, k), -7, F32), np.full((rows, k), -7, I32)
    outputs = Outputs(*(value for array in arrays for value in (array.ctypes.data, array.nbytes)))
    outputs.keep = arrays
    return arrays, outputs


def pictures(count, height=32, width=32, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), np.uint8)
