"""torch's DataLoader decodes in worker processes, this process owns the runner.

    python examples/torch_dataloader.py engines/iresnet50_fashion-fp32 picture.png ...

An engine cannot be used in a fork of the process that opened it. So the workers get paths and give pixels, and
``forkserver`` starts them from a process that never had an engine, with no thread that a fork could lose.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from infer import open_bundle
from infer.bundle.preprocessing import Preprocessing
from infer.images.jpeg import load_input


class Pictures(Dataset[torch.Tensor]):
    """uint8 ``[H, W, 3]`` inputs of the network; what cannot be read raises, in the loop below."""

    def __init__(self, paths: Sequence[str], preprocessing: Preprocessing) -> None:
        self.paths, self.preprocessing = paths, preprocessing

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, number: int) -> torch.Tensor:
        side = self.preprocessing.crop
        pixels = np.empty((side, side, 3), np.uint8)
        load_input(self.paths[number], out=pixels, spec=self.preprocessing, name=self.paths[number])
        return torch.from_numpy(pixels)


def main(bundle: str, paths: Sequence[str]) -> None:
    """Print the class of each picture."""
    with open_bundle(bundle) as runner:
        pictures = Pictures(paths, runner.preprocessing)
        loader = DataLoader(
            pictures, batch_size=runner.backend.max_batch, num_workers=2, multiprocessing_context="forkserver"
        )
        classes = [row[0] for outputs in runner.stream(batch.numpy() for batch in loader) for row in outputs.classes]
        for path, index in zip(paths, classes, strict=True):
            print(f"{path}: {runner.labels[index]}")


if __name__ == "__main__":
    if len(sys.argv) < 3:
        raise SystemExit(__doc__)
    main(sys.argv[1], sys.argv[2:])
