"""A Ray cluster: one that is there, or one on this machine for the length of a job."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import socket
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from infer.errors import InputError, MissingDependencyError, TargetUnavailableError

#: Cores of an actor on a CPU target where nothing is said, as far as the machines have them.
CORES = 4
#: Bytes of the object store of a cluster that is started here; nothing but numbers of parts passes through it.
STORE = 200_000_000


@dataclass(frozen=True)
class Actors:
    """How the cluster is divided.

    Attributes:
        count: actors that fit.
        cpus: cores of each, which are its threads too.
        gpus: GPUs of each, 0 or 1.
    """

    count: int
    cpus: int
    gpus: int


def import_ray() -> Any:
    """Ray with Ray Data, told to send nothing home.

    Raises:
        MissingDependencyError: it is not installed.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise MissingDependencyError(f"--ray needs Ray ({error}): pip install 'iresnet-trt[ray]'") from error
    return ray


@contextmanager
def connected(address: str) -> Iterator[Any]:
    """Ray, connected to the cluster at ``address``, or to one of its own for ``local``.

    Raises:
        MissingDependencyError: Ray is not installed.
        TargetUnavailableError: there is no cluster.
    """
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    temporary = tempfile.mkdtemp(prefix="iresnet-ray-") if address == "local" else None
    if temporary is not None:
        # Before the import, which reads it: all sockets on the machine's own interface.
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    ray = import_ray()
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR, "configure_logging": True}
    try:
        if temporary is not None:
            ray.init(
                address="local", include_dashboard=False, object_store_memory=STORE, _temp_dir=temporary,
                _node_ip_address="127.0.0.1", **quiet,
            )  # fmt: skip
        else:
            try:
                _reach(address)
                ray.init(address=address, **quiet)
            except (OSError, ValueError, RuntimeError) as error:
                text = " ".join(str(error).split())[:300]
                raise TargetUnavailableError(
                    f"--ray {address}: no Ray cluster can be reached there ({text}); start one with: ray start --head"
                ) from error
        if threading.current_thread() is threading.main_thread():
            for number, handler in handlers.items():  # Ray puts its own in their place
                signal.signal(number, handler)
        yield ray
    finally:
        ray.shutdown()
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def _reach(address: str) -> None:
    """Ray itself tries for minutes.

    Raises:
        OSError, ValueError: nobody listens at ``HOST:PORT``.
    """
    host, colon, port = address.rpartition(":")
    if colon:
        with socket.create_connection((host.rpartition("/")[2], int(port)), timeout=5):
            pass


def divide(nodes: list[dict[str, Any]], threads: int | None, *, gpu: bool) -> Actors:
    """How many actors of which size the machines hold.

    Args:
        nodes: as ``ray.nodes()`` lists them.
        threads: cores of an actor; None for :data:`CORES`, or what the smallest machine has.
        gpu: an actor for each GPU.

    Raises:
        InputError: no machine holds one.
    """
    found = [(node["Resources"].get("CPU", 0), node["Resources"].get("GPU", 0)) for node in nodes if node["Alive"]]
    usable = [(int(cpus), int(gpus)) for cpus, gpus in found if cpus >= 1]
    if gpu:
        devices = [(cpus, gpus) for cpus, gpus in usable if gpus]
        if not devices:
            raise InputError("the cluster has no GPU; pass --target openvino, or start its nodes with --num-gpus")
        most = min(cpus // gpus for cpus, gpus in devices)
        cpus = min(threads or most, most) or 1
        return Actors(sum(gpus for _, gpus in devices), cpus, 1)
    cpus = threads or min([CORES, *(cpus for cpus, _ in usable)])
    count = sum(each // cpus for each, _ in usable)
    if not count:
        raise InputError(f"no machine of the cluster has {cpus} cores for an actor; pass a smaller --threads")
    return Actors(count, cpus, 0)
