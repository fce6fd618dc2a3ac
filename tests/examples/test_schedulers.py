"""The Slurm array and the Kubernetes Job: their own command lines run for every index, then merged."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COUNT = 2


@pytest.fixture
def iresnet(tmp_path):
    """A folder with a command ``iresnet`` of this checkout."""
    command = tmp_path / "bin" / "iresnet"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m infer "$@"\n')
    command.chmod(0o755)
    return command.parent


def environment(folder, **more):
    path = f"{folder}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), **{k: str(v) for k, v in more.items()}}


def merged_is_whole(iresnet, bundle, images, out, tmp_path):
    for arguments in (
        ["merge", *sorted(out.glob("rows-*.parquet")), "-o", tmp_path / "all.parquet"],
        ["classify", bundle, images, "-o", tmp_path / "whole.parquet"],
    ):
        subprocess.run(["iresnet", *map(str, arguments)], env=environment(iresnet), check=False, capture_output=True)
    return (tmp_path / "all.parquet").read_bytes() == (tmp_path / "whole.parquet").read_bytes()


@pytest.fixture
def pictures(tmp_path, labelled):
    """Three images, the last of which cannot be read."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number, path in enumerate(sorted(labelled.rglob("*.png"))[:2]):
        (folder / f"{number}.png").write_bytes(path.read_bytes())
    (folder / "9.png").write_bytes(b"no picture")
    return folder


def test_slurm_array(iresnet, tiny, pictures, tmp_path):
    for index in range(COUNT):
        variables = {"SLURM_ARRAY_TASK_ID": index, "SLURM_ARRAY_TASK_COUNT": COUNT}
        given = environment(iresnet, BUNDLE=tiny, INPUT=pictures, OUT=tmp_path / "out", **variables)
        script = ["bash", str(ROOT / "examples/classify.sbatch")]
        done = subprocess.run(script, env=given, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    assert merged_is_whole(iresnet, tiny, pictures, tmp_path / "out", tmp_path)
    broken = environment(iresnet, BUNDLE=tmp_path, INPUT=pictures, OUT=tmp_path / "other", **variables)
    assert subprocess.run(script, env=broken, capture_output=True, check=False).returncode != 0


def test_kubernetes_job(iresnet, tiny, pictures, tmp_path):
    yaml = pytest.importorskip("yaml")
    job = yaml.safe_load((ROOT / "examples/classify-job.yaml").read_text())
    spec = job["spec"]
    (container,) = spec["template"]["spec"]["containers"]
    values = {entry["name"]: entry["value"] for entry in container["env"]}
    assert (job["apiVersion"], job["kind"], spec["completionMode"]) == ("batch/v1", "Job", "Indexed")
    assert values["SHARDS"] == str(spec["completions"])
    assert spec["template"]["spec"]["restartPolicy"] == "Never"  # what backoffLimitPerIndex asks for
    volumes = {volume["name"] for volume in spec["template"]["spec"]["volumes"]}
    mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    assert {values[name] for name in ("BUNDLE", "INPUT", "OUT")} == set(mounts) and set(mounts.values()) == volumes
    (tmp_path / "out").mkdir()
    for index in range(COUNT):
        here = {"BUNDLE": tiny, "INPUT": pictures, "OUT": tmp_path / "out"}
        given = environment(iresnet, **(values | here | {"SHARDS": COUNT, "JOB_COMPLETION_INDEX": index}))
        done = subprocess.run(
            [*container["command"], *container["args"]], env=given, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
    assert merged_is_whole(iresnet, tiny, pictures, tmp_path / "out", tmp_path)
