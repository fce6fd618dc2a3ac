"""A verification to render: hostile names, a flip, a picture; no bundle is run."""

from __future__ import annotations

import io
from pathlib import Path

import msgspec
import numpy as np

from infer.backends.base import Outputs
from infer.bundle import BatchProfile, FileEntry, Manifest, ModelInfo
from infer.bundle.accuracy_record import Accuracy, Diagnosis
from infer.bundle.preprocessing import IMAGENET
from infer.sources import Record
from infer.verify.evaluation import Evaluation, Labelled
from infer.verify.run import Verification

EVIL = '"><script>document.title="owned"</script><img src=x onerror=alert(1)>'
ENTRY = FileEntry(file="x", sha256="0" * 64, size=1)


def outputs(logits) -> Outputs:
    """Softmax and the best two of float logits ``[N, C]``."""
    logits = np.asarray(logits, np.float32)
    order = np.argsort(-logits, axis=1, kind="stable")[:, :2].astype(np.int32)
    scores = np.exp(logits - logits.max(1, keepdims=True))
    return Outputs(logits, np.take_along_axis(scores / scores.sum(1, keepdims=True), order, 1), order)


def verification(labels=None, *, name="photo {i}.jpg", images=200, reference=True, seed=0, **changes) -> Verification:
    """What :func:`infer.verify.run.verify_bundle` would give for a bundle that is a little off."""
    labels = labels or [f"class {i}" for i in range(12)]
    rng = np.random.default_rng(seed)
    targets = rng.integers(0, len(labels), images)
    theirs = rng.normal(size=(images, len(labels))) + 3 * np.eye(len(labels))[targets]
    ours = theirs + 0.4 * rng.normal(size=theirs.shape)
    pixels = rng.integers(0, 255, (images, 64, 64, 3)).astype(np.uint8)
    records = [Record(name.format(i=i), Path(), f"{i}") for i in range(images)]
    evaluation = Evaluation(labels)
    evaluation.add(Labelled(records, pixels, targets), outputs(ours), outputs(theirs) if reference else None)
    found = Accuracy(
        target="openvino",
        device="CPU",
        plan_sha256=None,
        data="val",
        reference="x-fp32 on onnxruntime",
        outcome="passed",
        verdict="good enough",
        threshold=0.99,
        measured="2026-11-24T00:00:00+00:00",
        counts=evaluation.counts(0),
        figures=evaluation.figures(),
        diagnosis=Diagnosis("ok", "as published"),
    )
    model = ModelInfo(
        name="net", num_classes=len(labels), weights="official", weights_sha256="0" * 64, trained=True, top1=77.31,
        published="a paper",
    )  # fmt: skip
    manifest = Manifest(
        format=2, created="now", tool="test", model=model, precision="int8", graph=ENTRY, inputs=[], outputs=[],
        batch=BatchProfile(), preprocessing=IMAGENET, labels=ENTRY, plans=[],
    )  # fmt: skip
    failures = changes.pop("failures", [])
    return Verification(msgspec.structs.replace(found, **changes), failures, evaluation.details(), labels, manifest)


def hostile() -> Verification:
    """Markup wherever a stranger's text can stand."""
    labels = [f"{EVIL}{i}" for i in range(5)]
    return verification(labels, name=f"{EVIL}/{EVIL}{{i}}", data=EVIL, verdict=EVIL, failures=[EVIL], reference=True)


def jpeg_size(data: bytes) -> tuple[int, int]:
    """Width and height of an encoded picture."""
    from PIL import Image

    return Image.open(io.BytesIO(data)).size
