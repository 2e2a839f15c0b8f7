"""Spans of OpenTelemetry, where ``opentelemetry-api`` is installed. None names a concept."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any


class Tracing:
    """Makes spans; does nothing without OpenTelemetry, or where nobody collects them.

    provider: of OpenTelemetry; None is the process's own.
    """

    def __init__(self, provider: Any = None) -> None:
        try:
            from opentelemetry import propagate, trace
        except ImportError:
            self._trace: Any = None
            return
        self._trace, self._propagate = trace, propagate
        self._tracer = trace.get_tracer("cones_registry", tracer_provider=provider)

    @contextmanager
    def span(
        self,
        name: str,
        *,
        headers: Mapping[str, str] | None = None,
        links: Sequence[Any] = (),
        **attributes: int,
    ) -> Iterator[None]:
        """A span around a block.

        Args:
            headers: of an HTTP request, whose ``traceparent`` it goes on from.
            links: what ``here`` gave, of the requests that the block works for.
            attributes: figures; never names.
        """
        if self._trace is None:
            yield
            return
        parent = None if headers is None else self._propagate.extract(headers)
        linked = [self._trace.Link(each) for each in links if each is not None]
        told = {f"cones.{key}": value for key, value in attributes.items()}
        with self._tracer.start_as_current_span(
            f"cones.{name}",
            context=parent,
            links=linked,
            attributes=told,
            record_exception=False,  # messages may hold prompts
            set_status_on_exception=False,
        ):
            yield

    def past(self, name: str, began: int, seconds: float) -> None:
        """A span of something that is over already. began: ``time.time_ns()`` of its beginning."""
        if self._trace is not None:
            span = self._tracer.start_span(f"cones.{name}", start_time=began)
            span.end(began + round(seconds * 1e9))

    def here(self) -> Any:
        """The span that is open now, for links; None without one."""
        if self._trace is None:
            return None
        found = self._trace.get_current_span().get_span_context()
        return found if found.is_valid else None
