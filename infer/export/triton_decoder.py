"""A decode step and an ensemble that puts it before a model: image files in, logits, scores and classes out.

    REPOSITORY/NAME_decode/config.pbtxt
    REPOSITORY/NAME_decode/1/model.py      with the modules of ``infer`` that it needs beside it
    REPOSITORY/NAME_files/config.pbtxt     the ensemble

A request carries one file, so that a bad one fails alone; the model behind gathers requests into batches.
"""

from __future__ import annotations

import sysconfig
from importlib.resources import files
from pathlib import Path

from infer.bundle import Manifest
from infer.export.triton_config import PREPROCESSING, outputs, parameter, preprocessing, quote

FILE = "file"
#: Modules of ``infer`` that decoding takes: nothing outside of the folder but NumPy, Pillow and msgspec.
MODULES = (
    "__init__.py",
    "errors.py",
    "choices.py",
    "files.py",
    "text_files.py",
    "bundle/__init__.py",
    "bundle/accuracy_record.py",
    "bundle/build_record.py",
    "bundle/preprocessing.py",
    "bundle/tensors.py",
    "images/__init__.py",
    "images/foreign.py",
    "images/jpeg.py",
    "images/resize.py",
    "images/native/__init__.py",
)


def decoder_name(name: str) -> str:
    """Name of the model that decodes for ``name``."""
    return f"{name}_decode"


def ensemble_name(name: str) -> str:
    """Name of the ensemble that takes files for ``name``."""
    return f"{name}_files"


def write_decoder(work: Path, manifest: Manifest, name: str, count: int) -> None:
    """Fill the folder ``work`` with the decode step; ``count`` processes of it run at once."""
    [image] = manifest.inputs
    dims = ", ".join(map(str, image.shape[1:]))
    text = f"""\
# One image file a request to the pixels that {name} takes, as infer.images decodes, resizes and crops them.
# The interpreter of the Python backend needs Python 3.11 or later, and: pip install numpy pillow msgspec
name: {quote(decoder_name(name))}
backend: "python"
max_batch_size: 1
input [ {{ name: "{FILE}" data_type: TYPE_STRING dims: [ 1 ] }} ]
output [ {{ name: {quote(image.name)} data_type: TYPE_UINT8 dims: [ {dims} ] }} ]
instance_group [ {{ count: {count} kind: KIND_CPU }} ]
{parameter(PREPROCESSING, preprocessing(manifest))}
"""
    (work / "config.pbtxt").write_text(text, encoding="utf-8")
    version = work / "1"
    version.mkdir()
    (version / "model.py").write_bytes(files("infer.export").joinpath("triton_model.py").read_bytes())
    package = files("infer")
    kernel = f"images/native/_jpeg{sysconfig.get_config_var('EXT_SUFFIX')}"
    optional = [kernel] if package.joinpath(kernel).is_file() else []
    for module in (*MODULES, *optional):
        path = version / "infer" / module
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(package.joinpath(module).read_bytes())


def write_ensemble(work: Path, manifest: Manifest, name: str) -> None:
    """Fill the folder ``work`` with the ensemble."""
    [image] = manifest.inputs
    pixels = quote(image.name)
    maps = "\n".join(f"      output_map {{ key: {quote(t.name)} value: {quote(t.name)} }}" for t in manifest.outputs)
    fields = "\n".join(outputs(manifest)).replace(' label_filename: "labels.txt"', "")  # those of the step count
    text = f"""\
# JPEG, PNG, WebP, ... files to what {name} gives. One file a request: send many requests at once.
name: {quote(ensemble_name(name))}
platform: "ensemble"
max_batch_size: 1
input [ {{ name: "{FILE}" data_type: TYPE_STRING dims: [ 1 ] }} ]
{fields}
ensemble_scheduling {{
  step [
    {{
      model_name: {quote(decoder_name(name))}
      model_version: -1
      input_map {{ key: "{FILE}" value: "{FILE}" }}
      output_map {{ key: {pixels} value: {pixels} }}
    }},
    {{
      model_name: {quote(name)}
      model_version: -1
      input_map {{ key: {pixels} value: {pixels} }}
{maps}
    }}
  ]
}}
"""
    (work / "config.pbtxt").write_text(text, encoding="utf-8")
    (work / "1").mkdir()
    # Triton wants the folder of a version, and object stores keep no empty ones.
    (work / "1" / "README").write_text("An ensemble has no files.\n", encoding="utf-8")
