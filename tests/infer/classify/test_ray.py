"""classify --ray: three Ray nodes as processes of this machine, against the run without Ray."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("ray.data")

from typer.testing import CliRunner

from infer.bundle import BatchProfile, read_manifest, write_manifest
from infer.classify.ray.actor import Classifier, Work
from infer.classify.ray.cluster import Actors, divide
from infer.classify.ray.driver import RayJob, run
from infer.classify.ray.parts import JobRecord, PartsFolder, bundle_digest, cut
from infer.cli import app
from infer.errors import ImageError, InputError
from infer.sources import iter_records

PART = 32


@pytest.fixture(scope="module")
def tiny(tiny, tmp_path_factory):
    """With a largest batch of 32, of which parts are made."""
    folder = shutil.copytree(tiny, tmp_path_factory.mktemp("bundle") / tiny.name)
    manifest = read_manifest(folder)
    manifest.batch = BatchProfile(1, 8, PART)
    write_manifest(folder, manifest)
    return folder


def plain(bundle, inputs, output):
    """What one machine writes."""
    done = CliRunner().invoke(app, ["classify", str(bundle), *map(str, inputs), "-o", str(output), "--overwrite"])
    assert done.exit_code in (0, 1), done.output
    return output.read_bytes()


def joined(folder):
    return b"".join(path.read_bytes() for path in sorted(folder.glob("part-*.jsonl")))


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """150 pictures in a folder and a tar file, three of which are none."""
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    (folder / "a").mkdir()
    for number in range(150):
        path = folder / "a" / f"{number:03d}.png"
        Image.fromarray(rng.integers(0, 256, (40, 36, 3), np.uint8)).save(path)
        if number in (0, 77, 149):
            path.write_bytes(b"no picture")
    with tarfile.open(folder / "b.tar", "w") as archive:
        for number in range(100, 150):
            archive.add(folder / "a" / f"{number:03d}.png", f"{number:03d}.png")
            (folder / "a" / f"{number:03d}.png").unlink()
    return [folder / "a", folder / "b.tar"]


@pytest.fixture(scope="module")
def cluster():
    """Three nodes of a core each, on the machine's own interface; removed nodes are started again."""
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    from ray.cluster_utils import Cluster

    store = {"object_store_memory": 200 * 2**20, "num_cpus": 1}
    # A node is given up after two seconds instead of fifteen.
    health = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 500, "health_check_failure_threshold": 4}
    head = {**store, "include_dashboard": False, "_system_config": health}
    made = Cluster(initialize_head=True, head_node_args=head)
    workers = [made.add_node(**store) for _ in range(2)]
    made.wait_for_nodes()
    yield made, workers
    made.shutdown()


def job(bundle, inputs, output, cluster=None, **options):
    address = "local" if cluster is None else cluster[0].address
    return RayJob(bundle, [str(one) for one in inputs], [], output, address, **{"part_rows": PART, **options})


# --- on the cluster --------------------------------------------------------------------------------------------------


def test_rows_are_those_of_one_machine(cluster, tiny, images, tmp_path, capfd):
    expected = plain(tiny, images, tmp_path / "plain.jsonl")
    outcome = run(job(tiny, images, tmp_path / "rows.jsonl", cluster))
    assert joined(tmp_path / "rows.jsonl") == expected
    assert (outcome.counts.rows, outcome.counts.failed, outcome.parts, outcome.there) == (150, 3, 5, 0)
    assert all(where.startswith("openvino: CPU") for where in outcome.where)
    assert capfd.readouterr().err.count("error: ") == 3  # each of them named
    assert sorted(path.name for path in (tmp_path / "rows.jsonl").iterdir()) == [
        "_job.json", *(f"part-{number:06d}.jsonl" for number in range(5)),
    ]  # fmt: skip
    again = run(job(tiny, images, tmp_path / "rows.jsonl", cluster, resume=True))
    assert (again.there, again.meter.fresh, again.counts) == (5, 0, outcome.counts)


def test_parquet_parts_are_one_data_set(cluster, tiny, images, tmp_path):
    from pyarrow import dataset, parquet

    plain(tiny, images, tmp_path / "plain.parquet")
    run(job(tiny, images, tmp_path / "rows.parquet", cluster))
    expected = parquet.read_table(tmp_path / "plain.parquet")
    assert dataset.dataset(tmp_path / "rows.parquet").to_table().equals(expected)


@pytest.fixture(scope="module")
def slow_images(tmp_path_factory):
    """Large pictures, so that a job takes seconds."""
    folder = tmp_path_factory.mktemp("slow")
    rng = np.random.default_rng(1)
    for number in range(4):
        Image.fromarray(rng.integers(0, 256, (1100, 1100, 3), np.uint8)).save(folder / f"{number}.jpg", quality=95)
    for number in range(4, 300):
        os.link(folder / f"{number % 4}.jpg", folder / f"{number}.jpg")
    return [folder]


@pytest.fixture(scope="module")
def slow_expected(tiny, slow_images, tmp_path_factory):
    return plain(tiny, slow_images, tmp_path_factory.mktemp("plain") / "plain.jsonl")


def wait_for_parts(folder, count):
    for _ in range(600):
        if len(list(folder.glob("part-*.jsonl"))) >= count:
            return
        time.sleep(0.05)
    raise AssertionError("no parts")


def actors():
    """Processes of actors at work."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if path.read_bytes().startswith(b"ray::") and b"MapWorker" in path.read_bytes():
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


def test_a_node_and_an_actor_are_killed_in_the_middle(cluster, tiny, slow_images, slow_expected, tmp_path):
    made, workers = cluster
    killed = []

    def kill():
        wait_for_parts(tmp_path / "rows.jsonl", 1)
        killed.append(len(list((tmp_path / "rows.jsonl").glob("part-*.jsonl"))))
        victims = actors()
        os.kill(victims[0], signal.SIGKILL)
        made.remove_node(workers.pop(), allow_graceful=False)

    thread = threading.Thread(target=kill)
    thread.start()
    outcome = run(job(tiny, slow_images, tmp_path / "rows.jsonl", cluster))
    thread.join()
    workers.append(made.add_node(num_cpus=1, object_store_memory=200 * 2**20))
    assert killed and killed[0] < outcome.parts == 10
    assert joined(tmp_path / "rows.jsonl") == slow_expected
    assert outcome.counts.rows == 300


def test_the_driver_is_killed_and_resumed(cluster, tiny, slow_images, slow_expected, tmp_path):
    output = tmp_path / "rows.jsonl"
    command = [
        sys.executable, "-m", "infer", "classify", tiny, *slow_images, "-o", output, "--ray", cluster[0].address,
        "--part-rows", PART,
    ]  # fmt: skip
    driver = subprocess.Popen([str(part) for part in command], stderr=subprocess.DEVNULL)
    wait_for_parts(output, 2)
    driver.kill()
    driver.wait()
    there = len(list(output.glob("part-*.jsonl")))
    assert there < 10
    with pytest.raises(InputError, match="the parts of a job, interrupted; pass --resume"):
        run(job(tiny, slow_images, output, cluster))
    outcome = run(job(tiny, slow_images, output, cluster, resume=True))
    assert outcome.there >= there and outcome.counts.rows == 300
    assert joined(output) == slow_expected


def test_what_is_wrong_for_good_ends_the_job(cluster, tiny, images, tmp_path, capfd):
    with pytest.raises(ImageError, match="not an image"):
        run(job(tiny, images, tmp_path / "strict.jsonl", cluster, strict=True))
    said = " ".join(capfd.readouterr().err.split())
    assert "parts are whole in" in said and "--resume makes the others" in said
    assert list((tmp_path / "strict.jsonl").glob("part-000000*")) == []
    outcome = run(job(tiny, images, tmp_path / "strict.jsonl", cluster, resume=True))
    assert outcome.counts.failed == 3


# --- without one -----------------------------------------------------------------------------------------------------


@pytest.fixture
def work(tiny, images, tmp_path):
    import infer

    (tmp_path / "rows.jsonl").mkdir()
    return Work(
        infer.__version__, str(tiny), str(tmp_path / "rows.jsonl"), tuple(map(str, images)), (), None, PART, 5, None,
        1, 1, False, False, False, bundle_digest(read_manifest(tiny)),
    )  # fmt: skip


def test_parts_in_any_order_give_the_same_rows(work, tiny, images, tmp_path):
    slices = cut(iter_records(images), PART)
    assert [one.count for one in slices] == [32, 32, 32, 32, 22]
    classifier = Classifier(work)
    for number in (1, 4, 0, 2, 3, 0):  # the last one is there already
        done = classifier.classify(slices[number])
        assert (done.error, done.rows) == ("", slices[number].count)
    assert joined(tmp_path / "rows.jsonl") == plain(tiny, images, tmp_path / "plain.jsonl")


def test_a_machine_that_differs_is_named(work, own, tiny, images, tmp_path):
    from dataclasses import replace

    one, *_ = cut(iter_records(images), PART)
    elsewhere = shutil.copytree(images[0], tmp_path / "elsewhere")
    (elsewhere / "005.png").unlink()
    for changed, kind, message in (
        (
            {"inputs": (str(elsewhere), str(images[1]))},
            "InputError",
            "has other images here (32) than on the driver (32)",
        ),
        ({"version": "9.9"}, "InputError", "the driver 9.9; install the same"),
        ({"bundle_sha256": "0" * 64}, "InputError", "is another bundle here than on the driver"),
        ({"bundle": str(tmp_path / "none")}, "BundleError", "is not a bundle"),
        ({"inputs": (str(tmp_path / "gone"),)}, "InputError", "no image found"),
        ({"target": "tensorrt"}, "BundleError", ""),
    ):
        done = Classifier(replace(work, **changed)).classify(one)
        assert done.kind in (kind, "TargetUnavailableError") and message in done.error, done
    assert list((tmp_path / "rows.jsonl").iterdir()) == []


def test_the_folder_is_taken_with_care(tmp_path):
    def record(**changed):
        values = {"job": {"top": 5}, "part_rows": 32, "images": 150, "names_sha256": "a"}
        return JobRecord(**{**values, **changed})

    folder = PartsFolder(tmp_path / "rows.jsonl")
    assert folder.read() is None and not folder.begin(record(), resume=True, overwrite=False)
    folder.part(3).write_text("{}\n")
    for changed, message in (
        ({"job": {"top": 3}}, "belongs to another job: top was 5, is 3"),
        ({"images": 149}, "the inputs changed: 150 images when the job began, 149 now"),
        ({"names_sha256": "b"}, "or other names"),
    ):
        with pytest.raises(InputError, match=message):
            folder.begin(record(**changed), resume=True, overwrite=False)
    with pytest.raises(InputError, match="interrupted; pass --resume to go on with it, or --overwrite"):
        folder.begin(record(), resume=False, overwrite=False)
    assert folder.part(3).exists()
    assert not folder.begin(record(images=3), resume=False, overwrite=True)
    assert not folder.part(3).exists() and folder.read().images == 3
    (folder.path / "_job.json").write_bytes(b"{")
    with pytest.raises(InputError, match="damaged"):
        folder.read()
    (tmp_path / "mine.jsonl").mkdir()
    (tmp_path / "mine.jsonl/thesis.txt").touch()
    with pytest.raises(InputError, match="holds other files"):
        PartsFolder(tmp_path / "mine.jsonl").begin(record(), resume=False, overwrite=True)


def test_a_part_of_another_size_is_noticed(work, images, tmp_path):
    folder, slices = PartsFolder(tmp_path / "rows.jsonl"), cut(iter_records(images), PART)
    folder.part(0).write_text('{"name": "x"}\n')
    with pytest.raises(InputError, match=r"part-000000.jsonl: expected 32 rows, found 1"):
        folder.counts(slices[:1])


def nodes(*machines):
    return [{"Alive": cpus > 0, "Resources": {"CPU": float(cpus), "GPU": float(gpus)}} for cpus, gpus in machines]


@pytest.mark.parametrize(
    ("machines", "threads", "gpu", "expected"),
    [
        ([(16, 0), (8, 0)], None, False, Actors(6, 4, 0)),
        ([(2, 0), (16, 0), (0, 0)], None, False, Actors(9, 2, 0)),
        ([(16, 0), (16, 0)], 16, False, Actors(2, 16, 0)),
        ([(16, 4), (32, 2), (64, 0)], None, True, Actors(6, 4, 1)),
        ([(16, 4)], 2, True, Actors(4, 2, 1)),
    ],
)
def test_the_machines_are_divided(machines, threads, gpu, expected):
    assert divide(nodes(*machines), threads, gpu=gpu) == expected


def test_clusters_that_hold_no_actor():
    with pytest.raises(InputError, match="no machine of the cluster has 9 cores"):
        divide(nodes((8, 0), (4, 0)), 9, gpu=False)
    with pytest.raises(InputError, match="the cluster has no GPU"):
        divide(nodes((8, 0)), None, gpu=True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--shard", "0/2", "-o", "x.jsonl"], "--shard is for a scheduler of your own"),
        ([], "--ray needs an --output"),
        (["-o", "x.csv"], "expected the name of a folder of parts"),
        (["-o", "x.jsonl", "-f", "-"], "every machine reads the list"),
        (["-o", "x.jsonl", "--target", "tensorrt"], "tensorrt"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_starts(tiny, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["classify", str(tiny), "pictures", "--ray", "local", *arguments])
    assert done.exit_code == 2 and message in done.output
    assert list(tmp_path.iterdir()) == []


def test_no_cluster_there(tiny, images, tmp_path):
    done = CliRunner().invoke(
        app, ["classify", str(tiny), str(images[0]), "-o", str(tmp_path / "x.jsonl"), "--ray", "127.0.0.1:9"]
    )
    assert done.exit_code != 0 and "no Ray cluster can be reached there" in " ".join(done.output.split())
