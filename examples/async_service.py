"""A runner inside asyncio: the event loop stays free while batches are under way.

    python examples/async_service.py engines/iresnet50_fashion-fp32 cat.jpg dog.png

Decoding runs on threads, the network on the runner's own. ``submit`` blocks while the runner is full, so it is called
on a thread too; the future that it gives back is awaited with ``asyncio.wrap_future``.
"""

from __future__ import annotations

import asyncio
import sys

import numpy as np
from numpy.typing import NDArray

from infer import ImageError, Runner, open_bundle
from infer.images.jpeg import load_input


def decode(runner: Runner, picture: str) -> NDArray[np.uint8]:
    """A batch of one, pre-processed as the model was trained."""
    side = runner.preprocessing.crop
    batch = np.empty((1, side, side, 3), np.uint8)
    load_input(picture, runner.preprocessing, batch[0])
    return batch


async def classify(runner: Runner, picture: str) -> str:
    """One request."""
    try:
        batch = await asyncio.to_thread(decode, runner, picture)
    except ImageError as error:
        return f"{picture}: {error}"
    outputs = await asyncio.wrap_future(await asyncio.to_thread(runner.submit, batch))
    return f"{picture}: {runner.labels[outputs.classes[0, 0]]} {outputs.scores[0, 0]:.1%}"


async def main(bundle: str, pictures: list[str]) -> None:
    """Many requests at once, answers in order."""
    with open_bundle(bundle) as runner:
        for line in await asyncio.gather(*(classify(runner, picture) for picture in pictures)):
            print(line)


if __name__ == "__main__":
    if len(sys.argv) < 3:
        raise SystemExit(__doc__)
    asyncio.run(main(sys.argv[1], sys.argv[2:]))
