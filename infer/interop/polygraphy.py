"""A bundle as a runner of NVIDIA Polygraphy, to be compared with its other runners. Needs ``pip install polygraphy``.

from polygraphy.backend.onnxrt import OnnxrtRunner, SessionFromOnnx
from polygraphy.comparator import Comparator, DataLoader, SimpleCompareFunc

from infer.interop.polygraphy import BundleRunner

runners = [OnnxrtRunner(SessionFromOnnx("engines/iresnet101-fp32/model.onnx")), BundleRunner("engines/iresnet101-int8")]
results = Comparator.run(runners, data_loader=DataLoader(iterations=8, val_range=(0, 255)))
Comparator.compare_accuracy(results, compare_func=SimpleCompareFunc(atol=0.5))
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from polygraphy.backend.base import BaseRunner
from polygraphy.common import TensorMetadata

from infer.backends.base import GpuOptions, Outputs
from infer.runner import Runner, open_bundle


class BundleRunner(BaseRunner):  # type: ignore[misc] # Polygraphy has no types
    """Runs a bundle on any of its targets; a context manager, as all runners of Polygraphy.

    Input ``images`` uint8 ``[N, H, W, 3]``, any N; outputs ``logits``, ``scores``, ``classes``, see
    :class:`infer.backends.base.Outputs`. Random weights are allowed: two engines of them can be compared.

    Args:
        bundle: its folder.
        target: see :func:`infer.open_bundle`; None for the fastest.
        threads: CPU threads of a CPU target.
        gpu: of a TensorRT target.
        name: in Polygraphy's reports; None for bundle and target.

    Raises:
        BundleError, TargetUnavailableError: when activated; see :func:`infer.open_bundle`.
    """

    def __init__(
        self,
        bundle: str | os.PathLike[str],
        *,
        target: str | None = None,
        threads: int | None = None,
        gpu: GpuOptions | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__(name=name, prefix=f"{Path(bundle).name}-{target or 'fastest'}")
        self._open: Callable[[], Runner] = partial(
            open_bundle, bundle, target=target, allow_untrained=True, threads=threads, gpu=gpu
        )
        self._runner: Runner | None = None

    def activate_impl(self) -> None:
        """Open the bundle."""
        self._runner = self._open()

    def get_input_metadata_impl(self) -> Any:
        """Name, type and shape of the input."""
        assert self._runner is not None
        side = self._runner.preprocessing.crop
        return TensorMetadata().add("images", dtype=np.uint8, shape=(None, side, side, 3))

    def infer_impl(self, feed_dict: dict[str, NDArray[np.uint8]]) -> dict[str, NDArray[Any]]:
        """Run ``feed_dict["images"]``; arrays of the caller's own."""
        assert self._runner is not None
        start = time.perf_counter()
        outputs = self._runner.infer(feed_dict["images"])
        self.inference_time = time.perf_counter() - start
        return dict(zip(Outputs._fields, outputs, strict=True))

    def deactivate_impl(self) -> None:
        """Close the bundle."""
        assert self._runner is not None
        self._runner.close()
        self._runner = None
