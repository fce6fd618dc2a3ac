"""A server among hostile clients, and ended under load; by hand, on loopback only.

    python tests/hostile_serve.py BUNDLE [--requests 20000] [--clients 64] [--sigterm 10] [--seed 0]

A fifth of the requests is hostile: cut bodies, wrong lengths, huge headers, slow senders, clients that leave while they
wait, corrupt images, malformed tensors, unknown models, no HTTP at all; meanwhile the model is loaded again and again.
The others are sound, over HTTP by hand and by NVIDIA's clients for HTTP and gRPC. Each sound one must be answered with
the classes that ``Runner`` gives (429 is asked again), each hostile one refused as it should be or not at all, and
nothing may hang. Memory of the server is printed along the way. Then the server is started and ended under load.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import io
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

PATIENCE = 60.0  # seconds for any one request: longer is a hang
NAME = "m"


class Server:
    """``iresnet serve`` as a process."""

    def __init__(self, bundle: Path, *options: str) -> None:
        self.folder = Path(tempfile.mkdtemp())
        (self.folder / "repository").mkdir()
        (self.folder / "repository" / NAME).symlink_to(bundle.resolve())
        command = [sys.executable, "-m", "infer", "serve", f"{NAME}={bundle}", "--port", "0", "--grpc-port", "0",
                   "--repository", str(self.folder / "repository"), "--allow-untrained", *options]  # fmt: skip
        self.log = (self.folder / "stderr").open("w+b")
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=self.log, env=environment)
        deadline = time.monotonic() + 60
        while b"ready:" not in self.said() and time.monotonic() < deadline and self.process.poll() is None:
            time.sleep(0.02)
        found = re.search(rb"HTTP on http://127.0.0.1:(\d+), gRPC on 127.0.0.1:(\d+)", self.said())
        assert found and b"ready:" in self.said(), self.said()
        self.port, self.grpc_port = int(found[1]), int(found[2])

    def said(self) -> bytes:
        return (self.folder / "stderr").read_bytes()

    def memory(self) -> float:
        """Resident MiB."""
        return int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20

    def metric(self, name: str) -> dict[str, float]:
        text = urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=20).read().decode()
        return {m[1]: float(m[2]) for m in re.finditer(rf"^({name}\S*) (\S+)$", text, re.MULTILINE)}

    def end(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(60)
        self.log.close()
        shutil.rmtree(self.folder)
        return code


def make_pictures(count: int, seed: int) -> list[bytes]:
    draw = np.random.default_rng(seed)
    found = []
    for number in range(count):
        size = tuple(int(n) for n in draw.integers(30, 400, 2))
        image = Image.fromarray(draw.integers(0, 256, (6, 6, 3)).astype(np.uint8)).resize(
            size, Image.Resampling.BICUBIC
        )
        file = io.BytesIO()
        image.save(file, ("JPEG", "PNG", "WEBP")[number % 3])
        found.append(file.getvalue())
    return found


class Load:
    """What is sent, and what came back."""

    def __init__(self, server: Server, runner, seed: int) -> None:
        self.server, self.port = server, server.port
        self.random = random.Random(seed)
        self.pictures = make_pictures(48, seed)
        self.classes = [[r.index for r in p.top] for p in runner.classify(self.pictures)]
        side = runner.preprocessing.crop
        self.pixels = np.random.default_rng(seed).integers(0, 256, (24, side, side, 3)).astype(np.uint8)
        self.of_pixels = runner.infer(self.pixels).classes
        self.counts: collections.Counter[str] = collections.Counter()
        self.wrong: list[str] = []
        self.left = 0

    async def connect(self):
        return await asyncio.open_connection("127.0.0.1", self.port)

    async def ask(self, head: bytes, body: bytes = b"") -> tuple[int, bytes]:
        """One request on a connection of its own; status 0 where the server just closed."""
        reader, writer = await self.connect()
        try:
            writer.write(head + body)
            await writer.drain()
            return await read_answer(reader)
        except ConnectionError:
            return 0, b""
        finally:
            writer.close()

    def expect(self, kind: str, found: int, *allowed: int) -> None:
        if found not in allowed:
            self.wrong.append(f"{kind}: status {found}, expected {allowed}")

    def check(self, kind: str, found, expected) -> None:
        if found != expected:
            self.wrong.append(f"{kind}: found {found}, expected {expected}")


async def read_answer(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    head = await reader.readuntil(b"\r\n\r\n")
    length = re.search(rb"content-length: (\d+)", head)
    return int(head[9:12]), await reader.readexactly(int(length[1]) if length else 0)


def post(path: str, length: int, *headers: str) -> bytes:
    return "\r\n".join([f"POST {path} HTTP/1.1", "host: x", f"content-length: {length}", *headers, "", ""]).encode()


async def sound_http(load: Load, http, grpc) -> None:
    number = load.random.randrange(len(load.pictures))
    body = load.pictures[number]
    status, answer = await load.ask(post("/v1/classify", len(body)), body)
    if status == 429:
        load.counts["asked again after 429"] += 1
        await asyncio.sleep(0.05)
        return await sound_http(load, http, grpc)
    load.expect("sound", status, 200)
    if status == 200:
        load.check("sound", [r["index"] for r in json.loads(answer)["predictions"][0]["top"]], load.classes[number])
    return None


async def sound_triton(load: Load, client, module) -> None:
    from tritonclient.utils import InferenceServerException

    if load.random.random() < 0.5:
        first = load.random.randrange(20)
        data = load.pixels[first : first + load.random.randrange(1, 5)]
        made = module.InferInput("images", data.shape, "UINT8").set_data_from_numpy(data)
        expected = load.of_pixels[first : first + len(data)].tolist()
    else:
        numbers = [load.random.randrange(len(load.pictures)) for _ in range(load.random.randrange(1, 4))]
        data = np.array([load.pictures[n] for n in numbers], dtype=object)
        made = module.InferInput("images", data.shape, "BYTES").set_data_from_numpy(data)
        expected = [load.classes[n] for n in numbers]
    while True:
        try:
            found = (await client.infer(NAME, [made])).as_numpy("classes").tolist()
        except InferenceServerException as error:
            if "are taken" in str(error):
                load.counts["asked again after 429"] += 1
                await asyncio.sleep(0.05)
                continue
            load.wrong.append(f"sound by tritonclient: {error}")
            return
        load.check("sound by tritonclient", found, expected)
        return


async def sound_triton_http(load: Load, http, grpc) -> None:
    import tritonclient.http as module

    await sound_triton(load, http, module)


async def sound_triton_grpc(load: Load, http, grpc) -> None:
    import tritonclient.grpc as module

    await sound_triton(load, grpc, module)


async def cut_body(load: Load, http, grpc) -> None:
    body = load.random.choice(load.pictures)
    _, writer = await load.connect()
    writer.write(post("/v1/classify", len(body)) + body[: len(body) // 2])
    await writer.drain()
    writer.close()


async def cut_image(load: Load, http, grpc) -> None:
    body = load.random.choice(load.pictures)
    body = body[: load.random.randrange(4, 40)]
    status, _ = await load.ask(post("/v1/classify", len(body)), body)
    load.expect("cut image", status, 400, 429)


async def corrupt_image(load: Load, http, grpc) -> None:
    body = bytearray(load.random.choice(load.pictures))
    for _ in range(8):
        body[load.random.randrange(len(body))] = load.random.randrange(256)
    status, _ = await load.ask(post("/v1/classify", len(body)), bytes(body))
    load.expect("corrupt image", status, 200, 400, 429)


async def wrong_length(load: Load, http, grpc) -> None:
    length = load.random.choice(["-1", "x", "99999999999999999999", "1e9", str(1 << 40)])
    status, _ = await load.ask(f"POST /v1/classify HTTP/1.1\r\nhost: x\r\ncontent-length: {length}\r\n\r\n".encode())
    load.expect("wrong length", status, 400, 413)


async def short_length(load: Load, http, grpc) -> None:
    """More comes than was announced: an image that is cut, then something that is no request."""
    body = load.random.choice(load.pictures)
    status, _ = await load.ask(post("/v1/classify", 20), body)
    load.expect("short length", status, 400, 429)


async def huge_headers(load: Load, http, grpc) -> None:
    status, _ = await load.ask(post("/v1/classify", 0, "a: " + "x" * 200_000))
    load.expect("huge headers", status, 431, 0)


async def slow_sender(load: Load, http, grpc) -> None:
    reader, writer = await load.connect()
    head = post("/v1/classify", 100)
    try:
        for at in range(0, len(head) - 8, 8):  # never whole
            writer.write(head[at : at + 8])
            await writer.drain()
            await asyncio.sleep(0.4)
        found = await asyncio.wait_for(reader.read(), 30)
    except ConnectionError:
        found = b""
    finally:
        writer.close()
    if found and b" 408 " not in found[:20]:
        load.wrong.append(f"slow sender: {found[:80]!r}")


async def leaves(load: Load, http, grpc) -> None:
    body = load.random.choice(load.pictures)
    _, writer = await load.connect()
    writer.write(post("/v1/classify", len(body)) + body)
    await writer.drain()
    await asyncio.sleep(load.random.random() * 0.02)
    if load.random.random() < 0.5:
        writer.transport.abort()
    writer.close()


async def malformed_tensor(load: Load, http, grpc) -> None:
    one = {"name": "images", "datatype": "UINT8", "shape": [1, 8, 8, 3], "parameters": {"binary_data_size": 192}}
    changes = [
        {"shape": [1, 8, 8]}, {"shape": [1 << 62]}, {"datatype": "FP32"}, {"name": "x"}, {"data": "y"}, {"shape": None},
        {"parameters": {"binary_data_size": -5}}, {"parameters": {"shared_memory_region": "r"}}, {},
    ]  # fmt: skip
    head = json.dumps({"inputs": [{**one, **load.random.choice(changes)}]}).encode()
    body = head + os.urandom(192)
    length = load.random.choice([len(head), len(head) + 1, 0, 10**9])
    status, _ = await load.ask(
        post(f"/v2/models/{NAME}/infer", len(body), f"inference-header-content-length: {length}"), body
    )
    load.expect("malformed tensor", status, 400)


async def malformed_message(load: Load, http, grpc) -> None:
    from tritonclient.grpc import InferInput
    from tritonclient.utils import InferenceServerException

    made = InferInput("images", [1, 3, 3, 3], "UINT8").set_data_from_numpy(np.zeros((1, 3, 3, 3), np.uint8))
    try:
        await grpc.infer(NAME, [made])
        load.wrong.append("malformed message: answered")
    except InferenceServerException as error:
        if "INVALID_ARGUMENT" not in str(error):
            load.wrong.append(f"malformed message: {error}")


async def unknown_model(load: Load, http, grpc) -> None:
    status, _ = await load.ask(post("/v2/models/%2e%2e%2fnone/infer", 2), b"{}")
    load.expect("unknown model", status, 404)


async def no_http(load: Load, http, grpc) -> None:
    status, _ = await load.ask(os.urandom(64) + b"\r\n\r\n")
    load.expect("no HTTP", status, 400, 0)


SOUND = (sound_http, sound_triton_http, sound_triton_grpc)
HOSTILE = (
    cut_body, cut_image, corrupt_image, wrong_length, short_length, huge_headers, slow_sender, leaves, malformed_tensor,
    malformed_message, unknown_model, no_http,
)  # fmt: skip


async def client(load: Load) -> None:
    import tritonclient.grpc.aio as grpc_module
    import tritonclient.http.aio as http_module

    async with (
        http_module.InferenceServerClient(f"127.0.0.1:{load.port}") as http,
        grpc_module.InferenceServerClient(f"127.0.0.1:{load.server.grpc_port}") as grpc,
    ):
        while load.left > 0:
            load.left -= 1
            kind = load.random.choice(HOSTILE if load.random.random() < 0.2 else SOUND)
            load.counts[kind.__name__] += 1
            try:
                await asyncio.wait_for(kind(load, http, grpc), PATIENCE)
            except TimeoutError:
                load.wrong.append(f"{kind.__name__}: hangs")
            except Exception as error:
                load.wrong.append(f"{kind.__name__}: {type(error).__name__}: {error}")


async def watch(load: Load, total: int, reloads: list[int]) -> None:
    """Load the model again and again, and print the memory."""
    shown = 0
    while load.left > 0:
        status, _ = await load.ask(post(f"/v2/repository/models/{NAME}/load", 0))
        load.expect("load", status, 200)
        reloads[0] += 1
        if (done := 10 * (total - load.left) // total) > shown:
            shown = done
            print(
                f"{total - load.left:6} requests, server {load.server.memory():6.1f} MiB, wrong {len(load.wrong)}",
                flush=True,
            )
        await asyncio.sleep(1)


def hostile(bundle: Path, requests: int, clients: int, seed: int) -> bool:
    from infer import open_bundle

    server = Server(bundle, "--timeout", "5", "--no-access-log")
    runner = open_bundle(bundle, allow_untrained=True)
    load = Load(server, runner, seed)
    load.left = requests
    reloads = [0]
    started = time.monotonic()

    async def main() -> None:
        await asyncio.gather(watch(load, requests, reloads), *(client(load) for _ in range(clients)))

    asyncio.run(main())
    seconds = time.monotonic() - started
    time.sleep(6)  # the time of the slowest
    queue, buffered = server.metric("iresnet_queue_images"), server.metric("iresnet_buffered_bytes")
    memory, code = server.memory(), server.end()
    print(f"{requests} requests of {clients} clients in {seconds:.0f} s, the model loaded again {reloads[0]} times")
    print(", ".join(f"{name} {count}" for name, count in sorted(load.counts.items())))
    print(f"at the end: server {memory:.1f} MiB, queue {queue}, bodies {buffered}, exit code {code}")
    for line in load.wrong[:20]:
        print("WRONG", line)
    return not load.wrong and code == 0 and not any((*queue.values(), *buffered.values()))


async def until_refused(port: int, body: bytes, failed: list[str]) -> int:
    """Requests one after the other, on connections that stay open, until nobody listens."""
    done = 0
    while True:
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
        except ConnectionError:
            return done
        try:
            while True:
                writer.write(post("/v1/classify", len(body)) + body)
                head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), PATIENCE)
                await reader.readexactly(int(re.search(rb"content-length: (\d+)", head)[1]))
                if not head.startswith(b"HTTP/1.1 200"):
                    failed.append(head[:20].decode())
                done += 1
                if b"connection: close" in head:
                    break
        except (ConnectionError, asyncio.IncompleteReadError, TimeoutError) as error:
            failed.append(f"{type(error).__name__} after {done}")
            return done
        finally:
            writer.close()


def sigterm(bundle: Path, times: int, clients: int) -> bool:
    good = True
    (picture,) = make_pictures(1, 0)
    for number in range(times):
        server = Server(bundle, "--no-access-log")
        failed: list[str] = []

        async def main(server: Server = server, failed: list[str] = failed) -> list[int]:
            loop = asyncio.get_running_loop()
            loop.call_later(1.0, server.process.send_signal, signal.SIGTERM)
            return await asyncio.gather(*(until_refused(server.port, picture, failed) for _ in range(clients)))

        done = asyncio.run(main())
        code = server.process.wait(60)
        print(
            f"SIGTERM {number + 1}: {sum(done)} requests answered, lost {len(failed)} {failed[:3]}, exit code {code}",
            flush=True,
        )
        good = good and not failed and code == 0
    return good


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--sigterm", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    good = True
    if options.requests:
        good = hostile(options.bundle, options.requests, options.clients, options.seed)
    if options.sigterm:
        good = sigterm(options.bundle, options.sigterm, 32) and good
    print("good" if good else "NOT GOOD")
    raise SystemExit(not good)


if __name__ == "__main__":
    main()
