"""The first half of every build: weights or a user's graph, exported, through the passes, float32."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import onnx

from engine_build.network.zoo import PUBLISHED, Model, find_model
from infer.bundle import NETWORK_REVISION, ModelInfo
from infer.bundle.preprocessing import IMAGENET, Preprocessing
from infer.errors import InputError

if TYPE_CHECKING:
    from engine_build.graph.reference import Logits


_LONGEST_NAME = 100
_NO_NAME = re.compile(r"^[.-]|[/\\\x00-\x1f\x7f-\x9f\u2028\u2029]")


@dataclass(frozen=True)
class SourceOptions:
    """Which network. None means the default that is named.

    Attributes:
        model: row of the zoo; with ``onnx`` any name.
        weights: checkpoint; None searches (see :func:`engine_build.network.weights.load_weights`).
        weights_key: which of several sets of weights in ``weights``, such as ``state_dict_ema``.
        onnx: a user's own float classifier instead of a row of the zoo.
        preprocessing: None for the row's, or ImageNet's with ``onnx``.
        num_classes, width: of the network; None for the checkpoint's and the row's.
        require_weights: random weights are an error.
        offline: do not try to download weights.
        seed: of random weights.
    """

    model: str
    weights: Path | None = None
    weights_key: str | None = None
    onnx: Path | None = None
    preprocessing: Preprocessing | None = None
    num_classes: int | None = None
    width: float | None = None
    require_weights: bool = False
    offline: bool = False
    seed: int = 0

    @property
    def spec(self) -> Preprocessing:
        """The pre-processing that applies."""
        if self.preprocessing is not None:
            return self.preprocessing
        return find_model(self.model).preprocessing if self.onnx is None else IMAGENET


@dataclass
class Steps:
    """Reports steps and keeps their times, in seconds.

    Attributes:
        say: called with one line for people.
        seconds: step to its duration.
    """

    say: Callable[[str], None] = lambda line: None
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Time a step."""
        started = time.monotonic()
        yield
        self.seconds[name] = time.monotonic() - started


@dataclass(frozen=True)
class Source:
    """A float32 graph that has been through the passes, with what is known about it.

    Attributes:
        graph: input ``images`` uint8 ``[N, H, W, 3]``, outputs as the bundle has them.
        spec: its pre-processing.
        info: for the manifest.
        row: of the zoo, None for a user's graph.
        reference: logits of the network it came from.
        folded: BNs that the passes folded.
        notes: what a user should be told.
    """

    graph: onnx.ModelProto
    spec: Preprocessing
    info: ModelInfo
    row: Model | None
    reference: Logits
    folded: int
    notes: tuple[str, ...] = ()


def check_name(model: str) -> None:
    """A model's name becomes that of folders and files.

    Raises:
        InputError: empty, longer than 100 characters, or with separators of paths or control characters.
    """
    if not model.strip() or len(model) > _LONGEST_NAME or _NO_NAME.search(model):
        raise InputError(
            f"model: expected a name of 1 to {_LONGEST_NAME} characters that can be a folder's, without slashes "
            f"and control characters, not beginning with a dot or a dash, found {model!r:.120}"
        )


def load_source(options: SourceOptions, steps: Steps) -> Source:
    """Get the network and bring its graph into the form that every precision starts from.

    Raises:
        InputError, WeightsError, GraphError: see the functions that are called.
    """
    from engine_build.graph.passes import prepare

    check_name(options.model)
    if options.num_classes is not None and options.num_classes < 2:
        raise InputError(f"classes: expected at least 2, found {options.num_classes}; the softmax of one is always 1")
    spec = options.spec
    if options.onnx is not None:
        from engine_build.source.external_data import onnx_sha256
        from engine_build.source.user_graph import load_user_graph

        with steps.step("load"):
            graph, reference, classes = load_user_graph(options.onnx, spec)
        row: Model | None = None
        notes: tuple[str, ...] = ()
        info = ModelInfo(
            name=options.model,
            num_classes=classes,
            weights=options.onnx.name,
            weights_sha256=onnx_sha256(options.onnx),
            trained=True,
        )
    else:
        row, info, notes, graph, reference = _export(options, spec, steps)
    with steps.step("passes"):
        folded = prepare(graph, spec, info.num_classes, reference)
    return Source(graph, spec, info, row, reference, folded, notes)


def _export(
    options: SourceOptions, spec: Preprocessing, steps: Steps
) -> tuple[Model, ModelInfo, tuple[str, ...], onnx.ModelProto, Logits]:
    from engine_build.graph.export import export_torch
    from engine_build.network.weights import load_weights
    from engine_build.source.refusals import refuse_one_logit

    row = find_model(options.model)
    with steps.step("weights"):
        weights = load_weights(
            row,
            options.weights,
            key=options.weights_key,
            require=options.require_weights,
            offline=options.offline,
            num_classes=options.num_classes,
            width=options.width,
            seed=options.seed,
        )
    refuse_one_logit(weights.model.fc.out_features)
    steps.say(f"weights: {weights.source}" + ("" if weights.trained else " - UNTRAINED"))
    official = weights.trained and options.weights is None and row.top1 is not None
    info = ModelInfo(
        name=row.name,
        num_classes=weights.model.fc.out_features,
        weights=weights.source,
        weights_sha256=weights.sha256,
        trained=weights.trained,
        network_revision=NETWORK_REVISION,
        width=options.width or row.width,
        top1=row.top1 if official else None,
        top5=row.top5 if official else None,
        published=PUBLISHED if official else None,
    )
    with steps.step("export"):
        graph, reference = export_torch(weights.model, spec)
    return row, info, weights.notes, graph, reference
