"""What monitoring sees of the service: seconds by phase, caches, spans; never a name."""

import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from running_service import make_registry
from starlette.testclient import TestClient

from cones_registry import Registry
from cones_registry.serving.application import create_app
from cones_registry.serving.metrics import PHASES
from cones_registry.serving.service import PictureShelf, Service
from cones_registry.serving.settings import ServiceSettings
from cones_registry.serving.tracing import Tracing

HOSTS = frozenset({"testserver"})
TRACE = "0af7651916cd43dd8448eb211c80319c"


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def client(tiny_base: Any, tmp_path: Path, exporter: InMemorySpanExporter) -> Iterator[TestClient]:
    folder = make_registry(tmp_path / "registry", tiny_base)
    with Registry.open(folder, cache=tmp_path / "cache", read_only=True) as registry:
        registry.sync()
        settings = ServiceSettings(hosts=HOSTS, gather_seconds=0.2)
        service = Service(tiny_base, registry, settings)
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(exporter))
        service.metrics.tracing = Tracing(provider)
        with TestClient(create_app(service)) as client:
            yield client


def draw(client: TestClient, prompt: str = "a photo of <alice/dog>", **headers: str) -> None:
    body = {"prompt": prompt, "steps": 2, "seed": 1}
    answer = client.post("/v1/images/generations", json=body, headers=headers)
    assert answer.status_code == 200, answer.text
    while figure(client, "cones_running"):  # what is told of a batch is told after its answers
        time.sleep(0.01)


def figure(client: TestClient, name: str) -> float:
    found = re.search(rf"^{re.escape(name)} (\S+)$", client.get("/metrics").text, re.M)
    assert found is not None, name
    return float(found[1])


def test_every_phase_of_a_picture_is_counted_in_seconds(client: TestClient) -> None:
    draw(client)
    for phase in PHASES:
        label = f'{{phase="{phase}"}}'
        assert figure(client, f"cones_phase_seconds_count{label}") >= 1, phase
        assert figure(client, f"cones_phase_seconds_sum{label}") > 0, phase
    assert figure(client, "cones_pictures_total") == 1
    assert 0 <= figure(client, "cones_sync_age_seconds") < 60


def test_masks_that_were_in_memory_are_told_from_those_that_were_read(client: TestClient) -> None:
    draw(client)
    missed = figure(client, 'cones_mask_cache_total{outcome="miss"}')
    draw(client, "a photo of <alice/dog> on the <bob/bear>")
    assert missed == 1
    assert figure(client, 'cones_mask_cache_total{outcome="miss"}') == 2
    assert figure(client, 'cones_mask_cache_total{outcome="hit"}') >= 1


def test_no_figure_and_no_span_names_a_concept_an_owner_or_a_prompt(
    client: TestClient, exporter: InMemorySpanExporter
) -> None:
    draw(client, "a secret photo of <alice/dog>")
    client.get("/v1/concepts/bob/bear")
    client.get("/v1/concepts/nobody/none")
    spans = " ".join(span.to_json() for span in exporter.get_finished_spans())
    for told in (client.get("/metrics").text, spans):
        assert not re.search("alice|dog|bear|bob|secret|nobody", told)


def test_a_trace_goes_on_from_the_callers_through_the_phases(
    client: TestClient, exporter: InMemorySpanExporter
) -> None:
    draw(client, traceparent=f"00-{TRACE}-b7ad6b7169203331-01")
    spans = {span.name: span for span in exporter.get_finished_spans()}
    asked, drawn = spans["cones.images"], spans["cones.draw"]
    assert f"{asked.context.trace_id:032x}" == TRACE
    for name in ("cones.resolve", "cones.encode"):
        assert (
            spans[name].parent is not None and spans[name].parent.span_id == asked.context.span_id
        )
    # A batch serves many requests: it is linked to each of them.
    assert [link.context.span_id for link in drawn.links] == [asked.context.span_id]
    assert drawn.attributes == {"cones.batch_size": 1}
    for name in ("cones.kv", "cones.denoise", "cones.decode"):
        child = spans[name]
        assert child.parent is not None and child.parent.span_id == drawn.context.span_id
        assert drawn.start_time <= child.start_time <= child.end_time


def test_pictures_for_later_are_kept_within_their_time_and_room() -> None:
    now = [0.0]
    shelf = PictureShelf(limit=10, seconds=100, clock=lambda: now[0])
    first = shelf.put(b"x" * 6, "png")
    now[0] = 50
    second = shelf.put(b"y" * 4, "png")
    assert shelf.get(first) and shelf.get(second)
    third = shelf.put(b"z", "png")
    with pytest.raises(LookupError, match="no longer"):
        shelf.get(first)
    now[0] = 150.5
    with pytest.raises(LookupError):
        shelf.get(second)
    now[0] = 151
    large = shelf.put(b"x" * 50, "png")  # alone, it stays
    assert len(shelf.get(large)) == 50
    with pytest.raises(LookupError):
        shelf.get(third)
