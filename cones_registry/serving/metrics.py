"""Figures of the service for monitoring. No label ever holds the name of a concept or a prompt."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily

from cones_registry.serving.tracing import Tracing

if TYPE_CHECKING:
    from cones_registry.serving.batching import PhaseCallback, Ticket

PHASES: Final = ("resolve", "kv", "denoise", "decode", "encode")
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
            "Seconds by phase: resolve (a request), kv, denoise and decode (a batch), encode (a "
            "picture).",
            ["phase"],
            buckets=_SECONDS,
            **kept,
        )
        for phase in PHASES:
            self._phases.labels(phase)
        self.tracing = Tracing()

    def watch(self, name: str, text: str, value: Callable[[], float]) -> None:
        """Show ``value()`` as it is whenever somebody looks."""
        Gauge(name, text, registry=self._collected).set_function(value)

    def watch_counts(
        self, name: str, text: str, label: str, counts: Callable[[], Mapping[str, int]]
    ) -> None:
        """Show numbers that only grow, by ``label``, as they are whenever somebody looks."""
        self._collected.register(_Counts(name, text, label, counts))

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count the seconds of a phase, and show it as a span where OpenTelemetry is installed."""
        began = time.perf_counter()
        with self.tracing.span(name):
            try:
                yield
            finally:
                self._phases.labels(name).observe(time.perf_counter() - began)

    @contextmanager
    def batch(self, tickets: Sequence[Ticket]) -> Iterator[PhaseCallback]:
        """A batch is being drawn; what is given back is told of its phases."""
        began = time.monotonic()
        self.batch_size.observe(len(tickets))
        for ticket in tickets:
            self.waited.observe(began - ticket.arrived)
        reached = 0

        def on_phase(name: str, seconds: float) -> None:
            nonlocal reached
            self._phases.labels(name).observe(seconds)
            # One after the other; K and V are computed within the first step of denoising.
            self.tracing.past(name, reached, seconds)
            reached += round(seconds * 1e9)

        links = [ticket.trace for ticket in tickets]
        with self.tracing.span("draw", links=links, batch_size=len(tickets)):
            reached = time.time_ns()
            yield on_phase
        self.pictures.inc(sum(_has_picture(ticket) for ticket in tickets))

    def text(self) -> bytes:
        """All figures in Prometheus' text format."""
        return generate_latest(self._collected)


@dataclass(frozen=True)
class _Counts:
    """A collector of counts that somebody else keeps."""

    name: str
    text: str
    label: str
    counts: Callable[[], Mapping[str, int]]

    def collect(self) -> Iterable[CounterMetricFamily]:
        """What Prometheus' client asks for."""
        family = CounterMetricFamily(self.name, self.text, labels=[self.label])
        for value, count in self.counts().items():
            family.add_metric([value], count)
        yield family


def _has_picture(ticket: Ticket) -> bool:
    done = ticket.done
    return done.done() and not done.cancelled() and done.exception() is None
