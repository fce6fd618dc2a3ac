"""When the known answers of a bundle are checked, and what has passed already on this machine.

A plan that has passed is not run again: that is written down beside it, under a key that holds everything which decides
what it computes. Failures are not written down: the next opening checks again.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from infer.backends.base import Outputs
from infer.backends.cpu import processor
from infer.bundle import GRAPH, FileEntry, Manifest, check_files, now
from infer.checks.blame import Comparison, blame
from infer.checks.known_answers import TELLING_DB, Answers, measure, read_answers, read_file
from infer.checks.passed import Checked, Passes, describe
from infer.errors import InputError, IResNetError, KnownAnswersError

VARIABLE = "IRESNET_SELF_TEST"
MODES = ("always", "new", "never")
_LOG = logging.getLogger(__name__)

Infer = Callable[[NDArray[np.uint8]], Outputs]


def self_test_mode() -> str:
    """``always``, ``new`` (what has not passed yet on this machine) or ``never``, as ``IRESNET_SELF_TEST`` says.

    Raises:
        InputError: it says something else.
    """
    return _known_mode(VARIABLE, os.environ.get(VARIABLE) or "new")


def _known_mode(name: str, mode: str) -> str:
    if mode not in MODES:
        raise InputError(f"{name}: expected {', '.join(MODES)}, found {mode!r}")
    return mode


class SelfTest:
    """The checks of one opened bundle.

    Args:
        folder: of the bundle.
        manifest: its manifest.
        mode: of :data:`MODES`; None asks the environment.

    Raises:
        InputError: unknown mode.
        BundleError: the file of the answers is missing or changed.

    Attributes:
        checked: what was found, in order.
        notes: what a user should be told: targets that failed.
    """

    def __init__(self, folder: Path, manifest: Manifest, mode: str | None = None) -> None:
        self.folder, self.manifest = folder, manifest
        self.mode = self_test_mode() if mode is None else _known_mode("self_test", mode)
        self.checked: list[Checked] = []
        self.notes: list[str] = []
        self._data = read_file(folder, manifest)
        self._answers: Answers | None = None

    @property
    def answers(self) -> Answers:
        """Unpacked when they are needed.

        Raises:
            BundleError: see :func:`infer.checks.known_answers.read_answers`.
        """
        if self._answers is None:
            self._answers = read_answers(self.folder, self.manifest, self._data)
        return self._answers

    def of(self, target: str, files: Sequence[FileEntry]) -> TargetTest:
        """The check of one target, whose plan is ``files``."""
        return TargetTest(self, target, files)


@dataclass(frozen=True)
class TargetTest:
    """Checks what one target computes; called by its backend for each batch size that it compiles.

    Attributes:
        owner: of the whole bundle.
        target: name.
        files: of the plan.
    """

    owner: SelfTest
    target: str
    files: Sequence[FileEntry]

    def __call__(self, batch: int, infer: Infer, machine: Mapping[str, str]) -> None:
        """Check ``infer`` at ``batch`` images, unless that has passed before.

        Args:
            batch: images at once.
            infer: runs uint8 ``[batch, H, W, 3]``.
            machine: everything that decides which kernels run: library, driver, device, instruction set, options.

        Raises:
            KnownAnswersError: the logits are not those of the graph.
            BundleError: the answers cannot be read.
        """
        owner, record = self.owner, self.owner.manifest.known_answers
        if owner.mode == "never" or record is None:
            return
        key = {
            **machine,
            "target": self.target,
            "batch": str(batch),
            "answers": record.file.sha256,
            "floor": f"{record.floor_db:.3f}",
            "plan": _plan_key(self.files),
        }
        passes = Passes(owner.folder)
        if owner.mode == "new" and (known := passes.find(key)) is not None:
            owner.checked.append(msgspec.structs.replace(known, remembered=True))
            return
        started = time.perf_counter()
        compared = measure(infer, owner.answers, batch, record.floor_db)
        if compared.missed:
            raise KnownAnswersError(self._complaint(compared, batch, machine))
        found = Checked(
            target=self.target,
            device=_device(machine),
            batch=batch,
            outcome="passed" if record.floor_db >= TELLING_DB else "cannot tell",
            sqnr_db=None if compared.sqnr_db is None else round(compared.sqnr_db, 2),
            floor_db=record.floor_db,
            checked=now(),
            seconds=round(time.perf_counter() - started, 3),
        )
        owner.checked.append(found)
        _LOG.info("%s: known answers on %s: %s", owner.folder, self.target, describe(found))
        passes.add(key, found)

    def _complaint(self, plan: Comparison, batch: int, machine: Mapping[str, str]) -> str:
        """What is at fault, by :func:`infer.checks.blame.blame` if the graph in ONNX Runtime still gives them."""
        owner = self.owner
        try:
            graph = graph_comparison(owner)
        except IResNetError as error:
            graph, doubt = None, f" The graph could not be run here to be sure of it ({error})."
        else:
            doubt = ""
        if graph is not None and graph.missed:
            text = f"graph: {GRAPH} no longer gives its known answers in ONNX Runtime: {graph}; build the bundle again"
        else:
            cause = blame(owner.manifest.precision, None, plan, target=self.target, kernels=_device(machine))
            assert cause is not None
            text = cause.text
        return f"{owner.folder}, known answers at batch {batch}: {text}.{doubt} {VARIABLE}=never runs it all the same"


def graph_comparison(test: SelfTest) -> Comparison:
    """Whether the graph of a bundle gives the known answers in ONNX Runtime, as it is written.

    Raises:
        IResNetError: ONNX Runtime is not there or cannot run it (bfloat16), or the file changed.
    """
    from infer.backends.onnxruntime import OnnxRuntimeBackend

    record = test.manifest.known_answers
    assert record is not None
    check_files(test.folder, [test.manifest.graph])
    backend = OnnxRuntimeBackend(test.folder / GRAPH, optimise=False)
    try:
        return measure(backend.infer, test.answers, len(test.answers.images), record.floor_db)
    finally:
        backend.close()


def _device(machine: Mapping[str, str]) -> str:
    """For people: the device, and the instruction set of its kernels where the library names it."""
    _, named, instructions = machine.get("instructions", "").rpartition("isa=")
    return f"{machine['device']}, {instructions}" if named else machine["device"]


@dataclass(frozen=True)
class TargetReport:
    """What a check by hand found of one plan.

    Attributes:
        target: name.
        unavailable: why it cannot run here; None where it does.
        checked: one entry for each batch size.
        error: that a batch size failed with.
    """

    target: str
    unavailable: str | None
    checked: list[Checked]
    error: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Ready for :func:`json.dump`."""
        checked: list[dict[str, Any]] = msgspec.to_builtins(self.checked)
        return {"target": self.target, "unavailable": self.unavailable, "checked": checked, "error": self.error}


def check_plans(folder: Path, manifest: Manifest) -> list[TargetReport]:
    """Open every plan of a bundle that runs here and check it at every batch size that is compiled by itself.

    Raises:
        BundleError: the answers cannot be read.
        TargetUnavailableError: a plan cannot be opened.
    """
    from infer.backends import TARGETS, open_backend, why_unavailable

    reports = []
    for plan in manifest.plans:
        missing = why_unavailable(plan.target) if plan.target in TARGETS else "unknown to this version"
        test, error = SelfTest(folder, manifest, "always"), None
        if missing is None:
            try:
                backend = open_backend(folder, manifest, test, plan.target)
                try:
                    for batch in backend.compiled_batches:
                        backend.infer(np.zeros((batch, *manifest.inputs[0].shape[1:]), np.uint8))
                finally:
                    backend.close()
            except KnownAnswersError as failed:
                error = str(failed)
        reports.append(TargetReport(plan.target, missing, test.checked, error))
    return reports


def passed_here(folder: Path, manifest: Manifest) -> list[Checked]:
    """What plans of this very bundle have passed on this processor, or on any GPU, as far as it is written down."""
    plans = {plan.target: _plan_key(plan.files) for plan in manifest.plans}
    found = []
    for key, checked in Passes(folder).all():
        same = manifest.known_answers is not None and key.get("answers") == manifest.known_answers.file.sha256
        if same and key.get("plan") == plans.get(checked.target) and key.get("processor") in (None, processor()):
            found.append(msgspec.structs.replace(checked, remembered=True))
    return sorted(found, key=lambda one: (one.target, one.batch))


def _plan_key(files: Sequence[FileEntry]) -> str:
    return " ".join(entry.sha256 for entry in files)
