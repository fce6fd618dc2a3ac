/* The functions of iresnet_infer.h: pointers, sizes and texts are checked here, the rest is done by
 * infer/interop/c_api.py, whose methods return (status, message) or (0, what was asked for). */
#include "interpreter.h"

#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "environment.h"
#include "runners.h"

static _Thread_local char last_error[2048];

/* The message as it fits, without half a character at its end. */
static iresnet_status fail(iresnet_status status, const char *format, ...)
{
    va_list values;
    va_start(values, format);
    const int wanted = vsnprintf(last_error, sizeof last_error, format, values);
    va_end(values);
    if (wanted >= (int)sizeof last_error) {
        size_t end = sizeof last_error - 1, start = end;
        while (start > 0 && ((unsigned char)last_error[start - 1] & 0xC0) == 0x80)
            --start;
        if (start > 0 && (unsigned char)last_error[start - 1] >= 0xC0) {
            const unsigned char lead = (unsigned char)last_error[start - 1];
            const size_t length = lead >= 0xF0 ? 4 : lead >= 0xE0 ? 3 : 2;
            if (end - (start - 1) < length)
                last_error[start - 1] = 0;
        }
    }
    return status;
}

#define NEED(pointer)                                                                                          \
    do {                                                                                                       \
        if (!(pointer))                                                                                        \
            return fail(IRESNET_INVALID_ARGUMENT, #pointer ": expected a pointer, found NULL");                \
    } while (0)

#define NOT_OPEN "runner: expected an open one, found one that was closed or that iresnet_open did not make"

static int is_utf8(const char *text)
{
    const unsigned char *at = (const unsigned char *)text;
    while (*at) {
        const int more = *at < 0x80 ? 0 : *at >= 0xC2 && *at < 0xE0 ? 1 : *at >= 0xE0 && *at < 0xF0 ? 2
                       : *at >= 0xF0 && *at < 0xF5 ? 3 : -1;
        if (more < 0 || (*at == 0xE0 && at[1] < 0xA0) || (*at == 0xED && at[1] > 0x9F) ||
            (*at == 0xF0 && at[1] < 0x90) || (*at == 0xF4 && at[1] > 0x8F))
            return 0;
        ++at;
        for (int i = 0; i < more; ++i, ++at)
            if ((*at & 0xC0) != 0x80)
                return 0;
    }
    return 1;
}

static iresnet_status check_text(const char *name, const char *text, size_t most)
{
    if (!*text)
        return fail(IRESNET_INVALID_ARGUMENT, "%s: expected text, found \"\"", name);
    if (strnlen(text, most + 1) > most)
        return fail(IRESNET_INVALID_ARGUMENT, "%s: expected at most %zu bytes, found more", name, most);
    if (!is_utf8(text))
        return fail(IRESNET_INVALID_ARGUMENT, "%s: expected UTF-8, found other bytes", name);
    return IRESNET_OK;
}

static iresnet_status check_range(const char *name, int32_t value, int32_t most)
{
    if (value < 0 || value > most)
        return fail(IRESNET_INVALID_ARGUMENT, "%s: expected 0 to %d, found %d", name, most, value);
    return IRESNET_OK;
}

/* A caller's struct in ours: what an older one lacks is zero, what a newer one adds has to be. */
static iresnet_status take(const char *name, void *ours, size_t our_size, const void *theirs)
{
    size_t size;
    memcpy(&size, theirs, sizeof size);
    if (size < sizeof size || size % sizeof size || size > 65536)
        return fail(IRESNET_INVALID_ARGUMENT, "%s.size: expected sizeof(%s) of the header, %zu here, found %zu", name,
                    name, our_size, size);
    for (size_t at = our_size; at < size; ++at)
        if (((const unsigned char *)theirs)[at])
            return fail(IRESNET_INVALID_ARGUMENT,
                        "%s: expected zeros behind byte %zu, found fields of a newer header; update the library", name,
                        our_size);
    memset(ours, 0, our_size);
    memcpy(ours, theirs, size < our_size ? size : our_size);
    return IRESNET_OK;
}

#define TRY(...)                                                                                               \
    do {                                                                                                       \
        const iresnet_status tried = (__VA_ARGS__);                                                            \
        if (tried != IRESNET_OK)                                                                               \
            return tried;                                                                                      \
    } while (0)

/* The status of what a method returned, and its second part, borrowed; takes the result, which may be NULL. */
static iresnet_status answer(PyObject *result, PyObject **found)
{
    iresnet_status status = IRESNET_INTERNAL_ERROR;
    PyObject *second = NULL;
    if (!result || !PyArg_ParseTuple(result, "iO", &status, &second)) {
        PyErr_Clear();
        fail(status = IRESNET_INTERNAL_ERROR, "the interpreter failed; it may be out of memory");
    } else if (status != IRESNET_OK) {
        const char *text = PyBytes_AsString(second);
        fail(status, "%s", text ? text : "");
        PyErr_Clear();
    } else if (found) {
        *found = second;
    }
    return status;
}

int iresnet_abi_version(void) { return IRESNET_ABI_VERSION; }

const char *iresnet_version(void) { return IRESNET_VERSION; }

const char *iresnet_last_error(void) { return last_error; }

/* What Library.open returned as an entry of the table; NULL where it does not fit or memory is short. */
static runner_entry *entry_of(PyObject *found)
{
    unsigned long long number;
    iresnet_info info = {.size = sizeof info};
    const char *target, *device, *notes;
    PyObject *labels;
    if (!PyArg_ParseTuple(found, "K(iiiiiiiii)(iff)yyyO!", &number, &info.height, &info.width, &info.channels,
                          &info.num_classes, &info.top_k, &info.max_batch, &info.in_flight, &info.trained,
                          &info.device_pointers, &info.known_answers, &info.known_answers_db,
                          &info.known_answers_floor_db, &target, &device, &notes, &PyList_Type, &labels))
        return NULL;
    runner_entry *entry = runners_new(number, (int32_t)PyList_Size(labels));
    if (!entry)
        return NULL;
    entry->info = info;
    entry->info.target = runners_copy(target);
    entry->info.device = runners_copy(device);
    entry->info.notes = runners_copy(notes);
    int whole = entry->info.target && entry->info.device && entry->info.notes;
    for (int32_t index = 0; whole && index < entry->labels_count; ++index) {
        const char *text = PyBytes_AsString(PyList_GetItem(labels, index));
        whole = text && (entry->labels[index] = runners_copy(text));
    }
    if (whole)
        return entry;
    runners_free(entry);
    return NULL;
}

iresnet_status iresnet_open(const char *bundle, const iresnet_options *options, iresnet_runner **runner)
{
    iresnet_options chosen = {.size = sizeof chosen};
    PyGILState_STATE held;
    last_error[0] = 0;
    NEED(bundle);
    NEED(runner);
    TRY(check_text("bundle", bundle, PATH_BYTES - 1));
    if (options)
        TRY(take("iresnet_options", &chosen, sizeof chosen, options));
    if (chosen.target)
        TRY(check_text("options.target", chosen.target, 64));
    if (chosen.self_test)
        TRY(check_text("options.self_test", chosen.self_test, 64));
    TRY(check_range("options.threads", chosen.threads, 4096));
    TRY(check_range("options.allow_untrained", chosen.allow_untrained, 1));
    TRY(check_range("options.device", chosen.device, 255));
    TRY(check_range("options.slots", chosen.slots, 64));
    TRY(check_range("options.spin", chosen.spin, 1));
    TRY(check_range("options.reserved", chosen.reserved, 0));
    TRY(interpreter_enter(&held, last_error, sizeof last_error));
    PyObject *found = NULL, *result = PyObject_CallMethod(
        interpreter_library(), "open", "yziiiiiz", bundle, chosen.target, (int)chosen.threads,
        (int)chosen.allow_untrained, (int)chosen.device, (int)chosen.slots, (int)chosen.spin, chosen.self_test);
    iresnet_status status = answer(result, &found);
    if (status == IRESNET_OK) {
        runner_entry *entry = entry_of(found);
        if (entry) {
            *runner = (iresnet_runner *)(uintptr_t)entry->number;
            runners_add(entry);
        } else {
            PyErr_Clear();
            Py_XDECREF(PyObject_CallMethod(interpreter_library(), "close", "O", PyTuple_GetItem(found, 0)));
            PyErr_Clear();
            status = fail(IRESNET_INTERNAL_ERROR, "memory is short");
        }
    }
    Py_XDECREF(result);
    interpreter_leave(held);
    return status;
}

iresnet_status iresnet_get_info(const iresnet_runner *runner, iresnet_info *info)
{
    iresnet_info known;
    size_t size;
    last_error[0] = 0;
    NEED(info);
    memcpy(&size, info, sizeof size);
    if (size < sizeof size || size % sizeof size || size > 65536)
        return fail(IRESNET_INVALID_ARGUMENT,
                    "info.size: expected sizeof(iresnet_info) of the header, %zu here, found %zu", sizeof known, size);
    if (!runners_info(runner, &known))
        return fail(IRESNET_INVALID_ARGUMENT, NOT_OPEN);
    memset(info, 0, size);
    memcpy(info, &known, size < sizeof known ? size : sizeof known);
    info->size = size;
    return IRESNET_OK;
}

iresnet_status iresnet_label(const iresnet_runner *runner, int32_t index, const char **label)
{
    last_error[0] = 0;
    NEED(label);
    const int32_t count = runners_label(runner, index, label);
    if (count == -1)
        return fail(IRESNET_INVALID_ARGUMENT, NOT_OPEN);
    if (count >= 0)
        return fail(IRESNET_INVALID_ARGUMENT, "class: expected 0 to %d, found %d", count - 1, index);
    return IRESNET_OK;
}

iresnet_status iresnet_preprocess(const iresnet_runner *runner, const uint8_t *rgb, int32_t width, int32_t height,
                                  size_t row_bytes, uint8_t *image, size_t image_bytes)
{
    PyGILState_STATE held;
    last_error[0] = 0;
    NEED(rgb);
    NEED(image);
    if (width < 1 || height < 1 || row_bytes / 3 < (size_t)width)
        return fail(IRESNET_INVALID_ARGUMENT,
                    "rgb: expected at least one pixel and rows of 3 * width bytes or more, found %d x %d pixels in rows of "
                    "%zu bytes", width, height, row_bytes);
    if (row_bytes > (size_t)PTRDIFF_MAX / (size_t)height)
        return fail(IRESNET_INVALID_ARGUMENT, "rgb: expected a picture that fits into memory, found %d rows of %zu bytes",
                    height, row_bytes);
    TRY(interpreter_enter(&held, last_error, sizeof last_error));
    PyObject *result = PyObject_CallMethod(interpreter_library(), "preprocess", "KKiinKn",
                                           (unsigned long long)(uintptr_t)runner, (unsigned long long)(uintptr_t)rgb,
                                           (int)width, (int)height, (Py_ssize_t)row_bytes,
                                           (unsigned long long)(uintptr_t)image,
                                           (Py_ssize_t)(image_bytes > PTRDIFF_MAX ? PTRDIFF_MAX : image_bytes));
    const iresnet_status status = answer(result, NULL);
    Py_XDECREF(result);
    interpreter_leave(held);
    return status;
}

static iresnet_status run(const char *method, const iresnet_runner *runner, const void *images, size_t images_bytes,
                          int32_t batch, const iresnet_outputs *outputs, void *stream)
{
    iresnet_outputs wanted;
    PyGILState_STATE held;
    last_error[0] = 0;
    NEED(images);
    NEED(outputs);
    TRY(take("iresnet_outputs", &wanted, sizeof wanted, outputs));
    TRY(interpreter_enter(&held, last_error, sizeof last_error));
    PyObject *found = NULL, *result = PyObject_CallMethod(
        interpreter_library(), method, "KKKi((KK)(KK)(KK))K", (unsigned long long)(uintptr_t)runner,
        (unsigned long long)(uintptr_t)images, (unsigned long long)images_bytes, (int)batch,
        (unsigned long long)(uintptr_t)wanted.logits, (unsigned long long)wanted.logits_bytes,
        (unsigned long long)(uintptr_t)wanted.scores, (unsigned long long)wanted.scores_bytes,
        (unsigned long long)(uintptr_t)wanted.classes, (unsigned long long)wanted.classes_bytes,
        (unsigned long long)(uintptr_t)stream);
    const iresnet_status status = answer(result, &found);
    /* A batch size that was new has been checked on the way. */
    if (status == IRESNET_OK && found != Py_None) {
        int outcome;
        float sqnr_db, floor_db;
        if (PyArg_ParseTuple(found, "iff", &outcome, &sqnr_db, &floor_db))
            runners_set_answers(runner, outcome, sqnr_db, floor_db);
        PyErr_Clear();
    }
    Py_XDECREF(result);
    interpreter_leave(held);
    return status;
}

iresnet_status iresnet_infer(const iresnet_runner *runner, const uint8_t *images, size_t images_bytes, int32_t batch,
                             const iresnet_outputs *outputs)
{
    return run("infer", runner, images, images_bytes, batch, outputs, NULL);
}

iresnet_status iresnet_infer_device(const iresnet_runner *runner, const void *images, size_t images_bytes,
                                    int32_t batch, const iresnet_outputs *outputs, void *stream)
{
    return run("infer_device", runner, images, images_bytes, batch, outputs, stream);
}

iresnet_status iresnet_close(iresnet_runner *runner)
{
    PyGILState_STATE held;
    char message[256];
    last_error[0] = 0;
    if (!runner)
        return IRESNET_OK;
    runner_entry *entry = runners_take(runner);
    if (!entry)
        return fail(IRESNET_INVALID_ARGUMENT, NOT_OPEN);
    iresnet_status status = IRESNET_OK;
    /* The end of the interpreter has released it; in a fork it was never this process's. */
    if (!interpreter_gone(message, sizeof message) &&
        interpreter_enter(&held, message, sizeof message) == IRESNET_OK) {
        PyObject *result = PyObject_CallMethod(interpreter_library(), "close", "K", (unsigned long long)entry->number);
        status = answer(result, NULL);
        Py_XDECREF(result);
        interpreter_leave(held);
    }
    runners_free(entry);
    return status;
}
