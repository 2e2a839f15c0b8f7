"""Figures of the service for monitoring. No label ever holds the name of a concept or a prompt."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

PHASES: Final = ("resolve", "draw", "encode")
_SECONDS: Final = (0.001, 0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2, 5, 10, 30, 60, 120)


class Metrics:
    """One service's figures, apart from those of other services in the process."""

    def __init__(self) -> None:
        self._collected = CollectorRegistry()
        kept: Any = {"registry": self._collected}
        self.requests = Counter(
            "cones_requests", "Requests by route and outcome.", ["route", "outcome"], **kept
        )
        self.pictures = Counter("cones_pictures", "Pictures drawn.", **kept)
        self.batch_size = Histogram(
            "cones_batch_size", "Pictures in a batch.", buckets=(1, 2, 4, 8, 16, 32, 64), **kept
        )
        self.waited = Histogram(
            "cones_wait_seconds", "Seconds a request waited.", buckets=_SECONDS, **kept
        )
        self._phases = Histogram(
            "cones_phase_seconds",
            "Seconds by phase: resolve (a request), draw (a batch), encode (a picture).",
            ["phase"],
            buckets=_SECONDS,
            **kept,
        )
        for phase in PHASES:
            self._phases.labels(phase)
        self._gauges: dict[str, Gauge] = {}
        self._spans = _tracer()

    def watch(self, name: str, text: str, value: Callable[[], float]) -> None:
        """Show ``value()`` as it is whenever somebody looks."""
        gauge = Gauge(name, text, registry=self._collected)
        gauge.set_function(value)
        self._gauges[name] = gauge

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count the seconds of a phase, and show it as a span where OpenTelemetry is installed."""
        began = time.perf_counter()
        with self._spans(f"cones.{name}"):
            try:
                yield
            finally:
                self._phases.labels(name).observe(time.perf_counter() - began)

    def batch_began(self, size: int, waited: Sequence[float]) -> None:
        """A batch of ``size`` pictures is drawn now; they waited so many seconds each."""
        self.batch_size.observe(size)
        for seconds in waited:
            self.waited.observe(seconds)

    def batch_ended(self, size: int, seconds: float) -> None:
        """It took ``seconds``."""
        self.pictures.inc(size)
        self._phases.labels("draw").observe(seconds)

    def text(self) -> bytes:
        """All figures in Prometheus' text format."""
        return generate_latest(self._collected)


def _tracer() -> Callable[[str], AbstractContextManager[Any]]:
    try:
        from opentelemetry import trace
    except ImportError:
        return lambda _: nullcontext()
    return trace.get_tracer("cones_registry").start_as_current_span
