"""The layer listings of the three TensorRT kinds, line forms as their builders print them."""

import pytest

from engine_build.targets.audit import NOT_FOUND, LayerTensor
from engine_build.targets.tensorrt.layers import assign_nodes, parse_layers

RTX_CONV = (
    "Name: /a/Conv_myl0_2, LayerType: correlation, Inputs: [ { Name: x.1, Dimensions: [-1,4,16,16], "
    "Strides: [1024,1,64,4], StrideOrder: [3,0,2,1], Datatype: Int8, Format: (NHWC) Channel major format }], "
    "Constants: [ { Name: w, Dimensions: [16,4,3,3], Strides: [36,1,12,4], StrideOrder: [3,0,2,1], Datatype: Int8, "
    "Format: (NHWC) Channel major format }, { Name: s, Dimensions: [1,16,1,1], Strides: [16,1,16,16], "
    "StrideOrder: [3,0,2,1], Datatype: Float, Format: (NHWC) Channel major format }], "
    "Outputs: [ { Name: y, Dimensions: [-1,16,16,16], Strides: [4096,1,256,16], StrideOrder: [3,0,2,1], "
    "Datatype: Float, Format: (NHWC) Channel major format }], TacticName: __myelin_CASK_STUB, StreamId: 0, "
    "Metadata: [ONNX Layer: /a/Conv]\x1f[ONNX Layer: q [0], w]"
)
# TensorRT 10: type behind the layout, weights described apart, fused nodes joined with +, another separator.
V10_CONV = (
    "Name: w + w_QuantizeLinear + /a/Conv + /a/Relu, LayerType: CaskConvolution, Inputs: [ { Name: x, "
    "Location: Device, Dimensions: [1,64,56,56], Format/Datatype: Thirty-two wide channel vectorized row major Int8 "
    "format }], Outputs: [ { Name: y, Location: Device, Dimensions: [1,64,56,56], Format/Datatype: Thirty-two wide "
    "channel vectorized row major Int8 format }], ParameterType: Convolution, Kernel: [3,3], OutMaps: 64, "
    'Groups: 1, Weights: {"Type": "%s", '
    '"Count": 36864}, Bias: {"Type": "Float", "Count": 64}, HasBias: 1, Activation: RELU, TacticName: sm80_xmma_fprop, '
    "TacticValue: 0x9ae0, StreamId: 0, Metadata: [ONNX Layer: /a/Conv]\x1e[ONNX Layer: /a/Relu]"
)
V10_GEMM = (
    "Name: /fc/fc_6/Gemm_myl9_4, LayerType: gemm, Inputs: [ { Name: x, Dimensions: [1,4096], Format/Datatype: Half }, "
    "{ Name: w, Dimensions: [4096,1000], Format/Datatype: Half }, { Name: alpha, Dimensions: [1], Format/Datatype: "
    "Float }], Outputs: [ { Name: output, Dimensions: [1,1000], Format/Datatype: Half }], TacticName: gemv, "
    "StreamId: 0, Metadata: [ONNX Layer: /fc/fc.6/Gemm]"
)
V10_REFORMAT = (
    "Name: Reformatting CopyNode for Input Tensor 0 to /a/Conv, LayerType: Reformat, Inputs: [ { Name: data, Location: "
    "Device, Dimensions: [1,3,224,224], Format/Datatype: Row major linear FP32 }], Outputs: [ { Name: Reformatted "
    "Input Tensor 0, Location: Device, Dimensions: [1,3,224,224], Format/Datatype: Channel major FP16 format where "
    "channel % 8 == 0 }], ParameterType: Reformat, Origin: REFORMAT, TacticValue: 0x3e8, StreamId: 0, Metadata: "
)


def listing(*lines):
    return "Layers:\n" + "\n".join(lines) + "\n\nI/O Tensors:\n Name: images, LayerType: no, IOMode: Input\n"


def short(name, kind, inputs=(), constants=(), nodes=()):
    """A listing line; tensors as ``Type`` or ``Type[shape]``."""

    def tensors(items):
        text = []
        for index, item in enumerate(items):
            dtype, _, shape = item.partition("[")
            text.append(f"{{ Name: t{index}, Dimensions: [{shape.rstrip(']') or '-1,8'}], Datatype: {dtype} }}")
        return f"[ {', '.join(text)}]" if text else "[]"

    metadata = "\x1f".join(f"[ONNX Layer: {node}]" for node in nodes)
    return (
        f"Name: {name}, LayerType: {kind}, Inputs: {tensors(inputs)}, Constants: {tensors(constants)}, "
        f"Outputs: {tensors(['Float'])}, TacticName: , StreamId: 0, Metadata: {metadata}"
    )


def test_rtx_line_is_read_in_full():
    (layer,) = parse_layers(listing(RTX_CONV))
    assert (layer.name, layer.type, layer.kind, layer.precision) == ("/a/Conv_myl0_2", "correlation", "mac", "int8")
    assert layer.inputs == (LayerTensor("x.1", (-1, 4, 16, 16), "int8", "NHWC"),)
    assert [(tensor.shape, tensor.dtype) for tensor in layer.constants] == [
        ((16, 4, 3, 3), "int8"),
        ((1, 16, 1, 1), "fp32"),
    ]
    assert layer.outputs[0].dtype == "fp32"
    assert layer.nodes == ("/a/Conv", "q [0], w")


@pytest.mark.parametrize(("weights", "precision"), [("Int8", "int8"), ("Half", "fp16"), ("Float", "fp32")])
def test_tensorrt_10_convolution_multiplies_in_the_type_of_its_weights(weights, precision):
    (layer,) = parse_layers(listing(V10_CONV % weights))
    assert (layer.kind, layer.precision) == ("mac", precision)
    assert layer.inputs[0] == LayerTensor("x", (1, 64, 56, 56), "int8")
    assert layer.nodes == ("/a/Conv", "/a/Relu")
    assert assign_nodes([layer], ["/a/Conv"]) == {"/a/Conv": precision}


def test_tensorrt_10_gemm_with_its_weights_among_the_inputs():
    layers = parse_layers(listing(V10_GEMM))
    assert (layers[0].kind, layers[0].precision) == ("mac", "fp16")
    assert assign_nodes(layers, ["/fc/fc.6/Gemm"]) == {"/fc/fc.6/Gemm": "fp16"}
    int8 = parse_layers(listing(V10_GEMM.replace("Datatype: Half }, { Name: w", "Datatype: Int8 }, { Name: w")))
    assert int8[0].precision == "fp16", "an int8 activation alone is no int8 product"
    both = parse_layers(listing(V10_GEMM.replace("Datatype: Half }, {", "Datatype: Int8 }, {")))
    assert both[0].precision == "int8"


def test_tensorrt_10_reformat():
    (layer,) = parse_layers(listing(V10_REFORMAT))
    assert (layer.kind, layer.inputs[0].dtype, layer.outputs[0].dtype) == ("move", "fp32", "fp16")
    assert layer.nodes == ()


@pytest.mark.parametrize(
    ("name", "kind", "expected"),
    [
        ("__myl_CastMulMoveTran_myl0_1", "kgen", "other"),
        ("__myl_CastTranReplConc_myl0_1", "kgen", "move"),
        ("__myl_CorrAddMulMulAddRelu_myl0_15", "runtime_fusion", "mac"),
        ("__myl_FcAddCast_myl0_7", "runtime_fusion", "mac"),
        ("__mye9553_0_myl0_0", "shape_call", "sync"),
        ("__mye50601_myl0_10", "signal", "sync"),
        ("/pool_myl0_5", "maxpool", "other"),
        ("shuffle", "Shuffle", "move"),
    ],
)
def test_kind_of_a_layer(name, kind, expected):
    assert parse_layers(listing(short(name, kind)))[0].kind == expected


@pytest.mark.parametrize(
    ("inputs", "constants", "precision"),
    [
        (["Int8"], ["Int8[16,4,3,3]", "Float[1,16,1,1]"], "int8"),
        (["Float"], ["Int8[16,4,3,3]", "Float[1,16,1,1]"], "fp32"),  # weights alone quantised
        (["Int8"], ["Half[16,4,3,3]"], "fp16"),  # activations alone
        (["Int8", "Half"], ["Int8[16,4,3,3]"], "int8"),  # with a residual input
        (["Float", "Float[16,3,3,3]"], ["Float[1]", "Float[1,16,1,1]"], "fp32"),  # weights computed by another kernel
        (["Int8", "Int8[16,3,3,3]"], [], "int8"),
        (["Int8"], ["Int8[512,1]", "Float[1]"], "int8"),  # one output channel: no constant with two real dimensions
        (["FP8"], ["FP8[16,4,3,3]"], "fp8"),
        (["BFloat16"], ["BFloat16[16,4,3,3]", "Float[1]"], "bf16"),
    ],
)
def test_precision_is_that_of_both_operands(inputs, constants, precision):
    line = short("/a/Conv_myl0_2", "correlation", inputs, constants)
    assert parse_layers(listing(line))[0].precision == precision


def test_pointwise_kernels_that_mention_a_convolution_do_not_run_it():
    layers = parse_layers(
        listing(
            short("/a/Conv_myl0_1", "correlation", ["Int8"], ["Int8[8,8,1,1]"], nodes=["/a/Conv"]),
            short("__myl_MulAddRelu_myl0_2", "kgen", ["Float"], nodes=["/a/Conv", "/a/Relu", "/c/Conv"]),
            short("__myl_CorrAdd_myl0_3", "runtime_fusion", ["Half"], ["Half[8,8,1,1]"], nodes=["/a/Conv", "/b/Conv"]),
        )
    )
    # The third kernel applies the scale of /a/Conv and runs /b/Conv: /a/Conv has a kernel of its own name.
    assert assign_nodes(layers, ["/a/Conv", "/b/Conv", "/c/Conv"]) == {
        "/a/Conv": "int8",
        "/b/Conv": "fp16",
        "/c/Conv": NOT_FOUND,
    }


def test_a_kernel_of_another_name_does_not_stand_in_for_a_lost_one():
    line = short("/a/Conv_myl0_1", "correlation", ["Int8"], ["Int8[8,8,1,1]"], nodes=["/a/Conv", "/b/Conv"])
    assert assign_nodes(parse_layers(listing(line)), ["/a/Conv", "/b/Conv"])["/b/Conv"] == NOT_FOUND


def test_convolutions_merged_side_by_side():
    line = short("/a/Conv || /b/Conv", "CaskConvolution", ["Int8"], ["Int8[8,8,1,1]"])
    assert assign_nodes(parse_layers(listing(line)), ["/a/Conv", "/b/Conv"]) == {"/a/Conv": "int8", "/b/Conv": "int8"}


def test_of_several_kernels_the_least_quantised_decides():
    half = short("__myl_Corr_myl0_3", "runtime_fusion", ["Half"], ["Half[8,8,1,1]"], nodes=["/a/Conv"])
    int8 = short("__myl_Corr_myl0_4", "runtime_fusion", ["Int8"], ["Int8[8,8,1,1]"], nodes=["/a/Conv"])
    for lines in ([half, int8], [int8, half]):
        assert assign_nodes(parse_layers(listing(*lines)), ["/a/Conv"]) == {"/a/Conv": "fp16"}


def test_nodes_that_differ_only_in_a_dot_are_not_confused_for_the_better():
    layers = parse_layers(
        listing(
            short("/l1_0/Conv_myl0_1", "correlation", ["Int8"], ["Int8[8,8,1,1]"]),
            short("/l1_0/Conv_myl0_2", "correlation", ["Half"], ["Half[8,8,1,1]"]),
        )
    )
    assert assign_nodes(layers, ["/l1.0/Conv", "/l1_0/Conv"]) == {"/l1.0/Conv": "fp16", "/l1_0/Conv": "fp16"}


def test_other_text_gives_no_layers():
    assert parse_layers("Layers:\n{ForeignNode[a...b]}\n") == ()
    assert parse_layers("") == ()
