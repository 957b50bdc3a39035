"""Figures about the running service, in the text format of Prometheus."""

from __future__ import annotations

import time
from typing import Any

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128)
KNOWN_METHODS = ("GET", "POST", "HEAD", "OPTIONS", "PUT", "DELETE", "PATCH")


class Monitor:
    """Counts requests by route, method and status, their time, and the size of batches.

    Each has a registry of its own, so that there can be several services in one process.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        labels = ("route", "method", "status")
        self.requests = Counter("ccrk_requests", "Requests answered", labels, registry=self.registry)
        self.seconds = Histogram(
            "ccrk_request_seconds", "Time to the last byte", ("route",), buckets=SECONDS, registry=self.registry
        )
        self.batches = Histogram(
            "ccrk_batch_queries", "Queries in a pass of the model", buckets=SIZES, registry=self.registry
        )
        self.waiting = Gauge("ccrk_waiting_queries", "Queries in the queue", registry=self.registry)

    def text(self) -> tuple[bytes, str]:
        """All figures, and their content type."""
        return generate_latest(self.registry), CONTENT_TYPE_LATEST


class MonitorMiddleware:
    """Tells a [`Monitor`] about every request. What clients choose freely (paths, methods) becomes no label."""

    def __init__(self, app: Any, monitor: Monitor):
        self.app, self.monitor = app, monitor

    async def __call__(self, scope, receive, send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start, status = time.perf_counter(), 500

        async def watching(message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, watching)
        finally:
            route = scope.get("ccrk.route") or getattr(scope.get("route"), "path", None) or "other"
            method = scope["method"] if scope["method"] in KNOWN_METHODS else "other"
            self.monitor.requests.labels(route, method, str(status)).inc()
            if route != "page":  # its streams stay open for as long as the page does
                self.monitor.seconds.labels(route).observe(time.perf_counter() - start)
