"""Fuzz ``classify`` for as long as you like: files cut and changed at random, thousands in one process.

    python tests/fuzz_classify.py engines/iresnet50_fashion-fp16 --files 50000 --seed 1

What does not keep to its contract is printed, and kept as a folder to look into; the exit code is 1 then. The test
suite runs a few hundred chosen ones instead (tests/infer/images/test_hostile_images.py).
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import Counter
from itertools import islice
from pathlib import Path

from hostile_images import endless_cases
from hostile_run import classify_cases


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--files", type=int, default=20_000)
    parser.add_argument("--each", type=int, default=2000, help="files of one process")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    cases = endless_cases(arguments.seed)
    counts: Counter[str] = Counter()
    wrong, peak, start = 0, 0.0, time.monotonic()
    for first in range(0, arguments.files, arguments.each):
        chunk = list(islice(cases, min(arguments.each, arguments.files - first)))
        outcome = classify_cases(arguments.bundle, chunk, timeout=600)
        counts.update("error" if "error" in row else "class" for row in outcome.rows.values())
        peak = max(peak, outcome.peak_mb)
        if outcome.wrong:
            wrong += len(outcome.wrong)
            kept = Path(tempfile.mkdtemp(prefix="fuzz-"))
            for case in chunk:
                (kept / case.name).write_bytes(case.data)
            print(
                f"files {first} to {first + len(chunk)}, kept in {kept}:", *outcome.wrong[:10], sep="\n  ", flush=True
            )
    print(
        f"{arguments.files} files, seed {arguments.seed}: {counts['class']} classified, {counts['error']} named as "
        f"unreadable, {wrong} wrong; peak {peak:.0f} MB, {time.monotonic() - start:.0f} s"
    )
    sys.exit(wrong > 0)


if __name__ == "__main__":
    main()
