"""torch tensors on a GPU in and out: nothing is copied to the host, nothing is synchronised.

    python examples/torch_gpu.py engines/iresnet101-fp16

The pixels are made up here; yours come from a decoder on the GPU or from another network. The runner works on torch's
current stream: what is enqueued there before is done before it reads, and what follows sees its results.
"""

from __future__ import annotations

import sys
from typing import Any

from infer import Runner, open_bundle


def classify(runner: Runner, images: Any, torch: Any) -> Any:
    """Classes int32 ``[N, k]`` of uint8 ``[N, H, W, 3]``, both torch tensors on the runner's GPU."""
    stream = torch.cuda.current_stream().cuda_stream
    results = runner.infer_device(images, stream=stream)
    return torch.from_dlpack(results.classes)


def main(bundle: str) -> None:
    """Classify noise and show the classes."""
    import torch

    if not torch.cuda.is_available():
        raise SystemExit("this example needs an NVIDIA GPU, and a torch that sees it (torch.cuda.is_available())")
    with open_bundle(bundle, allow_untrained=True) as runner:
        side = runner.preprocessing.crop
        images = torch.randint(0, 256, (8, side, side, 3), dtype=torch.uint8, device="cuda")
        print(classify(runner, images, torch)[:, 0].tolist())


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    main(sys.argv[1])
