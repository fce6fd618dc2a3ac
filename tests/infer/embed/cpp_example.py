"""Running the C++ example."""

from __future__ import annotations

import os
import subprocess


def example(built, *arguments, expect=0, **environment):
    """Run it far from the repository, in the environment of the tests; the finished process."""
    command = [built / "bin/iresnet-classify", *map(str, arguments)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=120, cwd="/", env=os.environ | environment
    )  # fmt: skip
    assert done.returncode == expect, done.stderr
    return done


def lines(stdout):
    """Number, class, probability and name of each picture, as text."""
    return [line.split(" ", 3) for line in stdout.splitlines()]
