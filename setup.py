"""Package metadata. A deployment that only infers needs none of the extras but its backend's."""

import re
import sys
from pathlib import Path

from setuptools import Extension, find_packages, setup

ROOT = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (ROOT / "engine_build/__init__.py").read_text())[1]

LINUX_X86 = "; sys_platform == 'linux' and platform_machine == 'x86_64'"
OPENVINO = ["openvino>=2026.2"]
PARQUET = ["pyarrow>=20"]

# Decoding and resizing in one pass. Left out, with a warning, where a compiler or libjpeg-turbo's headers are missing.
NATIVE = Extension(
    "infer.images.native._jpeg",
    [f"infer/images/native/{name}.c" for name in ("module", "jpeg", "exif", "resample", "resample_avx2")],
    depends=[f"infer/images/native/{name}.h" for name in ("jpeg", "exif", "resample")],
    libraries=["jpeg"],
    # No fused multiply-add: the filter weights must be those of Pillow, bit for bit.
    extra_compile_args=[] if sys.platform == "win32" else ["-O3", "-ffp-contract=off", "-std=c11"],
    optional=True,
)

setup(
    name="iresnet-trt",
    version=VERSION,
    description="From an iResNet checkpoint to a verified, fast TensorRT engine, and the runner that serves it",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    python_requires=">=3.11",
    packages=find_packages(include=["engine_build*", "calibration*", "infer*"]),
    ext_modules=[NATIVE],
    package_data={
        "engine_build.shipped": ["*/*.safetensors", "*/*.tar.gz", "*/*.txt", "*/*.md", "*/*.json"],
        "infer.bench": ["gpus.tsv"],
        "infer.datasets": ["imagenet1k*", "LICENSE.*"],
        "infer.export": ["*.cpp", "*.mk"],
        "infer.verify.report": ["page.css", "page.js"],
    },
    install_requires=["numpy>=1.26", "pillow>=11", "msgspec>=0.19", "typer>=0.20", "rich>=13"],
    extras_require={
        # Checkpoints, graphs and engines that need no GPU to build.
        "build": [
            "torch>=2.9", "onnx>=1.19", "onnxscript>=0.5", "onnxruntime>=1.23", "safetensors>=0.5", "gdown>=5.2",
            *OPENVINO, "tensorrt-rtx-cu13>=1.5" + LINUX_X86,
        ],
        "openvino": OPENVINO,
        # JPEG decoding on the host where infer.images.native was not compiled.
        "fast": ["simplejpeg>=1.8", "cykooz-resizer>=4"],
        # pycuda is compiled against the CUDA toolkit of the machine.
        "gpu": ["tensorrt>=10.8", "pycuda>=2025.1"],
        # JPEG decoding on the GPU; with a driver of CUDA 12, nvidia-dali-cuda120. Too large (199 MB) for "test".
        "dali": ["nvidia-dali-cuda130>=2.4"],
        "parquet": PARQUET,
        "test": [
            "pytest>=8", "pytest-timeout>=2.3", "pytest-xdist>=3.6", "hypothesis>=6.100", "scikit-image>=0.24",
            *PARQUET, "cffi>=1.17", "matplotlib>=3.9", "scikit-learn>=1.5", "torchvision>=0.24", "scipy>=1.13",
            "tritonclient[grpc]>=2.60" + LINUX_X86,
            "simplejpeg>=1.8", "cykooz-resizer>=4", "polygraphy>=0.49",
        ],
        "report": ["matplotlib>=3.9"],
        "lint": ["ruff>=0.14", "mypy>=1.15"],
    },
    entry_points={
        "console_scripts": [
            "iresnet = engine_build.command:main",
        ],
    },
)  # fmt: skip
