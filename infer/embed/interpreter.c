#define _GNU_SOURCE
#include "interpreter.h"

#include <dlfcn.h>
#include <pthread.h>
#include <unistd.h>

#include "environment.h"

#define SAY(...) snprintf(message, size, __VA_ARGS__)

/* Loads the package that lies beside the library, under the names that its own imports use, without a change of
 * sys.path where that is a Python host's. A package of that name which is there already has to be the same version. */
static const char LOADER[] =
    "import sys\n"
    "from importlib.util import module_from_spec, spec_from_file_location\n"
    "def load(folder, paths, version, abi, ended):\n"
    "    sys.path[:0] = [path for path in paths.split(':') if path and path not in sys.path]\n"
    "    found = sys.modules.get('infer')\n"
    "    if found is None:\n"
    "        package = folder + '/infer'\n"
    "        spec = spec_from_file_location('infer', package + '/__init__.py', submodule_search_locations=[package])\n"
    "        found = sys.modules['infer'] = module_from_spec(spec)\n"
    "        try:\n"
    "            spec.loader.exec_module(found)\n"
    "        except BaseException:\n"
    "            del sys.modules['infer']\n"
    "            raise\n"
    "    other = getattr(found, '__version__', 'without a version')\n"
    "    where = getattr(found, '__file__', None)\n"
    "    if other != version:\n"
    "        raise ImportError(f'this process has imported another package infer ({other}, {where}); expected '\n"
    "                          f'{version}, of {folder}')\n"
    "    from infer.interop import c_api\n"
    "    if c_api.ABI != abi:\n"
    "        raise ImportError(f'{c_api.__file__} speaks ABI {c_api.ABI}, the library {abi}; build it again')\n"
    "    return c_api.start(ended)\n";

static pthread_mutex_t starting = PTHREAD_MUTEX_INITIALIZER;
static _Thread_local int inside_start;
static PyObject *library; /* written once, with the interpreter's lock held */
static char own_python[PATH_BYTES]; /* of the interpreter that was started here; "" where it is the host's */

/* Calls inside, and whether no more may go in. The lock is never held while the interpreter's is waited for. */
static pthread_mutex_t gate = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t idle = PTHREAD_COND_INITIALIZER;
static int inside, ended;
static pid_t owner; /* the process that started; 0 before */
static int seen_python; /* an interpreter was there when the library was loaded, or later */

/* A fork copies locks as they are, also those that another thread holds; these are held by the thread that forks. */
static void before_fork(void) { pthread_mutex_lock(&gate); }
static void after_fork(void) { pthread_mutex_unlock(&gate); }
static void in_child(void)
{
    pthread_mutex_unlock(&gate);
    pthread_mutex_init(&starting, NULL);
}

__attribute__((constructor)) static void look_around(void)
{
    seen_python = Py_IsInitialized();
    pthread_atfork(before_fork, after_fork, in_child);
}

PyObject *interpreter_library(void) { return library; }

int interpreter_gone(char *message, size_t size)
{
    pthread_mutex_lock(&gate);
    const int forked = owner && owner != getpid();
    const int gone = ended || (seen_python && !Py_IsInitialized());
    pthread_mutex_unlock(&gate);
    if (forked)
        SAY("this process is a fork of the one that started the library; start it in the child only, or use exec");
    else if (gone)
        SAY("the Python interpreter of this process has ended, and its runners with it");
    return forked || gone;
}

/* Called by Python at its exit, before anything of it is taken apart: nobody goes in any more, and those inside go out. */
static PyObject *end_calls(PyObject *self, PyObject *unused)
{
    (void)self;
    (void)unused;
    if (owner == getpid()) {
        Py_BEGIN_ALLOW_THREADS
        pthread_mutex_lock(&gate);
        ended = 1;
        while (inside)
            pthread_cond_wait(&idle, &gate);
        pthread_mutex_unlock(&gate);
        Py_END_ALLOW_THREADS
    }
    Py_RETURN_NONE;
}

static PyMethodDef END_CALLS = {"end_calls", end_calls, METH_NOARGS, "Refuse new calls of the C library, wait for those inside."};

/* "KeyError: 'x'" of the error that is set, and clear it. */
static void say_error(const char *before, char *message, size_t size)
{
    PyObject *kind = NULL, *value = NULL, *trace = NULL;
    PyErr_Fetch(&kind, &value, &trace);
    PyErr_NormalizeException(&kind, &value, &trace);
    PyObject *text = value ? PyObject_Str(value) : NULL;
    PyErr_Clear();
    const char *utf8 = text ? PyUnicode_AsUTF8(text) : NULL;
    PyErr_Clear();
    SAY("%s: %s: %s", before, kind ? ((PyTypeObject *)kind)->tp_name : "unknown error", utf8 ? utf8 : "");
    Py_XDECREF(text);
    Py_XDECREF(kind);
    Py_XDECREF(value);
    Py_XDECREF(trace);
}

static int start_python(const char *python, char *message, size_t size)
{
    PyPreConfig before;
    PyPreConfig_InitIsolatedConfig(&before);
    before.utf8_mode = 1; /* the locale is the host's, and may be "C" */
    PyStatus status = Py_PreInitialize(&before);
    PyConfig config;
    PyConfig_InitIsolatedConfig(&config);
    /* The executable's place leads Python to the virtual environment. */
    if (!PyStatus_Exception(status))
        status = PyConfig_SetBytesString(&config, &config.executable, python);
    if (!PyStatus_Exception(status))
        status = Py_InitializeFromConfig(&config);
    PyConfig_Clear(&config);
    if (PyStatus_Exception(status))
        SAY("Python could not be started from %s: %s", python, status.err_msg ? status.err_msg : "unknown reason");
    return !PyStatus_Exception(status);
}

/* In a Python program the settings describe nothing, or what runs already. With the interpreter's lock held. */
static int settings_fit(char *message, size_t size)
{
    const char *python = getenv("IRESNET_PYTHON"), *paths = getenv("IRESNET_PYTHONPATH");
    if (paths && *paths) {
        SAY("IRESNET_PYTHONPATH has no effect: this process is a Python program already; unset it, and extend sys.path "
            "there");
        return 0;
    }
    if (!python)
        return 1;
    PyObject *fits = NULL, *globals = PyDict_New();
    PyObject *name = PyUnicode_DecodeFSDefault(python), *done = NULL;
    if (globals && name && PyDict_SetItemString(globals, "__builtins__", PyEval_GetBuiltins()) == 0 &&
        PyDict_SetItemString(globals, "chosen", name) == 0)
        done = PyRun_String("import os, sys\n"
                            "fits = os.path.realpath(os.path.dirname(os.path.dirname(chosen))) == "
                            "os.path.realpath(sys.prefix)\n",
                            Py_file_input, globals, globals);
    if (done)
        fits = PyDict_GetItemString(globals, "fits");
    const int result = fits == Py_True;
    if (!done)
        say_error("IRESNET_PYTHON", message, size);
    else if (!result)
        SAY("IRESNET_PYTHON='%s' has no effect: this process is a Python program already, of another environment; unset "
            "it, or start the program with that Python", python);
    Py_XDECREF(done);
    Py_XDECREF(name);
    Py_XDECREF(globals);
    return result;
}

/* With the interpreter's lock held. */
static PyObject *load(const char *folder, char *message, size_t size)
{
    PyObject *result = NULL, *globals = PyDict_New(), *done = NULL, *hook = NULL;
    if (globals && PyDict_SetItemString(globals, "__builtins__", PyEval_GetBuiltins()) == 0)
        done = PyRun_String(LOADER, Py_file_input, globals, globals);
    PyObject *function = done ? PyDict_GetItemString(globals, "load") : NULL;
    const char *paths = *own_python ? getenv("IRESNET_PYTHONPATH") : NULL;
    PyObject *where = function ? PyUnicode_DecodeFSDefault(folder) : NULL;
    PyObject *before = function ? PyUnicode_DecodeFSDefault(paths ? paths : "") : NULL;
    if (where && before && (hook = PyCFunction_New(&END_CALLS, NULL)))
        result = PyObject_CallFunction(function, "OOsiO", where, before, IRESNET_VERSION, IRESNET_ABI_VERSION, hook);
    if (!result) {
        char what[PATH_BYTES + 128];
        snprintf(what, sizeof what, "the package infer could not be loaded with the packages of %s",
                 *own_python ? own_python : "this Python program");
        say_error(what, message, size);
    }
    Py_XDECREF(hook);
    Py_XDECREF(before);
    Py_XDECREF(where);
    Py_XDECREF(done);
    Py_XDECREF(globals);
    return result;
}

/* With starting held, and without the interpreter's lock. */
static iresnet_status start(char *message, size_t size)
{
    char folder[PATH_BYTES], python[PATH_BYTES];
    if (interpreter_gone(message, size))
        return IRESNET_SHUT_DOWN;
    if (!package_folder(folder, message, size))
        return IRESNET_NO_INTERPRETER;
    /* A program that loads this library with RTLD_LOCAL hides libpython from NumPy and all other extension modules. */
    dlopen(IRESNET_LIBPYTHON, RTLD_NOW | RTLD_GLOBAL | RTLD_NOLOAD);
    PyGILState_STATE held = PyGILState_UNLOCKED;
    const int first = !Py_IsInitialized();
    if (first) {
        if (!choose_python(folder, python, message, size) || !start_python(python, message, size))
            return IRESNET_NO_INTERPRETER;
        memcpy(own_python, python, sizeof own_python);
    } else {
        held = PyGILState_Ensure();
    }
    PyObject *made = *own_python || settings_fit(message, size) ? load(folder, message, size) : NULL;
    pthread_mutex_lock(&gate);
    seen_python = 1;
    if (made) {
        library = made;
        owner = getpid();
    }
    pthread_mutex_unlock(&gate);
    if (first)
        PyEval_SaveThread();
    else
        PyGILState_Release(held);
    return made ? IRESNET_OK : IRESNET_NO_INTERPRETER;
}

/* 1 once it has started; also in a fork of such a process. */
static int started(void)
{
    pthread_mutex_lock(&gate);
    const int result = owner != 0;
    pthread_mutex_unlock(&gate);
    return result;
}

/* Whether this thread holds the interpreter's lock. PyGILState_Check says yes to everybody once there was a second
 * interpreter in the process. */
static int holds_lock(void)
{
    if (!Py_IsInitialized())
        return 0;
    PyThreadState *const mine = PyGILState_GetThisThreadState();
#if PY_VERSION_HEX >= 0x030D0000
    return mine && mine == PyThreadState_GetUnchecked();
#else
    return mine && mine == _PyThreadState_UncheckedGet();
#endif
}

static iresnet_status start_once(char *message, size_t size)
{
    if (inside_start) {
        SAY("the library was called by what it imports at its start");
        return IRESNET_NO_INTERPRETER;
    }
    /* Whoever waits here for another's start must not hold the interpreter's lock, which that start needs. */
    PyThreadState *saved = holds_lock() ? PyEval_SaveThread() : NULL;
    pthread_mutex_lock(&starting);
    inside_start = 1;
    const iresnet_status status = started() ? IRESNET_OK : start(message, size);
    inside_start = 0;
    pthread_mutex_unlock(&starting);
    if (saved)
        PyEval_RestoreThread(saved);
    return status;
}

iresnet_status interpreter_enter(PyGILState_STATE *held, char *message, size_t size)
{
    iresnet_status status;
    if (interpreter_gone(message, size))
        return IRESNET_SHUT_DOWN;
    if (!started() && (status = start_once(message, size)) != IRESNET_OK)
        return status;
    pthread_mutex_lock(&gate);
    const int open = !ended;
    inside += open;
    pthread_mutex_unlock(&gate);
    if (!open) {
        interpreter_gone(message, size);
        return IRESNET_SHUT_DOWN;
    }
    *held = PyGILState_Ensure();
    return IRESNET_OK;
}

void interpreter_leave(PyGILState_STATE held)
{
    PyGILState_Release(held);
    pthread_mutex_lock(&gate);
    if (--inside == 0)
        pthread_cond_broadcast(&idle);
    pthread_mutex_unlock(&gate);
}
