"""Commands in real terminals: nothing is wider than the terminal, no word is cut, and a pipe gets everything."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from terminals import check_fits, run_in_terminal, words
from typer.testing import CliRunner

from infer.cli import app
from infer.terminal import progress

ROOT = Path(__file__).parents[2]
NUMBERS = re.compile(r"^[\d.,:%()≈-]+$")


def command(*arguments):
    return [sys.executable, "-m", "infer", *map(str, arguments)]


def environment(**more):
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests"), str(ROOT / "tests/infer")])
    return {key: value for key, value in os.environ.items() if key != "NO_COLOR"} | {
        "PYTHONPATH": path, "TERM": "xterm-256color", "LANG": "C.UTF-8", **more,
    }  # fmt: skip


def check_screens(screens, vocabulary, width):
    """Every word of every screen is whole; numbers are free, as they differ from run to run."""
    for screen in screens:
        for line in screen:
            assert len(line) <= width
            for word in words(line) - vocabulary:
                assert NUMBERS.match(word) or not word[0].isascii(), (width, word, line)


def test_bench_in_a_terminal_of_80_columns(tiny):
    options = ("--batch", "1,4", "--in-flight", "1", "--duration", "0.3", "--warm-up", "0.05", "--roofline", "L4,L40")
    piped = CliRunner().invoke(app, ["bench", str(tiny), *options, "--duration", "0"]).stdout
    screens: list[list[str]] = []
    code, written = run_in_terminal(command("bench", tiny, *options), 80, screens.append, environment())
    assert code == 0, written
    assert any("bench" in screen[-1] and "/2" in screen[-1] for screen in screens if screen), "no bar was drawn"
    said = (
        "warning: unstable: drift: latency varies rises falls by is the machine busy? within a run; warm up longer, or"
    )
    said += (
        " watch temperature few batches: p99 of close to maximum; raise duration (all points, most at batch in flight)"
    )
    said += " (batch bench to go 1/2 0/2 2/2 1/s 2/s"
    check_screens(screens, words(piped) | words(said), 80)
    title = next(line for line in screens[-1] if line.startswith("tiny"))
    assert title == "tiny fp32 on openvino, times in ms"
    shown = [n for n, line in enumerate(screens[-1]) if line.startswith("warning")]
    rule = next(n for n, line in enumerate(screens[-1]) if line.startswith("─"))
    assert all(n > rule + 2 for n in shown)


BAR = """
import sys, time
from infer.classify.meter import Meter, shown
from infer.terminal import phases, progress
step = 0.12 if sys.stderr.isatty() else 0  # the screen is drawn ten times a second
with progress("round weights", 300) as advance:
    for _ in range(2):
        advance(100); time.sleep(step)
meter = Meter(); meter.total = 12345
with shown("classify", meter) as changed:
    with meter.waiting("decode"): time.sleep(0.01)
    meter.advance(4115); changed(); time.sleep(step)
with phases("building the TensorRT plan") as report:
    report(0.5, "Building engine: timing tactics"); time.sleep(step)
print("done")
"""
SAID = (
    "round weights 100/300 200/300 300/300 0/300 to go classify of 12345 images waiting for decoding done building the "
)
SAID += "TensorRT plan Building engine: timing tactics /s"


@pytest.mark.parametrize("width", [120, 80, 40, 24])
def test_bars_lose_whole_pieces(width):
    screens: list[list[str]] = []
    code, written = run_in_terminal([sys.executable, "-c", BAR], width, screens.append, environment())
    assert code == 0, written
    assert screens[-1] == ["done"], "the bars went away"
    seen = {line for screen in screens for line in screen}
    check_screens([[re.sub(r"[\d.]+/s", "/s", line) for line in seen]], words(SAID), width)
    assert all(len([line for line in screen if line != "done"]) <= 2 for screen in screens), "one line each"
    # What matters most stays: the title, and how much is done.
    for text in ("round weights 200/300", "4115 of 12345", "50 %"):
        assert any(text in re.sub(r"[\s━─]+", " ", line) for line in seen), text


@pytest.mark.parametrize("term", ["dumb", ""])
def test_a_terminal_that_cannot_draw_gets_no_bar(term):
    code, written = run_in_terminal(
        [sys.executable, "-c", BAR], 80, lambda _: None, environment(TERM=term or "unknown")
    )
    assert (code, written) == (0, "done\r\n")


def test_no_color():
    _, written = run_in_terminal([sys.executable, "-c", BAR], 80, lambda _: None, environment(NO_COLOR="1"))
    assert "round weights" in written
    assert not re.search(r"\x1b\[[0-9;]*[34][0-9][0-9;]*m", written), "a colour"


def test_a_pipe_gets_neither_bar_nor_codes_and_nothing_is_wrapped(tiny):
    done = subprocess.run(
        command("info", tiny), env=environment(COLUMNS="30"), capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stderr == "" and "\x1b" not in done.stdout
    assert max(map(len, done.stdout.splitlines())) > 80
    done = subprocess.run(
        [sys.executable, "-c", BAR], env=environment(), capture_output=True, text=True, check=True, timeout=60
    )
    assert (done.stdout, done.stderr) == ("done\n", "")


@pytest.mark.parametrize("width", [80, 60, 40])
def test_info_in_a_terminal(tiny, width):
    piped = CliRunner().invoke(app, ["info", str(tiny)]).stdout
    screens: list[list[str]] = []
    code, _ = run_in_terminal(command("info", tiny), width, screens.append, environment())
    assert code == 0
    check_fits("\n".join(screens[-1]), piped, width)


@pytest.mark.parametrize("width", [80, 40])
def test_an_error_in_a_terminal(width):
    wrong = "/a/folder/that/is/not/here/and/has/a/name/that/does/not/fit/into/a/line/of/the/terminal/at/all"
    piped = CliRunner().invoke(app, ["info", wrong]).stderr
    assert piped.count("\n") == 1
    screens: list[list[str]] = []
    code, _ = run_in_terminal(command("info", wrong), width, screens.append, environment())
    assert code == 2
    check_fits("\n".join(screens[-1]), piped, width)


def test_the_bar_follows_the_width(monkeypatch):
    """The terminal may be made narrower while the bar runs."""
    from terminals import Terminal

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    with progress("verify", 1000) as advance:
        advance(500)
        monkeypatch.setenv("COLUMNS", "30")
        advance(100)
    lines = [line.strip() for line in re.split(r"[\r\n]", terminal.text) if "600/" in line]
    assert lines and all(len(line) <= 30 for line in lines)
