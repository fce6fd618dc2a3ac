"""Terminals of a given width: one in memory that keeps what is written, and a real one that runs a command."""

from __future__ import annotations

import errno
import fcntl
import io
import os
import pty
import re
import struct
import subprocess
import termios
from collections.abc import Callable, Sequence

import pyte

SEPARATORS = "/_,;:=.-"


class Pipe(io.StringIO):
    """Written to as a pipe."""

    encoding = "utf-8"


class Terminal(io.StringIO):
    """Written to as a terminal; its width is that of ``COLUMNS``."""

    encoding = "utf-8"

    def isatty(self):
        return True

    @property
    def text(self):
        return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", self.getvalue())


def words(text):
    """The words of ``text`` without rules; and, of those, the pieces that a long one may be broken into."""
    whole = {word.strip(",;:") for word in text.replace("\u2500", " ").split()}
    pieces = set()
    for word in whole:
        cuts = [0, *(n + 1 for n, letter in enumerate(word) if letter in SEPARATORS), len(word)]
        pieces |= {word[start:end] for start in cuts for end in cuts if start < end}
    return whole | pieces


def check_fits(narrow, wide, width, allowed=frozenset()):
    """No line of ``narrow`` is longer than ``width``, and none of its words is cut; ``wide`` has them whole."""
    for line in narrow.splitlines():
        assert len(line) <= width, (width, line)
        assert line == line.rstrip(), repr(line)
    cut = words(narrow.replace("\u2026/", " ").replace("\u2026", " ")) - words(wide) - set(allowed)
    assert not cut, cut


def run_in_terminal(
    command: Sequence[str], width: int, seen: Callable[[list[str]], None], env: dict[str, str]
) -> tuple[int, str]:
    """Run ``command`` on a pseudo-terminal of ``width`` columns.

    Args:
        command: words.
        width: columns; there are 200 lines.
        seen: called with the lines of the screen after everything that is drawn.
        env: its environment; COLUMNS is left out.

    Returns:
        The exit code, and everything that was written.
    """
    screen = pyte.Screen(width, 200)
    stream = pyte.ByteStream(screen)
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 200, width, 0, 0))
    env = {key: value for key, value in env.items() if key != "COLUMNS"}
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=env, close_fds=True) as child:
        os.close(theirs)
        written = b""
        while True:
            try:
                data = os.read(ours, 65536)
            except OSError as error:  # Linux says so when the last writer has gone
                assert error.errno == errno.EIO
                break
            if not data:
                break
            written += data
            stream.feed(data)
            seen([line.rstrip() for line in screen.display if line.strip()])
        code = child.wait(timeout=60)
    os.close(ours)
    return code, written.decode()
