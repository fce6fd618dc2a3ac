"""The systemd unit and the Kubernetes deployment, read by their own parsers, and their commands by ours."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import typer.main

yaml = pytest.importorskip("yaml")

FOLDER = Path(__file__).parents[2] / "examples/serve"
UNIT, DEPLOYMENT = FOLDER / "iresnet-serve.service", FOLDER / "kubernetes.yaml"


def options():
    from infer.cli import app

    command = typer.main.get_group(app).commands["serve"]
    return {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}


def used(arguments):
    return {word.partition("=")[0] for word in arguments if word.startswith("--")}


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
def test_systemd_takes_the_unit(tmp_path):
    def verify(text):
        path = tmp_path / UNIT.name
        path.write_text(text)
        command = ["systemd-analyze", "verify", "--man=no", path]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        return [line for line in done.stderr.splitlines() if UNIT.name in line]

    program = tmp_path / "iresnet"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    text = UNIT.read_text().replace("/opt/iresnet/.venv/bin/iresnet", str(program))
    assert verify(text) == []
    assert verify(text.replace("TimeoutStopSec=40", "TimeoutStopSec=soon"))  # it does look


def test_the_unit_uses_options_that_exist():
    command = re.search(r"ExecStart=(.*)", UNIT.read_text().replace("\\\n", " "))[1]
    program, name, bundle, *arguments = shlex.split(command)
    assert program.endswith("/iresnet") and name == "serve" and "=" in bundle
    assert used(arguments) <= options() and "--tokens" in used(arguments)


def documents():
    return list(yaml.safe_load_all(DEPLOYMENT.read_text()))


def test_kubernetes_takes_the_deployment():
    validate = pytest.importorskip("kubernetes_validate")
    for document in documents():
        validate.validate(document, "1.31", strict=True)
    wrong = documents()[0]
    wrong["spec"]["template"]["spec"]["containers"][0]["readinessProbe"]["httpGet"]["prot"] = 1
    with pytest.raises(validate.ValidationError):
        validate.validate(wrong, "1.31", strict=True)


def test_the_deployment_uses_options_and_routes_that_exist(tiny):
    pytest.importorskip("starlette")
    from infer.serve.app import application
    from infer.serve.options import ServeOptions, Source

    pod = documents()[0]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert used(container["args"]) <= options()
    drain = next(int(word.partition("=")[2]) for word in container["args"] if word.startswith("--drain-timeout"))
    assert pod["terminationGracePeriodSeconds"] >= drain + 5
    paths = {route.path for route in application(ServeOptions((Source(tiny),))).routes}
    ports = {port["name"] for port in container["ports"]}
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container[probe]["httpGet"]["path"] in paths and container[probe]["httpGet"]["port"] in ports
