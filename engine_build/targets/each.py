"""Several targets, one after the other, into one folder."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from engine_build.source import Steps
from infer.bundle import Manifest, Plan
from infer.errors import BuildError, IResNetError


def build_each(
    targets: Sequence[str], named: bool, folder: Path, build: Callable[[str, Path], Plan], steps: Steps
) -> tuple[list[Plan], list[str]]:
    """Build every target into ``folder``.

    Args:
        targets: that can be built here.
        named: whether the user asked for these very targets, and not for all that can be built.
        folder: the bundle under construction.
        build: builds one target into the folder.
        steps: told of each target, and of each that was left out.

    Returns:
        The plans, and a note for each target that failed and was left out; of the latter nothing is in the folder.

    Raises:
        BuildError: no target could be built; gives the reason of each.
        Exception: what ``build`` raised for a named target.
    """
    plans: list[Plan] = []
    failed: dict[str, str] = {}
    for target in targets:
        before = set(folder.iterdir())
        try:
            with steps.step(target):
                plans.append(build(target, folder))
        except Exception as error:  # a backend raises classes of its own; Ctrl-C is none of them
            if named:
                raise
            failed[target] = reason_of(error)
            steps.say(f"{target} was left out: {failed[target]}")
            for path in set(folder.iterdir()) - before:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
    if failed and not plans:
        listing = "; ".join(f"{target}: {reason}" for target, reason in failed.items())
        raise BuildError(f"none of {len(failed)} targets could be built. {listing}")
    return plans, [f"{target} was left out: {reason}" for target, reason in failed.items()]


def keep_passing(
    manifest: Manifest, named: bool, folder: Path, check: Callable[[Plan], None], say: Callable[[str], None]
) -> None:
    """Check every plan of ``manifest``; one that fails and was not asked for is left out, with a note and its files.

    Args:
        manifest: changed in place.
        named: as for :func:`build_each`.
        folder: the bundle under construction.
        check: raises what is wrong with a plan.
        say: told of each plan that was left out.

    Raises:
        IResNetError: what ``check`` raised for a plan that was asked for; where all fail, the last, with all reasons.
    """
    failed: dict[str, str] = {}
    for plan in list(manifest.plans):
        try:
            check(plan)
        except IResNetError as error:
            failed[plan.target] = str(error)
            if named or len(manifest.plans) == 1:
                raise type(error)("; ".join(failed.values())) from error
            manifest.plans = [other for other in manifest.plans if other is not plan]
            for entry in plan.files:
                (folder / entry.file).unlink(missing_ok=True)
            manifest.notes = [*manifest.notes, f"{plan.target} was left out: {failed[plan.target]}"]
            say(manifest.notes[-1])


def reason_of(error: Exception) -> str:
    """``error`` on one line; its class too where it is none of this project's."""
    text = " ".join(str(error).split()) or "no message"
    return text if isinstance(error, IResNetError) else f"{type(error).__name__}: {text[:300]}"
