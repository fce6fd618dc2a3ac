"""Bundles to export."""

from __future__ import annotations

import pytest

pytest.importorskip("tritonclient.grpc.model_config_pb2", reason="pip install tritonclient[grpc]")

from triton_configs import with_plan


@pytest.fixture
def bundle(own, tiny):
    """The tiny bundle with a plan for the tensorrt target."""
    return with_plan(own(tiny), gpu="NVIDIA L4")
