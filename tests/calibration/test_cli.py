"""``python -m calibration``: the cache it writes is that of the build, and errors are one line."""

import json

import pytest
from typer.testing import CliRunner

from calibration.cache import read_cache
from calibration.cli import app


@pytest.fixture
def invoke():
    return lambda *arguments: CliRunner().invoke(app, [str(a) for a in arguments])


@pytest.fixture
def data():
    from engine_build.network.zoo import MODELS

    return MODELS["iresnet50_fashion"].shipped / "calibration.tar.gz"


def test_the_cache_equals_that_of_the_build(shipped, invoke, data, tmp_path):
    result = invoke("run", shipped("fp32"), "-d", data, "-o", tmp_path / "c", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["images"] == 512
    made, built = read_cache(tmp_path / "c"), read_cache(shipped("int8") / "calibration.cache")
    assert made.scales == built.scales
    assert made.provenance.data_sha256 == built.provenance.data_sha256
    shown = invoke("show", tmp_path / "c", "--bundle", shipped("fp32"))
    assert "66 of 66 tensors covered" in shown.stdout and "mse" in shown.stdout


def test_errors(shipped, invoke, data, tmp_path):
    refused = invoke("run", shipped("fp16"), "-d", data, "-o", tmp_path / "c")
    assert refused.exit_code == 2 and "fp32 bundle" in refused.output and not (tmp_path / "c").exists()
    (tmp_path / "bad").write_text("no cache")
    assert invoke("show", tmp_path / "bad").exit_code == 2
