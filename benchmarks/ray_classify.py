"""CPU time an image of ``classify --ray`` on three nodes, against ``classify`` on the same images: all of Ray counted.

    python benchmarks/ray_classify.py engines/iresnet50_fashion-int8 [--images 20000] [--repeats 3]

Both run a small job and the whole one, in turns; what the difference costs, divided by the images it has more, is free
of the start of either: processes, imports, opening the bundle. Ray's part is that of its daemons, workers and actors
(``/proc``, children that ended included) and of the driver.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TICKS = os.sysconf("SC_CLK_TCK")
PART_ROWS = 512


def make_images(folder: Path, count: int) -> None:
    """The shipped model's test pictures, as often as needed."""
    originals = []
    with tarfile.open(ROOT / "engine_build/shipped/iresnet50_fashion/test.tar.gz") as archive:
        for member in archive:
            if member.isfile() and member.name.endswith((".png", ".jpg")) and len(originals) < count:
                path = folder / f"{len(originals):07d}{Path(member.name).suffix}"
                path.write_bytes(archive.extractfile(member).read())
                originals.append(path)
    for number in range(len(originals), count):
        source = originals[number % len(originals)]
        os.link(source, folder / f"{number:07d}{source.suffix}")


class Processes:
    """CPU seconds of Ray's processes on this machine, looked at every second: some end on the way."""

    def __init__(self) -> None:
        self._seen: dict[str, int] = {}
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while True:
            self.seconds()
            time.sleep(1)

    def seconds(self) -> float:
        """So far, all that descend from this process: Ray's daemons, their workers, the driver."""
        parents, used = {}, {}
        for path in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = path.read_text().rpartition(")")[2].split()
            except OSError:
                continue
            number = int(path.parent.name)
            parents[number] = int(fields[1])
            # A number comes again for another process, with another start.
            used[number] = f"{number} {fields[19]}", int(fields[11]) + int(fields[12])
        for number, (key, ticks) in used.items():
            ancestor = parents[number]
            while ancestor in parents and ancestor != os.getpid():
                ancestor = parents[ancestor]
            if ancestor == os.getpid():
                self._seen[key] = ticks
        return sum(self._seen.copy().values()) / TICKS


def command(arguments: list[str]) -> list[str]:
    return [sys.executable, "-m", "infer", "classify", *arguments]


def run(arguments: list[str]) -> float:
    """CPU seconds of the command."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command(arguments), cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def run_on_ray(arguments: list[str], output: Path, actors: int, images: int, processes: Processes) -> float:
    """CPU milliseconds an image, all of Ray, from when every actor has made a part until the end.

    What was under way then, a part for each actor, is taken to be of before, which is the worse for Ray.
    """
    with subprocess.Popen(command(arguments), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as driver:
        started, there = 0.0, 0
        while driver.poll() is None:
            if not started and (there := len(list(output.glob("part-*")))) >= actors:
                started = processes.seconds()
            last = processes.seconds()
            time.sleep(0.5)
        if driver.returncode:
            sys.exit((driver.stderr.read() if driver.stderr else b"").decode())
    return 1000 * (last - started) / (images - (there + actors) * PART_ROWS)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--nodes", type=int, default=3, help="of a core each")
    options = parser.parse_args()
    os.environ.update(RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER="0", RAY_USAGE_STATS_ENABLED="0")
    from ray.cluster_utils import Cluster

    small, bundle = options.images // 10, str(options.bundle.absolute())
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        jobs = {count: work / f"images{count}" for count in (small, options.images)}
        for count, images in jobs.items():
            images.mkdir()
            make_images(images, count)
        node = {"num_cpus": 1, "object_store_memory": 200 * 2**20}
        cluster = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
        for _ in range(options.nodes - 1):
            cluster.add_node(**node)
        cluster.wait_for_nodes()
        processes = Processes()
        found: dict[str, list[float]] = {"plain": [], "ray": []}
        for _ in range(options.repeats):
            plain = {
                count: run([bundle, str(images), "-o", str(work / "plain.jsonl"), "--overwrite"])
                for count, images in jobs.items()
            }
            found["plain"].append(1000 * (plain[options.images] - plain[small]) / (options.images - small))
            output = work / "rows.jsonl"
            shutil.rmtree(output, ignore_errors=True)
            on_ray = [bundle, str(jobs[options.images]), "-o", str(output), "--ray", cluster.address]
            on_ray += ["--part-rows", str(PART_ROWS)]
            found["ray"].append(run_on_ray(on_ray, output, options.nodes, options.images, processes))
            parts = b"".join(path.read_bytes() for path in sorted(output.glob("part-*")))
            if parts != (work / "plain.jsonl").read_bytes():
                sys.exit("the rows differ")
            print(json.dumps({way: round(values[-1], 4) for way, values in found.items()}), flush=True)
        cluster.shutdown()
    plain_ms, ray_ms = (statistics.median(found[way]) for way in ("plain", "ray"))
    print(f"CPU ms an image: plain {plain_ms:.3f}, Ray {ray_ms:.3f}, ratio {ray_ms / plain_ms:.3f}")


if __name__ == "__main__":
    main()
