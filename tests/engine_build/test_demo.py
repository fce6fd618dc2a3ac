"""The demonstration where it cannot run; ``make demo`` itself runs in the README's first command."""

from __future__ import annotations

from dataclasses import replace

import pytest
from typer.testing import CliRunner

from engine_build import demo as module
from engine_build.cli import app


@pytest.fixture
def without_images(monkeypatch, tmp_path):
    """The package as a wheel installs it: without the test images."""
    row = replace(module.find_model(module.MODEL), shipped=tmp_path)
    monkeypatch.setattr(module, "find_model", lambda _name: row)
    return tmp_path


def test_without_its_images_it_says_where_to_get_them(without_images, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["demo"])
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr.startswith("error: the demo's test images are not installed") and done.stderr.count("\n") == 1
    assert "source distribution" in done.stderr and str(without_images / "test.tar.gz") in done.stderr
    assert list(tmp_path.iterdir()) == []
