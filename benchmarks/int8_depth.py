"""Does int8 hold with depth? A deep iResNet, narrow, trained here for some minutes, then quantised.

    python benchmarks/int8_depth.py [--model iresnet152] [--epochs 8] [--json FILE]

Trains it at a quarter of its width on Fashion-MNIST at 32x32 (needs Debian's dataset-fashion-mnist), quantises
it as the build does, and compares it on 10,000 test images with float32 and with plain min-max int8. ONNX Runtime with
optimisations off computes every Q/DQ pair as it is written. Networks with random weights are of no use here: they
amplify any noise from block to block, so their SQNR falls with depth whatever the quantisation.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import msgspec
import numpy as np
import onnx
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from rich import box
from rich.console import Console
from rich.table import Table

from calibration.onnx_index import Index
from calibration.streaming import collect
from calibration.tensors import activation_steps, activation_tensors, quantisable_nodes, residual_inputs
from engine_build.graph.export import export_torch
from engine_build.graph.passes import prepare
from engine_build.network.zoo import FASHION, create_model
from engine_build.quantise.qdq import Placement, insert_qdq, layer_scales
from engine_build.quantise.rounding import IMAGES, round_layers
from engine_build.shipped.train import balanced_sample, load_split, train

SIZE = 32


def pixels(images: torch.Tensor) -> NDArray[np.uint8]:
    """Grey uint8 ``[N, 28, 28]`` to RGB uint8 ``[N, 32, 32, 3]``."""
    large = torch.nn.functional.interpolate(images[:, None].float(), (SIZE, SIZE), mode="bilinear").round()
    return large.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).contiguous().numpy().astype(np.uint8)


def logits(graph: onnx.ModelProto, images: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Logits with every node computed as it is written."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    session = ort.InferenceSession(graph.SerializeToString(), options, providers=["CPUExecutionProvider"])
    parts = [session.run(["logits"], {"images": images[i : i + 100]})[0] for i in range(0, len(images), 100)]
    return np.concatenate(parts).astype(np.float64)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("/usr/share/datasets/fashion-mnist"))
    parser.add_argument("--model", default="iresnet101")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--seeds", type=int, default=3, help="choices of images that the weights are rounded by")
    parser.add_argument("--threads", type=int, help="of the training")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)

    recipe = argparse.Namespace(
        data=args.data, epochs=args.epochs, small_epochs=args.epochs, batch=128, lr=0.2, weight_decay=5e-4, seed=0,
        max_steps=0,
    )  # fmt: skip
    model = train(create_model(args.model, num_classes=10, width=0.25), recipe)
    spec = msgspec.structs.replace(FASHION, resize=SIZE, crop=SIZE)
    graph, reference = export_torch(model, spec)
    prepare(graph, spec, 10, reference)
    index = Index(graph)
    train_images, train_labels = load_split(args.data, "train")
    test_images, labels = load_split(args.data, "t10k")
    calibration = pixels(train_images[balanced_sample(train_labels, 512, 0)])
    test, targets = pixels(test_images), labels.numpy()
    statistics = collect(graph, [calibration], activation_tensors(graph))
    expected = logits(graph, test)
    rows = {"float32": [100 * float((expected.argmax(1) == targets).mean()), 100.0, float("inf")]}

    def measure(title: str, quantised: onnx.ModelProto) -> None:
        found = logits(quantised, test)
        agreement = float((found.argmax(1) == expected.argmax(1)).mean())
        sqnr = 10 * np.log10((expected**2).sum() / ((found - expected) ** 2).sum())
        rows[title] = [100 * float((found.argmax(1) == targets).mean()), 100 * agreement, float(sqnr)]

    amax, plain = statistics.amax("mse", activation_steps(graph)), statistics.amax("minmax")
    scales = layer_scales(index, amax, Placement())
    weights = {}
    for seed in range(args.seeds):
        chosen = calibration[np.sort(np.random.default_rng(seed).permutation(len(calibration))[:IMAGES])]
        weights = round_layers(graph, chosen, scales).weights
        measure(f"ours, images {seed}", insert_qdq(graph, amax, rounded=weights)[0])
    measure("ours, weights to nearest", insert_qdq(graph, amax)[0])
    measure("the same, pairs may saturate", insert_qdq(graph, amax, pair_safe=False)[0])
    measure("ours, shortcuts in int8", insert_qdq(graph, amax, Placement("identity"), rounded=weights)[0])
    symmetric = Placement("identity", weights="max", shift=False)
    measure("plain min-max", insert_qdq(graph, plain, symmetric, pair_safe=False)[0])
    layers, additions = len(quantisable_nodes(index)), len(residual_inputs(index))
    title = f"{args.model}, width 0.25, {SIZE}x{SIZE}: {layers} int8 layers, {additions} residual additions"
    table = Table(title=title, box=box.SIMPLE)
    for head in ("graph", "top-1 %", "agree %", "SQNR dB"):
        table.add_column(head, justify="left" if head == "graph" else "right")
    for name, (top1, agreement, sqnr) in rows.items():
        table.add_row(name, f"{top1:.2f}", f"{agreement:.2f}", f"{sqnr:.1f}")
    Console(width=100).print(table)
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
