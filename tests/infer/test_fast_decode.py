"""The effect of fast decoding, on the trained model."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from infer import open_bundle
from infer.datasets import open_dataset
from infer.errors import InputError
from infer.fast_decode import measure_fast_decode
from infer.images import decode_image


def enlarged(record, side):
    def read():
        buffer = io.BytesIO()
        decode_image(record.load()).resize((side, side), Image.Resampling.NEAREST).save(buffer, "JPEG", quality=60)
        return buffer.getvalue()

    return replace(record, read=read)


def test_top1_exact_and_fast(shipped, labelled):
    with open_bundle(shipped("fp32")) as runner:
        dataset = open_dataset([labelled], runner.labels)
        large = [enlarged(record, 256) if n % 2 else record for n, record in enumerate(dataset.records)]
        large[3] = replace(large[3], read=lambda: b"no image")
        dataset = replace(dataset, records=tuple(large))
        effect = measure_fast_decode(runner, dataset)
        assert (effect.images, effect.changed) == (79, 39)
        assert 0 < effect.mean_levels < 5

        def top1(fast):
            batches = [(b, t) for b, t in dataset.batches(runner.preprocessing, 8, fast=fast)]
            classes = np.concatenate([runner.infer(b.images).classes[:, 0] for b, _ in batches])
            return classes, np.concatenate([t for _, t in batches])

        (exact, targets), (fast, _) = top1(False), top1(True)
        assert effect.top1_exact == pytest.approx(100 * (exact == targets).mean())
        assert effect.top1_fast == pytest.approx(100 * (fast == targets).mean())
        assert effect.agreement == pytest.approx(100 * (exact == fast).mean())
        assert effect.top1_exact > 80
        assert "39 of 79 images differ" in str(effect)
        small = measure_fast_decode(runner, replace(dataset, records=tuple(large[::2]), targets=dataset.targets[::2]))
        assert (small.changed, small.agreement) == (0, 100) and "none is large enough" in str(small)
        nothing = replace(dataset, records=(large[3],), targets=dataset.targets[3:4])
        with pytest.raises(InputError, match="not one of 1 images"):
            measure_fast_decode(runner, nothing)
