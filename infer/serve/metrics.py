"""What Prometheus is told, in a registry of the server's own: several may live in one process."""

from __future__ import annotations

import functools
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

Protocol = Literal["http", "grpc"]
_SECONDS = (0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.256, 0.512, 1, 2, 4, 8, 16, 32)
_BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
STAGES = ("decode", "wait", "infer")


class Metrics:
    """Counters, gauges and histograms of one server."""

    def __init__(self, version: str) -> None:
        self.registry = CollectorRegistry()
        model = ("model", "version")
        self._requests = self._made(Counter, "requests", "Requests by protocol, route and code.", "protocol route code")
        self._seconds = Histogram(
            "iresnet_request_seconds",
            "From the headers of a request to the end of its answer.",
            ("protocol", "route"),
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.batches = Histogram(
            "iresnet_batch_images", "Images of a batch.", model, buckets=_BATCHES, registry=self.registry
        )
        self.stages = Histogram(
            "iresnet_stage_seconds",
            "decode: of one image; wait: of a row or of rows of a request for the device; infer: of a batch.",
            (*model, "stage"),
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.images = self._made(Counter, "images", "Images by what became of them.", "model version outcome")
        self.failures = self._made(Counter, "failed_batches", "Batches that failed.", "model version")
        self.queue = self._made(
            Gauge, "queue_images", "Images that are decoded, wait or are under way.", "model version"
        )
        self.device = self._made(Info, "model", "Device, target and precision of a loaded model.", "model version")
        self.ready = Gauge("iresnet_ready", "1 while the server is ready.", registry=self.registry)
        self.buffered = Gauge("iresnet_buffered_bytes", "Bytes of bodies in memory.", registry=self.registry)
        self.dropped = Counter(
            "iresnet_access_log_dropped", "Lines that the log could not take in time.", registry=self.registry
        )
        Info("iresnet_server", "The server.", registry=self.registry).info({"version": version})
        self._route = functools.cache(self._seconds.labels)
        self._code = functools.cache(self._requests.labels)

    def _made(self, kind: type, name: str, text: str, labels: str) -> Any:
        return kind(f"iresnet_{name}", text, labels.split(), registry=self.registry)

    def request(self, protocol: Protocol, route: str, code: str, seconds: float) -> None:
        """Count a request."""
        self._code(protocol, route, code).inc()
        self._route(protocol, route).observe(seconds)

    def text(self) -> tuple[bytes, str]:
        """The exposition, and its media type."""
        return generate_latest(self.registry), CONTENT_TYPE_LATEST


@dataclass
class _Batches:
    count: int = 0
    seconds: float = 0.0


@dataclass
class Totals:
    """Sums for the statistics extension of the v2 protocol.

    Attributes:
        requests, failed: requests by outcome; seconds of each.
        images: images that have results.
        sizes: batch size to number and seconds.
    """

    requests: int = 0
    seconds: float = 0.0
    failed: int = 0
    failed_seconds: float = 0.0
    images: int = 0
    wait: float = 0.0
    decode: float = 0.0
    last: float = 0.0
    sizes: dict[int, _Batches] = field(default_factory=dict)


class ModelMetrics:
    """The metrics of one version of a model; safe to call from any thread."""

    def __init__(self, metrics: Metrics, name: str, version: str) -> None:
        self._metrics, self._key = metrics, (name, version)
        self.batches = metrics.batches.labels(name, version)
        self.decode, self.wait, self.infer = (metrics.stages.labels(name, version, stage) for stage in STAGES)
        self.good = metrics.images.labels(name, version, "good")
        self.bad = metrics.images.labels(name, version, "undecodable")
        self.failures = metrics.failures.labels(name, version)
        self.queue = metrics.queue.labels(name, version)
        self.totals = Totals()
        self._lock = threading.Lock()

    def describe(self, **what: str) -> None:
        """Say what runs the model."""
        self._metrics.device.labels(*self._key).info(what)

    def batch(self, rows: int, waits: Sequence[float], seconds: float) -> None:
        """See :class:`infer.serve.batcher.Watcher`."""
        self.batches.observe(rows)
        self.infer.observe(seconds)
        for wait in waits:
            self.wait.observe(wait)
        self.good.inc(rows)
        with self._lock:
            size = self.totals.sizes.setdefault(rows, _Batches())
            size.count += 1
            size.seconds += seconds
            self.totals.images += rows

    def forget(self) -> None:
        """Remove the gauges of a model that was unloaded; counters stay until the server ends."""
        self._metrics.queue.remove(*self._key)
        self._metrics.device.remove(*self._key)
