"""``iresnet serve`` as a process: its signals, its sockets, TLS, and how it ends."""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time

import httpx
import pytest
import tritonclient.grpc as triton

#: Runs the command with a patch that a test names; nothing for the command as it is.
PROGRAM = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a test in the background passes on that it is ignored
exec(sys.argv.pop(1))
from infer.cli import main
main()
"""
SLOW = """
import time
from infer.backends.openvino import OpenVINOBackend as B
submit = B.submit
B.submit = lambda self, batch: (time.sleep(0.1), submit(self, batch))[1]
"""
STICKY = """
from infer.backends.openvino import OpenVINOBackend as B
from infer.errors import DeviceError
submit, count = B.submit, iter(range(1000))
def fail(self, batch):
    if next(count) >= 5:  # after the warm-up
        raise DeviceError("CUDA_ERROR_ILLEGAL_ADDRESS", sticky=True, status=700)
    return submit(self, batch)
B.submit = fail
"""


class Process:
    def __init__(self, root, *arguments, patch="", ready=True):
        command = [sys.executable, "-c", PROGRAM, patch, "serve", *map(str, arguments)]
        environment = {**os.environ, "PYTHONPATH": str(root)}
        self.process = subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        self.said = []
        self.out: list[str] = []
        self._threads = [threading.Thread(target=self._read, args=pair, daemon=True) for pair in
                         ((self.process.stdout, self.out), (self.process.stderr, self.said))]  # fmt: skip
        for thread in self._threads:
            thread.start()
        if ready:
            self.wait_for("ready:")

    def _read(self, stream, lines):
        for line in stream:
            lines.append(line)

    def wait_for(self, text, seconds=30):
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            for line in self.said:
                if text in line:
                    return line
            if self.process.poll() is not None:
                break
            time.sleep(0.01)
        raise AssertionError("".join(self.said))

    @property
    def url(self):
        return re.search(r"HTTP on (\S+?),?\s", self.wait_for("HTTP on"))[1]

    @property
    def grpc(self):
        return re.search(r"gRPC on (\S+)", self.wait_for("gRPC on"))[1]

    def end(self, number=signal.SIGTERM, seconds=20):
        if number is not None:
            self.process.send_signal(number)
        code = self.process.wait(seconds)
        for thread in self._threads:
            thread.join(5)
        return code


@pytest.fixture
def start(root, tiny):
    begun = []

    def run(*arguments, bundles=None, **options):
        bundles = [f"tiny={tiny}"] if bundles is None else bundles
        begun.append(Process(root, *bundles, *arguments, **options))
        return begun[-1]

    yield run
    for one in begun:
        if one.process.poll() is None:
            one.process.kill()
            one.process.wait()


ANY = ("--port", 0, "--grpc-port", 0)


def test_sigterm_under_load_loses_nothing(start, pictures):
    """Every request that a client could send is answered, and the last answers end the connections."""
    server = start(*ANY, "--no-access-log", patch=SLOW)
    answered, failed, stop = [], [], threading.Event()

    def ask(number):
        with httpx.Client(base_url=server.url, timeout=20) as client:
            while not stop.is_set():
                try:
                    answer = client.post("/v1/classify", content=pictures[number % 12])
                except httpx.ConnectError:
                    return  # it listens no more
                except httpx.HTTPError as error:
                    failed.append(error)
                    return
                answered.append(answer.status_code)
                if answer.headers.get("connection") == "close":
                    ended.append(number)

    ended: list[int] = []
    threads = [threading.Thread(target=ask, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    channel = triton.InferenceServerClient(server.grpc)
    while len(answered) < 20:
        time.sleep(0.01)
    server.process.send_signal(signal.SIGTERM)
    deadline = time.monotonic() + 2
    states = set()
    while time.monotonic() < deadline and "503" not in states:
        try:
            states.add(str(httpx.get(f"{server.url}/v2/health/ready").status_code))
        except httpx.HTTPError:
            break
    code = server.end(None)
    stop.set()
    for thread in threads:
        thread.join()
    channel.close()
    assert code == 0, server.said
    assert not failed and set(answered) == {200} and "503" in states
    assert len(set(ended)) == 8
    assert "ending" in "".join(server.said)


def test_idle_it_ends_soon_and_says_where_it_listens(start, pictures):
    server = start(*ANY)
    with httpx.Client(base_url=server.url) as client:  # stays open
        assert client.post("/v1/classify", content=pictures[0]).status_code == 200
        started = time.monotonic()
        assert server.end() == 0
    assert time.monotonic() - started < 4
    assert server.said[0].startswith("HTTP on http://127.0.0.1:") and ", gRPC on 127.0.0.1:" in server.said[0]
    assert server.said[1] == "ready: tiny 1 (openvino)\n"
    (line,) = [json.loads(line) for line in server.out]
    assert line["path"] == "/v1/classify"


def test_a_request_that_was_on_its_way_is_answered(start, pictures):
    """Its connection was idle when the signal came."""
    server = start(*ANY)
    connection = http.client.HTTPConnection("127.0.0.1", int(server.url.rpartition(":")[2]), timeout=10)

    def ask():
        connection.request("POST", "/v1/classify", pictures[0])
        answer = connection.getresponse()
        answer.read()
        return answer.status, answer.getheader("connection")

    assert ask() == (200, None)
    server.process.send_signal(signal.SIGTERM)
    server.wait_for("ending")
    time.sleep(0.1)
    assert ask() == (200, "close")
    assert server.end(None) == 0


def test_ctrl_c_ends_by_that_signal(start):
    assert start(*ANY).end(signal.SIGINT) == -signal.SIGINT


def test_sigterm_while_models_load(start):
    server = start(*ANY, ready=False)
    server.wait_for("HTTP on")
    assert server.end() == 0


def test_work_that_is_left_is_an_error(start, pictures):
    slow = SLOW.replace("0.1", "1.5 if len(batch) == 1 and batch.any() else 0")
    server = start(*ANY, "--drain-timeout", 0.5, patch=slow)
    with socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2]))) as connection:
        connection.sendall(
            b"POST /v1/classify HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(pictures[0]) + pictures[0]
        )
        time.sleep(0.2)
        assert server.end() == 1
    assert server.said[-1].startswith("error: work was left after 0.5 seconds")


def test_a_sticky_error_ends_the_process_with_a_code(start, pictures):
    server = start(*ANY, patch=STICKY)
    answers = []
    for number in range(4):
        try:
            answer = httpx.post(f"{server.url}/v1/classify", content=pictures[number])
        except httpx.HTTPError:
            break
        answers.append((answer.status_code, answer.text))
    assert answers[-1][0] in (500, 503) and "CUDA" not in answers[-1][1]
    assert server.end(None) == 1
    assert "error: a model failed for good (DeviceError: CUDA_ERROR_ILLEGAL_ADDRESS)" in server.said[-1]


def test_batches_that_keep_failing_end_it_too(start, pictures):
    patch = STICKY.replace("DeviceError(", "RuntimeError(").replace(", sticky=True, status=700", "")
    server = start(*ANY, patch=patch)
    codes = []
    for number in range(6):
        try:
            codes.append(httpx.post(f"{server.url}/v1/classify", content=pictures[number]).status_code)
        except httpx.HTTPError:
            break
    assert server.end(None) == 1 and codes.count(500) >= 3


@pytest.mark.parametrize("what", ["no bundle", "damaged", "untrained"])
def test_a_bundle_that_cannot_be_served(start, own, tiny, untrained, what, tmp_path):
    if what == "damaged":
        bundle = own(tiny)
        (bundle / "labels.txt").write_text("x")
    else:
        bundle = untrained if what == "untrained" else tmp_path
    server = start(*ANY, bundles=[f"m={bundle}"], ready=False)
    assert server.end(None) == (1 if what == "untrained" else 2)
    assert server.said[-1].startswith("error: ") and str(bundle) in server.said[-1]


def test_an_address_that_is_taken(start):
    first = start(*ANY)
    port, grpc_port = first.url.rpartition(":")[2], first.grpc.rpartition(":")[2]
    second = start("--port", port, "--no-grpc", ready=False)
    assert second.end(None) == 2
    assert second.said == [
        f"error: cannot listen on 127.0.0.1 port {port} (Address already in use); pass another --port\n"
    ]
    third = start("--port", 0, "--grpc-port", grpc_port, ready=False)
    assert third.end(None) == 2
    assert third.said[-1].startswith(f"error: gRPC cannot listen on 127.0.0.1:{grpc_port}")


def test_unix_sockets(start, tmp_path, pictures, pixels):
    path, grpc_path = tmp_path / "http.sock", tmp_path / "grpc.sock"
    stale = socket.socket(socket.AF_UNIX)
    stale.bind(str(path))
    stale.close()  # nobody listens any more
    server = start("--uds", path, "--grpc-uds", grpc_path)
    assert path.stat().st_mode & 0o777 == grpc_path.stat().st_mode & 0o777 == 0o660
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(path)), base_url="http://x") as client:
        assert client.post("/v1/classify", content=pictures[0]).status_code == 200
    with triton.InferenceServerClient(f"unix:{grpc_path}") as client:
        made = triton.InferInput("images", [1, 32, 32, 3], "UINT8").set_data_from_numpy(pixels[:1])
        assert client.infer("tiny", [made]).as_numpy("logits").shape == (1, 10)
    second = start("--uds", path, "--no-grpc", ready=False)
    assert second.end(None) == 2 and "another server listens" in second.said[-1]
    assert server.end() == 0 and not path.exists() and not grpc_path.exists()


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    folder = tmp_path_factory.mktemp("tls")
    command = [
        "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "1",
        "-keyout", folder / "key.pem", "-out", folder / "cert.pem", "-subj", "/CN=localhost",
        "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1",
    ]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True)
    return folder / "cert.pem", folder / "key.pem"


def test_tls(start, certificate, pictures):
    cert, key = certificate
    server = start(*ANY, "--certificate", cert, "--key", key)
    assert server.url.startswith("https://")
    context = ssl.create_default_context(cafile=str(cert))
    with httpx.Client(verify=context) as client:
        assert client.post(f"{server.url}/v1/classify", content=pictures[0]).status_code == 200
        with pytest.raises(httpx.HTTPError):
            client.get(server.url.replace("https", "http"))
    client = triton.InferenceServerClient(
        server.grpc.replace("127.0.0.1", "localhost"), ssl=True, root_certificates=str(cert)
    )
    assert client.is_server_ready()
    client.close()
    assert server.end() == 0


@pytest.mark.parametrize("what", ["no key", "no file", "no pem"])
def test_tls_that_cannot_be(start, what, tmp_path):
    (tmp_path / "x.pem").write_text("no certificate")
    arguments = {
        "no key": ["--certificate", tmp_path / "x.pem"],
        "no file": ["--certificate", tmp_path / "a", "--key", tmp_path / "b"],
        "no pem": ["--certificate", tmp_path / "x.pem", "--key", tmp_path / "x.pem"],
    }[what]
    server = start(*ANY, *arguments, ready=False)
    assert server.end(None) == 2 and server.said[-1].startswith("error: TLS: ")


def test_other_machines_and_no_token(start):
    server = start("--host", "0.0.0.0", *ANY, ready=False)
    assert server.wait_for("warning: other machines can reach this server, and it asks for no token")
    assert start(*ANY).said[0].startswith("HTTP on")
