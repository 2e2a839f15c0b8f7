"""The service among clients that leave, talk nonsense, or come all at once, until it is ended."""

import json
import re
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from running_service import CONCEPTS, Running, make_registry, recipe_of, start

from cones_registry import BaseModel

NAMES = tuple(CONCEPTS)
CLIENTS, TURNS = 14, 3
PLACES = 6


@pytest.fixture(scope="module")
def running(
    tiny_pipeline_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("load") / "registry"
    registry = make_registry(folder, BaseModel.load(tiny_pipeline_folder))
    service = start(
        registry, str(tiny_pipeline_folder), "--max-batch", "4", "--max-waiting", str(PLACES)
    )
    yield service
    if service.process.poll() is None:
        service.stop()


def body_of(seed: int, steps: int = 6) -> dict[str, Any]:
    """A request nobody else makes."""
    return {
        "prompt": f"a photo of <{NAMES[seed % len(NAMES)]}> on the wall",
        "seed": seed,
        "steps": steps,
        "user": f"user {seed % 5}",
    }


def check_own(answer: httpx.Response, seed: int, steps: int = 6) -> None:
    """The picture is the one that was asked for."""
    recipe = recipe_of(answer.json()["data"][0]["b64_json"])
    body = body_of(seed, steps)
    assert (recipe["seed"], recipe["prompt"], recipe["steps"]) == (seed, body["prompt"], steps)
    assert [each["ref"] for each in recipe["concepts"]] == [f"{NAMES[seed % len(NAMES)]}:1"]


def raw(running: Running, *pieces: bytes, answered: bool = True) -> bytes:
    """Send bytes over a socket of its own; what came back, if it is waited for."""
    where = urlsplit(running.url)
    with socket.create_connection((where.hostname, where.port), 60) as connection:
        for piece in pieces:
            connection.sendall(piece)
        return connection.recv(65536) if answered else b""


def post(body: bytes, *headers: str) -> bytes:
    """A request as bytes."""
    lines = ["POST /v1/images/generations HTTP/1.1", "Host: 127.0.0.1", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


def who_asks(running: Running, number: int, told: Counter[int]) -> None:
    """A client that asks for one picture after the other, again where the queue is full."""
    with running.client() as client:
        for turn in range(TURNS):
            seed = 100 * number + turn
            while True:
                answer = client.post("/v1/images/generations", json=body_of(seed))
                told[answer.status_code] += 1
                if answer.status_code != 429:
                    break
                assert int(answer.headers["retry-after"]) >= 1
                time.sleep(0.05)
            assert answer.status_code == 200, answer.text
            check_own(answer, seed)


def who_leaves(running: Running, number: int) -> None:
    """A client that closes the connection, before or while its picture is drawn."""
    body = json.dumps(body_of(10_000 + number, steps=40)).encode()
    for _ in range(TURNS):
        raw(running, post(body, f"Content-Length: {len(body)}"), answered=False)
        raw(running, post(body[:20], f"Content-Length: {len(body)}"), answered=False)
    with (
        running.client() as client,
        client.stream(
            "POST", "/v1/images/generations", json={**body_of(number, steps=40), "stream": True}
        ) as answer,
    ):
        for _ in zip(range(3), answer.iter_lines(), strict=False):
            pass


def who_talks_nonsense(running: Running) -> None:
    """A client every request of which must be refused, and say why."""
    chunks = b"ffff\r\n" + b"x" * 0xFFFF + b"\r\n2\r\nxx\r\n"
    long = json.dumps({"prompt": "x" * 70_000}).encode()
    expected = {
        post(b"{", "Content-Length: 1"): b"400",
        post(b"[1]", "Content-Length: 3"): b"400",
        post(long, f"Content-Length: {len(long)}"): b"413",
        post(b"", "Content-Length: 99999999999"): b"413",
        post(b"", "Content-Length: -1"): b"400",
        post(chunks, "Transfer-Encoding: chunked"): b"413",
        b"GET /concepts HTTP/1.1\r\nHost: [\r\n\r\n": b"421",
        b"GET /%00%ff/../../etc HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n": b"404",
        b"\x16\x03\x01 this is TLS, or so\r\n\r\n": b"400",
        b"DELETE /v1/concepts HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n": b"405",
    }
    for sent, status in expected.items():
        assert raw(running, sent).split()[1] == status, (sent[:80], status)
    with running.client() as client:
        for body, status in (
            ({"prompt": "a <nobody/none>"}, 404),
            ({"prompt": ["a"]}, 400),
            ({"prompt": "a", "n": 10}, 422),  # more than the queue has places
            ({"prompt": "a", "seed": -1}, 400),
            ({"prompt": "a", "concepts": [{"ref": "no such/thing"}]}, 400),
        ):
            answer = client.post("/v1/images/generations", json=body)
            assert answer.status_code == status, (body, answer.text)
            assert answer.json()["error"]["message"]


def all_at_once(*clients: Callable[[], None]) -> None:
    """Run clients in threads; raise what the first of them raised."""
    errors: list[BaseException] = []

    def run(client: Callable[[], None]) -> None:
        try:
            client()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(client,)) for client in clients]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def figure(client: httpx.Client, name: str) -> float:
    found = re.search(rf"^{name} (\S+)$", client.get("/metrics").text, re.M)
    assert found is not None, name
    return float(found[1])


def test_everybody_gets_an_answer_of_their_own_whatever_others_do(running: Running) -> None:
    told: Counter[int] = Counter()
    where = urlsplit(running.url)
    with ExitStack() as half_open:
        for number in range(40):
            connection = socket.create_connection((where.hostname, where.port))
            half_open.enter_context(connection)
            connection.sendall(b"POST /v1/images/generations HTTP/1.1\r\nHost: 127"[: 2 * number])
        all_at_once(
            *(lambda number=number: who_asks(running, number, told) for number in range(CLIENTS)),
            *(lambda number=number: who_leaves(running, number) for number in range(4)),
            lambda: who_talks_nonsense(running),
        )
    assert told[200] == CLIENTS * TURNS and told[429] > 0
    with running.client() as client:
        while figure(client, "cones_waiting") or figure(client, "cones_running"):
            time.sleep(0.05)
        # Who left was given up: not every step of theirs was drawn, and no place is taken.
        assert client.get("/readyz").json()["waiting"] == 0
        check_own(client.post("/v1/images/generations", json=body_of(7)), 7)
    # It stands in the log that nonsense came, and nothing else: no failure, no prompt.
    assert {line for line in running.said[1:] if "Invalid HTTP request" not in line} == set()


def test_a_service_that_is_ended_under_load_answers_what_it_has_taken(running: Running) -> None:
    answers: dict[int, int] = {}

    def ask(seed: int) -> None:
        with running.client() as client:
            answer = client.post("/v1/images/generations", json=body_of(seed, steps=40))
            answers[seed] = answer.status_code
            if answer.status_code == 200:
                check_own(answer, seed, steps=40)

    def end() -> None:
        with running.client() as client:
            taken = 0.0
            while taken + len(answers) < PLACES:
                taken = figure(client, "cones_waiting") + figure(client, "cones_running")
                time.sleep(0.01)
        assert running.stop() == 0

    def too_late() -> None:
        while running.process.poll() is None:
            with suppress(httpx.TransportError), running.client() as client:
                answer = client.post("/v1/images/generations", json=body_of(1, steps=40))
                assert answer.status_code in (200, 429, 503)
            time.sleep(0.05)

    all_at_once(*(lambda seed=seed: ask(seed) for seed in range(PLACES)), end, too_late)
    assert answers == dict.fromkeys(range(PLACES), 200)
