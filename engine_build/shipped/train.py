"""Train the shipped model: iresnet50 at a quarter of its width on Fashion-MNIST.

``make train-shipped`` runs this; it needs Debian's package ``dataset-fashion-mnist`` (or any folder with
the four ``*-ubyte.gz`` files of https://github.com/zalandoresearch/fashion-mnist, MIT licence) and writes
everything in ``iresnet50_fashion/`` that is not text: ``weights.safetensors`` (float16), ``test.tar.gz`` (all
10,000 test images), ``calibration.tar.gz`` (512 images of the training split).

Recipe: SGD with Nesterov momentum and a one-cycle learning rate, label smoothing 0.1, random shift and
horizontal flip, images resized from 28 to 32 pixels for the first part of the run and to 64 for the rest
(progressive resizing: a small epoch costs a third).
"""

from __future__ import annotations

import argparse
import gzip
import io
import json
import tarfile
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from engine_build.network.zoo import create_model, find_model

MODEL = "iresnet50_fashion"
CLASSES = (
    "t-shirt",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)


def read_idx(path: Path) -> NDArray[np.uint8]:
    """One gzipped IDX file of unsigned bytes as an array of its own shape."""
    data = gzip.decompress(path.read_bytes())
    if data[:3] != b"\x00\x00\x08":
        raise SystemExit(f"{path}: not an IDX file of unsigned bytes")
    shape = np.frombuffer(data, ">u4", data[3], 4)
    return np.frombuffer(data, np.uint8, offset=4 + 4 * data[3]).reshape(shape)


def load_split(folder: Path, split: str) -> tuple[torch.Tensor, torch.Tensor]:
    """``(images uint8 [N, 28, 28], labels int64 [N])`` of split ``train`` or ``t10k``."""
    images = read_idx(folder / f"{split}-images-idx3-ubyte.gz")
    labels = read_idx(folder / f"{split}-labels-idx1-ubyte.gz")
    return torch.from_numpy(images.copy()), torch.from_numpy(labels.astype(np.int64))


def to_input(images: torch.Tensor, size: int) -> torch.Tensor:
    """uint8 ``[N, 28, 28]`` to normalised float32 ``[N, 3, size, size]``, as the bundle's pre-processing does it."""
    spec = find_model(MODEL).preprocessing
    x = F.interpolate(images[:, None].float(), size=(size, size), mode="bilinear", align_corners=False).round()
    x = (x / 255 - spec.mean[0]) / spec.std[0]
    return x.expand(-1, 3, -1, -1).contiguous(memory_format=torch.channels_last)


def augment(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Each image flipped with probability one half and shifted by up to two pixels, black at the rim."""
    flip = torch.rand(len(images), generator=generator) < 0.5
    images = torch.where(flip[:, None, None], images.flip(2), images)
    padded = F.pad(images, (2, 2, 2, 2))
    windows = padded.unfold(1, 28, 1).unfold(2, 28, 1)
    at = torch.randint(5, (2, len(images)), generator=generator)
    return windows[torch.arange(len(images)), at[0], at[1]]


@torch.no_grad()
def accuracy(model: nn.Module, images: torch.Tensor, labels: torch.Tensor, size: int) -> float:
    """Top-1 in percent, in float32."""
    model.eval()
    hits = 0
    for start in range(0, len(images), 250):
        logits = model(to_input(images[start : start + 250], size))
        hits += int((logits.argmax(1) == labels[start : start + 250]).sum())
    return 100 * hits / len(images)


def train(model: nn.Module, args: argparse.Namespace) -> nn.Module:
    """Train ``model`` in place and return it, float32, eval mode."""
    torch.manual_seed(args.seed)
    generator = torch.Generator().manual_seed(args.seed)
    images, labels = load_split(args.data, "train")
    test_images, test_labels = load_split(args.data, "t10k")
    model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    decayed = [p for p in model.parameters() if p.ndim > 1]
    plain = [p for p in model.parameters() if p.ndim == 1]
    optimizer = torch.optim.SGD(
        [{"params": decayed, "weight_decay": args.weight_decay}, {"params": plain, "weight_decay": 0.0}],
        lr=args.lr,
        momentum=0.9,
        nesterov=True,
    )
    steps = len(images) // args.batch
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, args.lr, total_steps=steps * args.epochs, pct_start=0.25, cycle_momentum=False, final_div_factor=1e3
    )
    started = time.monotonic()
    for epoch in range(args.epochs):
        size = 32 if epoch < args.small_epochs else 64
        model.train()
        order = torch.randperm(len(images), generator=generator)
        total = torch.zeros(())
        for step in range(steps):
            chosen = order[step * args.batch : (step + 1) * args.batch]
            x = to_input(augment(images[chosen], generator), size)
            loss = F.cross_entropy(model(x), labels[chosen], label_smoothing=0.1)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(model.parameters(), 5.0)
            optimizer.step()
            schedule.step()
            total += loss.detach()
            if args.max_steps and step + 1 >= args.max_steps:
                break
        shown = accuracy(model, test_images, test_labels, size)
        print(
            f"epoch {epoch + 1}/{args.epochs} size {size} loss {total / steps:.4f} "
            f"test {shown:.2f} % {time.monotonic() - started:.0f} s",
            flush=True,
        )
        if args.max_steps:
            break
    return model.eval()


def write_tar(path: Path, images: torch.Tensor, labels: torch.Tensor, indices: NDArray[np.int64]) -> None:
    """The chosen images as optimised grey PNG files in class folders, byte for byte the same at every run."""
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for index in indices:
            buffer = io.BytesIO()
            Image.fromarray(images[index].numpy()).save(buffer, "PNG", optimize=True)
            name = CLASSES[int(labels[index])].replace(" ", "_")
            info = tarfile.TarInfo(f"{name}/{index:05d}.png")
            info.size = buffer.tell()
            tar.addfile(info, io.BytesIO(buffer.getvalue()))
    path.write_bytes(gzip.compress(raw.getvalue(), 9, mtime=0))


def balanced_sample(labels: torch.Tensor, count: int, seed: int) -> NDArray[np.int64]:
    """``count`` indices in rising order, classes as equal as possible, chosen by ``seed``."""
    rng = np.random.default_rng(seed)
    per_class = [rng.permutation(np.flatnonzero(labels.numpy() == c)) for c in range(len(CLASSES))]
    rounds = np.stack([members[: count // len(CLASSES) + 1] for members in per_class], axis=1)
    return np.sort(rounds.ravel()[:count])


def main() -> None:
    """Command line of the training script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", type=Path, default=Path("/usr/share/datasets/fashion-mnist"), help="folder with the IDX files"
    )
    parser.add_argument("--out", type=Path, default=find_model(MODEL).shipped, help="folder to write to")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--small-epochs", type=int, default=8, help="epochs at 32 pixels before those at 64")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--lr", type=float, default=0.2)
    parser.add_argument("--weight-decay", type=float, default=5e-4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--max-steps", type=int, default=0, help="stop the first epoch early, to try the script")
    parser.add_argument("--images-only", action="store_true", help="write the two tar files and stop")
    args = parser.parse_args()

    out: Path = args.out
    out.mkdir(parents=True, exist_ok=True)
    images, labels = load_split(args.data, "t10k")
    write_tar(out / "test.tar.gz", images, labels, np.arange(len(images)))
    train_images, train_labels = load_split(args.data, "train")
    write_tar(out / "calibration.tar.gz", train_images, train_labels, balanced_sample(train_labels, 512, args.seed))
    if args.images_only:
        return
    model = train(create_model(MODEL, seed=args.seed), args)
    half = {k: v.contiguous().half() if v.dtype.is_floating_point else v for k, v in model.state_dict().items()}
    save_file(half, out / "weights.safetensors", metadata={"model": MODEL})
    model.load_state_dict({k: v.float() if v.dtype.is_floating_point else v for k, v in half.items()})
    top1 = accuracy(model, images, labels, 64)
    print(f"top-1 on 10,000 test images with the saved float16 weights: {top1:.2f} %")
    recipe = {name: getattr(args, name) for name in ("epochs", "small_epochs", "batch", "lr", "weight_decay", "seed")}
    (out / "training.json").write_text(
        json.dumps({"test_top1": top1, **recipe, "torch": torch.__version__}, indent=2) + "\n"
    )


if __name__ == "__main__":
    main()
