"""The known answers of a bundle: a few pictures, and the logits that its graph gives for them as it is written.

The floor that a plan must reach is measured too. Two engines that are both right differ in the order of their sums and
in what they round between two layers, so the graph is run twice more with random noise of that size before each place
where such differences meet a quantiser or a layer. What this costs is what a right plan may cost, with some room.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from calibration.onnx_index import Index
from engine_build.checks.as_written import as_written, emulated, engine_name
from engine_build.graph.reference import Logits
from engine_build.synthetic import varied_images
from infer.backends import open_backend, why_unavailable
from infer.bundle import KnownAnswers, Manifest, Plan, file_entry
from infer.checks.known_answers import FILE, TELLING_DB, Answers, write_answers
from infer.checks.passed import describe
from infer.checks.self_test import SelfTest
from infer.checks.sqnr import centred_sqnr
from infer.errors import BuildError, KnownAnswersError

IMAGES = 8
_SEED = 2026
_RUNS = 2
# Pictures of more pixels a side are made of whole blocks of equal pixels, so that the file stays below 2 MB.
_FINEST = 256
# Largest relative error of one rounding of what is not integers. On a GPU, TensorRT multiplies float32 as TF32, which
# has float16's 11 bits. What is left of an int8 graph runs as bfloat16 in OpenVINO where the CPU has it, but what lies
# between a kernel and the next quantiser does not: it was never worse than float16's noise.
_ROUNDOFF = {"bf16": 2.0**-8}
_ROUNDOFF_OF_OTHERS = 2.0**-11
#: No plan is asked for more, in dB.
CAPS = {"fp32": 50.0, "fp16": 35.0, "bf16": 22.0, "int8": 25.0, "auto": 25.0, "fp8": 25.0}
_ROOM = 6.0
_FACTORS = "noise"
_PERIOD = 1 << 20
_LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")


def known_answers(typed: onnx.ModelProto, precision: str, side: int, folder: Path) -> KnownAnswers:
    """Compute the answers of ``typed`` and write them into the bundle ``folder``.

    Args:
        typed: the precision-typed graph of the bundle.
        precision: of the bundle.
        side: of its square inputs.
        folder: the bundle under construction.

    Raises:
        BuildError: the graph gives NaN or infinity.
        GraphError: ONNX Runtime refuses the graph.
    """
    images = answer_images(side)
    plain = emulated(typed)
    logits = as_written(plain)(images)
    if not np.isfinite(logits).all():
        raise BuildError(
            f"the {precision} graph gives NaN or infinite logits for ordinary pictures; use another precision"
        )
    write_answers(folder, Answers(images, logits))
    cost = rounding_cost(plain, images, logits, roundoff(precision))
    floor = CAPS[precision] if cost is None else min(CAPS[precision], max(0.0, cost - _ROOM))
    entry = file_entry(folder, FILE)
    return KnownAnswers(file=entry, images=IMAGES, engine=engine_name(), rounding_db=cost, floor_db=floor)


def warnings(answers: KnownAnswers) -> list[str]:
    """What a user should be told of them."""
    if answers.floor_db >= TELLING_DB:
        return []
    return [
        "known answers cannot tell a right plan from a wrong one here: the logits vary so little from picture to "
        f"picture that roundings which are allowed leave {answers.rounding_db:.1f} dB of them"
    ]


def test_plan(work: Path, manifest: Manifest, plan: Plan, folder: Path, say: Callable[[str], None]) -> None:
    """Open a plan of a bundle, where it runs here, which checks its known answers.

    Args:
        work: the bundle under construction.
        manifest: its manifest.
        plan: one of its plans.
        folder: what it is going to be called.
        say: called with one line for people.

    Raises:
        KnownAnswersError: the plan computes something else than the graph.
    """
    if why_unavailable(plan.target) is not None:
        return
    test = SelfTest(work, manifest, "always")
    try:
        open_backend(work, manifest, test, plan.target).close()
    except KnownAnswersError as error:
        raise KnownAnswersError(str(error).replace(str(work), str(folder))) from error
    for found in test.checked:
        say(f"known answers on {plan.target}: {describe(found)}")


def answer_images(side: int) -> NDArray[np.uint8]:
    """The pictures, uint8 ``[8, side, side, 3]``."""
    block = -(-side // _FINEST)
    small = varied_images(IMAGES, -(-side // block), _SEED)
    return np.ascontiguousarray(small.repeat(block, axis=1).repeat(block, axis=2)[:, :side, :side])


def roundoff(precision: str) -> float:
    """Largest relative error of one rounding of what is not integers in a plan of ``precision``."""
    return _ROUNDOFF.get(precision, _ROUNDOFF_OF_OTHERS)


def rounding_cost(
    plain: onnx.ModelProto, images: NDArray[np.uint8], logits: NDArray[np.float32], roundoff: float
) -> float | None:
    """SQNR in dB, at least 0, that is left of ``logits`` under other roundings: the worse of two runs.

    None where they change nothing.
    """
    found = [centred_sqnr(noisy(plain, roundoff, seed)(images), logits) for seed in range(_RUNS)]
    costs = [cost for cost in found if cost is not None]
    return max(0.0, min(costs)) if costs else None


def noisy(plain: onnx.ModelProto, roundoff: float, seed: int) -> Logits:
    """Logits of a float32 graph with noise of ``roundoff`` before each quantiser, and before each layer that has none.

    Every number ``x`` there becomes ``x (1 + d)``, ``d`` uniform from ``-roundoff`` to ``roundoff``, the same for the
    same ``seed``.
    """
    work = onnx.ModelProto()
    work.CopyFrom(plain)
    index = Index(work)
    rng = np.random.default_rng(seed)
    factors = index.set_constant(_FACTORS, rng.uniform(1 - roundoff, 1 + roundoff, _PERIOD).astype(np.float32))
    twins: dict[str, onnx.NodeProto] = {}
    for node in work.graph.node:
        for position in _sites(index, node):
            tensor = node.input[position]
            if tensor not in twins:
                start = index.set_constant(f"{tensor}.noise", rng.integers(_PERIOD, size=1))
                inputs = [tensor, factors, start]
                twins[tensor] = helper.make_node(
                    _FACTORS, inputs, [f"{tensor}.noisy"], f"{tensor}.noisy", domain=_FACTORS
                )
            node.input[position] = twins[tensor].output[0]
    nodes = [twin for tensor, twin in twins.items() if tensor not in index.producer]
    for node in work.graph.node:
        nodes += [node, *(twins[name] for name in node.output if name in twins)]
    index.set_nodes(nodes)
    work.ir_version = max(work.ir_version, 8)  # the first with functions
    work.functions.append(_noise(next(entry.version for entry in work.opset_import if not entry.domain)))
    work.opset_import.append(helper.make_opsetid(_FACTORS, 1))
    return as_written(work)


def _sites(index: Index, node: onnx.NodeProto) -> list[int]:
    if node.op_type == "QuantizeLinear":
        return [] if node.input[0] in index.constants else [0]
    if node.op_type not in _LAYERS:
        return []
    return [position for position, name in enumerate(node.input[:2]) if not _is_exact(index, name)]


def _is_exact(index: Index, name: str) -> bool:
    """Whether a layer's input is a constant or comes from integers, up to Casts."""
    while (producer := index.producer.get(name)) is not None and producer.op_type == "Cast":
        name = producer.input[0]
    return name in index.constants or (producer is not None and producer.op_type == "DequantizeLinear")


def _noise(opset: int) -> onnx.FunctionProto:
    """``x`` times as many of ``factors`` as it has numbers, from number ``start`` on, over and over.

    (The random operators of ONNX would do, but ONNX Runtime has none of them from opset 22 on.)
    """
    nodes = [
        helper.make_node("Constant", [], ["period"], value_ints=[_PERIOD]),
        helper.make_node("Constant", [], ["two"], value_ints=[2]),
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Size", ["x"], ["size"]),
        helper.make_node("Div", ["size", "period"], ["periods"]),
        helper.make_node("Add", ["periods", "two"], ["times"]),
        helper.make_node("Tile", ["factors", "times"], ["repeated"]),
        helper.make_node("Add", ["start", "size"], ["end"]),
        helper.make_node("Slice", ["repeated", "start", "end"], ["flat"]),
        helper.make_node("Reshape", ["flat", "shape"], ["noise"]),
        helper.make_node("Mul", ["x", "noise"], ["y"]),
    ]
    return helper.make_function(
        _FACTORS, _FACTORS, ["x", "factors", "start"], ["y"], nodes, [helper.make_opsetid("", opset)]
    )
