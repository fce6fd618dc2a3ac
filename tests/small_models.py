"""Networks small enough to build in a second: narrow rows of the zoo and ONNX graphs made by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from specs import sized

from engine_build.network.zoo import MODELS, Model

SIDE, CLASSES = 32, 10
SPEC = sized(resize=SIDE, crop=SIDE)


def narrow(name: str, width: float = 1 / 16, num_classes: int = CLASSES) -> Model:
    """The row ``name`` with few channels and 32 x 32 inputs, without a download."""
    return replace(
        MODELS[name], name=f"narrow-{name}", width=width, num_classes=num_classes, preprocessing=SPEC,
        drive_id=None, top1=None, top5=None,
    )  # fmt: skip


def graph(nodes, constants, *, inputs=None, outputs=None, opset=20, ir_version=9) -> onnx.ModelProto:
    """A model of ``nodes`` (op, inputs, outputs, attributes) named after their outputs, from ``x`` to ``y``.

    A dash stands for an input that is left out.
    """
    made = []
    for op, read, written, *rest in nodes:
        attributes = dict(rest[0]) if rest else {}
        name = attributes.pop("name", written.split()[0])
        domain = attributes.pop("domain", None)
        made.append(
            helper.make_node(
                op,
                ["" if name == "-" else name for name in read.split()],
                written.split(),
                name,
                domain=domain,
                **attributes,
            )
        )
    inputs = [("x", TensorProto.FLOAT, ["N", 3, SIDE, SIDE])] if inputs is None else inputs
    outputs = [("y", TensorProto.FLOAT, ["N", CLASSES])] if outputs is None else outputs
    return helper.make_model(
        helper.make_graph(
            made,
            "hand made",
            [helper.make_tensor_value_info(*value) for value in inputs],
            [helper.make_tensor_value_info(*value) for value in outputs],
            [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
        ),
        opset_imports=[helper.make_opsetid("", opset)],
        ir_version=ir_version,
    )


def bn_constants(name: str, channels: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Scale, shift, mean and variance of a BN, called ``<name>.weight`` and so on as in PyTorch."""
    return {
        f"{name}.weight": rng.uniform(0.5, 1.5, channels).astype(np.float32),
        f"{name}.bias": rng.normal(size=channels).astype(np.float32),
        f"{name}.running_mean": rng.normal(size=channels).astype(np.float32),
        f"{name}.running_var": rng.uniform(0.5, 2, channels).astype(np.float32),
    }


def bn_inputs(name: str) -> str:
    """The constant inputs of a BN called ``name``."""
    return " ".join(f"{name}.{part}" for part in ("weight", "bias", "running_mean", "running_var"))


CLASSIFIER = (
    ("Conv", "x stem.weight", "c", {"strides": [2, 2], "pads": [1, 1, 1, 1]}),
    ("BatchNormalization", f"c {bn_inputs('bn')}", "b"),
    ("Relu", "b", "r"),
    ("GlobalAveragePool", "r", "p"),
    ("Flatten", "p", "f"),
    ("Gemm", "f fc.weight fc.bias", "y", {"transB": 1}),
)


def classifier_constants(seed: int = 0, classes: int = CLASSES) -> dict[str, np.ndarray]:
    """Weights of :data:`CLASSIFIER`, whose classes depend on the image."""
    rng = np.random.default_rng(seed)
    return {
        "stem.weight": rng.normal(size=(16, 3, 3, 3)).astype(np.float32) / 5,
        **bn_constants("bn", 16, rng),
        "fc.weight": rng.normal(size=(classes, 16)).astype(np.float32),
        "fc.bias": rng.normal(size=classes).astype(np.float32),
    }


def classifier(seed: int = 0, **options) -> onnx.ModelProto:
    """Conv, BN, ReLU, pool, Gemm: float NCHW in, ten logits out."""
    return graph(CLASSIFIER, classifier_constants(seed), **options)


def pictures(count: int, side: int = SIDE, seed: int = 0) -> np.ndarray:
    """Random uint8 ``[count, side, side, 3]`` of different brightness."""
    rng = np.random.default_rng(seed)
    low = rng.integers(0, 128, (count, 1, 1, 3))
    return (low + rng.integers(0, 128, (count, side, side, 3))).astype(np.uint8)


def weights_of(*shape: int, seed: int = 0) -> np.ndarray:
    """Normal float32 numbers."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def run(model: onnx.ModelProto, image: np.ndarray, names: list[str] | None = None) -> list[np.ndarray]:
    """Outputs, or tensors by name, of a graph in ONNX Runtime, each node computed as it is written."""
    import onnxruntime

    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    known = {value.name for value in probe.graph.output}
    for name in names or []:
        if name not in known:
            probe.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(probe.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(names, {session.get_inputs()[0].name: image})


def same_weights(network, state) -> bool:
    """Whether a torch module holds exactly the tensors of ``state``, in the same order."""
    loaded = network.state_dict()
    return list(loaded) == list(state) and all(loaded[name].equal(state[name]) for name in state)


def run_graph(model: onnx.ModelProto, feed: np.ndarray, outputs=None) -> list[np.ndarray]:
    """Outputs in ONNX Runtime, which is told to change nothing."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(outputs, {session.get_inputs()[0].name: feed})
