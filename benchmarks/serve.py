"""The server against ``classify`` and ``bench`` on the same bundle, and beside LitServe, mosec and Ray Serve.

    python benchmarks/serve.py saturated BUNDLE [--rounds 3] [--seconds 20]    images and tensors, iresnet50 int8
    python benchmarks/serve.py small BUNDLE                                  the shipped model: what the server costs
    python benchmarks/serve.py alone BUNDLE                                  one request at a time
    python benchmarks/serve.py peers BUNDLE --litserve VENV --mosec VENV --ray VENV
    python benchmarks/serve.py start BUNDLE                                  ready after a warm opening

Load comes from wrk (https://github.com/wg/wrk; Debian: apt-get install wrk), which runs on the same cores; its CPU time
is stated apart. What is under way when a turn of wrk ends is computed and not counted, so turns have to be long. Bodies
are the 500 x 375 JPEG files of benchmarks/end_to_end.py, or, where the input has 64 pixels, the shipped test images.
Ways take turns, medians are compared. Each peer lives in a venv of its own, with ``pip install
openvino msgspec pillow numpy`` and litserve, mosec or ray[serve]; benchmarks/peers has their applications: our decoding
and runner behind their HTTP and their batching, eight images or 2 ms.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import re
import resource
import shutil
import signal
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

PORT = 8555
FILES = 256
IMAGE, JSON = "content-type: image/jpeg", "content-type: application/json"


def make_bodies(folder: Path, bundle: Path) -> tuple[Path, int]:
    """Encoded images for a bundle, and the side of its input."""
    from end_to_end import write_photos

    from infer.bundle import read_manifest

    side = read_manifest(bundle).preprocessing.crop
    made = folder / "images"
    made.mkdir()
    if side > 64:
        write_photos(made, FILES)
        return made, side
    with tarfile.open(ROOT / "engine_build/shipped/iresnet50_fashion/test.tar.gz") as tar:
        for number, member in enumerate(m for m in tar if m.isfile()):
            if number == FILES:
                break
            (made / f"{number:04d}.png").write_bytes(tar.extractfile(member).read())  # type: ignore[union-attr]
    return made, side


def make_json(folder: Path, images: Path) -> Path:
    made = folder / "json"
    made.mkdir()
    for path in images.iterdir():
        text = base64.b64encode(path.read_bytes()).decode()
        (made / f"{path.stem}.json").write_text(json.dumps({"image": text}))
    return made


def make_tensors(folder: Path, images: Path, bundle: Path, rows: int) -> tuple[Path, str]:
    """Bodies of the v2 protocol with binary data, and their headers."""
    import numpy as np

    from infer.bundle import read_manifest
    from infer.images.jpeg import load_input

    spec = read_manifest(bundle).preprocessing
    made = folder / f"tensors{rows}"
    made.mkdir()
    shape = (rows, spec.crop, spec.crop, 3)
    one = {
        "name": "images",
        "datatype": "UINT8",
        "shape": shape,
        "parameters": {"binary_data_size": int(np.prod(shape))},
    }
    head = json.dumps({"inputs": [one], "outputs": [{"name": "classes", "parameters": {"binary_data": True}}]}).encode()
    pixels = np.empty((rows, *shape[1:]), np.uint8)
    paths = sorted(images.iterdir())
    for number in range(64 // rows):
        for row in range(rows):
            load_input(paths[(number * rows + row) % len(paths)], spec, pixels[row])
        (made / f"{number:04d}").write_bytes(head + pixels.tobytes())
    return made, f"content-type: application/octet-stream\ninference-header-content-length: {len(head)}"


def cpu_of(group: int) -> float:
    """CPU seconds of all living processes of a session, and of their children that ended."""
    total = 0.0
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError, IndexError, ValueError):
            fields = path.read_text().rpartition(")")[2].split()
            if int(fields[3]) == group:
                total += sum(int(fields[n]) for n in (11, 12, 13, 14)) / os.sysconf("SC_CLK_TCK")
    return total


class Way:
    """A server as a command, and where it answers."""

    def __init__(
        self, name: str, command: list[str], path: str, bodies: Path, headers: str, port: int = PORT, **more: str
    ) -> None:
        self.name, self.command, self.bodies, self.headers = name, command, bodies, headers
        self.url = f"http://127.0.0.1:{port}/{path}"
        self.environment = {**os.environ, "PYTHONPATH": str(ROOT), **more}

    @contextmanager
    def running(self) -> Iterator[int]:
        """Start it in a session of its own, wait for its first answer; the session."""
        log = tempfile.TemporaryFile()  # noqa: SIM115
        process = subprocess.Popen(
            self.command,
            env=self.environment,
            stdout=log,
            stderr=log,
            start_new_session=True,
            cwd=ROOT / "benchmarks/peers",
        )
        try:
            self._wait(process)
            yield process.pid
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                process.wait(10)
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            time.sleep(1)

    def _wait(self, process: subprocess.Popen[bytes]) -> None:
        headers = dict(line.split(": ", 1) for line in self.headers.split("\n"))
        body = next(self.bodies.iterdir()).read_bytes()
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and process.poll() is None:
            with suppress(OSError):
                request = urllib.request.Request(self.url, body, headers)
                urllib.request.urlopen(request, timeout=20).read()
                return
            time.sleep(0.1)
        raise SystemExit(f"{self.name} does not answer")


def ours(
    bundle: Path, bodies: Path, path: str = "v1/classify", headers: str = IMAGE, *options: str, port: int = PORT
) -> Way:
    command = [sys.executable, "-m", "infer", "serve", f"m={bundle}", "--port", str(port), "--no-grpc",
               "--allow-untrained", *options]  # fmt: skip
    return Way("iresnet serve", command, path, bodies, headers, port)


def wrk(way: Way, session: int, connections: int, seconds: float, delay: float = 0.0) -> dict[str, float]:
    """Requests a second, latency in ms, CPU in ms a request of the server and of wrk."""
    environment = {**os.environ, "BODIES": str(way.bodies), "HEADERS": way.headers, "DELAY": str(delay)}
    script = str(ROOT / "benchmarks/post.lua")
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds:g}s", "--timeout", "30s", "-s", script,
               way.url]  # fmt: skip
    before, children = cpu_of(session), resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    after, ended = cpu_of(session), resource.getrusage(resource.RUSAGE_CHILDREN)
    found = json.loads(re.search(r"JSON (.*)", done.stdout)[1])  # type: ignore[index]
    if found["failed"]:
        print(f"{way.name}: {found['failed']} of {found['requests']} requests failed", flush=True)
    generator = ended.ru_utime + ended.ru_stime - children.ru_utime - children.ru_stime
    count = found["requests"]
    return {"rate": count / found["seconds"], "p50": found["p50"], "p99": found["p99"],
            "cpu": 1e3 * (after - before) / count, "generator": 1e3 * generator / count}  # fmt: skip


class Local:
    """What runs without a server, in a process of its own that takes orders."""

    def __init__(self, kind: str, bundle: Path, bodies: Path) -> None:
        command = [sys.executable, __file__, "_local", str(bundle), "--kind", kind, "--bodies", str(bodies)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.measure(0.5)

    def measure(self, seconds: float) -> dict[str, float]:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(f"{seconds}\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def close(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait()


def local(kind: str, bundle: Path, bodies: Path) -> None:
    """``classify`` of files, ``bench`` of ready batches, or ``one`` picture at a time."""
    from end_to_end import model
    from end_to_end import ours as classify

    from infer.runner import open_bundle

    files = sorted(bodies.iterdir())
    if kind == "one":
        runner = open_bundle(bundle, allow_untrained=True)
        contents = [path.read_bytes() for path in files]

    for line in sys.stdin:
        seconds, cpu, begun = float(line), time.process_time(), time.perf_counter()
        if kind == "one":
            times = []
            while time.perf_counter() < begun + seconds:
                start = time.perf_counter()
                runner.classify(contents[len(times) % len(contents)])
                times.append(time.perf_counter() - start)
            count, p50 = len(times), 1e3 * statistics.median(times)
        else:
            if "way" not in locals():
                way = (classify if kind == "classify" else model)(bundle, files, 8)
            count, p50 = way(seconds), 0.0
        took = time.perf_counter() - begun
        print(
            json.dumps({"rate": count / took, "p50": p50, "cpu": 1e3 * (time.process_time() - cpu) / count}), flush=True
        )


def medians(rounds: list[dict[str, float]]) -> dict[str, float]:
    return {key: statistics.median(one[key] for one in rounds) for key in rounds[0]}


def show(rows: dict[str, dict[str, float]], per: dict[str, int] | None = None) -> None:
    print(f"{'':44} {'images/s':>9} {'CPU ms':>8} {'p50 ms':>8} {'p99 ms':>8} {'wrk CPU':>8}")
    for name, row in rows.items():
        n = (per or {}).get(name, 1)
        rest = ["" if key not in row else f"{row[key] / by:8.3f}" for key, by in (("p99", 1), ("generator", n))]
        print(f"{name:44} {n * row['rate']:9.1f} {row['cpu'] / n:8.2f} {row['p50']:8.2f} {rest[0]:>8} {rest[1]:>8}")


def against_local(
    pairs: list[tuple[str, str, Way, int]], bundle: Path, images: Path, options: argparse.Namespace
) -> None:
    """Each pair: name of the local way, name of the server's, the server, images a request. They take turns."""
    locals_ = {name: Local(name, bundle, images) for name, *_ in pairs}
    found: dict[str, list[dict[str, float]]] = {}
    ratios: dict[str, list[float]] = {}
    with ExitStack() as stack:
        sessions = [stack.enter_context(way.running()) for *_, way, _ in pairs]
        for number in range(options.rounds + 1):
            for (base, name, way, rows), session in zip(pairs, sessions, strict=True):
                connections = options.connections if rows == 1 else options.connections // 4
                seconds = options.seconds if number else 2
                one = locals_[base].measure(seconds)
                other = wrk(way, session, connections, seconds)
                if number:  # the first round warms up
                    found.setdefault(base, []).append(one)
                    found.setdefault(name, []).append(other)
                    ratios.setdefault(name, []).append(rows * other["rate"] / one["rate"])
    result = {name: medians(rounds) for name, rounds in found.items()}
    show(result, {name: rows for _, name, _, rows in pairs})
    for base, name, _, rows in pairs:
        more = result[name]["cpu"] / rows - result[base]["cpu"]
        by_cpu = result[base]["cpu"] / ((result[name]["cpu"] + result[name]["generator"]) / rows)
        print(
            f"{name}: {100 * statistics.median(ratios[name]):.1f} % of {base} in a turn (median), "
            f"{100 * by_cpu:.1f} % by CPU time; {more:+.2f} ms of CPU an image, wrk's apart"
        )
    for one in locals_.values():
        one.close()


def peer_ways(bundle: Path, images: Path, folder: Path, options: argparse.Namespace) -> list[Way]:
    """All that were asked for, each with its own port."""
    texts = make_json(folder, images)
    apps = ROOT / "benchmarks/peers"
    ports = iter(range(PORT, PORT + 40, 4))
    quiet = "--no-access-log"
    ways = [ours(bundle, images, "v1/classify", IMAGE, quiet, port=next(ports))]

    def add(name: str, venv: Path, app: str, arguments: list[str], *where: Any, **more: str) -> None:
        ways.append(Way(name, [f"{venv}/bin/python", str(apps / app), *arguments], *where, **more))

    if options.litserve:
        ways.append(ours(bundle, texts, "v1/classify", JSON, quiet, port=next(ports)))
        ways[-1].name = "iresnet serve, JSON bodies"
        port = next(ports)
        add("LitServe, JSON bodies", options.litserve, "litserve_app.py", [str(bundle), str(port)], "predict", texts,
            JSON, port)  # fmt: skip
    if options.mosec:
        port = next(ports)
        arguments = ["--address", "127.0.0.1", "--port", str(port)]
        add("mosec", options.mosec, "mosec_app.py", arguments, "inference", images, IMAGE, port, BUNDLE=str(bundle))
    if options.ray:
        port = next(ports)
        add("Ray Serve, @serve.batch", options.ray, "ray_app.py", [str(bundle), str(port)], "", images, IMAGE, port)
    return ways


def peers(bundle: Path, images: Path, folder: Path, options: argparse.Namespace) -> None:
    """All are running, one is asked at a time."""
    ways = peer_ways(bundle, images, folder, options)
    full: dict[str, list[dict[str, float]]] = {way.name: [] for way in ways}
    half: dict[str, list[dict[str, float]]] = {way.name: [] for way in ways}
    with ExitStack() as stack:
        sessions = [stack.enter_context(way.running()) for way in ways]
        for number in range(options.rounds + 1):
            for way, session in zip(ways, sessions, strict=True):
                seconds = options.seconds if number else 2
                most = wrk(way, session, options.connections, seconds)
                time.sleep(0.5)
                # of 16 connections each waits between its requests, so that about half of the most comes
                rate = statistics.median([one["rate"] for one in full[way.name]] or [most["rate"]])
                delay = max(1.0, 16e3 / (rate / 2) - 4e3 / rate)
                other = wrk(way, session, 16, seconds, delay)
                if number:  # the first round warms up
                    full[way.name].append(most)
                    half[way.name].append(other)
    print(f"saturated, {options.connections} connections")
    show({name: medians(rounds) for name, rounds in full.items()})
    print("half of its own most, 16 connections")
    show({name: medians(rounds) for name, rounds in half.items()})


def alone(bundle: Path, images: Path, options: argparse.Namespace) -> None:
    one = Local("one", bundle, images)
    way = ours(bundle, images)
    found: dict[str, list[dict[str, float]]] = {"Runner.classify of one image": [], "iresnet serve, one connection": []}
    for _ in range(options.rounds):
        found["Runner.classify of one image"].append(one.measure(options.seconds))
        with way.running() as session:
            wrk(way, session, 1, 1)
            found["iresnet serve, one connection"].append(wrk(way, session, 1, options.seconds))
    one.close()
    result = {name: medians(rounds) for name, rounds in found.items()}
    show(result)
    first, second = result.values()
    print(f"{second['p50'] - first['p50']:+.2f} ms, median of a request over that of a call")


def start(bundle: Path, options: argparse.Namespace) -> None:
    """From the start of the process to ready, and the same for a process that opens the bundle."""
    code = f"import infer; infer.open_bundle({str(bundle)!r}, allow_untrained=True)"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    opening, ready = [], []
    for _ in range(options.rounds + 1):
        begun = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], env=environment, check=True)
        opening.append(time.perf_counter() - begun)
        begun = time.perf_counter()
        command = [
            sys.executable,
            "-m",
            "infer",
            "serve",
            f"m={bundle}",
            "--port",
            "0",
            "--grpc-port",
            "0",
            "--allow-untrained",
        ]
        process = subprocess.Popen(
            command, env=environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
        )
        assert process.stderr
        next(line for line in process.stderr if line.startswith("ready:"))
        ready.append(time.perf_counter() - begun)
        process.terminate()
        process.wait()
    a, b = statistics.median(opening[1:]), statistics.median(ready[1:])
    print(f"a process that opens the bundle: {a:.2f} s; iresnet serve ready: {b:.2f} s; {b - a:+.2f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["saturated", "small", "alone", "peers", "start", "_local"])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--connections", type=int, default=16)
    for name in ("litserve", "mosec", "ray"):
        parser.add_argument(f"--{name}", type=Path, help="venv that has it")
    parser.add_argument("--kind", help=argparse.SUPPRESS)
    parser.add_argument("--bodies", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    bundle = options.bundle.resolve()
    if options.what == "_local":
        return local(options.kind, bundle, options.bodies)
    if shutil.which("wrk") is None and options.what != "start":
        raise SystemExit("wrk is not installed: apt-get install wrk")
    from infer.backends.cpu import processor

    print(f"{processor()}, {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}; medians of {options.rounds} rounds")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        images, _ = make_bodies(folder, bundle)
        if options.what == "saturated":
            tensors, headers = make_tensors(folder, images, bundle, 8)
            eight = ours(bundle, tensors, "v2/models/m/infer", headers, port=PORT + 1)
            return against_local(
                [
                    ("classify", "server, a JPEG file a request", ours(bundle, images), 1),
                    ("bench", "server, a tensor of 8 a request", eight, 8),
                ],
                bundle, images, options,
            )  # fmt: skip
        if options.what == "small":
            return against_local(
                [("classify", "server, a PNG file a request", ours(bundle, images), 1)], bundle, images, options
            )
        if options.what == "alone":
            return alone(bundle, images, options)
        if options.what == "peers":
            return peers(bundle, images, folder, options)
        return start(bundle, options)


if __name__ == "__main__":
    main()
