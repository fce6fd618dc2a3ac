/* The C half of libiresnet_infer: starts the interpreter, checks pointers, keeps the last error of each thread.
 * build.py puts cffi's declarations of the _iresnet_* functions, which infer/interop/c_api.py implements, before it. */
#include <dlfcn.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#define ANSWERED 0x100

static _Thread_local char last_error[2048];
static pthread_once_t once = PTHREAD_ONCE_INIT;
static char startup_error[512];

#define ADVICE "Set IRESNET_PYTHON to the python executable of an environment that has this package"

static void extend_path(void)
{
    PyObject *list = PySys_GetObject("path");
    const char *first = getenv("IRESNET_PYTHONPATH");
    PyObject *text = PyUnicode_DecodeFSDefault(first ? first : "");
    PyObject *parts = text ? PyObject_CallMethod(text, "split", "s", ":") : NULL;
    PyObject *last = PyUnicode_DecodeFSDefault(IRESNET_PACKAGE_PATH);
    if (list && parts && first && *first)
        PyList_SetSlice(list, 0, 0, parts);
    if (list && last)
        PyList_Append(list, last);
    Py_XDECREF(text);
    Py_XDECREF(parts);
    Py_XDECREF(last);
    PyErr_Clear();
}

static int initialise(void)
{
    const char *python = getenv("IRESNET_PYTHON");
    PyConfig config;
    PyConfig_InitPythonConfig(&config);
    config.install_signal_handlers = 0;
    config.parse_argv = 0;
    /* The executable's place leads Python to the virtual environment. */
    PyStatus status = PyConfig_SetBytesString(&config, &config.executable, python ? python : IRESNET_PYTHON);
    if (!PyStatus_Exception(status))
        status = Py_InitializeFromConfig(&config);
    PyConfig_Clear(&config);
    if (!PyStatus_Exception(status))
        return 1;
    snprintf(startup_error, sizeof startup_error, "Python could not be started: %s. " ADVICE,
             status.err_msg ? status.err_msg : "unknown reason");
    return 0;
}

static void start(void)
{
    /* A program that loads this library with RTLD_LOCAL hides libpython from NumPy and all other extension modules. */
    dlopen(IRESNET_LIBPYTHON, RTLD_NOW | RTLD_GLOBAL | RTLD_NOLOAD);
    const int ours = !Py_IsInitialized();
    PyGILState_STATE held = PyGILState_UNLOCKED;
    if (!ours)
        held = PyGILState_Ensure();
    else if (!initialise())
        return;
    else
        extend_path();
    /* Up to Python 3.11, cffi's start-up uses this type's version tag as a spin lock and takes it to be 0, which it is
     * not where the process has used capsules before. With the GIL held, nobody sets it again until cffi is through. */
    PyType_Modified(&PyCapsule_Type);
    char message[256];
    if (!(_iresnet_start(message, sizeof message) & ANSWERED))
        snprintf(startup_error, sizeof startup_error,
                 "the Python package infer could not be loaded; standard error says why. " ADVICE);
    if (ours)
        PyEval_SaveThread();
    else
        PyGILState_Release(held);
}

static iresnet_status fail(iresnet_status status, const char *message)
{
    snprintf(last_error, sizeof last_error, "%s", message);
    return status;
}

static int ready(void)
{
    last_error[0] = 0;
    pthread_once(&once, start);
    if (startup_error[0])
        fail(IRESNET_INTERNAL_ERROR, startup_error);
    return !startup_error[0];
}

static iresnet_status answer(int result)
{
    if (!(result & ANSWERED))
        return fail(IRESNET_INTERNAL_ERROR, "the interpreter failed; standard error says why");
    return (iresnet_status)(result & ~ANSWERED);
}

#define NEED(pointer)                                                                                \
    do {                                                                                             \
        if (!(pointer))                                                                              \
            return fail(IRESNET_INVALID_ARGUMENT, #pointer ": expected a pointer, found NULL");      \
    } while (0)
#define CALL(function, ...)                                                                          \
    (ready() ? answer(function(__VA_ARGS__, last_error, sizeof last_error)) : IRESNET_INTERNAL_ERROR)

int iresnet_abi_version(void) { return IRESNET_ABI_VERSION; }

const char *iresnet_version(void) { return IRESNET_VERSION; }

const char *iresnet_last_error(void) { return last_error; }

iresnet_status iresnet_open(const char *bundle, const iresnet_options *options, iresnet_runner **runner)
{
    static const iresnet_options defaults = {.size = sizeof(iresnet_options)};
    uint64_t handle = 0;
    NEED(bundle);
    NEED(runner);
    if (!options)
        options = &defaults;
    if (options->size != sizeof *options)
        return fail(IRESNET_INVALID_ARGUMENT, "options.size: expected sizeof(iresnet_options) of this library's header");
    iresnet_status status = CALL(_iresnet_open, bundle, options->target, options->threads, options->allow_untrained,
                                 options->device, options->slots, options->spin, &handle);
    if (status == IRESNET_OK)
        *runner = (iresnet_runner *)(uintptr_t)handle;
    return status;
}

iresnet_status iresnet_get_info(iresnet_runner *runner, iresnet_info *info)
{
    NEED(info);
    return CALL(_iresnet_info, (uintptr_t)runner, info);
}

iresnet_status iresnet_label(iresnet_runner *runner, int32_t index, const char **label)
{
    NEED(label);
    return CALL(_iresnet_label, (uintptr_t)runner, index, label);
}

iresnet_status iresnet_preprocess(iresnet_runner *runner, const uint8_t *rgb, int32_t width, int32_t height,
                                  size_t row_bytes, uint8_t *image, size_t image_bytes)
{
    NEED(rgb);
    NEED(image);
    return CALL(_iresnet_preprocess, (uintptr_t)runner, rgb, width, height, row_bytes, image, image_bytes);
}

iresnet_status iresnet_infer(iresnet_runner *runner, const uint8_t *images, size_t images_bytes, int32_t batch,
                             const iresnet_outputs *outputs)
{
    NEED(images);
    NEED(outputs);
    return CALL(_iresnet_infer, (uintptr_t)runner, images, images_bytes, batch, outputs);
}

iresnet_status iresnet_infer_device(iresnet_runner *runner, const void *images, size_t images_bytes, int32_t batch,
                                    const iresnet_outputs *outputs, void *stream)
{
    NEED(images);
    NEED(outputs);
    return CALL(_iresnet_infer_device, (uintptr_t)runner, (uintptr_t)images, images_bytes, batch, outputs,
                (uintptr_t)stream);
}

iresnet_status iresnet_close(iresnet_runner *runner)
{
    if (!runner) {
        last_error[0] = 0;
        return IRESNET_OK;
    }
    return CALL(_iresnet_close, (uintptr_t)runner);
}
