"""From files to answers: this project's path, its parts, and what people run otherwise, all in one go.

    make bench-e2e
    python benchmarks/end_to_end.py [BUNDLE] [--rounds 5] [--seconds 4] [--batch 8] [--json FILE]

Each way is a process of its own, set up once; in every round they take turns for some seconds on the same JPEG files
(500 x 375, quality 93, cut from the photos of scikit-image), and the medians of the rounds are compared. *Allowed* is
what decoding alone and the model alone permit together: on a CPU both need the same cores, so the times of an image
add up; on a GPU the slower one decides. Without BUNDLE, iresnet50 at int8 is built in engines/ (random weights: speed
does not depend on them).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import cycle, islice
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

OURS, DECODE, MODEL = "this project, files to answers", "this project, decoding alone", "this project, model alone"
APP, EAGER = "OpenVINO's benchmark_app, model alone", "PyTorch eager, model alone"
LOOP, LOADER = "torchvision transforms + PyTorch eager", "timm-style loader + PyTorch eager"
ORT = "torchvision transforms + ONNX Runtime, fp32"
FILES = 256


def write_photos(folder: Path, count: int, seed: int = 0) -> None:
    """``count`` JPEG files of different content, 500 x 375, quality 93, 4:2:0."""
    import numpy as np
    from PIL import Image
    from skimage import data

    photos = [data.astronaut(), data.coffee(), data.chelsea(), data.rocket()]
    draw = np.random.default_rng(seed)
    for number in range(count):
        photo = photos[number % len(photos)]
        height = int(draw.integers(min(300, photo.shape[0] - 1), photo.shape[0]))
        width = min(photo.shape[1], height * 4 // 3)
        y, x = draw.integers(0, photo.shape[0] - height + 1), draw.integers(0, photo.shape[1] - width + 1)
        image = Image.fromarray(photo[y : y + height, x : x + width]).resize((500, 375), Image.Resampling.LANCZOS)
        image.save(folder / f"{number:04d}.jpg", quality=93)


def repeated(files: list[Path], seconds: float) -> Iterator[Path]:
    """The files over and over until the time is up."""
    end = time.perf_counter() + seconds
    for path in cycle(files):
        if time.perf_counter() > end:
            return
        yield path


def batches_of(items: Iterator[Any], size: int) -> Iterator[list[Any]]:
    """Lists of ``size``; the last may be shorter."""
    while chunk := list(islice(items, size)):
        yield chunk


Way = Callable[[float], int]  # runs for some seconds, returns how many images came out


def ours(bundle: Path, files: list[Path], _batch: int) -> Way:
    """The path of ``iresnet classify``."""
    from infer.predictions import rank
    from infer.runner import open_bundle
    from infer.sources import iter_records

    runner = open_bundle(bundle, allow_untrained=True)

    def run(seconds: float) -> int:
        records = (next(iter_records([path])) for path in repeated(files, seconds))
        done = 0
        for answers in runner.run(records):
            assert answers.outputs is not None and not answers.failures
            done += len(rank([record.name for record in answers.records], answers.outputs, runner.labels))
        return done

    return run


def decode(bundle: Path, files: list[Path], _batch: int) -> Way:
    """Its decoding and pre-processing."""
    from infer.bundle import read_manifest
    from infer.pipeline.host import load_batches
    from infer.sources import iter_records

    spec = read_manifest(bundle).preprocessing

    def run(seconds: float) -> int:
        records = (next(iter_records([path])) for path in repeated(files, seconds))
        return sum(len(batch.records) for batch in load_batches(records, spec, 8))

    return run


def model(bundle: Path, _files: list[Path], _batch: int) -> Way:
    """Its runner on batches that are ready."""
    from infer.bench.measure import synthetic_batches
    from infer.runner import open_bundle

    runner = open_bundle(bundle, allow_untrained=True)
    side = runner.preprocessing.crop
    ready = synthetic_batches(runner.backend.max_batch, (side, side, 3), 8, 0)

    def run(seconds: float) -> int:
        end = time.perf_counter() + seconds
        numbers = iter(lambda: time.perf_counter() < end, False)
        batches = ((None, ready[n % len(ready)]) for n, _ in enumerate(numbers))
        return sum(len(outputs.logits) for _, outputs in runner.stream_pairs(batches))

    return run


_operators: list[Any] = []


def torchvision_transforms() -> Any:
    """torchvision.transforms, also beside a build of torch that torchvision's own operators were not compiled for."""
    import importlib

    import torch

    try:
        return importlib.import_module("torchvision.transforms")
    except RuntimeError:  # an operator that no transform needs is missing
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        _operators.append(torch.library.Library("torchvision", "FRAGMENT"))
        for name in ("nms", "qnms"):
            _operators[0].define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        return importlib.import_module("torchvision.transforms")


def network(bundle: Path) -> tuple[Any, Any]:
    """The network in PyTorch, and torchvision's transforms for it."""
    import torch

    from engine_build import create_model
    from infer.bundle import read_manifest

    manifest = read_manifest(bundle)
    spec, info = manifest.preprocessing, manifest.model
    transforms = torchvision_transforms()
    torch.manual_seed(0)
    steps = [transforms.Resize(spec.resize), transforms.CenterCrop(spec.crop), transforms.ToTensor()]
    transform = transforms.Compose([*steps, transforms.Normalize(spec.mean, spec.std)])
    return create_model(info.name, num_classes=info.num_classes, width=info.width), transform


def eager(bundle: Path, _files: list[Path], batch: int) -> Way:
    """PyTorch on tensors that are ready."""
    import torch

    net, _ = network(bundle)
    images = torch.randn(batch, 3, 224, 224)

    def run(seconds: float) -> int:
        end, done = time.perf_counter() + seconds, 0
        with torch.inference_mode():
            while time.perf_counter() < end:
                done += len(net(images))
        return done

    return run


def loop(bundle: Path, files: list[Path], batch: int) -> Way:
    """The loop of most scripts: open, transform, stack, forward."""
    import torch
    from PIL import Image

    net, transform = network(bundle)

    def run(seconds: float) -> int:
        done = 0
        with torch.inference_mode():
            for chunk in batches_of(repeated(files, seconds), batch):
                images = torch.stack([transform(Image.open(path).convert("RGB")) for path in chunk])
                done += len(net(images).softmax(1).topk(5).indices.tolist())
        return done

    return run


class Files:
    """A data set of the given files, over and over; uint8 in, normalised behind the collation, as timm does."""

    def __init__(self, files: list[Path], count: int, resize: int, crop: int) -> None:
        transforms = torchvision_transforms()
        self.files, self.count = files, count
        self.transform = transforms.Compose([transforms.Resize(resize), transforms.CenterCrop(crop)])

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Any:
        import numpy as np
        from PIL import Image

        return np.asarray(self.transform(Image.open(self.files[index % len(self.files)]).convert("RGB")))


def loader(bundle: Path, files: list[Path], batch: int) -> Way:
    """Worker processes that decode, uint8 batches, normalised in the main process; timm's way on a CPU."""
    import torch

    from infer.bundle import read_manifest

    net, _ = network(bundle)
    spec = read_manifest(bundle).preprocessing
    mean, std = (torch.tensor(value).view(1, 3, 1, 1) * 255 for value in (spec.mean, spec.std))
    data = torch.utils.data.DataLoader(
        Files(files, 1 << 30, spec.resize, spec.crop), batch, num_workers=len(os.sched_getaffinity(0)),
        persistent_workers=True,
    )  # fmt: skip

    def run(seconds: float) -> int:
        end, done = time.perf_counter() + seconds, 0
        with torch.inference_mode():
            for images in data:
                net((images.permute(0, 3, 1, 2).float() - mean) / std).softmax(1).topk(5).indices.tolist()
                done += len(images)
                if time.perf_counter() > end:
                    return done
        raise AssertionError

    return run


def ort(bundle: Path, files: list[Path], batch: int) -> Way:
    """The same loop with ONNX Runtime on the float32 graph."""
    import numpy as np
    import onnxruntime
    import torch
    from PIL import Image

    net, transform = network(bundle)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "net.onnx")
        shapes = {"x": {0: torch.export.Dim("batch")}}
        torch.onnx.export(net, (torch.randn(2, 3, 224, 224),), path, dynamo=True, dynamic_shapes=shapes, verbose=False)
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    def run(seconds: float) -> int:
        done = 0
        for chunk in batches_of(repeated(files, seconds), batch):
            images = np.stack([transform(Image.open(path).convert("RGB")).numpy() for path in chunk])
            logits = session.run(None, {name: images})[0]
            done += len(np.argsort(-logits, 1)[:, :5].tolist())
        return done

    return run


def app(bundle: Path, _files: list[Path], _batch: int) -> Way:
    """OpenVINO's own benchmark in throughput mode, on the bundle's model at our batch size and precision."""
    from infer.backends.openvino import LARGEST_BATCH
    from infer.bundle import find_plan, read_manifest

    manifest = read_manifest(bundle)
    plan = find_plan(bundle, manifest, "openvino")
    shape = ",".join(str(size) for size in (LARGEST_BATCH, *manifest.inputs[0].shape[1:]))
    command = [
        str(Path(sys.executable).with_name("benchmark_app")), "-m", str(bundle / plan.files[0].file), "-d", "CPU",
        "-hint", "throughput", "-shape", f"images[{shape}]", "-infer_precision",
        plan.options["INFERENCE_PRECISION_HINT"],
    ]  # fmt: skip

    def run(seconds: float) -> int:
        done = subprocess.run([*command, "-t", str(max(1, round(seconds)))], capture_output=True, text=True, check=True)
        count = int(re.search(r"Count:\s+(\d+)", done.stdout)[1])  # type: ignore[index]
        milliseconds = float(re.search(r"Duration:\s+([\d.]+)", done.stdout)[1])  # type: ignore[index]
        return round(count * LARGEST_BATCH * seconds / (milliseconds / 1e3))

    return run


WAYS: dict[str, Callable[[Path, list[Path], int], Way]] = {
    OURS: ours, DECODE: decode, MODEL: model, APP: app, LOOP: loop, LOADER: loader, ORT: ort, EAGER: eager,
}  # fmt: skip


def work(name: str, bundle: Path, folder: Path, batch: int) -> None:
    """A worker process: one line in, seconds to run; one line out, images a second."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not come between
    run = WAYS[name](bundle, sorted(folder.glob("*.jpg")), batch)
    run(0.5)
    print("ready", file=out, flush=True)
    for line in sys.stdin:
        start = time.perf_counter()
        images = run(float(line))
        elapsed = float(line) if name == APP else time.perf_counter() - start
        print(images / elapsed, file=out, flush=True)


class Worker:
    """A way in a process of its own."""

    def __init__(self, name: str, bundle: Path, folder: Path, batch: int, log: Path) -> None:
        self.name, self.rates = name, []  # type: tuple[str, list[float]]
        command = [sys.executable, __file__, str(bundle), "--worker", name, "--folder", str(folder)]
        self._log = log.open("w")
        self._process = subprocess.Popen(
            [*command, "--batch", str(batch)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )
        self._answer()

    def _answer(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.name} failed:\n{Path(self._log.name).read_text()[-3000:]}")
        return line

    def run(self, seconds: float) -> None:
        """Measure once."""
        assert self._process.stdin is not None
        print(seconds, file=self._process.stdin, flush=True)
        self.rates.append(float(self._answer()))

    @property
    def rate(self) -> float:
        """Images a second, the median."""
        return statistics.median(self.rates)

    def close(self) -> None:
        """End the process."""
        self._process.terminate()
        self._process.wait()
        self._log.close()


def default_bundle() -> Path:
    """iresnet50 at int8, built when it is not there."""
    from engine_build.build_bundle import BuildOptions, build

    options = BuildOptions(model="iresnet50", precision="int8", targets=("openvino",))
    if not (options.folder / "manifest.json").is_file():
        print(f"building {options.folder}")
        build(options)
    return options.folder


def report(workers: dict[str, Worker], bundle: Path) -> dict[str, Any]:
    """Print the table; everything as JSON."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    rates = {name: worker.rate for name, worker in workers.items()}
    table = Table("", "images/s", "rounds", f"{OURS} / this", box=box.SIMPLE, title=f"{bundle}", title_justify="left")
    for name, worker in workers.items():
        spread = f"{min(worker.rates):.1f} to {max(worker.rates):.1f}"
        table.add_row(name, f"{rates[name]:.1f}", spread, f"{rates[OURS] / rates[name]:.2f}" if OURS in rates else "")
    Console(highlight=False, width=120).print(table)
    found: dict[str, Any] = {"images_per_second": rates, "rounds": {n: w.rates for n, w in workers.items()}}
    if {OURS, DECODE, MODEL} <= set(rates):
        decoding, network_alone = rates[DECODE], rates[MODEL]
        allowed = 1 / (1 / decoding + 1 / network_alone)  # one set of cores
        share = network_alone / (decoding + network_alone)
        found |= {"allowed": allowed, "share_of_allowed": rates[OURS] / allowed, "time_decoding": share}
        print(f"allowed by decoding and model together: {allowed:.1f} images/s; reached: {rates[OURS] / allowed:.1%}")
        print(f"bottleneck: {'decoding' if share > 0.5 else 'the model'} (decoding takes {share:.0%} of the time)")
    if {APP, MODEL} <= set(rates):
        print(f"runner / benchmark_app: {rates[MODEL] / rates[APP]:.3f}")
    if {EAGER, MODEL} <= set(rates):
        print(f"runner / PyTorch eager, model alone: {rates[MODEL] / rates[EAGER]:.2f}")
    return found


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", nargs="?", type=Path, help="a bundle with an openvino plan; None: iresnet50, int8")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each way in each round")
    parser.add_argument("--batch", type=int, default=8, help="of the peers")
    parser.add_argument("--only", help="ways whose name contains this")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--worker", choices=list(WAYS), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        work(arguments.worker, arguments.bundle, arguments.folder, arguments.batch)
        return
    from infer.terminal import progress

    bundle = arguments.bundle or default_bundle()
    names = [name for name in WAYS if not arguments.only or arguments.only in name]
    load = os.getloadavg()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch, "photos")
        folder.mkdir()
        write_photos(folder, FILES)
        workers: dict[str, Worker] = {}
        try:
            with progress("end to end", len(names) * (1 + arguments.rounds)) as advance:
                for name in names:
                    workers[name] = Worker(name, bundle, folder, arguments.batch, Path(scratch, f"{len(workers)}.log"))
                    advance(1)
                for _ in range(arguments.rounds):
                    for worker in workers.values():
                        worker.run(arguments.seconds)
                        advance(1)
        finally:
            for worker in workers.values():
                worker.close()
    found = report(workers, bundle)
    if arguments.json:
        cpu = next((line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
                    if line.startswith("model name")), platform.processor())  # fmt: skip
        environment = {"cpu": cpu, "cpus": len(os.sched_getaffinity(0)), "python": platform.python_version(),
                       "system": platform.platform(), "load_before": load}  # fmt: skip
        arguments.json.write_text(json.dumps({"bundle": str(bundle), "environment": environment, **found}, indent=2))


if __name__ == "__main__":
    main()
