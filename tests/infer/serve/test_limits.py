"""Everything a client can make grow has a bound, and the answer says which."""

from __future__ import annotations

import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from serving import encoded, running

from infer.errors import InputError
from infer.serve.limits import Budget, Limits
from infer.serve.options import ServeOptions, Source
from infer.serve.refusal import Refusal

MIB = 1 << 20


def raw(server, data=b"", timeout=10.0):
    """A connection, and what was sent."""
    made = socket.create_connection(("127.0.0.1", server.port), timeout=timeout)
    made.sendall(data)
    return made


def read_all(connection):
    """Everything until the server ends the connection."""
    found = b""
    try:
        while data := connection.recv(65536):
            found += data
    except ConnectionResetError:
        pass
    return found


@pytest.fixture(scope="module")
def small(tiny):
    """A server with small limits."""
    limits = Limits(
        max_body=MIB, max_buffered=2 * MIB, max_pixels=10_000, max_images=4, queue=16, timeout=0.6, header_timeout=0.3,
        max_header=4096, max_connections=12, keep_alive=1,
    )  # fmt: skip
    with running(ServeOptions((Source(tiny, "tiny"),), limits=limits)) as server:
        yield server


POST = b"POST /v1/classify HTTP/1.1\r\nhost: x\r\n"


def test_a_long_body_is_refused_before_it_is_read(small):
    """Nothing of it was sent."""
    with raw(small, POST + b"content-length: 1048577\r\nexpect: 100-continue\r\n\r\n") as connection:
        answer = read_all(connection)
    assert answer.startswith(b"HTTP/1.1 413 ") and b"body: longer than 1048576 bytes" in answer
    assert b"100 Continue" not in answer.partition(b"\r\n\r\n")[0]


@pytest.mark.parametrize("chunked", [False, True])
def test_a_client_that_sends_a_long_body_sees_the_answer(small, chunked):
    body = (b"\0" * 65536 for _ in range(48)) if chunked else b"\0" * (3 * MIB)
    with small.client() as client:
        answer = client.post("/v1/classify", content=body)
        assert answer.status_code == 413 and "longer than 1048576 bytes" in answer.json()["error"]
        assert client.get("/v2/health/ready").status_code == 200


@pytest.mark.parametrize("length", [b"-1", b"1e3", b"x", b"9" * 40])
def test_lengths_that_are_none(small, length):
    with raw(small, POST + b"content-length: " + length + b"\r\n\r\n") as connection:
        assert read_all(connection)[:12] in (b"HTTP/1.1 400", b"HTTP/1.1 413")


def test_bodies_of_all_requests_together(small):
    """Two bodies are on their way, half a byte short; a third one finds no room."""
    head = POST + b"content-length: 1048576\r\n\r\n" + b"\0" * 100
    with raw(small, head), raw(small, head):
        deadline = time.monotonic() + 5
        while small.service.bodies.used < 2 * MIB and time.monotonic() < deadline:
            time.sleep(0.005)
        with small.client() as client:
            answer = client.post("/v1/classify", content=b"\0" * 1000)
    assert answer.status_code == 429 and answer.headers["retry-after"] == "1"
    assert answer.json()["error"].startswith("bodies of requests (bytes): 2097152 of 2097152 are taken")
    deadline = time.monotonic() + 5
    while small.service.bodies.used and time.monotonic() < deadline:
        time.sleep(0.005)
    assert small.service.bodies.used == 0


def test_pixels_of_an_image(small):
    with small.client() as client:
        for kind in ("JPEG", "PNG"):
            answer = client.post("/v1/classify", content=encoded(1, kind, (101, 100)))
            assert answer.status_code == 400
            assert answer.json()["error"] == "image: 101 x 100 pixels, the limit is 10000; scale it down first"
            assert client.post("/v1/classify", content=encoded(1, kind, (100, 100))).status_code == 200


def test_images_of_a_request(small, pictures):
    with small.client() as client:
        answer = client.post("/v1/classify", files=[("f", pictures[0])] * 5)
    assert answer.status_code == 400 and "at most 4 images" in answer.json()["error"]


def test_a_slow_body(small):
    with raw(small, POST + b"content-length: 100\r\n\r\nabc") as connection:
        answer = read_all(connection)
    assert answer.startswith(b"HTTP/1.1 408 ") and b"body: not whole after 0.6 seconds" in answer


def test_slow_headers(small):
    started = time.monotonic()
    with raw(small, POST) as connection:
        assert read_all(connection) == b""
    assert time.monotonic() - started < 2


def test_slow_headers_of_a_second_request(small):
    with raw(small, b"GET /v2 HTTP/1.1\r\nhost: x\r\n\r\n") as connection:
        assert connection.recv(65536).startswith(b"HTTP/1.1 200")
        connection.sendall(POST)
        started = time.monotonic()
        assert read_all(connection) == b""
        assert time.monotonic() - started < 0.9  # not the time of an idle connection


@pytest.mark.parametrize(
    "headers", [b"a: " + b"x" * 8192, b"\r\n".join(b"a%d: b" % n for n in range(2000)), b"a" * 8192 + b": b"]
)
def test_long_headers(small, headers):
    with raw(small, POST + headers + b"\r\n\r\n") as connection:
        answer = read_all(connection)
    assert answer.startswith(b"HTTP/1.1 431 ") and json.loads(answer.partition(b"\r\n\r\n")[2])["error"]


def test_headers_that_never_end(small):
    with raw(small, POST) as connection:
        answer = b""
        try:
            for _ in range(200):
                connection.sendall(b"y" * 1000)
            answer = read_all(connection)
        except (BrokenPipeError, ConnectionResetError):
            pass
    assert answer == b"" or answer.startswith(b"HTTP/1.1 431 ")
    assert small.in_loop(lambda: len(small.server.server_state.connections)) < 12


def test_many_requests_on_one_connection_are_not_long_headers(small, pictures):
    request = POST + b"content-length: %d\r\n\r\n" % len(pictures[0]) + pictures[0]
    with raw(small) as connection:
        for _ in range(30):
            connection.sendall(request)
            assert connection.recv(65536).startswith(b"HTTP/1.1 200")


def test_requests_that_are_sent_together(small, pictures):
    request = POST + b"content-length: %d\r\n\r\n" % len(pictures[0]) + pictures[0]
    last = request.replace(b"host: x", b"host: x\r\nconnection: close", 1)
    with raw(small, request * 4 + last) as connection:
        assert read_all(connection).count(b"HTTP/1.1 200") == 5


def test_connections(small):
    opened = [raw(small) for _ in range(12)]
    try:
        with raw(small, b"GET /v2 HTTP/1.1\r\nhost: x\r\n\r\n") as one_more:
            answer = read_all(one_more)
        assert answer.startswith(b"HTTP/1.1 503 ") and b"retry-after: 1" in answer
    finally:
        for connection in opened:
            connection.close()
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        with small.client() as client:
            if client.get("/v2").status_code == 200:
                return
    pytest.fail("no connection is taken any more")


def test_a_full_queue_and_what_comes_after(serve, gate, pictures):
    with serve(limits=Limits(queue=3)) as server, server.client() as client, ThreadPoolExecutor(3) as pool:
        gate.shut()
        waiting = [pool.submit(httpx.post, f"{server.url}/v1/classify", content=pictures[n]) for n in range(3)]
        gate.wait_until_reached()
        queue = server.model("tiny").queue
        while queue.used < 3:
            time.sleep(0.002)
        answer = client.post("/v1/classify", content=pictures[0])
        assert answer.status_code == 429 and int(answer.headers["retry-after"]) >= 1
        assert answer.json()["error"].startswith("queue (images): 3 of 3 are taken")
        answer = client.post("/v1/classify", files=[("f", pictures[0])] * 4)
        assert answer.status_code == 413 and "4 are more than the queue takes, 3" in answer.json()["error"]
        gate.open()
        assert [one.result().status_code for one in waiting] == [200] * 3
        assert client.post("/v1/classify", content=pictures[0]).status_code == 200


def test_no_answer_in_time(serve, gate, pictures):
    with serve(limits=Limits(timeout=0.3)) as server, server.client() as client:
        gate.shut()
        answer = client.post("/v1/classify", content=pictures[0])
        assert answer.status_code == 504 and answer.json()["error"] == "no answer within 0.3 seconds"
        gate.open()
        assert client.post("/v1/classify", content=pictures[0]).status_code == 200


def test_who_left_is_not_computed(serve, gate, pictures):
    """The device waits with one image; of the others, those whose client left never reach it."""
    with serve() as server, server.client() as client:
        model = server.model("tiny")
        gate.shut()
        request = POST + b"content-length: %d\r\n\r\n" % len(pictures[0]) + pictures[0]
        first = raw(server, request)
        gate.wait_until_reached()
        others = [raw(server, request) for _ in range(5)]
        while model.queue.used < 6:
            time.sleep(0.002)
        for connection in others[1:]:
            connection.close()
        time.sleep(0.05)
        gate.open()
        for connection in (first, others[0]):
            assert connection.recv(65536).startswith(b"HTTP/1.1 200")
            connection.close()
        assert client.post("/v1/classify", content=pictures[0]).status_code == 200
        while model.queue.used:
            time.sleep(0.002)
        assert model.metrics.totals.images == 3
        text = client.get("/metrics").text
    assert 'iresnet_requests_total{code="499",protocol="http",route="classify"} 4.0' in text


def test_a_client_that_does_not_read(serve, pictures):
    """It sends requests without end and reads no answer: its connection ends, others are served."""
    with serve(limits=Limits(timeout=0.4, max_connections=50)) as server:
        request = b"GET /openapi.json HTTP/1.1\r\nhost: x\r\n\r\n" * 50
        with raw(server, timeout=5) as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)

            def send():
                try:
                    for _ in range(400):
                        connection.sendall(request)
                except OSError:
                    pass

            thread = threading.Thread(target=send)
            thread.start()

            def connections():
                return set(server.server.server_state.connections)

            deadline = time.monotonic() + 25
            while not (found := server.in_loop(connections)) and time.monotonic() < deadline:
                time.sleep(0.002)
            (connection_there,) = found
            most = 0
            while server.in_loop(connections) and time.monotonic() < deadline:
                most = max(most, server.in_loop(lambda: len(connection_there.pipeline)))
                time.sleep(0.02)
            assert server.in_loop(connections) == set()
            # Of 20,000 requests, those of one read (256 KiB at most) and no more wait in the server.
            assert 0 < most <= 256 * 1024 / (len(request) / 50)
            thread.join()
        with server.client() as client:
            assert client.post("/v1/classify", content=pictures[0]).status_code == 200


WRONG = [
    ({"max_body": 0}, "max_body: expected at least 1, found 0"),
    ({"timeout": 0.0}, "timeout: expected more than 0 seconds"),
    ({"queue": 0}, "queue: expected at least 1 image"),
    ({"max_body": 4 * MIB, "max_buffered": MIB}, "max_buffered: expected at least max_body"),
]


@pytest.mark.parametrize(("options", "message"), WRONG)
def test_limits_that_cannot_be(options, message):
    with pytest.raises(InputError, match=message):
        Limits(**options)


def test_a_budget():
    budget = Budget(3, "things")
    budget.take(2)
    with pytest.raises(Refusal, match="things: 2 of 3 are taken, there is no room for 2 more now"):
        budget.take(2)
    budget.give_back(1)
    budget.take(2)
    assert budget.used == 3


@pytest.mark.parametrize(
    "data", [b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"hello\r\n\r\n", b"GET /v2 HTTP/9.9\r\n\r\n"]
)
def test_what_is_no_http(small, data):
    with raw(small, data) as connection:
        answer = read_all(connection)
    assert answer.startswith(b"HTTP/1.1 400 ") and b'{"error":"request: expected HTTP/1.1"}' in answer
