"""A plan of another version or GPU is refused with what was expected, found and to do."""

import pytest

from infer.backends.cuda.gpus import Gpu
from infer.backends.plan_fit import check_plan_fits
from infer.bundle import Plan
from infer.errors import TargetUnavailableError

L4, T4 = Gpu("NVIDIA L4", "8.9"), Gpu("Tesla T4", "7.5")


def plan(target="tensorrt", **fields):
    return Plan(target=target, files=[], version="10.16.1.11", **fields)


def test_the_same_version_and_gpu_fit():
    check_plan_fits(plan(gpu="NVIDIA L4"), L4, "10.16.1.11")


@pytest.mark.parametrize("version", ["10.16.1.12", "10.17.0.1", "11.4.0.106"])
def test_another_version(version):
    with pytest.raises(TargetUnavailableError, match=rf"10\.16\.1\.11, installed is {version}.*TARGET=tensorrt"):
        check_plan_fits(plan(gpu="NVIDIA L4"), L4, version)


def test_a_version_compatible_plan_fits_its_major_version():
    check_plan_fits(plan(gpu="NVIDIA L4", version_compatible=True), L4, "10.20.0.1")
    with pytest.raises(TargetUnavailableError, match="installed is 11"):
        check_plan_fits(plan(gpu="NVIDIA L4", version_compatible=True), L4, "11.4.0.106")


def test_another_gpu():
    with pytest.raises(TargetUnavailableError, match="built for NVIDIA L4, this GPU is Tesla T4"):
        check_plan_fits(plan(gpu="NVIDIA L4"), T4, "10.16.1.11")


def test_a_hardware_compatible_plan_fits_newer_gpus():
    check_plan_fits(plan(gpu="NVIDIA A10", hardware_compatible=True), L4, "10.16.1.11")
    with pytest.raises(TargetUnavailableError, match=r"8\.0 or newer, Tesla T4 has 7\.5"):
        check_plan_fits(plan(gpu="NVIDIA A10", hardware_compatible=True), T4, "10.16.1.11")


def test_rtx_plans_fit_by_compute_capability():
    portable = plan("tensorrt_rtx", compute_capabilities=["8.6", "8.9"])
    check_plan_fits(portable, L4, "10.16.1.11")
    with pytest.raises(
        TargetUnavailableError, match=r"8\.6, 8\.9, this GPU \(Tesla T4\) has 7\.5.*--compute-capability 7\.5"
    ):
        check_plan_fits(portable, T4, "10.16.1.11")
