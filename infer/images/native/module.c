/* The Python side: infer.images.native._jpeg. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "jpeg.h"

PyDoc_STRVAR(
    load_doc,
    "load(data, out, resize, crop, filter, tall_first, max_pixels, *, shortest=0, portable=False)\n--\n\n"
    "Decode the JPEG file data to out, uint8 [crop, crop, 3], C-contiguous, without the GIL.\n\n"
    "None, or why the file is left to another decoder; out then holds anything."
);

static PyObject *
load(PyObject *self, PyObject *args, PyObject *keywords) {
    static char *names[] = {"data", "out", "resize", "crop", "filter", "tall_first", "max_pixels", "shortest",
                            "portable", NULL};
    Py_buffer data, out;
    Options options = {0};
    int portable = 0;
    const char *reason = NULL;
    (void)self;
    if (!PyArg_ParseTupleAndKeywords(
            args, keywords, "y*w*iiipd|$ip:load", names, &data, &out, &options.resize, &options.crop, &options.filter,
            &options.tall_first, &options.max_pixels, &options.shortest, &portable
        )) {
        return NULL;
    }
    options.kernel = portable ? &portable_kernel : best_kernel();
    int sound = options.resize >= 1 && options.resize <= 16384 && options.crop >= 1 && options.crop <= 16384 &&
                options.shortest >= 0 && (options.filter == BILINEAR || options.filter == BICUBIC) &&
                out.len == (Py_ssize_t)options.crop * options.crop * 3;
    if (sound) {
        Py_BEGIN_ALLOW_THREADS
        reason = jpeg_to_input(data.buf, (size_t)data.len, &options, out.buf);
        Py_END_ALLOW_THREADS
    } else {
        PyErr_SetString(PyExc_ValueError, "resize, crop, filter or shortest out of range, or out of another size");
    }
    PyBuffer_Release(&data);
    PyBuffer_Release(&out);
    if (!sound) {
        return NULL;
    }
    return reason ? PyUnicode_FromString(reason) : Py_NewRef(Py_None);
}

static PyObject *
kernel(PyObject *self, PyObject *unused) {
    (void)self;
    (void)unused;
    return PyUnicode_FromString(best_kernel()->name);
}

static PyMethodDef methods[] = {
    {"load", (PyCFunction)(void (*)(void))load, METH_VARARGS | METH_KEYWORDS, load_doc},
    {"kernel", kernel, METH_NOARGS, "kernel()\n--\n\nThe instruction set in use: avx2 or portable."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "_jpeg", "JPEG files to network inputs.", -1, methods,
                                    NULL, NULL, NULL, NULL};

PyMODINIT_FUNC
PyInit__jpeg(void) {
    return PyModule_Create(&module);
}
