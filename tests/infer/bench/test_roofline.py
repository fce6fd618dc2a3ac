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


#: Operations of a multiprocessor in a clock: fp16 accumulating in FP16, dense, a multiply-accumulate being two. From
#: the whitepapers: Turing (8 tensor cores of 64 FMA), GA100 (4 of 256), GA10x (4 of 128), Ada (4 of 128), Hopper (4 of
#: 512), RTX Blackwell (4 of 128).
FP16_OPS = {"7.5": 1024, "8.0": 2048, "8.6": 1024, "8.9": 1024, "9.0": 4096, "12.0": 1024}


def operations(gpu):
    """The same of every precision: GeForce boards accumulate in FP32 at half the rate."""
    full = FP16_OPS[gpu.compute_capability]
    slow = 0.5 if "GeForce" in gpu.devices[0] else 1
    fp32 = 128 if gpu.compute_capability == "7.5" else full / 2 * slow  # 64 FP32 cores; else TF32
    best = {"fp32": fp32, "fp16": full, "bf16": full * slow, "fp8": 2 * full, "int8": 2 * full}
    return best, {"fp16": full * slow, "fp8": 2 * full * slow}


def test_the_table_is_complete():
    assert len(KEYS) == len({key.lower() for key in KEYS}) >= 20
    names = [name for gpu in known_gpus() for name in gpu.devices]
    assert len(names) == len(set(names))
    for gpu in known_gpus():
        assert gpu.source.startswith("NVIDIA") and 100 < gpu.memory < 10_000 and gpu.pcie in (15.75, 31.5, 63)
        if gpu.key == "L40":  # its papers do not fit each other
            assert not gpu.peaks and not gpu.with_fp32
            continue
        eight_bits = {"fp8"} if float(gpu.compute_capability) >= 8.9 else set()
        bf16 = {"bf16"} if float(gpu.compute_capability) >= 8 else set()
        assert set(gpu.peaks) == {"fp32", "fp16", "int8"} | eight_bits | bf16, gpu.key
        assert set(gpu.with_fp32) == {"fp16"} | eight_bits, gpu.key


@pytest.mark.parametrize("gpu", [gpu for gpu in known_gpus() if gpu.clock], ids=lambda gpu: gpu.key)
def test_multiprocessors_and_clock_give_every_peak(gpu):
    best, with_fp32 = operations(gpu)
    for found, expected in ((gpu.peaks, best), (gpu.with_fp32, with_fp32)):
        for precision, peak in found.items():
            assert gpu.sms * expected[precision] * gpu.clock * 1e6 / 1e12 == pytest.approx(peak, rel=0.02), precision


@pytest.mark.parametrize("gpu", [gpu for gpu in known_gpus() if not gpu.clock], ids=lambda gpu: gpu.key)
def test_peaks_without_a_clock_are_those_of_one_clock(gpu):
    """Which no paper names: so the precisions must agree on one, and it must be one that Hopper runs at."""
    if gpu.key == "B200":  # nor does a paper name its multiprocessors, and TF32 is rounded
        assert gpu.peaks["int8"] == gpu.peaks["fp8"] == 2 * gpu.peaks["fp16"]
        return
    best, _ = operations(gpu)
    clocks = [peak * 1e6 / gpu.sms / best[precision] for precision, peak in gpu.peaks.items()]
    assert max(clocks) / min(clocks) < 1.02 and 1500 < min(clocks) <= max(clocks) < 1980


def test_boards_of_one_chip_differ_by_multiprocessors_and_clock_alone():
    by_key = {gpu.key: gpu for gpu in known_gpus()}
    ada, l40s = by_key["RTX-6000-Ada"], by_key["L40S"]
    assert l40s.peaks["fp16"] / ada.peaks["fp16"] == pytest.approx(2520 / 2505, rel=0.01)
    geforce = by_key["RTX-4090"]  # the same chip: FP16 accumulation is not cut, FP32 accumulation is
    scale = geforce.sms * geforce.clock / (ada.sms * ada.clock)
    assert geforce.peaks["fp16"] / ada.peaks["fp16"] == pytest.approx(scale, rel=0.01)
    assert geforce.with_fp32["fp16"] / ada.with_fp32["fp16"] == pytest.approx(scale / 2, rel=0.01)


def test_fp16_accumulation_cannot_beat_the_ceiling():
    work = Work(("fp16",), 1.0, None, 0, 32, 150528, "tensorrt", None)
    [gpu] = find_gpus(["RTX-4090"])
    top = ceiling(work, gpu)
    assert top.compute == pytest.approx(330.3e12 / 2e9)
    assert top.basis.startswith("fp16 330.3 TFLOPS, FP16 accumulation, 2520 MHz; NVIDIA Ada GPU architecture")
    row = top.to_json()
    assert (row["accumulate"], row["peak"], row["peak_fp32_accumulate"], row["clock_mhz"]) == (
        "fp16",
        330.3,
        165.2,
        2520,
    )
    assert ceiling(replace(work, precisions=("bf16",)), gpu).compute == pytest.approx(165.2e12 / 2e9)
    assert ceiling(replace(work, precisions=("int8",)), gpu).basis.startswith("int8 660.6 TOPS, INT32 accumulation")


def test_a_peak_that_no_paper_settles_is_unknown():
    work = Work(("fp16",), 1.0, 1e6, 0, 32, 150528, "tensorrt", None)
    top = ceiling(work, find_gpus(["L40"])[0])
    assert top.compute is None and top.precision is None and top.rate == pytest.approx(31.5e9 / 150_528)
    assert top.basis.startswith("compute unknown; NVIDIA L40 data sheet")
    assert top.to_json()["peak"] is None and top.to_json()["accumulate"] is None


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
        ("NVIDIA H200 NVL", "H200-NVL"),
        ("NVIDIA H200", "H200"),
        ("Tesla T4", "T4"),
        ("NVIDIA GeForce RTX 4090", "RTX-4090"),
        ("GPU 0 (NVIDIA GeForce RTX 4090, 3 streams)", "RTX-4090"),
        ("NVIDIA GeForce RTX 4090 D", None),
        ("GPU 0 (NVIDIA GeForce RTX 4090 Laptop GPU, 3 streams)", None),
        ("NVIDIA A100-SXM4-80GB MIG 3g.40gb", None),
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
