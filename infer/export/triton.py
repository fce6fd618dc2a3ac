"""A model of a Triton Inference Server repository.

    REPOSITORY/NAME/config.pbtxt
    REPOSITORY/NAME/labels.txt
    REPOSITORY/NAME/warmup/known_answer_0  and so on: the pictures of the bundle's known answers, raw pixels
    REPOSITORY/NAME/1/model.plan           tensorrt; model.xml and .bin for openvino, model.onnx for onnxruntime
    REPOSITORY/NAME/2/...                  other versions

Triton's classification extension labels an element by its place in the tensor, so the labels belong to ``logits``
(https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_classification.md); ``classes``
holds the indices themselves.
"""

from __future__ import annotations

import os
import re
import shutil
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from infer.bundle import FileEntry, Manifest, Plan, check_files, find_plan, read_labels, read_manifest
from infer.checks.known_answers import read_answers
from infer.errors import BundleError, InputError, UntrainedError
from infer.export.triton_config import (
    PREPROCESSING,
    WARMUP_FOLDER,
    Serving,
    config,
    largest_batch,
    parameter,
    preprocessing,
)
from infer.export.triton_decoder import decoder_name, ensemble_name, write_decoder, write_ensemble
from infer.export.triton_versions import CONFIG, LABELS, keep_versions, versions
from infer.files import replacing_folder

TARGETS = ("tensorrt", "openvino", "onnxruntime")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]*")
# Largest batches that may wait, where nothing is said; the last of them waits as long as eight take.
_QUEUED_BATCHES = 8


@dataclass(frozen=True)
class TritonOptions:
    """How the model is served.

    Attributes:
        name: of the model; None for ``<model>-<precision>``.
        target: ``tensorrt``, ``openvino`` or ``onnxruntime``; None for the first of them that the bundle has.
        instances: copies that run at once on each GPU, or on the CPU; two overlap copies with the network.
        queue_delay: microseconds that the dynamic batcher waits for a larger batch.
        link: hard links in place of copies.
        allow_untrained: export although the weights are random.
        version: number of the version; None for the next, 1 in a new model. Other versions are kept.
        queue_size: requests that may wait, more are refused; 0 for no limit, None for eight of the largest batches.
        queue_timeout: milliseconds after which a waiting request is refused; 0 for never.
        with_decoder: add a decode step, and an ensemble that takes image files.
        decoders: processes that decode.
    """

    name: str | None = None
    target: str | None = None
    instances: int = 2
    queue_delay: int = 100
    link: bool = False
    allow_untrained: bool = False
    version: int | None = None
    queue_size: int | None = None
    queue_timeout: int = 10_000
    with_decoder: bool = False
    decoders: int = 4

    def __post_init__(self) -> None:
        if self.name is not None and not _NAME.fullmatch(self.name):
            raise InputError(f"name: expected letters, digits, '.', '-' and '_', found {self.name!r}")
        if self.target is not None and self.target not in TARGETS:
            found = "TensorRT-RTX plans cannot be loaded by Triton; " if self.target == "tensorrt_rtx" else ""
            raise InputError(f"target: {found}expected one of {', '.join(TARGETS)}, found {self.target!r}")
        if self.instances < 1 or self.queue_delay < 0:
            raise InputError(
                f"expected at least 1 instance and no negative delay, found {self.instances} and {self.queue_delay}"
            )
        if self.version is not None and self.version < 1:
            raise InputError(f"version: expected a number from 1, found {self.version}")
        if (self.queue_size or 0) < 0 or self.queue_timeout < 0:
            raise InputError(
                f"expected a queue size and a time-out from 0, found {self.queue_size} and {self.queue_timeout}"
            )
        if self.decoders < 1:
            raise InputError(f"decoders: expected at least 1, found {self.decoders}")


def export_triton(bundle: Path, repository: Path, options: TritonOptions | None = None) -> Path:
    """Add the bundle to a model repository: as a new model, or as a version of the model of that name.

    Each model appears whole or not at all, the ensemble after what it is made of.

    Returns:
        Folder of the model.

    Raises:
        BundleError: the bundle is damaged, lacks the target, or cannot be served by it.
        UntrainedError: random weights, without ``allow_untrained``.
        InputError: an option cannot be used, the folder in its place is no Triton model, or the versions that are there
            do not fit the bundle.
    """
    options = options or TritonOptions()
    manifest = read_manifest(bundle)
    if not manifest.model.trained and not options.allow_untrained:
        raise UntrainedError(f"{bundle} was built from random weights; build it with trained ones or --allow-untrained")
    labels = read_labels(bundle, manifest)
    target, plan, files = _choose(bundle, manifest, options.target)
    check_files(bundle, files)
    name = options.name or default_name(manifest)
    folder, decoder = repository / name, repository / decoder_name(name)
    _check_folders(repository, name, manifest, options)
    version = options.version or max(versions(folder), default=0) + 1
    waiting = _QUEUED_BATCHES * largest_batch(manifest, target) if options.queue_size is None else options.queue_size
    serving = Serving(options.instances, options.queue_delay, waiting, options.queue_timeout)
    with ExitStack() as stack:  # what is entered last is put in place first
        if options.with_decoder:
            write_ensemble(stack.enter_context(replacing_folder(repository / ensemble_name(name))), manifest, name)
            write_decoder(stack.enter_context(replacing_folder(decoder)), manifest, name, options.decoders)
        work = stack.enter_context(replacing_folder(folder))
        (work / str(version)).mkdir()
        for entry in files:
            put(bundle / entry.file, work / str(version) / f"model{Path(entry.file).suffix}", link=options.link)
        (work / LABELS).write_text("\n".join(labels) + "\n", encoding="utf-8")
        answers = _write_warmup(bundle, manifest, work)
        text = config(manifest, name, target, plan, serving, answers=answers)
        (work / CONFIG).write_text(text, encoding="utf-8")
        keep_versions(folder, work, version)
    return folder


def default_name(manifest: Manifest) -> str:
    """``<model>-<precision>``."""
    return f"{manifest.model.name}-{manifest.precision}"


def _check_folders(repository: Path, name: str, manifest: Manifest, options: TritonOptions) -> None:
    """Refuse to replace what is no model, and to leave a decoder behind that makes other pixels."""
    added = [decoder_name(name), ensemble_name(name)] if options.with_decoder else []
    for folder in (repository / one for one in (name, *added)):
        if folder.exists() and not (folder / CONFIG).is_file():
            raise InputError(f"{folder} is no Triton model (no {CONFIG}) and would be replaced; pass another name")
    decoder = repository / decoder_name(name) / CONFIG
    wanted = parameter(PREPROCESSING, preprocessing(manifest))
    if (
        not options.with_decoder
        and decoder.is_file()
        and wanted not in decoder.read_text(encoding="utf-8").splitlines()
    ):
        raise InputError(f"{decoder.parent} makes other pixels than this bundle takes; add --with-decoder to renew it")


def _write_warmup(bundle: Path, manifest: Manifest, work: Path) -> int:
    """Write the pictures of the known answers, raw; returns how many there are."""
    if manifest.known_answers is None:
        return 0
    images = read_answers(bundle, manifest).images
    (work / WARMUP_FOLDER).mkdir()
    for number, image in enumerate(images):
        (work / WARMUP_FOLDER / f"known_answer_{number}").write_bytes(image.tobytes())
    return len(images)


def put(source: Path, destination: Path, *, link: bool) -> None:
    """Copy a file, or make a hard link.

    Raises:
        InputError: the link cannot be made, as between file systems.
    """
    if not link:
        shutil.copyfile(source, destination)
        return
    try:
        os.link(source, destination)
    except OSError as error:
        raise InputError(f"cannot link {destination} to {source} ({error.strerror}); export without --link") from error


def _choose(bundle: Path, manifest: Manifest, target: str | None) -> tuple[str, Plan | None, list[FileEntry]]:
    """Target, its plan (None for the graph itself) and the files to serve."""
    if target is None:
        built = [plan.target for plan in manifest.plans]
        target = next((name for name in TARGETS if name in built), TARGETS[-1])
    if target == "onnxruntime":
        if manifest.precision == "bf16":
            raise BundleError(
                f"{bundle}: ONNX Runtime has no bf16 convolution; export another target, or build fp32 or fp16"
            )
        return target, None, [manifest.graph]
    plan = find_plan(bundle, manifest, target)
    if target == "tensorrt" and manifest.batch.min > 1:
        raise BundleError(
            f"{bundle}: Triton sends batches from 1, the plan takes them from {manifest.batch.min}; "
            "build it with BATCH=1,OPT,MAX"
        )
    return target, plan, plan.files
