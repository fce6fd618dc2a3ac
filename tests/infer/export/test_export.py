"""Triton repositories, parsed by Triton's own protobuf, and DeepStream folders."""

from __future__ import annotations

import configparser
import shutil
import subprocess
from pathlib import Path

import msgspec
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format
from triton_configs import PLAN, change, parse, with_plan
from tritonclient.grpc import model_config_pb2
from typer.testing import CliRunner

from infer.bundle import BatchProfile, file_entry, read_labels, read_manifest, write_manifest
from infer.bundle.preprocessing import Preprocessing
from infer.errors import BundleError, InputError, UntrainedError
from infer.export.cli import app
from infer.export.deepstream import DeepStreamOptions, centre, export_deepstream
from infer.export.triton import TritonOptions, export_triton

HEADERS = Path(__file__).resolve().parents[2] / "deepstream_headers"


def test_a_tensorrt_model(bundle, tmp_path):
    folder = export_triton(bundle, tmp_path / "repository")
    answers = read_manifest(bundle).known_answers
    count = answers.images if answers else 0
    assert folder == tmp_path / "repository" / "tiny-fp32"
    assert sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()) == [
        "1/model.plan",
        "config.pbtxt",
        "labels.txt",
        *[f"warmup/known_answer_{number}" for number in range(count)],
    ]
    assert (folder / "1/model.plan").read_bytes() == PLAN
    config, text = parse(folder)
    assert (config.name, config.platform, config.max_batch_size) == (folder.name, "tensorrt_plan", 128)
    [image] = config.input
    assert (image.name, image.data_type, list(image.dims)) == ("images", model_config_pb2.TYPE_UINT8, [32, 32, 3])
    assert image.format == model_config_pb2.ModelInput.FORMAT_NHWC
    assert [(out.name, out.data_type, list(out.dims), out.label_filename) for out in config.output] == [
        ("logits", model_config_pb2.TYPE_FP32, [10], "labels.txt"),
        ("scores", model_config_pb2.TYPE_FP32, [5], ""),
        ("classes", model_config_pb2.TYPE_INT32, [5], ""),
    ]
    assert list(config.dynamic_batching.preferred_batch_size) == []  # the plan has one profile
    policy = config.dynamic_batching.default_queue_policy
    assert (policy.max_queue_size, policy.default_timeout_microseconds) == (8 * 128, 10_000_000)
    assert not config.optimization.graph.level
    assert config.dynamic_batching.max_queue_delay_microseconds == 100
    [group] = config.instance_group
    assert (group.count, group.kind) == (2, model_config_pb2.ModelInstanceGroup.KIND_GPU)
    spec = msgspec.json.decode(config.parameters["preprocessing"].string_value, type=Preprocessing)
    assert (spec.resize, spec.crop) == (32, 32)
    assert config.parameters["trained"].string_value == "true"
    assert "TensorRT 11.4.0, and NVIDIA L4." in text
    labels = (folder / "labels.txt").read_text().splitlines()
    assert labels == read_labels(bundle, read_manifest(bundle))


def test_an_openvino_model(own, tiny, tmp_path):
    folder = export_triton(own(tiny), tmp_path, TritonOptions(name="cpu.model"))
    assert folder.name == "cpu.model"
    config, _ = parse(folder)
    assert (config.backend, config.platform, config.max_batch_size) == ("openvino", "", 8)
    assert config.parameters["ENABLE_BATCH_PADDING"].string_value == "YES"
    assert "HINT_BF16" not in config.parameters
    assert config.instance_group[0].kind == model_config_pb2.ModelInstanceGroup.KIND_CPU
    import openvino

    model = openvino.Core().read_model(folder / "1/model.xml")
    assert model.input(0).any_name == "images"
    assert {output.any_name for output in model.outputs} == {output.name for output in config.output}


def test_openvino_keeps_the_bf16_hint(own, tiny, tmp_path):
    folder = own(tiny)
    manifest = read_manifest(folder)
    manifest.plans[0].options = {"INFERENCE_PRECISION_HINT": "bf16"}
    write_manifest(folder, manifest)
    config, _ = parse(export_triton(folder, tmp_path))
    assert config.parameters["HINT_BF16"].string_value == "YES"


def test_an_onnxruntime_model(bundle, tmp_path):
    folder = export_triton(bundle, tmp_path, TritonOptions(target="onnxruntime", instances=3, queue_delay=7))
    config, _ = parse(folder)
    assert (config.platform, config.max_batch_size) == ("onnxruntime_onnx", 128)
    assert (folder / "1/model.onnx").read_bytes() == (bundle / "model.onnx").read_bytes()
    assert (config.instance_group[0].count, config.dynamic_batching.max_queue_delay_microseconds) == (3, 7)
    import onnxruntime

    session = onnxruntime.InferenceSession(folder / "1/model.onnx", providers=["CPUExecutionProvider"])
    assert [output.name for output in session.get_outputs()] == [output.name for output in config.output]


def test_portable_plans_say_where_they_run(own, tiny, tmp_path):
    folder = with_plan(own(tiny), gpu="NVIDIA L4", version_compatible=True, hardware_compatible=True)
    _, text = parse(export_triton(folder, tmp_path))
    assert "or later of the same major version, and any GPU from compute capability 8.0." in text


def test_links_share_the_file(bundle, tmp_path, monkeypatch):
    linked = export_triton(bundle, tmp_path / "a", TritonOptions(link=True))
    assert (linked / "1/model.plan").samefile(bundle / "tensorrt.plan")
    copied = export_triton(bundle, tmp_path / "b")
    assert not (copied / "1/model.plan").samefile(bundle / "tensorrt.plan")

    def refuse(source, destination):
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr("os.link", refuse)
    with pytest.raises(InputError, match=r"cross-device link.*without --link"):
        export_triton(bundle, tmp_path / "c", TritonOptions(link=True))
    assert list((tmp_path / "c").iterdir()) == []


def test_a_model_is_replaced_and_other_folders_are_not(bundle, tmp_path):
    folder = export_triton(bundle, tmp_path)
    (folder / "stale").touch()
    assert export_triton(bundle, tmp_path) == folder
    assert not (folder / "stale").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").touch()
    with pytest.raises(InputError, match="is no Triton model"):
        export_triton(bundle, tmp_path, TritonOptions(name="mine"))
    assert (tmp_path / "mine" / "thesis.txt").exists()


def test_a_damaged_plan_is_not_exported(bundle, tmp_path):
    (bundle / "tensorrt.plan").write_bytes(PLAN[:-1] + b"?")
    with pytest.raises(BundleError, match="the file changed"):
        export_triton(bundle, tmp_path)
    assert list(tmp_path.glob("tiny*")) == []


def test_untrained_bundles_need_a_word(bundle, tmp_path):
    manifest = read_manifest(bundle)
    manifest.model.trained = False
    write_manifest(bundle, manifest)
    for export in (export_triton, export_deepstream):
        with pytest.raises(UntrainedError, match="random weights"):
            export(bundle, tmp_path / "out")
        assert not (tmp_path / "out").exists() or list((tmp_path / "out").iterdir()) == []
    config, text = parse(export_triton(bundle, tmp_path / "out", TritonOptions(allow_untrained=True)))
    assert config.parameters["trained"].string_value == "false" and "UNTRAINED" in text
    folder = export_deepstream(bundle, tmp_path / "ds", DeepStreamOptions(allow_untrained=True))
    assert "UNTRAINED" in (folder / "README.txt").read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "../up"}, "name: expected letters"),
        ({"name": ""}, "name: expected letters"),
        ({"target": "tensorrt_rtx"}, "TensorRT-RTX plans cannot be loaded by Triton"),
        ({"target": "torch"}, "expected one of tensorrt, openvino, onnxruntime, found 'torch'"),
        ({"instances": 0}, "at least 1 instance"),
        ({"queue_delay": -1}, "no negative delay"),
    ],
)
def test_triton_options(options, message):
    with pytest.raises(InputError, match=message):
        TritonOptions(**options)


def test_a_plan_without_batches_of_one(bundle, tmp_path):
    change(bundle, batch=BatchProfile(min=4, opt=8, max=16))
    with pytest.raises(BundleError, match="takes them from 4"):
        export_triton(bundle, tmp_path)
    assert parse(export_triton(bundle, tmp_path, TritonOptions(target="openvino")))[0].max_batch_size == 8


def test_names_with_quotes_survive(bundle, tmp_path):
    manifest = read_manifest(bundle)
    manifest.precision = 'fp"32\\'
    write_manifest(bundle, manifest)
    config, _ = parse(export_triton(bundle, tmp_path, TritonOptions(name="x")))
    assert config.parameters["precision"].string_value == 'fp"32\\'


# DeepStream: message to its fields, (name, number, type), as published in nvdsinferserver_{plugin,config,common}.proto.
FIELDS = {
    "Scale": [("scale_factor", 1, "float")],
    "Classification": [("threshold", 1, "float"), ("custom_parse_classifier_func", 2, "string")],
    "Post": [("labelfile_path", 1, "string"), ("classification", 3, "Classification")],
    "Pre": [
        ("network_format", 1, "MediaFormat"),
        ("tensor_order", 2, "TensorOrder"),
        ("tensor_name", 3, "string"),
        ("maintain_aspect_ratio", 4, "int32"),
        ("frame_scaling_hw", 5, "FrameScalingHW"),
        ("frame_scaling_filter", 6, "uint32"),
        ("normalize", 7, "Scale"),
    ],
    "Repo": [("root", 1, "*string"), ("strict_model_config", 3, "bool")],
    "Triton": [("model_name", 1, "string"), ("version", 2, "int64"), ("model_repo", 4, "Repo")],
    "Backend": [("triton", 4, "Triton"), ("output_mem_type", 5, "MemoryType")],
    "Library": [("path", 1, "string")],
    "Infer": [
        ("unique_id", 1, "uint32"),
        ("gpu_ids", 2, "*int32"),
        ("max_batch_size", 3, "uint32"),
        ("backend", 4, "Backend"),
        ("preprocess", 5, "Pre"),
        ("postprocess", 6, "Post"),
        ("custom_lib", 7, "Library"),
    ],
    "Input": [("process_mode", 1, "ProcessMode")],
    "Control": [("infer_config", 1, "Infer"), ("input_control", 2, "Input")],
}
ENUMS = {
    "MediaFormat": ["MEDIA_FORMAT_NONE", "IMAGE_FORMAT_RGB", "IMAGE_FORMAT_BGR", "IMAGE_FORMAT_GRAY"],
    "TensorOrder": ["TENSOR_ORDER_NONE", "TENSOR_ORDER_LINEAR", "TENSOR_ORDER_NHWC"],
    "FrameScalingHW": ["FRAME_SCALING_HW_DEFAULT", "FRAME_SCALING_HW_GPU", "FRAME_SCALING_HW_VIC"],
    "MemoryType": ["MEMORY_TYPE_DEFAULT", "MEMORY_TYPE_CPU", "MEMORY_TYPE_GPU"],
    "ProcessMode": ["PROCESS_MODE_DEFAULT", "PROCESS_MODE_FULL_FRAME", "PROCESS_MODE_CLIP_OBJECTS"],
}


def plugin_control():
    """An empty message of nvinferserver's configuration."""
    kinds = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="nvdsinferserver.proto", package="ds", syntax="proto3")
    for name, values in ENUMS.items():
        file.enum_type.add(name=name).value.extend(
            descriptor_pb2.EnumValueDescriptorProto(name=value, number=number) for number, value in enumerate(values)
        )
    for name, fields in FIELDS.items():
        message = file.message_type.add(name=name)
        for field, number, kind in fields:
            label = kinds.LABEL_REPEATED if kind.startswith("*") else kinds.LABEL_OPTIONAL
            plain = kind.lstrip("*")
            added = message.field.add(name=field, number=number, label=label)
            if plain in FIELDS or plain in ENUMS:
                added.type = kinds.TYPE_MESSAGE if plain in FIELDS else kinds.TYPE_ENUM
                added.type_name = f".ds.{plain}"
            else:
                added.type = getattr(kinds, f"TYPE_{plain.upper()}")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("ds.Control"))()


def read_ini(path):
    parser = configparser.ConfigParser(interpolation=None)
    parser.read_string(path.read_text())
    return {section: dict(parser[section]) for section in parser.sections()}


def test_a_deepstream_folder(bundle, tmp_path):
    change(bundle, preprocessing=msgspec.structs.replace(read_manifest(bundle).preprocessing, resize=40))
    folder = export_deepstream(bundle, tmp_path / "ds", DeepStreamOptions(1280, 720, sources=3, threshold=0.25))
    model = folder / "triton" / "tiny-fp32"
    assert (model / "1/model.plan").read_bytes() == PLAN
    assert parse(model)[0].platform == "tensorrt_plan"

    control = text_format.Parse((folder / "config_nvinferserver.txt").read_text(), plugin_control())
    infer = control.infer_config
    assert (infer.backend.triton.model_name, infer.max_batch_size) == (model.name, 3)
    assert (folder / infer.backend.triton.model_repo.root[0] / model.name / "config.pbtxt").is_file()
    assert (infer.preprocess.network_format, infer.preprocess.tensor_order) == (1, 2)
    assert infer.preprocess.tensor_name == "images" and infer.preprocess.normalize.scale_factor == 1
    assert infer.postprocess.classification.custom_parse_classifier_func == "IResNetParseClassifier"
    assert infer.postprocess.classification.threshold == 0.25

    nvinfer = read_ini(folder / "config_nvinfer.txt")["property"]
    assert (folder / nvinfer["model-engine-file"]).read_bytes() == PLAN
    assert nvinfer["input-tensor-from-meta"] == nvinfer["network-input-order"] == nvinfer["network-type"] == "1"
    assert (nvinfer["infer-dims"], nvinfer["batch-size"]) == ("3;32;32", "3")

    preprocess = read_ini(folder / "config_nvdspreprocess.txt")
    tensor, group = preprocess["property"], preprocess["group-0"]
    assert (tensor["network-input-shape"], tensor["tensor-name"]) == ("3;32;32;3", "images")
    assert (tensor["tensor-data-type"], tensor["network-input-order"], tensor["network-color-format"]) == (
        "1",
        "1",
        "0",
    )
    assert tensor["target-unique-ids"] == nvinfer["gie-unique-id"] == str(infer.unique_id)
    # 720 * 32 / 40 is 576, from the middle of 1280 x 720.
    assert group["src-ids"] == "0;1;2"
    assert {group[f"roi-params-src-{number}"] for number in range(3)} == {"352;72;576;576"}
    readme = (folder / "README.txt").read_text()
    assert "src-crop=352:72:576:576" in readme and "float32 only" in readme
    # "process-on-roi" has to stand before the regions, as DeepStream reads in order.
    text = (folder / "config_nvdspreprocess.txt").read_text()
    assert text.index("process-on-roi") < text.index("roi-params-src-0")


@pytest.mark.parametrize(
    ("frame", "spec", "expected"),
    [
        ((1920, 1080), (256, 224), (488, 68, 944, 3)),
        ((1080, 1920), (256, 224), (68, 488, 944, 3)),
        ((256, 256), (256, 224), (16, 16, 224, 1)),
        ((100, 80), (64, 64), (10, 0, 80, 3)),
        ((33, 35), (64, 64), (0, 0, 32, 1)),
    ],
)
def test_the_square_that_the_network_sees(tiny, frame, spec, expected):
    manifest = read_manifest(tiny)
    manifest.preprocessing = msgspec.structs.replace(manifest.preprocessing, resize=spec[0], crop=spec[1])
    square = centre(manifest, *frame)
    assert (square.left, square.top, square.side, square.filter) == expected


def test_what_deepstream_cannot_do(bundle, own, tiny, tmp_path):
    with pytest.raises(BundleError, match="no plan for tensorrt"):
        export_deepstream(tiny, tmp_path / "ds")
    with pytest.raises(InputError, match="sources: the plan takes batches of 1 to 128, found 129"):
        export_deepstream(bundle, tmp_path / "ds", DeepStreamOptions(sources=129))
    with pytest.raises(InputError, match="1 x 1 pixels are too small"):
        export_deepstream(bundle, tmp_path / "ds", DeepStreamOptions(1, 1))
    with pytest.raises(InputError, match="threshold"):
        DeepStreamOptions(threshold=2)
    with pytest.raises(InputError, match="found 0 x 5 and 1 sources"):
        DeepStreamOptions(0, 5)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").touch()
    with pytest.raises(InputError, match="holds other files"):
        export_deepstream(bundle, tmp_path / "full")
    change(bundle, preprocessing=msgspec.structs.replace(read_manifest(bundle).preprocessing, resize=16))
    with pytest.raises(InputError, match="pads pictures from 16 to 32"):
        export_deepstream(bundle, tmp_path / "ds")
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "own") == ["full"]


def test_a_deepstream_folder_is_replaced(bundle, tmp_path):
    folder = export_deepstream(bundle, tmp_path / "ds")
    (folder / "stale").touch()
    export_deepstream(bundle, folder, DeepStreamOptions(link=True))
    assert not (folder / "stale").exists()
    assert (folder / "triton/tiny-fp32/1/model.plan").samefile(bundle / "tensorrt.plan")


@pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler")
def test_the_probe_reads_the_region_of_interest_and_not_an_object(bundle, tmp_path):
    folder = export_deepstream(bundle, tmp_path / "ds")
    assert "NvDsRoiMeta.classifier_meta_list" in (folder / "README.txt").read_text()
    strict = ["c++", "-std=c++17", "-Wall", "-Wextra", "-Wconversion", "-Werror", "-fsanitize=address,undefined", "-g"]
    sources = [folder / "iresnet_probe.cpp", HEADERS / "drive_probe.cpp"]
    subprocess.run([*strict, f"-I{HEADERS}", *sources, "-o", tmp_path / "drive"], check=True)
    done = subprocess.run([tmp_path / "drive"], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        "regions",
        "source 2 frame 41 region 420:0:1080:1080 class 3 0.7500 bird",
        "source 2 frame 41 region 420:0:1080:1080 class 8 0.5000 a name in memory of its own",
        "plain",
        "source 2 frame 41 frame 1:2:30:40 class 1 0.9000 car",
        "prepared for another",
        "source 2 frame 41 frame 1:2:30:40 class 1 0.9000 car",
        "nothing",
    ]


@pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler")
def test_the_exported_library_does_what_deepstream_asks(bundle, tmp_path):
    """Compiled against declarations of DeepStream's interface whose device is the host."""
    labels = ['say "hi" \\ there', "ブーツ", *(f"class {number}" for number in range(2, 10))]
    (bundle / "labels.txt").write_text("\n".join(labels) + "\n", encoding="utf-8")
    change(bundle, labels=file_entry(bundle, "labels.txt"))
    folder = export_deepstream(bundle, tmp_path / "ds")
    sources = [folder / "iresnet_parser.cpp", folder / "iresnet_tensor.cpp", HEADERS / "drive.cpp"]
    strict = ["c++", "-std=c++17", "-Wall", "-Wextra", "-Werror", "-fsanitize=address,undefined", "-g"]
    subprocess.run([*strict, f"-I{HEADERS}", *sources, "-o", tmp_path / "drive"], check=True)
    done = subprocess.run([tmp_path / "drive"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[:6] == [
        "parse 1 [ブーツ ] 0 1 0.75 ブーツ",
        "parse 1 []",
        "parse 0 []",
        "parse 0 []",
        "parse 0 []",
        "init 0 0",
    ]
    packed = " ".join(map(str, [*range(36), 200, 200, 200, 200]))
    untouched = " ".join(["200"] * 40)
    assert lines[6:8] == [f"prepare 0 1 2 {packed}"] * 2
    assert lines[8] == f"prepare 1 0 4 {untouched}"
    assert lines[9].startswith("prepare 7 0 4 ")
    assert lines[10] == "transform 0 1"


def test_commands(bundle, tmp_path):
    run = CliRunner().invoke
    done = run(app, ["triton", str(bundle), str(tmp_path / "r"), "--name", "net", "--instances", "1"])
    assert (done.exit_code, done.stdout) == (0, f"{tmp_path / 'r' / 'net'}\n")
    assert parse(tmp_path / "r" / "net")[0].instance_group[0].count == 1
    done = run(app, ["deepstream", str(bundle), str(tmp_path / "d"), "--frames", "640x480", "--link"])
    assert done.exit_code == 0 and "640 x 480" in (tmp_path / "d" / "README.txt").read_text()
    for arguments, message in (
        (["triton", str(bundle), str(tmp_path / "r"), "-t", "tensorrt_rtx"], "cannot be loaded by Triton"),
        (["deepstream", str(bundle), str(tmp_path / "d"), "--frames", "640"], "--frames: expected WIDTHxHEIGHT"),
        (["triton", str(tmp_path), str(tmp_path / "r")], "is not a bundle"),
    ):
        done = run(app, arguments)
        assert done.exit_code != 0 and message in done.stderr and done.stderr.count("\n") == 1
