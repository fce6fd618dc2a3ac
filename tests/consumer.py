"""Code of a user, checked by ``mypy --strict`` in test_public_api.py. It is not run."""

from __future__ import annotations

from concurrent.futures import Future
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from calibration import CalibrationCache, Request, read_cache
from engine_build import BuildOptions, build
from infer import GpuOptions, InputError, IResNetError, Outputs, Prediction, Runner, open_bundle


def classify(bundle: Path, pictures: list[Path]) -> list[Prediction]:
    with open_bundle(bundle, gpu=GpuOptions(slots=2)) as runner:
        return runner.classify(pictures, top=1)


def best(prediction: Prediction) -> tuple[str, float] | None:
    return (prediction.top[0].label, prediction.top[0].score) if prediction.error is None else None


def start(runner: Runner, batch: NDArray[np.uint8]) -> Future[Outputs]:
    return runner.submit(batch)


def classes(outputs: Outputs) -> NDArray[np.int32]:
    return outputs.classes


def make(name: str, weights: Path) -> str | None:
    try:
        folder, manifest = build(BuildOptions(name, weights=weights, precision="int8"))
    except InputError as error:
        return str(error)
    except IResNetError:
        return None
    side: int = manifest.preprocessing.crop
    return f"{folder} {side}"


def scales(path: Path) -> dict[str, float]:
    cache: CalibrationCache = read_cache(path)
    _ = Request((str(path),), limit=8, method="mse")
    return {name: float(scale) for name, scale in cache.scales.items()}
