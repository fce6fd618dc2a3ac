"""The decode step of a Triton repository, run as the Python backend runs it, and the ensemble around it."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import sysconfig
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from triton_configs import parse
from tritonclient.grpc import model_config_pb2

from infer import open_bundle
from infer.errors import InputError
from infer.export.triton import TritonOptions, export_triton

WITH = TritonOptions(target="openvino", with_decoder=True, decoders=3)

# Stands for the module that Triton brings; only what model.py uses.
BACKEND = """
class Logger:
    log_info = staticmethod(print)
class TritonError(Exception):
    INVALID_ARG, INTERNAL = "invalid", "internal"
    def __init__(self, message, code): self.message, self.code = message, code
class Tensor:
    def __init__(self, name, data): self.name, self.data = name, data
    def as_numpy(self): return self.data
class InferenceResponse:
    def __init__(self, output_tensors, error=None): self.output_tensors, self.error = output_tensors, error
def get_input_tensor_by_name(request, name): return request[name]
"""
# Isolated: no checkout and no installed package of ours in reach, as in a Triton container.
DRIVE = """
import json, sys
from pathlib import Path
folder, stand_in, packages, *names = sys.argv[1:]
sys.path[:] = [path for path in sys.path if "site-packages" not in path] + [stand_in]
for name in ("numpy", "numpy.libs", "PIL", "pillow.libs", "msgspec"):
    target = Path(packages, name)
    if target.exists():
        Path(stand_in, name).symlink_to(target)
sys.path.insert(0, folder)
import numpy as np
import model
from triton_python_backend_utils import Tensor
import infer
assert Path(infer.__file__).is_relative_to(folder), infer.__file__
step = model.TritonPythonModel()
step.initialize({"model_name": "m_decode", "model_config": Path(folder, "config.json").read_text()})
requests = [{"file": Tensor("file", np.array([[Path(name).read_bytes()]], dtype=object))} for name in names]
for number, answer in enumerate(step.execute(requests)):
    if answer.error is not None:
        print("error", answer.error.code, answer.error.message)
    else:
        [tensor] = answer.output_tensors
        np.save(f"{stand_in}/{number}.npy", tensor.data)
        print("pixels", tensor.name, tensor.data.dtype, *tensor.data.shape)
"""


@pytest.fixture
def files(tmp_path):
    """Two JPEG files and a PNG, and two that are none."""
    rng = np.random.default_rng(5)
    folder = tmp_path / "files"
    folder.mkdir()
    for number, (kind, size) in enumerate([("JPEG", (70, 41)), ("PNG", (33, 50)), ("JPEG", (500, 375))]):
        Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8)).save(folder / f"{number}.{kind.lower()}", kind)
    stream = io.BytesIO()
    Image.new("RGB", (64, 64), (9, 200, 30)).save(stream, "JPEG")
    (folder / "3_cut.jpeg").write_bytes(stream.getvalue()[:200])
    (folder / "4_none.jpeg").write_bytes(b"no image at all")
    return sorted(folder.iterdir())


def test_one_bad_file_fails_alone_and_pixels_are_those_of_classify(tiny, files, tmp_path):
    export_triton(tiny, tmp_path / "r", WITH)
    config, _ = parse(tmp_path / "r/tiny-fp32_decode")
    step, place = tmp_path / "r/tiny-fp32_decode/1", tmp_path / "place"
    place.mkdir()
    (place / "triton_python_backend_utils.py").write_text(BACKEND)
    parameters = {"preprocessing": {"string_value": config.parameters["preprocessing"].string_value}}
    (step / "config.json").write_text(json.dumps({"parameters": parameters}))
    order = [files[0], files[4], files[1], files[3], files[2]]
    command = [sys.executable, "-I", "-c", DRIVE, step, place, sysconfig.get_path("purelib"), *order]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd="/")
    assert done.returncode == 0, done.stderr
    _, *lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["pixels", "error", "pixels", "error", "pixels"]
    assert lines[0] == "pixels images uint8 1 32 32 3"
    assert lines[1].startswith("error invalid ") and lines[3].startswith("error invalid ")
    with open_bundle(tiny) as runner:
        from infer.images.jpeg import load_input

        for number, path in ((0, files[0]), (2, files[1]), (4, files[2])):
            expected = np.empty((32, 32, 3), np.uint8)
            load_input(path.read_bytes(), runner.preprocessing, expected, path.name)
            assert np.array_equal(np.load(place / f"{number}.npy")[0], expected)


def test_the_ensemble_leads_from_files_to_the_models_outputs(tiny, tmp_path):
    folder = export_triton(tiny, tmp_path, WITH)
    model, decode, ensemble = (parse(tmp_path / f"{folder.name}{suffix}")[0] for suffix in ("", "_decode", "_files"))
    assert decode.backend == "python" and decode.instance_group[0].count == 3
    # A request is a file: a model of larger batches would be given several of them as one.
    assert (decode.max_batch_size, ensemble.max_batch_size) == (1, 1)
    assert ensemble.platform == "ensemble" and ensemble.input[0].data_type == model_config_pb2.TYPE_STRING
    first, second = ensemble.ensemble_scheduling.step
    assert (first.model_name, second.model_name) == (decode.name, model.name)
    assert dict(first.input_map) == {"file": ensemble.input[0].name}
    assert set(first.output_map.values()) == set(second.input_map.values())
    assert dict(second.output_map) == {output.name: output.name for output in ensemble.output}
    shapes = [(output.name, output.data_type, list(output.dims)) for output in model.output]
    assert [(output.name, output.data_type, list(output.dims)) for output in ensemble.output] == shapes
    assert (list(decode.output[0].dims), decode.output[0].data_type) == (
        list(model.input[0].dims),
        model.input[0].data_type,
    )
    for name in (decode.name, ensemble.name):
        assert any(path.is_file() for path in (tmp_path / name / "1").iterdir())


def test_a_decoder_that_no_longer_fits_is_not_left_behind(own, tiny, tmp_path):
    from triton_configs import change

    from infer.bundle import read_manifest

    export_triton(tiny, tmp_path, WITH)
    other = own(tiny)
    spec = read_manifest(other).preprocessing
    change(other, preprocessing=type(spec)(**{**spec.to_json(), "resize": 40, "mean": spec.mean, "std": spec.std}))
    with pytest.raises(InputError, match="makes other pixels than this bundle takes; add --with-decoder"):
        export_triton(other, tmp_path, TritonOptions(target="openvino", version=1))
    export_triton(other, tmp_path, TritonOptions(target="openvino", version=1, with_decoder=True))
    assert '"resize": 40' in Path(tmp_path / "tiny-fp32_decode/config.pbtxt").read_text().replace('\\"', '"')
