"""How commands begin and end: streams that are closed or full, signals, and what the system refuses."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import typer

from infer.command_line import guarded, refused
from infer.errors import InputError

ROOT = Path(__file__).parents[2]
FULL = Path("/dev/full")
needs_full = pytest.mark.skipif(not FULL.exists(), reason="needs /dev/full")


def command(*arguments):
    return [sys.executable, "-m", "infer", *map(str, arguments)]


def environment():
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def run(*arguments, **options):
    return subprocess.run(command(*arguments), env=environment(), text=True, check=False, timeout=60, **options)


@needs_full
@pytest.mark.parametrize(
    "arguments", [["info"], ["info", "--json"], ["classify", "{image}"], ["classify", "{image}", "--json"]]
)
def test_a_full_device_as_standard_output_is_one_line(tiny, album, arguments):
    name, *rest = (word.replace("{image}", str(album / "a.png")) for word in arguments)
    with FULL.open("w") as full:
        done = run(name, tiny, *rest, stdout=full, stderr=subprocess.PIPE)
    assert done.returncode == 1
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and errors[0].startswith("error: standard output: cannot be ")
    assert "No space left on device" in errors[0]
    assert "Traceback" not in done.stderr and "Exception ignored" not in done.stderr


def shell(line, *arguments):
    words = " ".join(f"'{word}'" for word in command(*arguments))
    return subprocess.run(
        ["bash", "-c", f"{words} {line}"], env=environment(), capture_output=True, text=True, check=False, timeout=60
    )


def test_closed_standard_output_is_said(tiny):
    done = shell(">&-", "info", tiny)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: standard output: ") and done.stderr.count("\n") == 1


def test_closed_standard_error_does_not_pour_into_standard_output(tiny, album):
    done = shell("2>&-", "classify", tiny, album / "a.png", "--json")
    assert done.returncode == 0 and done.stdout.count("\n") == 1 and "images classified" not in done.stdout
    assert shell("2>&-", "info", album).stdout == ""


def test_files_do_not_take_the_place_of_closed_streams(tiny, album, tmp_path):
    done = shell("<&- >&- 2>&-", "classify", tiny, album / "a.png", "-o", tmp_path / "rows.jsonl")
    assert done.returncode == 0
    assert (tmp_path / "rows.jsonl").read_text().count("\n") == 1


def test_a_closed_pipe_is_quiet(tiny):
    done = shell("| true; echo ${PIPESTATUS[0]}", "info", tiny, "--json")
    assert done.stdout.strip() in ("0", "141") and done.stderr == ""


ENDLESS = """
import sys, time
from infer.cli import app
from infer.entry import run_app
from infer.files import replacing
from infer.command_line import guarded
from pathlib import Path

def work(prog_name):
    @guarded
    def run():
        with replacing(Path(sys.argv[1])) as temporary:
            temporary.write_text("half")
            print("ready", flush=True)
            time.sleep(60)
    try: run()
    except BaseException as error: raise SystemExit(getattr(error, "exit_code", 99))

import atexit
def then(prog_name):
    atexit.register(lambda: print("cleaned up", flush=True))
    work(prog_name)
run_app(then, "x")
"""


@pytest.mark.parametrize(("number", "said"), [(signal.SIGTERM, "terminated\n"), (signal.SIGINT, "cancelled\n")])
def test_a_signal_ends_the_process_after_it_has_cleaned_up(tmp_path, number, said):
    start = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    process = subprocess.Popen(
        [sys.executable, "-c", start + ENDLESS, str(tmp_path / "out")], env=environment(), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout.readline() == "ready\n"
    assert len(list(tmp_path.iterdir())) == 1
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert process.returncode == -number
    assert (out, err) == ("cleaned up\n", said)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_that_comes_to_a_destructor_is_heard_all_the_same(tmp_path, number):
    start = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    deaf = f"""class Deaf:
            def __del__(self):
                import os
                os.kill(os.getpid(), {int(number)})
                time.sleep(0.01)
        Deaf()
        time.sleep"""
    program = start + ENDLESS.replace(
        "            time.sleep", textwrap.indent(textwrap.dedent(" " * 8 + deaf), " " * 12)
    )
    arguments = [sys.executable, "-c", program, str(tmp_path / "out")]
    done = subprocess.run(arguments, env=environment(), text=True, capture_output=True, timeout=30, check=False)
    assert done.returncode == -number, done.stderr
    assert done.stdout == "ready\ncleaned up\n" and "ignored" not in done.stderr


def test_ctrl_c_ends_a_loop_around_the_command(tmp_path):
    program = tmp_path / "endless.py"
    program.write_text("import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n" + ENDLESS)
    loop = f"trap - INT; while ! '{sys.executable}' '{program}' '{tmp_path}/out'; do echo again; done"
    restore = (
        "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); "
        "os.execvp('bash', ['bash', '-c', sys.argv[1]])"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", restore, loop], env=environment(), text=True, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    assert process.stdout.readline() == "ready\n"
    os.killpg(process.pid, signal.SIGINT)
    out, _ = process.communicate(timeout=30)
    assert "again" not in out and process.returncode in (-signal.SIGINT, 130)


def test_sigterm_leaves_rows_to_resume_from(tiny, album, tmp_path):
    output = tmp_path / "rows.jsonl"
    process = subprocess.Popen(
        command("classify", tiny, "-f", "-", "-o", output), env=environment(), text=True, stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )  # fmt: skip
    process.stdin.write(f"{album / 'a.png'}\n" * 200)
    process.stdin.flush()
    rows = tmp_path / "rows.jsonl.partial/rows.jsonl"
    deadline = time.monotonic() + 60
    while not (rows.exists() and rows.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.terminate()
    _, err = process.communicate(timeout=30)
    assert process.returncode == -signal.SIGTERM
    assert "rows are kept in" in err and "terminated" in err and "Traceback" not in err
    assert (tmp_path / "rows.jsonl.partial/run.json").is_file() and not output.exists()


@pytest.mark.parametrize(
    "options",
    [
        ("verify", "--threshold", "nan"), ("verify", "--max-unreadable", "nan"), ("bench", "--duration", "nan"),
        ("bench", "--duration", "inf"), ("bench", "--warm-up", "-inf"), ("classify", "--threads", "-3"),
        ("verify", "--threads", "0"), ("bench", "--threads", "-3"),
    ],
)  # fmt: skip
def test_options_that_are_no_usable_numbers_are_refused(call, tiny, album, options):
    more = {"classify": [album], "verify": ["--data", album], "bench": []}[options[0]]
    code, _, err = call(options[0], tiny, *more, *options[1:])
    assert code == 2 and "Traceback" not in err


def test_numbers_without_a_range_too(capsys):
    @guarded
    def build(width=1.0):
        raise AssertionError

    with pytest.raises(typer.Exit):
        build(width=float("nan"))
    assert capsys.readouterr().err == "error: --width: expected a number, found nan\n"


@pytest.mark.parametrize(
    ("error", "kind", "said"),
    [
        (OSError(errno.ENOSPC, "full", "a/b"), 1, "a/b: cannot be read or written (full); make room"),
        (OSError(errno.EACCES, "no", "x", None, "y"), 1, "y: cannot be read or written (no); name another"),
        (OSError(errno.ENOENT, "No such file or directory", b"caf\xe9"), 2, "No such file"),
        (OSError("odd"), 1, "a file: cannot be read or written (odd)"),
        (MemoryError(), 1, "out of memory; take fewer threads"),
    ],
)  # fmt: skip
def test_what_the_system_refuses_is_one_line(capsys, error, kind, said):
    @guarded
    def fails():
        raise error

    with pytest.raises(typer.Exit) as caught:
        fails()
    out, err = capsys.readouterr()
    assert caught.value.exit_code == kind and out == "" and err.startswith("error: ") and err.count("\n") == 1
    assert said in err


def test_a_missing_path_is_bad_input():
    assert isinstance(refused(FileNotFoundError(errno.ENOENT, "No such file or directory", "x")), InputError)
