"""The GPU table and the ceilings computed from it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from infer.bench.roofline import Work, ceiling, find_gpus, gpu_of, known_gpus, work_of
from infer.bundle import FORMAT, BatchProfile, FileEntry, Manifest, ModelInfo, Plan, Tensor
from infer.bundle.build_record import Audit, AuditSummary
from infer.bundle.preprocessing import IMAGENET
from infer.errors import BundleError, InputError

KEYS = [gpu.key for gpu in known_gpus()]
NO_FILE = FileEntry(file="f", sha256="0", size=0)


def manifest(plans, gmac=None, precision="fp16"):
    return Manifest(
        format=FORMAT, created="now", tool="t", precision=precision, graph=NO_FILE, labels=NO_FILE,
        preprocessing=IMAGENET,
        model=ModelInfo(name="m", num_classes=10, weights="w", weights_sha256="0", trained=True), batch=BatchProfile(),
        inputs=[Tensor(name="images", dtype="uint8", shape=[-1, 224, 224, 3])], outputs=[], plans=plans, gmac=gmac,
    )  # fmt: skip


def plan(target="tensorrt_rtx", capabilities=("8.0", "8.9"), **summary):
    figures = {
        "layers": 60, "kernels": 58, "layer_types": {}, "layer_precisions": {}, "reformats": 0, "mac_nodes": 54,
        "mac_precisions": {"fp16": 54}, "engine_bytes": 1, "dram_bytes_per_image": 3_000_000,
        "weight_bytes": 32_000_000, "batch": 32,
    }  # fmt: skip
    return Plan(
        target=target, files=[], version="1",
        audit=Audit(summary=AuditSummary(**figures | summary), node_precisions={}),
        compute_capabilities=list(capabilities) if capabilities else None,
    )  # fmt: skip


def test_table_is_complete_and_consistent():
    assert len(KEYS) == len({key.lower() for key in KEYS}) >= 20
    names = [name for gpu in known_gpus() for name in gpu.devices]
    assert len(names) == len(set(names))
    for gpu in known_gpus():
        assert set(gpu.peaks) >= {"fp32", "fp16", "int8"} and gpu.source.startswith("NVIDIA")
        # Tensor cores multiply int8 at twice the rate of fp16, GeForce (which halves FP32 accumulation) at four times.
        ratio = 4 if "GeForce" in gpu.devices[0] else 2
        assert gpu.peaks["int8"] / gpu.peaks["fp16"] == pytest.approx(ratio, rel=0.02), gpu.key
        assert ("fp8" in gpu.peaks) == (float(gpu.compute_capability) >= 8.9)
        if "GeForce" not in gpu.devices[0] and "fp8" in gpu.peaks:
            assert gpu.peaks["fp8"] == gpu.peaks["int8"]
        assert 100 < gpu.memory < 10_000 and gpu.pcie in (15.75, 31.5, 63)


def test_published_rates_stay_below_the_ceilings():
    """MLPerf's offline INT8 rates of ResNet-50, 4.1 GMAC, must not beat the arithmetic of the table."""
    work = Work(("int8",), 4.1, None, 0, 32, 150528, "tensorrt", None)
    for key, rate in (("H200", 94_620), ("H100", 88_815), ("L40S", 43_989), ("A100", 40_576), ("L4", 12_800)):
        [gpu] = find_gpus([key])
        assert 0.3 < rate / ceiling(work, gpu).compute < 0.7


@pytest.mark.parametrize(
    ("device", "key"),
    [
        ("GPU 0 (NVIDIA L4, 3 streams)", "L4"),
        ("GPU 1 (NVIDIA L40S, 3 streams)", "L40S"),
        ("NVIDIA A100 80GB PCIe", "A100-80GB-PCIe"),
        ("NVIDIA A100-SXM4-80GB", "A100"),
        ("NVIDIA A10", "A10"),
        ("NVIDIA A10G", None),
        ("NVIDIA H200 NVL", "H200"),
        ("Tesla T4", "T4"),
        ("NVIDIA GeForce RTX 4090", "RTX-4090"),
        ("NVIDIA GeForce RTX 4090 D", "RTX-4090"),
        ("CPU (AMD EPYC, 2 threads, 2 streams)", None),
    ],
)
def test_devices_are_recognised(device, key):
    found = gpu_of(device)
    assert (found and found.key) == key


def test_find_gpus_names_the_known_ones():
    assert [gpu.key for gpu in find_gpus(["l4", "H100"])] == ["L4", "H100"]
    with pytest.raises(InputError, match=r"unknown GPU 'L5'; known: T4, .*L4, "):
        find_gpus(["L5"])


def test_work_comes_from_the_manifest():
    work = work_of(manifest([plan("openvino", None), plan()], gmac=4.128))
    assert (work.precisions, work.gmac, work.moved, work.weights) == (("fp16",), 4.128, 2_000_000, 32_000_000)
    assert (work.audited_batch, work.input, work.target) == (32, 150_528, "tensorrt_rtx")
    assert work.capabilities == ("8.0", "8.9") and work.notes == ()
    assert work.bytes_per_image(32) == 3_000_000
    assert work.bytes_per_image(1) == 34_000_000


def test_the_plan_that_runs_is_preferred():
    both = manifest([plan(), plan("tensorrt", None, dram_bytes_per_image=5_000_000)])
    assert work_of(both).target == "tensorrt_rtx"
    assert work_of(both, "tensorrt").moved == 4_000_000


def test_what_is_missing_is_said():
    work = work_of(manifest([plan(dram_bytes_per_image=None)]))
    assert work.gmac is None and work.moved is None
    assert "no gmac" in work.notes[0] and "no audit" in work.notes[1]
    top = ceiling(work, find_gpus(["L4"])[0])
    assert top.compute is None and top.memory is None and top.bound == "transfer"
    with pytest.raises(BundleError, match="needs a TensorRT plan"):
        work_of(manifest([plan("openvino", None)]))
    assert ceiling(work_of(manifest([], gmac=1.0)), find_gpus(["L4"])[0]).compute == pytest.approx(121e12 / 2e9)


def test_a_mixed_plan_is_bounded_by_its_fastest_precision():
    work = work_of(manifest([plan(mac_precisions={"int8": 53, "fp16": 1, "not found": 2})], 4.0, "int8"))
    assert work.precisions == ("int8", "fp16") and "53 in int8, 1 in fp16" in work.notes[0]
    assert ceiling(work, find_gpus(["A100"])[0]).compute == pytest.approx(624e12 / 8e9)


def test_ceilings():
    work = work_of(manifest([plan()], gmac=4.0))
    [l4, h100, t4] = find_gpus(["L4", "H100", "T4"])
    top = ceiling(work, l4)
    assert top.batch == 32 and top.runs
    assert top.compute == pytest.approx(121e12 / 8e9)
    assert top.memory == pytest.approx(300e9 / 3e6)
    assert top.transfer == pytest.approx(31.5e9 / 150_528)
    assert (top.bound, top.rate) == ("compute", top.compute)
    small = ceiling(work, l4, batch=1)
    assert small.bound == "memory" and small.rate == pytest.approx(300e9 / 34e6)
    assert not ceiling(work, h100).runs  # a portable plan for 8.0 and 8.9
    assert ceiling(work, t4).to_json()["plan_runs"] is False
    assert ceiling(replace(work, capabilities=None), h100).runs


def test_bf16_runs_at_the_rate_of_fp16_where_there_is_any():
    work = replace(work_of(manifest([plan()], gmac=4.0)), precisions=("bf16",))
    [l4, t4, b200] = find_gpus(["L4", "T4", "B200"])
    assert ceiling(work, l4).compute == pytest.approx(121e12 / 8e9)
    assert ceiling(work, b200).compute == pytest.approx(2250e12 / 8e9)
    assert ceiling(work, t4).compute is None
