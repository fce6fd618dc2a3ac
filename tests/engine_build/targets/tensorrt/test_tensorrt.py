"""Real builds with TensorRT-RTX, which needs no GPU, and the same code behind the names of TensorRT 10 and 11."""

import ctypes
import hashlib
import importlib
import signal
import sys

import numpy as np
import pytest
from onnx import TensorProto, helper
from rich.progress import Progress
from trt_graphs import MACS, TinyClassifier, save_nodes
from trt_posing import PlayedDriver, PosingModule

from engine_build.targets.audit import PlanAudit, require_precision
from engine_build.targets.tensorrt import BatchProfile, PlanRequest, build_plan, why_unavailable
from engine_build.targets.tensorrt import logging as trt_logging
from engine_build.targets.tensorrt import module as trt_module
from engine_build.targets.tensorrt.request import parse_capability
from infer.backends.cuda.gpus import Gpu, find_gpus
from infer.errors import BuildError, InputError, TargetUnavailableError

RTX = "tensorrt_rtx"
pytest.importorskip(RTX, reason="TensorRT-RTX is not installed")


def request_for(graph, folder, **options):
    options.setdefault("profile", BatchProfile(1, 4, 8))
    return PlanRequest(graph=graph, plan=folder / "out.plan", **options)


def build(graph, folder, target=RTX, **options):
    return build_plan(target, request_for(graph, folder, **options), progress=False)


@pytest.fixture(scope="module")
def graphs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("graphs")
    return {precision: TinyClassifier(precision).save(folder / f"{precision}.onnx") for precision in
            ("fp32", "fp16", "bf16", "int8", "fp8")}  # fmt: skip


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "int8", "fp8"])
def test_every_precision_runs_as_the_graph_says(graphs, tmp_path, precision):
    built = build(graphs[precision], tmp_path)
    assert built.audit.node_precisions == dict.fromkeys(MACS, precision)
    content = built.file.read_bytes()
    assert built.size_bytes == len(content) == built.audit.engine_bytes
    assert built.sha256 == hashlib.sha256(content).hexdigest()
    assert built.version == importlib.import_module(RTX).__version__
    assert built.gpu is None
    assert built.notes == ()
    assert [path.name for path in tmp_path.iterdir()] == ["out.plan"]
    oldest = built.compute_capabilities[0]
    assert oldest == ("8.9" if precision == "fp8" else "8.0")
    assert "7.5" not in built.compute_capabilities


def test_audit_of_a_real_plan(graphs, tmp_path):
    audit = build(graphs["int8"], tmp_path).audit
    assert audit.widening == 4, "the int8 kernels of TensorRT-RTX write floating point"
    assert audit.batch == 4
    assert 10_000 < audit.weight_bytes < 20_000  # about 7,000 int8 weights, and scales
    assert audit.activation_bytes > 8 * 32 * 16 * 16 * 4  # the largest tensor at the largest batch
    assert {layer.kind for layer in audit.layers} >= {"mac", "other", "sync"}
    assert audit.layers[1].inputs[0].name == "images"
    assert audit.layers[1].inputs[0].shape == (-1, 16, 16, 3)
    assert audit.layers[-1].outputs[0].name == "logits"
    assert PlanAudit.from_record(audit.record()) == audit


def test_fp16_moves_half_the_bytes_of_fp32(graphs, tmp_path):
    full, half = (build(graphs[p], tmp_path).audit.dram_bytes_per_image() for p in ("fp32", "fp16"))
    assert 0.45 < half / full < 0.6


def test_scale_of_shape_1_silently_stays_floating_point_and_the_gate_says_so(tmp_path):
    graph = TinyClassifier("int8", scale_shape=(1,)).save(tmp_path / "vector.onnx")
    audit = build(graph, tmp_path).audit  # accepted, without a word
    assert [audit.node_precisions[node] for node in MACS[:3]] == ["fp32"] * 3
    (tmp_path / "out.plan").unlink()
    with pytest.raises(BuildError, match=r"found 1; not int8: /conv0/Conv \(fp32\)"):
        build_plan(
            RTX,
            request_for(graph, tmp_path),
            progress=False,
            gate=lambda audit: require_precision(audit, list(MACS), "int8"),
        )
    assert not (tmp_path / "out.plan").exists()


def test_gate_passes_mixed_precision_where_only_some_nodes_are_int8(tmp_path):
    graph = TinyClassifier("int8", plain=("/conv1/Conv",)).save(tmp_path / "mixed.onnx")
    audit = build(graph, tmp_path).audit
    assert audit.node_precisions == {**dict.fromkeys(MACS, "int8"), "/conv1/Conv": "fp32"}
    require_precision(audit, ["/conv0/Conv", "/conv2/Conv", "/fc/Gemm"], "int8")


def test_nodes_without_names_are_found(tmp_path):
    graph = TinyClassifier(named=False).save(tmp_path / "unnamed.onnx")
    assert build(graph, tmp_path).audit.node_precisions == dict.fromkeys(
        ("node_of_y0", "node_of_y1", "node_of_y2", "node_of_lg"), "fp32"
    )


def test_real_network_has_a_kernel_for_each_of_its_54_products(tmp_path):
    torch = pytest.importorskip("torch")
    from engine_build.network.zoo import create_model

    graph = tmp_path / "narrow.onnx"
    torch.onnx.export(
        create_model("iresnet50_fashion"), (torch.zeros(2, 3, 64, 64),), str(graph), input_names=["any_name"],
        dynamic_axes={"any_name": {0: "N"}}, opset_version=17, dynamo=False,
    )  # fmt: skip
    audit = build(graph, tmp_path).audit
    assert audit.mac_precisions() == {"fp32": 54}


# --- requests and failures -------------------------------------------------------------------------------------------


def test_batch_profile_is_checked(tmp_path):
    for sizes in [(0, 1, 1), (2, 1, 4), (1, 8, 4)]:
        with pytest.raises(InputError, match="1 <= min <= opt <= max"):
            PlanRequest(tmp_path / "g.onnx", tmp_path / "g.plan", BatchProfile(*sizes))


@pytest.mark.parametrize(
    "option", [{"optimization_level": 6}, {"workspace": 0}, {"max_aux_streams": -1}, {"avg_timing_iterations": 0}]
)
def test_options_out_of_range_are_refused(tmp_path, option):
    with pytest.raises(InputError, match="expected"):
        request_for(tmp_path / "x.onnx", tmp_path, **option)


def test_options_reach_the_builder(graphs, tmp_path):
    built = build(
        graphs["int8"], tmp_path, workspace=1 << 30, optimization_level=1, max_aux_streams=0, avg_timing_iterations=2,
        tf32=False, version_compatible=True, compute_capabilities=("sm86", "12.0", "8.6"),
    )  # fmt: skip
    assert built.compute_capabilities == ("8.6", "12.0")
    assert built.audit.mac_precisions() == {"int8": 4}


@pytest.mark.parametrize(
    ("text", "number"), [("8.6", "8.6"), ("86", "8.6"), ("SM_120", "12.0"), ("sm121", "12.1"), ("Current", "current")]
)
def test_spellings_of_a_compute_capability(text, number):
    assert parse_capability(text) == number


@pytest.mark.parametrize(
    ("capabilities", "message"),
    [
        (("9.0",), r"builds for 7\.5, 8\.0, .*found 9\.0; other GPUs need the target tensorrt"),
        ((), "found none"),
        (("8.6", "current"), "current alone"),
        (("ampere",), "expected a form like 8.6"),
    ],
)
def test_unknown_compute_capabilities_are_refused(graphs, tmp_path, capabilities, message):
    with pytest.raises(InputError, match=message):
        build(graphs["fp32"], tmp_path, compute_capabilities=capabilities)


def test_current_gpu_needs_one(graphs, tmp_path, monkeypatch):
    use_driver(monkeypatch, None)
    with pytest.raises(InputError, match=r"driver is not installed.*for example 8\.9"):
        build(graphs["fp32"], tmp_path, compute_capabilities=("current",))


def nodes_graph(folder, *nodes, **options):
    return save_nodes(folder / "graph.onnx", nodes, **options)


def test_parser_error_names_the_node(tmp_path):
    transpose = helper.make_node("Transpose", ["images"], ["t"], name="/early/Transpose", perm=[0, 3, 1, 2])
    cast = helper.make_node("Cast", ["t"], ["y"], name="/Cast", to=TensorProto.FLOAT)
    graph = nodes_graph(tmp_path, transpose, cast, shape=("N", 8, 8, 3), dtype=TensorProto.UINT8)
    with pytest.raises(BuildError) as caught:
        build(graph, tmp_path)
    message = str(caught.value)
    assert "could not parse graph.onnx: node '/early/Transpose' (Transpose)" in message
    assert "Cast the uint8 input to a floating-point type" in message
    assert "CUDA" not in message, "that there is no GPU is no part of this failure"
    assert "\n" not in message


def test_unknown_operator_is_named(tmp_path):
    graph = nodes_graph(tmp_path, helper.make_node("Frobnicate", ["images"], ["y"], name="odd", domain="custom"))
    with pytest.raises(BuildError, match=r"node 'odd' \(Frobnicate\).*Plugin not found") as caught:
        build(graph, tmp_path)
    assert "ModelImporter" not in str(caught.value), "the parser's own position is no use to anyone"


def test_non_zero_zero_point_is_refused_by_the_parser(tmp_path):
    graph = nodes_graph(
        tmp_path,
        helper.make_node("QuantizeLinear", ["images", "s", "z"], ["q"], name="Q"),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"], name="DQ"),
        initializers={"s": np.float32(0.1), "z": np.int8(3)},
    )
    with pytest.raises(BuildError, match=r"node 'Q' \(QuantizeLinear\).*Non-zero zero point"):
        build(graph, tmp_path)


@pytest.mark.parametrize(
    ("precision", "options", "message"),
    [
        ("fp32", {"workspace": 1024}, r"could not build .*workspace limit.*Give it more workspace"),
        ("fp32", {"compute_capabilities": ("7.5", "8.6")}, r"/fc/Gemm.*Turing.*Leave compute capability 7\.5 out"),
        ("fp8", {"compute_capabilities": ("8.6",)}, r"fp8_e4m3.*needs compute capability 8\.9"),
    ],
)
def test_builder_failures_say_why_and_what_to_do(graphs, tmp_path, precision, options, message):
    (tmp_path / "out.plan").write_bytes(b"the plan of before")
    with pytest.raises(BuildError, match=message):
        build(graphs[precision], tmp_path, **options)
    assert (tmp_path / "out.plan").read_bytes() == b"the plan of before"
    assert len(list(tmp_path.iterdir())) == 1


def test_dynamic_height_is_refused(tmp_path):
    graph = nodes_graph(tmp_path, helper.make_node("Relu", ["images"], ["y"]), shape=("N", 3, "H", 8))
    with pytest.raises(InputError, match=r"'images'.*found shape \[-1, 3, -1, 8\]"):
        build(graph, tmp_path)


def test_fixed_batch_needs_the_profile_of_that_batch(tmp_path):
    graph = TinyClassifier(batch=4).save(tmp_path / "fixed.onnx")
    with pytest.raises(InputError, match="fixed batch 4: expected the batch profile 4/4/4, found 1/4/8"):
        build(graph, tmp_path)
    assert build(graph, tmp_path, profile=BatchProfile(4, 4, 4)).audit.layers[-1].outputs[0].shape == (4, 10)


@pytest.mark.parametrize("content", [b"no protobuf at all, just text", None])
def test_a_graph_that_is_none(tmp_path, content):
    graph = tmp_path / "graph.onnx"
    if content is not None:
        graph.write_bytes(content)
    with pytest.raises(InputError, match="expected an ONNX file"):
        build(graph, tmp_path)


def test_missing_external_weights_are_named(graphs, tmp_path):
    import onnx

    graph, weights = tmp_path / "graph.onnx", tmp_path / "weights.bin"
    model = onnx.load(str(graphs["fp32"]))
    onnx.save(model, str(graph), save_as_external_data=True, location=weights.name, size_threshold=0)
    assert build(graph, tmp_path).audit.mac_precisions() == {"fp32": 4}
    weights.unlink()
    with pytest.raises(BuildError, match=r"Failed to import initializer.*weights\.bin"):
        build(graph, tmp_path)


def test_options_of_the_other_target_are_refused(graphs, tmp_path):
    with pytest.raises(InputError, match="hardware_compatible is not for tensorrt_rtx"):
        build(graphs["fp32"], tmp_path, hardware_compatible=True)
    with pytest.raises(InputError, match=r"expected .*nowhere to exist"):
        build(graphs["fp32"], tmp_path / "nowhere")
    with pytest.raises(InputError, match="expected one of tensorrt, tensorrt_rtx"):
        build(graphs["fp32"], tmp_path, target="openvino")


def test_a_plan_that_cannot_be_written_leaves_nothing(graphs, tmp_path):
    (tmp_path / "out.plan").mkdir()  # a folder cannot be replaced by a file
    with pytest.raises(BuildError, match=r"could not be written to .*out\.plan"):
        build(graphs["fp32"], tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["out.plan"]


def test_rtx_says_that_it_keeps_no_timing_cache(graphs, tmp_path):
    built = build(graphs["fp32"], tmp_path, timing_cache=tmp_path / "timing.cache")
    assert "times no kernels when it builds" in built.notes[0]
    assert not (tmp_path / "timing.cache").exists()


# --- progress and Ctrl-C ---------------------------------------------------------------------------------------------


class Watcher(Progress):
    """A rich Progress that keeps what it was told and calls ``at`` once half the build is done."""

    def __init__(self, at=lambda: None):
        super().__init__(disable=True)
        self.fractions, self.phases, self._at, self._called = [], set(), at, False

    def update(self, task_id, *, completed=None, phase="", **fields):
        self.fractions.append(completed)
        self.phases.add(phase)
        if completed > 0.5 and not self._called:
            self._called = True
            self._at()


def test_progress_rises_to_the_end(graphs, tmp_path):
    watcher = Watcher()
    build_plan(RTX, request_for(graphs["int8"], tmp_path), progress=watcher)
    assert watcher.fractions == sorted(watcher.fractions)
    assert len(set(watcher.fractions)) > 50
    assert watcher.fractions[-1] == 1.0
    assert "Building engine" in watcher.phases


def test_nothing_is_printed_without_a_terminal(graphs, tmp_path, capfd):
    build_plan(RTX, request_for(graphs["fp32"], tmp_path))
    assert capfd.readouterr() == ("", "")


def test_ctrl_c_in_the_middle_of_a_build(graphs, tmp_path):
    before = signal.getsignal(signal.SIGINT)
    undisturbed = Watcher()
    build_plan(RTX, request_for(graphs["int8"], tmp_path), progress=undisturbed).file.unlink()
    watcher = Watcher(at=lambda: signal.raise_signal(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        build_plan(RTX, request_for(graphs["int8"], tmp_path), progress=watcher)
    assert 10 < len(watcher.fractions) < len(undisturbed.fractions) - 10, "TensorRT stopped early"
    assert list(tmp_path.iterdir()) == []
    assert signal.getsignal(signal.SIGINT) is before
    assert build(graphs["int8"], tmp_path).size_bytes > 0, "the next build is not affected"


def test_an_error_of_the_display_is_raised_and_leaves_no_plan(graphs, tmp_path):
    def fail():
        raise OSError("terminal gone")

    with pytest.raises(OSError, match="terminal gone"):
        build_plan(RTX, request_for(graphs["int8"], tmp_path), progress=Watcher(at=fail))
    assert list(tmp_path.iterdir()) == []


# --- TensorRT 10 and 11 ----------------------------------------------------------------------------------------------


def use_driver(monkeypatch, driver):
    real = ctypes.CDLL

    def load(name, *args, **kwargs):
        if name not in ("libcuda.so.1", "nvcuda.dll"):
            return real(name, *args, **kwargs)
        if driver is None:
            raise OSError(f"{name}: cannot open shared object file")
        return driver

    monkeypatch.setattr(ctypes, "CDLL", load)


@pytest.fixture(params=["10.16", "11.4"])
def full(request, monkeypatch):
    """TensorRT 10 or 11 with one GPU, played by TensorRT-RTX."""
    module = PosingModule(request.param)
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    use_driver(monkeypatch, PlayedDriver([("NVIDIA L4", (8, 9)), ("NVIDIA T4", (7, 5))]))
    return module


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_full_tensorrt_builds_for_the_gpu_it_finds(full, graphs, tmp_path, precision):
    built = build(graphs[precision], tmp_path, target="tensorrt", hardware_compatible=True, version_compatible=True)
    assert built.version == full.__version__
    assert built.gpu == Gpu("NVIDIA L4", "8.9")
    assert built.compute_capabilities == ("8.9",)
    assert built.audit.mac_precisions() == {precision: 4}
    assert full.calls == [("set_flag", "VERSION_COMPATIBLE"), ("hardware_compatibility_level", "AMPERE_PLUS")]


def test_full_tensorrt_parser_errors(full, tmp_path):
    graph = nodes_graph(tmp_path, helper.make_node("Frobnicate", ["images"], ["y"], name="odd", domain="custom"))
    with pytest.raises(BuildError, match=rf"tensorrt {full.__version__} could not parse.*'odd' \(Frobnicate\)"):
        build(graph, tmp_path, target="tensorrt")


def test_full_tensorrt_takes_no_compute_capabilities(full, graphs, tmp_path):
    with pytest.raises(InputError, match="compute capabilities are for tensorrt_rtx"):
        build(graphs["fp32"], tmp_path, target="tensorrt", compute_capabilities=("8.6",))


def test_timing_cache_is_kept_between_builds(full, graphs, tmp_path):
    cache = tmp_path / "new folder" / "timing.cache"
    first = build(graphs["fp32"], tmp_path, target="tensorrt", timing_cache=cache)
    assert cache.read_bytes() == b"timings of this gpu: one more build"
    second = build(graphs["fp32"], tmp_path, target="tensorrt", timing_cache=cache)
    assert cache.read_bytes() == b"timings of this gpu: one more build one more build"
    assert full.calls == [("set_timing_cache", b""), ("set_timing_cache", b"timings of this gpu: one more build")]
    assert first.notes == second.notes == ()
    assert [path.name for path in cache.parent.iterdir()] == ["timing.cache"]


def test_timings_of_a_build_at_the_same_time_are_kept(full, graphs, tmp_path):
    cache = tmp_path / "timing.cache"
    full.when_timed = lambda: cache.write_bytes(b"timings of this gpu: another build")
    assert build(graphs["fp32"], tmp_path, target="tensorrt", timing_cache=cache).notes == ()
    assert cache.read_bytes() == b"timings of this gpu: one more build another build"
    full.when_timed = lambda: cache.write_bytes(b"timings of another gpu: 1")
    assert build(graphs["fp32"], tmp_path, target="tensorrt", timing_cache=cache).notes == ()
    assert cache.read_bytes() == b"timings of this gpu: one more build another build one more build"


@pytest.mark.parametrize(
    ("content", "reason"), [(b"\x00garbage", "bad magic"), (b"timings of another gpu: 1", "other device")]
)
def test_timing_cache_that_does_not_fit_is_replaced_with_a_note(full, graphs, tmp_path, content, reason):
    cache = tmp_path / "timing.cache"
    cache.write_bytes(content)
    built = build(graphs["fp32"], tmp_path, target="tensorrt", timing_cache=cache)
    assert f"{cache} was ignored and is replaced" in built.notes[0]
    assert reason in built.notes[0]
    assert full.calls == [("set_timing_cache", b"")]
    assert cache.read_bytes() == b"timings of this gpu: one more build"


def test_timing_cache_that_does_not_fit_is_no_cause_of_a_failure(full, graphs, tmp_path):
    (tmp_path / "timing.cache").write_bytes(b"timings of another gpu: 1")
    with pytest.raises(BuildError, match="workspace limit") as caught:
        build(graphs["fp32"], tmp_path, target="tensorrt", timing_cache=tmp_path / "timing.cache", workspace=1024)
    assert "other device" not in str(caught.value)


def test_timing_cache_that_cannot_be_read_or_written_costs_no_plan(full, graphs, tmp_path):
    folder, file = tmp_path / "timing.cache", tmp_path / "file"
    folder.mkdir()
    file.touch()
    for cache, problem in [(folder, "cannot be read"), (file / "timing.cache", "cannot be read")]:
        built = build(graphs["fp32"], tmp_path, target="tensorrt", timing_cache=cache)
        assert built.file.exists()
        assert problem in built.notes[0]


# --- what is missing --------------------------------------------------------------------------------------------------


def test_rtx_is_available_without_a_gpu(monkeypatch):
    use_driver(monkeypatch, None)
    assert why_unavailable(RTX) is None


def test_full_tensorrt_needs_a_gpu(full, monkeypatch, graphs, tmp_path):
    assert why_unavailable("tensorrt") is None
    for driver, reason in [
        (None, "driver is not installed"),
        (PlayedDriver([], init=100), "cuInit returned error 100"),
        (PlayedDriver([]), "finds no GPU"),
    ]:
        use_driver(monkeypatch, driver)
        assert reason in why_unavailable("tensorrt")
        assert "tensorrt_rtx builds without one" in why_unavailable("tensorrt")
    with pytest.raises(TargetUnavailableError, match="finds no GPU"):
        build(graphs["fp32"], tmp_path, target="tensorrt")


def test_old_tensorrt_is_refused(full):
    full.__version__ = "8.6.1"
    assert why_unavailable("tensorrt") == (
        "tensorrt: expected version 10 or newer, found 8.6.1: pip install tensorrt --upgrade"
    )


def test_missing_and_broken_modules(monkeypatch):
    def missing(name):
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    def broken(name):
        raise OSError("libnvinfer.so.11: cannot open shared object file")

    monkeypatch.setattr(trt_module.importlib, "import_module", missing)
    assert why_unavailable("tensorrt") == "the Python module tensorrt is not installed: pip install tensorrt"
    monkeypatch.setattr(trt_module.importlib, "import_module", broken)
    assert "does not load (libnvinfer.so.11: cannot open" in why_unavailable("tensorrt")


def test_gpus_are_described(monkeypatch):
    use_driver(monkeypatch, PlayedDriver([("NVIDIA L4", (8, 9)), ("NVIDIA GB10", (12, 1))]))
    assert find_gpus() == ([Gpu("NVIDIA L4", "8.9"), Gpu("NVIDIA GB10", "12.1")], "")


# --- the log ---------------------------------------------------------------------------------------------------------


def test_log_is_sorted(caplog):
    trt = importlib.import_module(RTX)
    log = trt_logging.BuildLog(trt, gpu_less=True)
    log(trt.ILogger.ERROR, "Unable to determine CUDA GPU properties")
    log(trt.ILogger.ERROR, "IBuilder::build: Error Code 4: API Usage Error (x is y. In check at /_src/a/b.cpp:1)")
    log(trt.ILogger.ERROR, "IBuilder::build: Error Code 4: API Usage Error (x is y. In check at /_src/a/b.cpp:1)")
    log(trt.ILogger.WARNING, "slow")
    log(trt.ILogger.WARNING, "The logger passed into createInferBuilder differs from one already registered")
    log(trt.ILogger.INFO, "Total Weights Memory: 26372 bytes")
    log(trt.ILogger.VERBOSE, "Layers:\nName: a")
    assert log.errors == ["API Usage Error (x is y.)"]
    assert log.warnings == ["slow"]
    assert log.memory == {"weights": 26372}
    assert log.listings == ["Layers:\nName: a"]


def test_with_a_gpu_its_errors_count():
    trt = importlib.import_module(RTX)
    log = trt_logging.BuildLog(trt, gpu_less=False)
    log(trt.ILogger.ERROR, "cudaError 35: CUDA driver version is insufficient for CUDA runtime version")
    assert len(log.errors) == 1
