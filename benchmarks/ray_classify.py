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
    """CPU seconds of Ray's processes on this machine, looked at ten times a second: some end on the way."""

    def __init__(self) -> None:
        self._seen: dict[str, int] = {}
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while True:
            self.seconds()
            time.sleep(0.1)

    def seconds(self) -> float:
        """So far."""
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                command = (folder / "cmdline").read_bytes()
                if b"ray" in command and b"ray_classify" not in command and b"--ray" not in command:
                    fields = (folder / "stat").read_text().rpartition(")")[2].split()
                    # A number comes again for another process, with another start.
                    self._seen[f"{folder.name} {fields[19]}"] = int(fields[11]) + int(fields[12])
            except (OSError, ValueError):
                continue
        return sum(self._seen.copy().values()) / TICKS


def run(arguments: list[str]) -> float:
    """CPU seconds of the command itself."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", "infer", "classify", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    os.environ.update(RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER="0", RAY_USAGE_STATS_ENABLED="0")
    from ray.cluster_utils import Cluster

    small = options.images // 10
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        jobs = {}
        for count in (small, options.images):
            jobs[count] = work / f"images{count}"
            jobs[count].mkdir()
            make_images(jobs[count], count)
        node = {"num_cpus": 1, "object_store_memory": 200 * 2**20}
        cluster = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
        for _ in range(2):
            cluster.add_node(**node)
        cluster.wait_for_nodes()
        processes = Processes()
        found: dict[str, list[float]] = {"plain": [], "ray": []}
        for _ in range(options.repeats):
            seconds: dict[str, dict[int, float]] = {"plain": {}, "ray": {}}
            for count, images in jobs.items():
                bundle = str(options.bundle.absolute())
                plain = [bundle, str(images), "-o", str(work / "plain.jsonl"), "--overwrite"]
                seconds["plain"][count] = run(plain)
                before = processes.seconds()
                own = run(
                    [bundle, str(images), "-o", str(work / "rows.jsonl"), "--overwrite", "--ray", cluster.address]
                )
                seconds["ray"][count] = own + processes.seconds() - before
                parts = b"".join(path.read_bytes() for path in sorted((work / "rows.jsonl").glob("part-*")))
                if parts != (work / "plain.jsonl").read_bytes():
                    sys.exit("the rows differ")
            for way, of in seconds.items():
                found[way].append(1000 * (of[options.images] - of[small]) / (options.images - small))
            print(json.dumps({way: round(values[-1], 4) for way, values in found.items()}), flush=True)
        cluster.shutdown()
    plain, ray = (statistics.median(found[way]) for way in ("plain", "ray"))
    print(f"CPU ms an image: plain {plain:.3f}, Ray {ray:.3f}, ratio {ray / plain:.3f} (median of {options.repeats})")


if __name__ == "__main__":
    main()
