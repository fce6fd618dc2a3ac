"""Memory of ``classify`` over very many images, and its rows when it is killed again and again.

    python benchmarks/classify_memory.py engines/iresnet50_fashion-fp16

Classifies a list that names a few hundred pictures over and over, in processes of their own:

* once through, while the resident memory is read after every few thousand rows;
* once killed (SIGKILL) at random moments and resumed; the output must be the same, byte for byte.

Prints both and ends with 1 where memory rises by more than 5 % after the first tenth, or where rows differ.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
PICTURES = ROOT / "engine_build/shipped/iresnet50_fashion/test.tar.gz"

# Small parts, so that a kill finds something to resume in Parquet too.
PROGRAM = "import infer.classify.sinks.parquet as p; p.PART_ROWS = 1024\nfrom infer.cli import main; main()"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--limit", type=int, default=100_000)
    parser.add_argument("--files", type=int, default=500, help="different pictures among them")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--format", default="jsonl", choices=("jsonl", "csv", "parquet"))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        listed = make_list(Path(folder), arguments.files, arguments.limit)
        output = Path(folder, f"whole.{arguments.format}")
        seconds, sizes = watched(arguments.bundle, listed, output)
        print(f"{arguments.limit} images in {seconds:.0f} s, {arguments.limit / seconds:.0f}/s; resident memory:")
        for rows, resident in sizes:
            print(f"  {rows:8} rows  {resident / 1e6:7.1f} MB")
        same = killed(arguments, listed, Path(folder, f"killed.{arguments.format}"), seconds, output)
    early = [resident for rows, resident in sizes if rows <= arguments.limit / 10]
    # Not the last one: the joining of Parquet parts takes some 25 MB, however many there are.
    flat = max(resident for _, resident in sizes[:-1]) <= 1.05 * max(early)
    print(f"memory: {'flat' if flat else 'RISES'}; rows after {arguments.kills} kills: {'same' if same else 'DIFFER'}")
    sys.exit(not (flat and same))


def make_list(folder: Path, files: int, images: int) -> Path:
    pictures = []
    with tarfile.open(PICTURES) as tar:
        for member in tar:
            if member.isfile() and member.name.endswith(".png"):
                path = folder / f"{len(pictures):05d}.png"
                path.write_bytes(tar.extractfile(member).read())
                pictures.append(path)
            if len(pictures) == files:
                break
    pictures[7].write_bytes(pictures[7].read_bytes()[:100])  # and one that cannot be read
    listed = folder / "list.txt"
    with listed.open("w") as file:
        file.writelines(f"{pictures[i % files]}\n" for i in range(images))
    return listed


def start(bundle: Path, listed: Path, output: Path) -> subprocess.Popen:
    command = [sys.executable, "-c", PROGRAM, "classify", str(bundle), "-f", str(listed), "-o", str(output), "--resume"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def rows_of(output: Path) -> int:
    """Rows that are written, of a text format; of Parquet, those of whole parts."""
    folder = output.with_name(f"{output.name}.partial")
    parts = sorted(folder.glob("part-*.parquet"))
    if parts:
        return int(parts[-1].stem.split("-")[1])
    text = folder / f"rows{output.suffix}"
    try:
        with text.open("rb") as file:
            return sum(block.count(b"\n") for block in iter(lambda: file.read(1 << 20), b""))
    except FileNotFoundError:
        return 0


def watched(bundle: Path, listed: Path, output: Path) -> tuple[float, list[tuple[int, int]]]:
    process = start(bundle, listed, output)
    began = time.monotonic()
    sizes: list[tuple[int, int]] = []
    total = sum(1 for _ in listed.open())
    while process.poll() is None:
        time.sleep(0.1)
        rows = rows_of(output)
        if rows and (not sizes or rows - sizes[-1][0] >= total / 20):
            try:
                pages = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1])
            except (FileNotFoundError, IndexError, ProcessLookupError):
                break
            sizes.append((rows, pages * os.sysconf("SC_PAGE_SIZE")))
    finish(process)
    return time.monotonic() - began, sizes


def killed(arguments: argparse.Namespace, listed: Path, output: Path, seconds: float, whole: Path) -> bool:
    rng = random.Random(arguments.seed)
    for number in range(arguments.kills):
        process = start(arguments.bundle, listed, output)
        # Any moment, from the start of Python on; together a good part of the run.
        delay = rng.uniform(0, 1.6 * seconds / arguments.kills + 1)
        try:
            process.wait(delay)
            print(f"  run {number}: ended before it was killed, after {delay:.1f} s")
            break
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            print(f"  kill {number + 1}: after {delay:.1f} s, {rows_of(output)} rows")
    finish(start(arguments.bundle, listed, output))
    return output.read_bytes() == whole.read_bytes()


def finish(process: subprocess.Popen) -> None:
    _, err = process.communicate()
    if process.returncode not in (0, 1):
        sys.exit(f"classify ended with {process.returncode}: {err.decode()[-500:]}")
    print(" ", err.decode().splitlines()[-1])


if __name__ == "__main__":
    main()
