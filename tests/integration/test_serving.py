"""The service as its users meet it: `cones serve` in a process, OpenAI's client, raw HTTP."""

import io
import json
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from PIL import Image
from running_service import Running, make_registry, recipe_of, start

from cones_registry import BaseModel, Registry
from cones_registry.generation import read_recipe

TOKEN = "a-token-of-the-tests-0123456789"
HOSTILE = "<script>alert(1)</script>\" onload='x' {{ 7 * 7 }}"


@pytest.fixture(scope="module")
def base(tiny_pipeline_folder: Path) -> BaseModel:
    return BaseModel.load(tiny_pipeline_folder)


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory, base: BaseModel) -> Path:
    folder = make_registry(tmp_path_factory.mktemp("serving") / "registry", base, dog=HOSTILE)
    with Registry.open(folder, cache=folder.parent / "cache") as opened:
        opened.alias("alice/dog:1", "prod")
    return folder


@pytest.fixture(scope="module")
def running(registry: Path, tiny_pipeline_folder: Path) -> Iterator[Running]:
    tokens = {"CONES_SERVE_TOKEN": f"ann:{TOKEN}"}
    service = start(registry, str(tiny_pipeline_folder), "--allow-write", **tokens)
    yield service
    assert service.stop() == 0


@pytest.fixture(scope="module")
def http(running: Running) -> Iterator[httpx.Client]:
    with running.client(headers={"authorization": f"Bearer {TOKEN}"}) as client:
        yield client


@pytest.fixture(scope="module")
def ai(running: Running) -> Iterator[openai.OpenAI]:
    with httpx.Client(trust_env=False, timeout=120) as client:
        yield openai.OpenAI(base_url=f"{running.url}/v1", api_key=TOKEN, http_client=client)


def test_openais_client_gets_the_picture_it_asked_for(ai: openai.OpenAI) -> None:
    answer = ai.images.generate(
        prompt="a photo of <alice/dog> on the wall",
        n=2,
        size="64x64",
        response_format="b64_json",
        extra_body={"seed": 7, "steps": 2},
    )
    recipes = [recipe_of(each.b64_json or "") for each in answer.data or []]
    assert [recipe["seed"] for recipe in recipes] == [7, 8]
    assert {each["ref"] for recipe in recipes for each in recipe["concepts"]} == {"alice/dog:1"}
    assert all(recipe["size"] == [64, 64] and recipe["steps"] == 2 for recipe in recipes)


def test_a_picture_can_be_fetched_by_its_address(ai: openai.OpenAI, http: httpx.Client) -> None:
    answer = ai.images.generate(
        prompt="a photo of the star", response_format="url", extra_body={"seed": 1, "steps": 1}
    )
    assert answer.data and answer.data[0].url
    data = http.get(answer.data[0].url).content
    assert Image.open(io.BytesIO(data)).format == "PNG"
    assert read_recipe(data)["prompt"] == "a photo of the star"


def test_models_are_listed_as_openai_lists_them(ai: openai.OpenAI) -> None:
    (model,) = ai.models.list().data
    assert ai.models.retrieve(model.id).id == model.id


def test_many_at_once_each_get_their_own_picture(http: httpx.Client) -> None:
    prompts = {
        seed: f"a photo of <{('alice/dog', 'bob/bear', 'eve/star')[seed % 3]}>"
        for seed in range(12)
    }
    got: dict[int, dict[str, Any]] = {}

    def ask(seed: int) -> None:
        body = {"prompt": prompts[seed], "seed": seed, "steps": 2, "user": f"user {seed % 4}"}
        answer = http.post("/v1/images/generations", json=body).json()
        got[seed] = recipe_of(answer["data"][0]["b64_json"])

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in prompts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed, recipe in got.items():
        ref = prompts[seed].partition("<")[2].rstrip(">")
        assert recipe["seed"] == seed and recipe["concepts"][0]["ref"] == f"{ref}:1"
    assert len(got) == 12
    figures = http.get("/metrics").text
    assert 'cones_batch_size_bucket{le="1.0"}' in figures and "alice" not in figures


def test_events_tell_each_step_and_end_with_the_picture(http: httpx.Client) -> None:
    body = {
        "prompt": "a photo of <bob/bear>", "seed": 3, "steps": 10, "stream": True,
        "partial_images": 1,
    }  # fmt: skip
    events: list[dict[str, Any]] = []
    with http.stream("POST", "/v1/images/generations", json=body) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        for line in answer.iter_lines():
            if line.startswith("data: "):
                events.append(json.loads(line.removeprefix("data: ")))
    kinds = [event["type"].rpartition(".")[2] for event in events]
    assert kinds[-1] == "completed" and kinds.count("partial_image") == 1
    steps = [event["step"] for event in events if event["type"].endswith("progress")]
    assert steps == sorted(steps) and steps[-1] == 10
    assert recipe_of(events[-1]["b64_json"])["seed"] == 3


@pytest.mark.parametrize(
    ("body", "status", "code", "says"),
    [
        ({"prompt": "a <nobody/none> here"}, 404, "not found", "nobody/none"),
        ({"prompt": "a <alice/dog"}, 400, "usage", "<"),
        ({"prompt": "x" * 5000}, 422, "limit exceeded", "4000"),
        ({"prompt": "a", "n": 11}, 422, "limit exceeded", "at most 10"),
        ({"prompt": "a", "steps": 151}, 422, "limit exceeded", "at most 150"),
        ({"prompt": "a", "size": "4096x64"}, 422, "limit exceeded", "2048"),
        ({"prompt": "a", "size": "65x64"}, 400, "usage", "multiple of 8"),
        ({"prompt": "a", "size": "big"}, 400, "usage", "512x512"),
        ({"prompt": "a", "sampler": "x"}, 400, "usage", "sampler"),
        ({"prompt": 3}, 400, "usage", "prompt"),
        ({"n": 1}, 400, "usage", "prompt"),
        ({"prompt": "a", "scheduler": "no-such"}, 400, "usage", "scheduler"),
        ({"prompt": "a", "concepts": [{"ref": "alice/dog", "weight": 2}]}, 400, "usage", "weight"),
    ],
)
def test_what_cannot_be_drawn_is_said_in_the_words_of_the_command_line(
    http: httpx.Client, body: dict[str, Any], status: int, code: str, says: str
) -> None:
    answer = http.post("/v1/images/generations", json=body)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (status, code), error
    assert says in error["message"]


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 50_000])
def test_nonsense_is_refused_and_the_service_goes_on(http: httpx.Client, body: bytes) -> None:
    assert http.post("/v1/images/generations", content=body).status_code == 400
    assert http.get("/readyz").status_code == 200


def test_a_body_over_the_limit_is_not_read(http: httpx.Client) -> None:
    answer = http.post("/v1/images/generations", content=b"{" + b" " * (64 << 10))
    assert answer.status_code == 413

    def pieces() -> Iterator[bytes]:  # no length is said beforehand
        for _ in range(20):
            yield b" " * 8192

    assert http.post("/v1/images/generations", content=pieces()).status_code == 413


def test_nobody_comes_in_without_a_token(running: Running) -> None:
    with running.client() as client:
        assert client.get("/v1/concepts").status_code == 401
        wrong = {"authorization": f"Bearer {TOKEN}x"}
        assert client.get("/v1/concepts", headers=wrong).status_code == 401
        assert client.get("/healthz").status_code == 200
        page = client.get("/concepts", headers={"accept": "text/html"})
        assert page.status_code == 303 and page.headers["location"] == "/login"


def test_the_service_answers_to_its_own_names_only(http: httpx.Client) -> None:
    answer = http.get("/healthz", headers={"host": "evil.example"})
    assert answer.status_code == 421


def test_a_page_of_another_site_changes_nothing(http: httpx.Client) -> None:
    for headers in ({"origin": "http://evil.example"}, {"sec-fetch-site": "cross-site"}):
        answer = http.post("/concepts/alice/dog/remove", headers=headers, data={"version": "1"})
        assert answer.status_code == 403
    assert http.get("/v1/concepts/alice/dog").status_code == 200


def test_every_answer_tells_browsers_what_they_may_do(http: httpx.Client) -> None:
    for path in ("/concepts", "/v1/models", "/healthz", "/nowhere"):
        headers = http.get(path).headers
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy
        assert headers["x-content-type-options"] == "nosniff"


def test_concepts_are_listed_page_by_page_and_known_ones_cost_nothing(http: httpx.Client) -> None:
    first = http.get("/v1/concepts", params={"limit": 2}).json()
    assert [each["name"] for each in first["data"]] == ["dog", "bear"] and first["has_more"]
    rest = http.get("/v1/concepts", params={"limit": 2, "cursor": first["next_cursor"]}).json()
    assert [each["name"] for each in rest["data"]] == ["star"] and not rest["has_more"]
    answer = http.get("/v1/concepts/alice/dog:prod")
    assert answer.json()["ref"] == "alice/dog:1"
    again = http.get(
        "/v1/concepts/alice/dog:prod", headers={"if-none-match": answer.headers["etag"]}
    )
    assert again.status_code == 304
    assert http.get("/v1/concepts", params={"filter": "nonsense"}).status_code == 400


def test_a_composition_shows_what_concepts_share(http: httpx.Client) -> None:
    body = {"concepts": [{"ref": "alice/dog"}, {"ref": "bob/bear"}]}
    content = http.post("/v1/compositions", json=body).json()
    assert content["overlaps"][0]["shared_count"] > 0


def test_a_moved_alias_is_seen_within_seconds(http: httpx.Client, running: Running) -> None:
    writer = Registry.open(running.registry, cache=running.registry.parent / "other-cache")
    writer.alias("bob/bear:1", "fresh")
    for _ in range(100):
        if http.get("/v1/concepts/bob/bear:fresh").status_code == 200:
            break
        time.sleep(0.2)
    assert http.get("/v1/concepts/bob/bear:fresh").json()["ref"] == "bob/bear:1"


def test_hostile_words_are_text_on_every_page(http: httpx.Client) -> None:
    for path in ("/concepts/alice/dog", f"/concepts?text={HOSTILE}", f"/compose?prompt={HOSTILE}"):
        text = http.get(path).text
        assert "<script>alert" not in text and "onload='x'" not in text


def test_pages_read_what_is_there_and_change_it_for_who_has_the_form(http: httpx.Client) -> None:
    page = http.get("/concepts/eve/star").text
    token = re.search(r'name="form_token" value="(\w+)"', page)
    assert token is not None
    missing = http.post("/concepts/eve/star/tag", data={"version": "1", "add": "red"})
    assert missing.status_code == 403
    form = {"form_token": token[1], "version": "1", "add": "red shiny"}
    assert http.post("/concepts/eve/star/tag", data=form).status_code == 303
    assert http.get("/v1/concepts/eve/star").json()["tags"] == ["red", "shiny"]


def test_a_picture_composed_on_a_page_is_drawn_and_shown(http: httpx.Client) -> None:
    page = http.get("/compose", params={"concept": ["alice/dog", "eve/star"]})
    assert "alice/dog:1 and eve/star:1" in page.text
    token = re.search(r'name="form_token" value="(\w+)"', page.text)
    assert token is not None
    form = {"form_token": token[1], "prompt": "<alice/dog> and <eve/star>", "seed": "4"}
    answer = http.post("/compose", data=form)
    assert answer.status_code == 303, answer.text
    for _ in range(300):
        shown = http.get(answer.headers["location"]).text
        if "Here it is" in shown:
            break
        assert "It could not be drawn" not in shown, shown
        time.sleep(0.2)
    source = re.search(r'src="(/v1/images/files/[^"]+)"', shown)
    assert source is not None
    assert read_recipe(http.get(source[1]).content)["seed"] == 4


def test_storage_and_batches_have_pages(http: httpx.Client) -> None:
    assert "alice" in http.get("/storage").text
    assert "No run is shown" in http.get("/batches").text


def test_the_openapi_document_names_every_route_of_the_api(http: httpx.Client) -> None:
    document = http.get("/openapi.json").json()
    assert document["openapi"].startswith("3.1")
    assert "/v1/images/generations" in document["paths"]
    assert "prompt" in document["components"]["schemas"]["ImagesBody"]["required"]
