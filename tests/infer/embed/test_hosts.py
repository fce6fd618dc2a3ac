"""The C library in programs that nobody here wrote: Python hosts with plug-ins, forks, odd locales and environments.

What may crash, hang or leave something behind runs in processes of its own, the crash and the deadlock ten times each.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
import sysconfig
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from c_library import INVALID, NO_INTERPRETER, OK, SHUT_DOWN, Library, pictures, results
from cpp_example import example

import infer

ROOT = Path(__file__).resolve().parents[3]
TIMES = 10


def run(command, **environment):
    """The finished process; a hang is a failure."""
    return subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, check=False, timeout=120, cwd="/",
        env=os.environ | environment,
    )  # fmt: skip


def run_often(command, **environment):
    """The outputs of ten processes, two at a time."""
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(lambda _: run(command, **environment), range(TIMES)))


# A plug-in of a Python process, with a runner that lives as long as the process.
STATIC = r"""
#include <cstdio>
#include <optional>
#include "iresnet_infer.hpp"

struct Late {
    std::optional<iresnet::Runner> runner;
    iresnet_runner *plain = nullptr;
    std::string bundle;

    ~Late() // after Py_Finalize
    {
        std::vector<uint8_t> image(runner->image_bytes());
        std::vector<float> scores(5);
        iresnet_outputs outputs{};
        outputs.size = sizeof outputs;
        outputs.scores = scores.data();
        outputs.scores_bytes = 20;
        iresnet_runner *other = nullptr;
        const char *label = "";
        std::printf("infer %d\n", iresnet_infer(plain, image.data(), image.size(), 1, &outputs));
        std::printf("said %s\n", iresnet_last_error());
        std::printf("open %d\n", iresnet_open(bundle.c_str(), nullptr, &other));
        const int named = iresnet_label(plain, 0, &label);
        std::printf("label %d %s\n", named, label);
        std::printf("close %d\n", iresnet_close(plain));
        runner.reset();
        std::printf("end\n");
        std::fflush(stdout);
    }
};

static Late late;

extern "C" int begin(const char *bundle)
{
    late.bundle = bundle;
    late.runner.emplace(bundle);
    iresnet_open(bundle, nullptr, &late.plain);
    const std::vector<uint8_t> images(3 * late.runner->image_bytes());
    return static_cast<int>(late.runner->infer(images.data(), 3).classes.size());
}
"""


def python_host(plugin, bundle, body):
    return [sys.executable, "-c", f"import ctypes\nplugin = ctypes.CDLL({str(plugin)!r})\nbundle = {bundle!r}\n{body}"]


def test_a_plugin_outlives_the_interpreter(compiled, tiny, tmp_path):
    plugin = compiled(STATIC, tmp_path / "static.so", "-shared", "-fPIC")
    for done in run_often(python_host(plugin, os.fsencode(tiny), "print(plugin.begin(bundle), flush=True)")):
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines() == [
            "15", f"infer {SHUT_DOWN}",
            "said the Python interpreter of this process has ended, and its runners with it",
            f"open {SHUT_DOWN}", "label 0 class 0", "close 0", "end",
        ]  # fmt: skip


def test_calls_under_way_end_before_the_interpreter_does(compiled, tiny, tmp_path):
    """Threads of a plug-in, unknown to Python, call without a pause while the process exits."""
    plugin = compiled(BUSY, tmp_path / "busy.so", "-shared", "-fPIC")
    body = "assert plugin.begin(bundle) == 0\nimport time; time.sleep(0.1)"
    for done in run_often(python_host(plugin, os.fsencode(tiny), body)):
        assert done.returncode == 0, done.stderr
        assert done.stdout == f"{SHUT_DOWN} {SHUT_DOWN} {SHUT_DOWN}\n"


BUSY = r"""
#include <atomic>
#include <cstdio>
#include <thread>
#include "iresnet_infer.hpp"

static iresnet_runner *runner;
static std::atomic<int> last[3];
static std::thread threads[3];

static void work(int number)
{
    std::vector<uint8_t> image(32 * 32 * 3);
    std::vector<float> scores(5);
    iresnet_outputs outputs{};
    outputs.size = sizeof outputs;
    outputs.scores = scores.data();
    outputs.scores_bytes = 20;
    iresnet_status status;
    do {
        status = iresnet_infer(runner, image.data(), image.size(), 1, &outputs);
    } while (status == IRESNET_OK);
    last[number] = status;
    if (status != IRESNET_SHUT_DOWN)
        std::fprintf(stderr, "%s\n", iresnet_last_error());
}

struct Wait {
    ~Wait() // after Py_Finalize
    {
        for (std::thread &thread : threads)
            thread.join();
        std::printf("%d %d %d\n", last[0].load(), last[1].load(), last[2].load());
        std::fflush(stdout);
    }
};

static Wait wait_at_exit;

extern "C" int begin(const char *bundle)
{
    const int status = iresnet_open(bundle, nullptr, &runner);
    for (int number = 0; status == 0 && number < 3; ++number)
        threads[number] = std::thread(work, number);
    return status;
}
"""

# Called with the interpreter's lock held (ctypes.PyDLL): other threads are on their way before this one calls.
RACE = r"""
#include <pthread.h>
#include <stdio.h>
#include <unistd.h>
#include <Python.h>
#include "iresnet_infer.h"

static const char *bundle;
static iresnet_status statuses[4];

static void *open_it(void *place)
{
    iresnet_runner *runner = NULL;
    *(iresnet_status *)place = iresnet_open(bundle, NULL, &runner);
    iresnet_close(runner);
    return NULL;
}

int race(const char *path)
{
    pthread_t threads[3];
    bundle = path;
    for (int i = 0; i < 3; ++i)
        pthread_create(&threads[i], NULL, open_it, &statuses[i]);
    usleep(50000); /* they wait for the lock that this thread holds */
    open_it(&statuses[3]);
    Py_BEGIN_ALLOW_THREADS
    for (int i = 0; i < 3; ++i)
        pthread_join(threads[i], NULL);
    Py_END_ALLOW_THREADS
    return statuses[0] | statuses[1] | statuses[2] | statuses[3];
}

static iresnet_runner *opened;
static int found;

static void *read_it(void *unused)
{
    iresnet_info info = {.size = sizeof info};
    const char *label = NULL;
    found = iresnet_get_info(opened, &info) == 0 && info.num_classes == 10 && iresnet_label(opened, 3, &label) == 0;
    return unused;
}

/* 1 where another thread can read while this one holds the interpreter's lock. */
int read_while_locked(const char *path)
{
    pthread_t thread;
    struct timespec until;
    if (iresnet_open(path, NULL, &opened))
        return -1;
    pthread_create(&thread, NULL, read_it, NULL);
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += 10;
    return pthread_timedjoin_np(thread, NULL, &until) == 0 && found;
}
"""


@pytest.fixture(scope="module")
def race(compiled, tmp_path_factory):
    include = f"-I{sysconfig.get_path('include')}"
    return compiled(RACE, tmp_path_factory.mktemp("race") / "race.so", "-shared", "-fPIC", include)


def test_threads_with_and_without_the_interpreters_lock_start_it_together(race, tiny):
    body = f"import ctypes; print(ctypes.PyDLL({str(race)!r}).race({os.fsencode(tiny)!r}))"
    for done in run_often([sys.executable, "-c", body]):
        assert (done.returncode, done.stdout) == (0, "0\n"), done.stderr


def test_reading_needs_no_interpreter(race, tiny):
    done = run(
        [
            sys.executable,
            "-c",
            f"import ctypes; print(ctypes.PyDLL({str(race)!r}).read_while_locked({os.fsencode(tiny)!r}))",
        ]
    )
    assert (done.returncode, done.stdout) == (0, "1\n"), done.stderr


STATE = r"""
#include <locale.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "iresnet_infer.h"

extern char **environ;

static char *state(void)
{
    size_t size = 0;
    char *text, *place;
    struct sigaction action;
    for (char **one = environ; *one; ++one)
        size += strlen(*one) + 1;
    place = text = malloc(size + 4096);
    for (char **one = environ; *one; ++one)
        place += sprintf(place, "%s\n", *one);
    place += sprintf(place, "%s\n", setlocale(LC_ALL, NULL));
    for (int number = 1; number < 32; ++number)
        if (sigaction(number, NULL, &action) == 0)
            place += sprintf(place, "%zx ", (size_t)(uintptr_t)action.sa_handler);
    return getcwd(place, 2048) ? text : NULL;
}

int main(int count, char **values)
{
    static uint8_t image[32 * 32 * 3 * 5];
    float scores[25];
    iresnet_outputs outputs = {.size = sizeof outputs, .scores = scores, .scores_bytes = sizeof scores};
    iresnet_runner *runner = NULL;
    if (count > 2)
        setlocale(LC_ALL, values[2]);
    char *before = state();
    iresnet_status status = iresnet_open(values[1], NULL, &runner);
    if (status == IRESNET_OK)
        status = iresnet_infer(runner, image, sizeof image, 5, &outputs);
    printf("%d %s\n", status, iresnet_last_error());
    printf("%d\n", strcmp(before, state()) == 0);
    return 0;
}
"""


@pytest.mark.parametrize("locale", ["C", "C.UTF-8"])
def test_the_hosts_state_is_left_alone_and_does_not_break_it(compiled, own, tiny, tmp_path, locale):
    host = compiled(STATE, tmp_path / "state")
    bundle = shutil.copytree(own(tiny), tmp_path / "bündel")  # a name that needs UTF-8 in any locale
    odd = {"PYTHONHOME": "/nonsense", "PYTHONPATH": str(tmp_path), "PYTHONSTARTUP": "/nonsense", "LC_ALL": locale,
           "PYTHONMALLOC": "nonsense", "PYTHONUTF8": "7"}  # fmt: skip
    (tmp_path / "numpy.py").write_text("raise ImportError('found in PYTHONPATH')")
    done = run([host, bundle, locale], **odd)
    assert (done.returncode, done.stdout) == (0, "0 \n1\n"), done.stderr


FORK = r"""
#include <stdio.h>
#include <sys/wait.h>
#include <unistd.h>
#include "iresnet_infer.h"

int main(int count, char **values)
{
    static uint8_t image[32 * 32 * 3];
    float scores[5];
    iresnet_outputs outputs = {.size = sizeof outputs, .scores = scores, .scores_bytes = sizeof scores};
    iresnet_runner *runner = NULL;
    int ended = -1;
    if (iresnet_open(values[count - 1], NULL, &runner))
        return 1;
    if (fork() == 0) {
        printf("%d ", iresnet_infer(runner, image, sizeof image, 1, &outputs));
        printf("%s\n", iresnet_last_error());
        printf("%d\n", iresnet_close(runner));
        fflush(stdout);
        _exit(7);
    }
    wait(&ended);
    printf("%d %d\n", WEXITSTATUS(ended), iresnet_infer(runner, image, sizeof image, 1, &outputs));
    return iresnet_close(runner);
}
"""


def test_a_fork_gets_a_status_and_the_parent_goes_on(compiled, tiny, tmp_path):
    done = run([compiled(FORK, tmp_path / "fork"), tiny])
    assert done.returncode == 0, done.stderr
    first, second, third = done.stdout.splitlines()
    assert first.startswith(f"{SHUT_DOWN} this process is a fork of the one that started the library")
    assert (second, third) == ("0", "7 0")


def environment(folder, version):
    """A virtual environment of another Python, as far as its files say."""
    (folder / "bin").mkdir(parents=True)
    (folder / "bin/python").symlink_to(sys.executable)
    (folder / "pyvenv.cfg").write_text(f"home = /usr/bin\nversion = {version}\n")
    return folder / "bin/python"


def test_a_python_that_cannot_be_held_is_named(built, tiny, tmp_path):
    pictures(2).tofile(tmp_path / "two.rgb")
    ours = f"{sys.version_info.major}.{sys.version_info.minor}"
    bare = Path(sys.base_prefix, "bin", f"python{ours}")
    for python, message in (
        (
            "/nowhere/bin/python",
            "IRESNET_PYTHON: expected the python executable of an environment, found nothing that can",
        ),
        ("bin/python", "IRESNET_PYTHON: expected an absolute path of less than 4096 bytes, found 'bin/python'"),
        ("/" + "x" * 5000, "IRESNET_PYTHON: expected an absolute path of less than 4096 bytes"),
        (environment(tmp_path / "old", "3.9.2"), f"this library holds Python {ours}, found Python 3.9 at"),
        (shutil.which("true"), f"expected the executable of a Python {ours} or of a virtual environment made with it"),
        (bare, f"with the packages of {bare}: ModuleNotFoundError: No module named"),
    ):
        done = example(
            built, tiny, tmp_path / "two.rgb", 32, 32, expect=10 + NO_INTERPRETER, IRESNET_PYTHON=str(python)
        )
        assert message in done.stderr and done.stderr.count("\n") == 1


def test_the_installed_environment_is_named_where_it_is_gone(built, tiny, tmp_path):
    pictures(1).tofile(tmp_path / "one.rgb")
    moved = shutil.copytree(built, tmp_path / "moved", symlinks=True)
    file = moved / "lib/iresnet-infer/environment"
    file.write_text("python = /gone/bin/python\n")
    done = example(moved, tiny, tmp_path / "one.rgb", 32, 32, expect=10 + NO_INTERPRETER)
    assert f"{file} (or set IRESNET_PYTHON)" in done.stderr and "/gone/bin/python" in done.stderr
    file.write_text("")
    assert "a line 'python = PATH'" in example(moved, tiny, tmp_path / "one.rgb", 32, 32, expect=19).stderr
    shutil.rmtree(moved / "lib/iresnet-infer/infer")
    assert "expected this library's own package" in example(moved, tiny, tmp_path / "one.rgb", 32, 32, expect=19).stderr


OPEN = "import ctypes, sys; lib = ctypes.CDLL({library!r}); lib.iresnet_last_error.restype = ctypes.c_char_p\n"
CALL = "print(lib.iresnet_open({bundle!r}, None, ctypes.byref(ctypes.c_void_p())), lib.iresnet_last_error().decode())\n"


@pytest.fixture
def host(built, tiny):
    """``host(before, **environment)``: what a Python program that opens the bundle prints."""
    values = {"library": str(built / "lib/libiresnet_infer.so"), "bundle": os.fsencode(tiny)}

    def get(before="", after="", **environment):
        done = run(
            [sys.executable, "-c", before + OPEN.format(**values) + CALL.format(**values) + after], **environment
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return get


def test_settings_without_effect_in_a_python_program_are_refused(host, tmp_path):
    other = environment(tmp_path / "other", "3.11.1")
    assert host(IRESNET_PYTHON=str(other)).startswith(f"{NO_INTERPRETER} IRESNET_PYTHON='{other}' has no effect")
    assert host(IRESNET_PYTHONPATH="/x").startswith(f"{NO_INTERPRETER} IRESNET_PYTHONPATH has no effect")
    assert host(IRESNET_PYTHON=sys.executable) == "0 \n"


def test_the_package_is_the_librarys_own(host, built, tmp_path):
    """Another that is installed goes unseen, also one that was imported before, unless it is the same version."""
    (tmp_path / "infer").mkdir()
    (tmp_path / "infer/__init__.py").write_text("__version__ = '9.9'\n")
    before = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); path = list(sys.path)\n"
    after = "import infer; print(infer.__file__, sys.path == path)"
    own = built / "lib/iresnet-infer/infer/__init__.py"
    assert host(before, after) == f"0 \n{own} True\n"
    refused = host(before + "import infer\n")
    assert refused.startswith(
        f"{NO_INTERPRETER} the package infer could not be loaded with the packages of this Python"
    )
    assert f"(9.9, {tmp_path}/infer/__init__.py); expected {infer.__version__}" in refused
    same = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import infer\n"
    assert host(same, after.replace("path == path", "path[0]")) == f"0 \n{infer.__file__} {ROOT}\n"


def test_packages_can_come_from_another_folder(built, tiny, tmp_path):
    (tmp_path / "numpy").mkdir()
    (tmp_path / "numpy/__init__.py").write_text("raise ImportError('this copy was chosen')\n")
    pictures(1).tofile(tmp_path / "one.rgb")
    done = example(
        built, tiny, tmp_path / "one.rgb", 32, 32, expect=10 + NO_INTERPRETER, IRESNET_PYTHONPATH=f"/x:{tmp_path}"
    )  # fmt: skip
    assert "this copy was chosen" in done.stderr


def test_a_failed_start_may_be_tried_again(built, tiny, tmp_path, compiled):
    host = compiled(
        r"""
        #include <stdio.h>
        #include <stdlib.h>
        #include "iresnet_infer.h"
        int main(int count, char **values)
        {
            iresnet_runner *runner = NULL;
            setenv("IRESNET_PYTHON", "/nowhere/python", 1);
            const int first = iresnet_open(values[count - 1], NULL, &runner);
            unsetenv("IRESNET_PYTHON");
            printf("%d %d\n", first, iresnet_open(values[count - 1], NULL, &runner));
            return 0;
        }
        """,
        tmp_path / "again",
    )
    assert run([host, tiny]).stdout == f"{NO_INTERPRETER} 0\n"


def test_close_may_be_called_with_the_interpreters_lock_held(built, tiny):
    """ctypes.PyDLL keeps it, as a plug-in's own module does."""
    held = Library(built / "lib/libiresnet_infer.so.2", ctypes.PyDLL)
    status, handle = held.open(tiny)
    assert status == OK
    arrays, outputs = results(3)
    done = []
    thread = threading.Thread(target=lambda: done.append(held.infer(handle, pictures(3), outputs)))
    thread.start()
    assert held.infer(handle, pictures(2), results(2)[1]) == OK
    thread.join(30)
    assert done == [OK] and (arrays[2] >= 0).all()
    assert held.lib.iresnet_close(handle) == OK
    assert held.lib.iresnet_close(handle) == INVALID
