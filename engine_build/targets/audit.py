"""What an engine really runs, layer by layer: data types, kernels, memory, and the gate on int8.

A precision asked for is not a precision got. TensorRT accepts Q/DQ that it cannot turn into int8 kernels, an
activation scale of shape ``[1]`` for one, and then runs the convolution in floating point without a word. The audit
therefore reads the layers of the finished engine and says for every ONNX convolution and matrix product which data
type its kernel multiplies in. It knows nothing of any one target: a target fills in the layers.

Data types are the project's words: fp32, fp16, bf16, fp8, fp4, int8, int4, int32, int64, uint8, bool.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any, Literal

from infer.bundle.build_record import Audit, AuditSummary
from infer.errors import BuildError, BundleError

if TYPE_CHECKING:
    from rich.table import Table

NOT_FOUND = "unlisted"
"""Stands for the precision of a node that no kernel of the engine names."""

DRAM_FORMULA = "sum over layers of (input + output bytes at the optimum batch) / batch + weight bytes / batch"
"""How :meth:`PlanAudit.dram_bytes_per_image` counts. Every tensor between two kernels is written and read once; caches,
and padding of vectorised formats, are left out. So it compares precisions of one model; it is no measurement."""

Kind = Literal["mac", "move", "sync", "other"]
"""What a layer is for: ``mac`` convolution or matrix product, ``move`` only copies, transposes or converts (a
reformat), ``sync`` events between streams and host calls, without data, ``other`` pointwise, pooling and so on."""

_BITS = {"fp32": 32, "int32": 32, "int64": 64, "fp16": 16, "bf16": 16, "fp8": 8, "int8": 8, "uint8": 8, "bool": 8}
_BITS |= {"fp4": 4, "int4": 4, "fp64": 64}
_FLOATING = ("fp32", "fp16", "bf16")
_FORMAT = 1


@dataclass(frozen=True)
class LayerTensor:
    """One input, output or constant of a layer.

    Attributes:
        shape: dimensions, the batch as -1 where it is dynamic.
        dtype: data type, a word of the project.
        layout: memory format in the target's words (``NHWC``), empty where the target does not tell.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    layout: str = ""

    def nbytes(self, batch: int) -> int:
        """Bytes at ``batch`` images, without padding. An unknown data type counts as 32 bits."""
        return prod(batch if size < 0 else size for size in self.shape) * _BITS.get(self.dtype, 32) // 8


@dataclass(frozen=True)
class Layer:
    """One kernel of an engine.

    Attributes:
        type: the target's own word: ``correlation``, ``kgen``, ``CaskConvolution``.
        kind: see :data:`Kind`.
        precision: of a ``mac`` layer the data type of the operands it multiplies, else that of its first output.
        nodes: names of the ONNX nodes fused into it.
    """

    name: str
    type: str
    kind: Kind
    precision: str
    inputs: tuple[LayerTensor, ...] = ()
    constants: tuple[LayerTensor, ...] = ()
    outputs: tuple[LayerTensor, ...] = ()
    nodes: tuple[str, ...] = ()


@dataclass(frozen=True)
class PlanAudit:
    """The layers of one engine and what follows from them.

    Attributes:
        layers: in execution order.
        node_precisions: ONNX Conv, ConvTranspose, Gemm and MatMul nodes, and the precision of the kernel that runs
            each, :data:`NOT_FOUND` where no kernel names the node.
        batch: optimum batch, at which bytes are counted.
        engine_bytes: size of the engine file.
        weight_bytes: weights in the engine, None where the target does not tell.
        activation_bytes: device memory for activations of one execution context at the largest batch, or None.
        scratch_bytes: the largest scratch buffer of one layer, or None. TensorRT's compiler reports a whole fused
            region as one layer, so that it often equals ``activation_bytes``.
    """

    layers: tuple[Layer, ...]
    node_precisions: Mapping[str, str]
    batch: int
    engine_bytes: int
    weight_bytes: int | None = None
    activation_bytes: int | None = None
    scratch_bytes: int | None = None

    @property
    def kernels(self) -> tuple[Layer, ...]:
        """The layers that work on data: all but ``sync``."""
        return tuple(layer for layer in self.layers if layer.kind != "sync")

    @property
    def reformats(self) -> int:
        """Layers that only copy, transpose or convert."""
        return sum(layer.kind == "move" for layer in self.layers)

    @property
    def widening(self) -> int:
        """Kernels that multiply int8 or fp8 but write floating point, which another kernel must requantise.

        Such traffic is why int8 is not faster by definition.
        """
        return sum(
            layer.precision in ("int8", "fp8") and any(tensor.dtype in _FLOATING for tensor in layer.outputs)
            for layer in self.layers
            if layer.kind == "mac"
        )

    def layer_types(self) -> dict[str, int]:
        """Number of layers of each type, the target's words, most frequent first."""
        return _counts(layer.type for layer in self.layers)

    def layer_precisions(self) -> dict[str, int]:
        """Number of kernels of each precision, most frequent first."""
        return _counts(layer.precision for layer in self.kernels)

    def mac_precisions(self) -> dict[str, int]:
        """Number of ONNX convolution and matrix-product nodes run in each precision, most frequent first."""
        return _counts(self.node_precisions.values())

    def dram_bytes_per_image(self) -> int:
        """Estimated device-memory traffic for one image at the optimum batch: :data:`DRAM_FORMULA`."""
        moved = sum(tensor.nbytes(self.batch) for layer in self.kernels for tensor in (*layer.inputs, *layer.outputs))
        weights = self.weight_bytes
        if weights is None:
            constants = {tensor.name: tensor for layer in self.kernels for tensor in layer.constants}
            weights = sum(tensor.nbytes(self.batch) for tensor in constants.values())
        return round((moved + weights) / self.batch)

    def summary(self) -> AuditSummary:
        """The figures without the layers."""
        return AuditSummary(
            layers=len(self.layers),
            kernels=len(self.kernels),
            layer_types=self.layer_types(),
            layer_precisions=self.layer_precisions(),
            reformats=self.reformats,
            widening=self.widening,
            mac_nodes=len(self.node_precisions),
            mac_precisions=self.mac_precisions(),
            engine_bytes=self.engine_bytes,
            weight_bytes=self.weight_bytes,
            activation_bytes=self.activation_bytes,
            scratch_bytes=self.scratch_bytes,
            dram_bytes_per_image=self.dram_bytes_per_image(),
            batch=self.batch,
        )

    def record(self) -> Audit:
        """Everything, for the manifest; :meth:`from_record` gives an equal audit back.

        A layer is a list ``[name, type, kind, precision, nodes, inputs, constants, outputs]`` and a tensor a list
        ``[name, shape, dtype, layout]``: a deep network has hundreds of layers and keys would double the file.
        """
        layers = [
            [layer.name, layer.type, layer.kind, layer.precision, list(layer.nodes)]
            + [
                [[tensor.name, list(tensor.shape), tensor.dtype, tensor.layout] for tensor in tensors]
                for tensors in (layer.inputs, layer.constants, layer.outputs)
            ]
            for layer in self.layers
        ]
        return Audit(format=_FORMAT, summary=self.summary(), node_precisions=dict(self.node_precisions), layers=layers)

    @classmethod
    def from_record(cls, record: Audit) -> PlanAudit:
        """The audit that gave ``record``.

        Raises:
            BundleError: ``record`` is of another format or damaged.
        """
        if record.format != _FORMAT:
            raise BundleError(f"layer audit: expected format {_FORMAT}, found {record.format}; build the engine again")
        summary = record.summary
        try:
            if record.layers is None or summary.batch is None:
                raise ValueError("it lists no layers")
            return cls(
                layers=tuple(_layer(row) for row in record.layers),
                node_precisions=record.node_precisions,
                batch=summary.batch,
                engine_bytes=summary.engine_bytes,
                weight_bytes=summary.weight_bytes,
                activation_bytes=summary.activation_bytes,
                scratch_bytes=summary.scratch_bytes,
            )
        except (TypeError, ValueError, AttributeError) as error:
            raise BundleError(f"layer audit is damaged ({error!r}); build the engine again") from error

    def table(self, title: str = "Layer audit") -> Table:
        """The summary as a small table for a terminal."""
        from rich.table import Table

        table = Table(title=title, show_header=False, title_justify="left")
        for label, text in self.rows():
            table.add_row(label, text)
        return table

    def rows(self) -> list[tuple[str, str]]:
        """Label and text of each line of :meth:`table`."""
        rows = [
            ("Kernels", f"{len(self.kernels)} ({_listing(self.layer_precisions())})"),
            ("Convolutions and products", _listing(self.mac_precisions()) or "none"),
            ("Reformats", str(self.reformats)),
        ]
        if self.widening:
            rows.append(("Quantised kernels with floating-point output", str(self.widening)))
        rows.append(("Engine", megabytes(self.engine_bytes)))
        if self.weight_bytes is not None:
            rows.append(("Weights", megabytes(self.weight_bytes)))
        if self.activation_bytes is not None:
            rows.append(("Activations, largest batch", megabytes(self.activation_bytes)))
        if self.scratch_bytes is not None and self.scratch_bytes != self.activation_bytes:
            rows.append(("Scratch, largest layer", megabytes(self.scratch_bytes)))
        rows.append((f"DRAM per image, estimated at batch {self.batch}", megabytes(self.dram_bytes_per_image())))
        return rows


def require_precision(audit: PlanAudit, nodes: Sequence[str], precision: str) -> None:
    """Fail unless every one of ``nodes`` (ONNX node names) is run by a ``precision`` kernel.

    Raises:
        BuildError: names the nodes, at most five, and what each runs in. Also for an empty ``nodes``, with which the
            gate would check nothing.
    """
    if not nodes:
        raise BuildError(f"the {precision} gate was given no node to check; the graph has no quantised convolution")
    wrong = [(node, audit.node_precisions.get(node, NOT_FOUND)) for node in nodes]
    wrong = [(node, found) for node, found in wrong if found != precision]
    if not wrong:
        return
    named = ", ".join(f"{node} ({found})" for node, found in wrong[:5])
    more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
    advice = (
        "TensorRT accepts Q/DQ that it cannot use: the activation scale must be a scalar (shape []), weights symmetric "
        "per output channel, zero-points 0, and Q/DQ must stand directly before the node"
    )
    if all(found == NOT_FOUND for _, found in wrong):
        advice = "the builder printed no layer for them: check the node names of the graph and the builder's version"
    raise BuildError(
        f"expected {len(nodes)} {precision} kernels in the plan, found {len(nodes) - len(wrong)}; "
        f"not {precision}: {named}{more}. {advice}"
    )


def require_float32(audit: PlanAudit, nodes: Collection[str]) -> None:
    """Fail if one of ``nodes`` (ONNX node names), to which float16 does harm, is run by a kernel of less than float32.

    Nodes that multiply integers, or of which the listing says nothing, pass.

    Raises:
        BuildError: names the nodes, at most five, and what each runs in.
    """
    found = {node: audit.node_precisions[node] for node in nodes if node in audit.node_precisions}
    wrong = [f"{node} ({precision})" for node, precision in found.items() if precision in ("fp16", "bf16")]
    if wrong:
        raise BuildError(
            f"{len(wrong)} layers have to run in float32, but TensorRT made of them: {', '.join(wrong[:5])}. "
            "Build fp32, or bf16, which has the range of float32"
        )


def megabytes(size: int) -> str:
    """``size`` bytes for people, in MB of 10^6 bytes."""
    return f"{size / 1e6:.1f} MB" if size < 100e6 else f"{size / 1e6:.0f} MB"


def _counts(words: Iterable[str]) -> dict[str, int]:
    return dict(Counter(words).most_common())


def _listing(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {word}" for word, count in counts.items())


def _layer(row: Sequence[Any]) -> Layer:
    name, kind_of_kernel, kind, precision, nodes, inputs, constants, outputs = row
    return Layer(
        name, kind_of_kernel, kind, precision, _tensors(inputs), _tensors(constants), _tensors(outputs), tuple(nodes)
    )


def _tensors(rows: Sequence[Sequence[Any]]) -> tuple[LayerTensor, ...]:
    return tuple(LayerTensor(name, tuple(shape), dtype, layout) for name, shape, dtype, layout in rows)
