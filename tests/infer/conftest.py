"""What the tests of the commands share."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from infer.cli import app


@pytest.fixture
def call(monkeypatch):
    """Run a command: its exit code, standard output and standard error."""
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments):
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result.exit_code, result.stdout, result.stderr

    return run


@pytest.fixture
def album(tmp_path):
    """Three readable images, one that is not, and something that is no image."""
    folder = tmp_path / "album"
    (folder / "sub").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in ("a.png", "b.jpg", "sub/c.webp"):
        Image.fromarray(rng.integers(0, 256, (50, 40, 3)).astype(np.uint8)).save(folder / name)
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff no jpeg")
    (folder / "notes.txt").write_text("not an image")
    return folder
