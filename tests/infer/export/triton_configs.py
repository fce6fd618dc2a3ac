"""Bundles to export, and configurations parsed by Triton's own protobuf."""

from __future__ import annotations

from google.protobuf import text_format

from infer.bundle import Plan, file_entry, read_manifest, write_manifest

PLAN = b"a plan is copied as it is \x00\xff" * 100


def with_plan(folder, target="tensorrt", **fields):
    """Add a plan that nobody will load."""
    name = f"{target}.plan"
    (folder / name).write_bytes(PLAN)
    manifest = read_manifest(folder)
    manifest.plans = [
        *manifest.plans,
        Plan(target=target, files=[file_entry(folder, name)], version="11.4.0", **fields),
    ]
    write_manifest(folder, manifest)
    return folder


def change(folder, **fields):
    manifest = read_manifest(folder)
    for name, value in fields.items():
        setattr(manifest, name, value)
    write_manifest(folder, manifest)
    return folder


def parse(folder):
    """Configuration and text of a model's folder."""
    from tritonclient.grpc import model_config_pb2

    text = (folder / "config.pbtxt").read_text(encoding="utf-8")
    return text_format.Parse(text, model_config_pb2.ModelConfig()), text
