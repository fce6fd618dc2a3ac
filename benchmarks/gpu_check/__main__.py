"""Everything that needs a GPU, in one go, with one report.

    make gpu-check [BUNDLES=engines] [ARGS="--only bench slots --duration 5"]
    python -m benchmarks.gpu_check [--bundles engines] [--output build/gpu-check]

Tests, checks of device memory, compute-sanitizer, the known answers and speed of every bundle on each TensorRT there
is, slots, graphs, spinning, decoding on the GPU, and trtexec beside it. Writes ``report.json`` and ``report.html``
after every part, so that nothing is lost; each part is a process of its own with a limit. What cannot be done here is
said with the reason. It ends with what is worth changing. Exit code 1 where a part failed.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.gpu_check.advice import advise
from benchmarks.gpu_check.page import render
from benchmarks.gpu_check.parts import PARTS, CannotBeDone, Part, Seen, Settings
from benchmarks.gpu_check.processes import Failed
from infer.files import write_bytes


def main() -> None:
    parser = argparse.ArgumentParser(prog="gpu_check", description=__doc__.splitlines()[0])
    parser.add_argument("--bundles", type=Path, default=Path("engines"), help="folder of bundles; default: engines")
    parser.add_argument("--output", type=Path, default=Path("build/gpu-check"), help="folder of the report")
    parser.add_argument("--duration", type=float, default=3.0, help="measured seconds of each point")
    parser.add_argument("--limit", type=float, default=900, help="seconds that one command may take")
    parser.add_argument("--only", nargs="*", choices=[name for name, _, _ in PARTS], help="these parts alone")
    arguments = parser.parse_args()
    settings = Settings(arguments.bundles.resolve(), arguments.duration, arguments.limit)
    seen, started = Seen(), datetime.now(UTC).isoformat(timespec="seconds")
    chosen = [part for part in PARTS if arguments.only is None or part[0] in (*arguments.only, "machine")]

    def write(finished: bool) -> list[str]:
        worth = advise(seen)
        parts = [part.to_json() for part in seen.parts.values()]
        report = {"format": 1, "started": started, "finished": finished, "parts": parts, "advice": worth}
        write_bytes(arguments.output / "report.json", json.dumps(report, indent=1).encode())
        write_bytes(arguments.output / "report.html", render(report).encode())
        return worth

    for number, (name, title, work) in enumerate(chosen, 1):
        print(f"{number}/{len(chosen)} {title} ...", end=" ", flush=True)
        part = seen.parts[name] = Part(name, title)
        start = time.perf_counter()
        try:
            work(part, settings, seen)
        except CannotBeDone as reason:
            part.outcome, part.why = "not done", str(reason)
        except Failed as error:
            part.outcome, part.why = "failed", str(error)
        except Exception as error:  # of this script: one part must not cost the others
            part.outcome, part.why = "failed", f"{type(error).__name__}: {error}"
        part.seconds = time.perf_counter() - start
        print(f"{part.outcome}{': ' + part.why if part.why else ''} ({part.seconds:.1f} s)", flush=True)
        write(finished=False)
    worth = write(finished=True)
    print("\nWorth changing:", *(worth or ["nothing could be measured"]), sep="\n- ")
    print(f"\n{arguments.output / 'report.html'}\n{arguments.output / 'report.json'}")
    sys.exit(any(part.outcome == "failed" for part in seen.parts.values()))


if __name__ == "__main__":
    main()
