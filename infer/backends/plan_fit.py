"""Whether a TensorRT plan fits this machine, asked before a runtime sees it.

TensorRT rejects a plan of another version or GPU with a message few understand, or crashes.
"""

from __future__ import annotations

from infer.backends.cuda.gpus import Gpu
from infer.bundle import Plan
from infer.errors import TargetUnavailableError

RTX = "tensorrt_rtx"


def check_plan_fits(plan: Plan, gpu: Gpu, version: str) -> None:
    """Compare what the manifest says of a plan with the GPU and the installed library.

    TensorRT loads plans of its own version only, or of its major version where they were built for that
    (https://docs.nvidia.com/deeplearning/tensorrt/latest/inference-library/advanced.html, "Version Compatibility");
    TensorRT-RTX plans run on the compute capabilities they list.

    Args:
        plan: of the manifest.
        gpu: that shall run it.
        version: of the installed TensorRT library.

    Raises:
        TargetUnavailableError: it does not fit; says what was expected, what was found and what to do.
    """
    rebuild = f"Build it again here (TARGET={plan.target})"
    parts = 1 if plan.version_compatible else len(plan.version.split("."))
    if plan.version.split(".")[:parts] != version.split(".")[:parts]:
        raise TargetUnavailableError(
            f"the {plan.target} plan was built by version {plan.version}, installed is {version}. "
            f"{rebuild}, or install {plan.target}=={plan.version}"
        )
    capabilities = plan.compute_capabilities or []
    if plan.target == RTX:
        if capabilities and "current" not in capabilities and gpu.compute_capability not in capabilities:
            raise TargetUnavailableError(
                f"the {plan.target} plan runs on compute capability {', '.join(capabilities)}, this GPU ({gpu.name}) "
                f"has {gpu.compute_capability}. {rebuild} with --compute-capability {gpu.compute_capability}"
            )
    elif plan.hardware_compatible:
        if float(gpu.compute_capability) < 8.0:
            raise TargetUnavailableError(
                f"the plan needs compute capability 8.0 or newer, {gpu.name} has {gpu.compute_capability}"
            )
    elif plan.gpu is not None and plan.gpu != gpu.name:
        raise TargetUnavailableError(
            f"the {plan.target} plan was built for {plan.gpu}, this GPU is {gpu.name}. {rebuild}"
        )
