"""Exports in a real tritonserver: pytest -m slow, with TRITON_VENV at a virtual environment made so:

    python3.11 -m venv VENV && VENV/bin/pip install "numpy<2" nvidia-pytriton==0.7.0 pillow msgspec onnxruntime

That wheel carries tritonserver 2.51 with the Python backend and no other. So the model itself is served here by that
backend, which computes the exported graph with ONNX Runtime, under the exported configuration but for the one line that
names the backend; everything around it (decoder, ensemble, batcher, queue, warm-up, versions) is as exported.
"""

from __future__ import annotations

import io
import os
import shutil
import socket
import subprocess
import sysconfig
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from infer import open_bundle
from infer.export.ask import ask, require_passed
from infer.export.triton import TritonOptions, export_triton

VENV = os.environ.get("TRITON_VENV", "")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not VENV, reason="TRITON_VENV names no virtual environment with nvidia-pytriton"),
]

MODEL = """
import json, os, time
import numpy as np
import onnxruntime
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def initialize(self, args):
        self.place = os.path.join(args["model_repository"], args["model_version"])
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        graph = os.path.join(self.place, "model.onnx")
        self.session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])

    def execute(self, requests):
        answers, sizes = [], []
        time.sleep(float(os.environ.get("SLOW", "0")))
        for request in requests:
            images = pb_utils.get_input_tensor_by_name(request, "images").as_numpy()
            sizes.append(len(images))
            found = zip(("logits", "scores", "classes"), self.session.run(None, {"images": images}))
            answers.append(pb_utils.InferenceResponse([pb_utils.Tensor(name, value) for name, value in found]))
        with open(os.path.join(self.place, "batches.txt"), "a") as file:
            file.write(json.dumps(sizes) + "\\n")
        return answers
"""


_NEEDED = ("msgspec", "PIL", "pillow", "onnxruntime", "numpy", "flatbuffers", "google", "packaging", "coloredlogs")


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


class Server:
    """A tritonserver on this machine's own interface."""

    def __init__(self, repository, log, **environment):
        [packages] = Path(VENV, "lib").glob("python*/site-packages")
        root = packages / "pytriton/tritonserver"
        backend = log.parent / "backends/python"
        if not backend.exists():
            shutil.copytree(root / "backends/python", backend)
            [stub] = (root / "python_backend_stubs").glob(f"{packages.parent.name.removeprefix('python')}/*stub*")
            shutil.copy(stub, backend / "triton_python_backend_stub")
            # The backend's Python takes nothing from PYTHONPATH, but looks into the folder that it runs in first.
            for package in packages.iterdir():
                if package.name.partition(".")[0] in _NEEDED:
                    (backend / package.name).symlink_to(package)
        self.port, self.log = free_port(), log
        command = [
            root / "bin/tritonserver", f"--model-repository={repository}", f"--backend-directory={backend.parent}",
            f"--http-port={self.port}", "--http-address=127.0.0.1", "--allow-grpc=false", "--allow-metrics=false",
            "--exit-on-error=false",
        ]  # fmt: skip
        # The backend's Python process is linked with libpython.
        wheel = packages / "nvidia_pytriton.libs"
        libraries = f"{wheel}:{sysconfig.get_config_var('LIBDIR')}:{os.environ.get('LD_LIBRARY_PATH', '')}"
        fixed = {"OMP_NUM_THREADS": "1", "LD_LIBRARY_PATH": libraries}
        variables = os.environ | fixed | environment
        self.process = subprocess.Popen(
            [str(part) for part in command], env=variables, stdout=log.open("w"), stderr=subprocess.STDOUT, cwd=backend
        )
        self.url = f"http://127.0.0.1:{self.port}"

    def __enter__(self):
        from tritonclient.http import InferenceServerClient

        self.client = InferenceServerClient(f"127.0.0.1:{self.port}", concurrency=16)
        for _ in range(150):
            assert self.process.poll() is None, self.log.read_text()[-3000:]
            try:
                if self.client.is_server_live():
                    break
            except Exception:
                pass
            time.sleep(0.2)
        return self

    def __exit__(self, *_):
        self.client.close()
        self.process.terminate()
        self.process.wait(60)

    def wait_for(self, model, version=""):
        for _ in range(150):
            if self.client.is_model_ready(model, version):
                return
            reasons = [one["reason"] for one in self.client.get_model_repository_index() if one.get("reason")]
            assert not reasons, reasons
            time.sleep(0.2)
        raise AssertionError("not ready")

    def classify(self, name, data):
        """Logits of one file, or the error that the server gave."""
        from tritonclient.http import InferenceServerClient, InferInput
        from tritonclient.utils import InferenceServerException

        tensor = InferInput("file", [1, 1], "BYTES")
        tensor.set_data_from_numpy(np.array([[data]], dtype=object))
        client = InferenceServerClient(f"127.0.0.1:{self.port}")
        try:
            return client.infer(name, [tensor]).as_numpy("logits")[0]
        except InferenceServerException as error:
            return error
        finally:
            client.close()


def in_python(folder):
    """Let the Python backend serve the exported graph."""
    text = (folder / "config.pbtxt").read_text()
    assert 'platform: "onnxruntime_onnx"' in text
    (folder / "config.pbtxt").write_text(text.replace('platform: "onnxruntime_onnx"', 'backend: "python"'))
    for version in folder.glob("[0-9]*"):
        (version / "model.py").write_text(MODEL)


@pytest.fixture
def repository(tiny, tmp_path):
    options = TritonOptions(target="onnxruntime", with_decoder=True, decoders=2, queue_size=4, instances=1)
    export_triton(tiny, tmp_path / "models", options)
    in_python(tmp_path / "models/tiny-fp32")
    return tmp_path / "models"


def encoded(seed):
    stream = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (60, 80, 3), np.uint8)).save(stream, "JPEG")
    return stream.getvalue()


def test_files_to_logits_and_a_bad_file_fails_alone(repository, tiny, tmp_path):
    files = [encoded(seed) for seed in range(12)]
    files[3], files[8] = b"no image", files[8][:100]
    with Server(repository, tmp_path / "log.txt", SLOW="0.05") as server, open_bundle(tiny) as runner:
        server.wait_for("tiny-fp32_files")
        with ThreadPoolExecutor(3) as pool:
            found = list(pool.map(lambda data: server.classify("tiny-fp32_files", data), files))
        for number, (data, logits) in enumerate(zip(files, found, strict=True)):
            if number in (3, 8):
                assert isinstance(logits, Exception) and "file" in str(logits)
                continue
            assert not isinstance(logits, Exception), logits
            image = np.empty((1, 32, 32, 3), np.uint8)
            from infer.images.jpeg import load_input

            load_input(data, runner.preprocessing, image[0], "file")
            np.testing.assert_allclose(logits, runner.infer(image).logits[0], rtol=1e-3, atol=1e-3)


def test_known_answers_are_asked_and_have_warmed_it_up(repository, tiny, tmp_path):
    with Server(repository, tmp_path / "log.txt") as server:
        server.wait_for("tiny-fp32")
        warmed = (repository / "tiny-fp32/1/batches.txt").read_text().splitlines()
        assert len(warmed) == 8, warmed  # a sample for each known answer, before the first request
        found = ask(tiny, server.url, "tiny-fp32", batches=(1, 4))
    require_passed(found, server.url, "tiny-fp32")


def test_a_full_queue_refuses(repository, tmp_path):
    files = [encoded(seed) for seed in range(24)]
    with Server(repository, tmp_path / "log.txt", SLOW="0.5") as server:
        server.wait_for("tiny-fp32_files")
        with ThreadPoolExecutor(24) as pool:
            found = list(pool.map(lambda data: server.classify("tiny-fp32_files", data), files))
    refused = [str(one) for one in found if isinstance(one, Exception)]
    assert refused and len(refused) < len(files)
    assert all("Exceeds maximum queue size" in text for text in refused), refused


def test_two_versions_and_the_way_back(repository, own, tiny, tmp_path):
    """A client may ask for the version before; once the new one is removed, the old one is served to all."""
    text = (repository / "tiny-fp32/config.pbtxt").read_text()
    (repository / "tiny-fp32/config.pbtxt").write_text(
        text.replace('backend: "python"', 'platform: "onnxruntime_onnx"')
    )
    folder = export_triton(tiny, repository, TritonOptions(target="onnxruntime", instances=1))
    in_python(folder)
    (folder / "config.pbtxt").write_text((folder / "config.pbtxt").read_text() + "version_policy { all {} }\n")
    with Server(repository, tmp_path / "log.txt") as server:
        for version in ("1", "2"):
            server.wait_for("tiny-fp32", version)
            require_passed(ask(tiny, server.url, "tiny-fp32", version, (2,)), server.url, "tiny-fp32")


@pytest.mark.parametrize("target", ["openvino", "onnxruntime"])
def test_configurations_are_taken_up_to_the_backend_that_is_missing(tiny, tmp_path, target):
    export_triton(tiny, tmp_path / "models", TritonOptions(target=target))
    with Server(tmp_path / "models", tmp_path / "log.txt") as server:
        for _ in range(100):
            index = server.client.get_model_repository_index()
            if index and index[0].get("reason"):
                break
            time.sleep(0.2)
    assert "unable to find" in index[0]["reason"] and f"'{target}'" in index[0]["reason"], index
