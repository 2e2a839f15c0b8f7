"""Servers that are not there, know the credentials no longer, or keep the bucket elsewhere."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from cones_registry import Registry
from cones_registry.errors import StoreUnavailableError, UsageError
from cones_registry.store import Store, open_store

ANSWERS = {
    "expired": (400, "ExpiredToken", "The provided token has expired."),
    "unknown": (403, "InvalidAccessKeyId", "The key you provided does not exist."),
    "refresh": (400, "TokenRefreshRequired", "The token must be refreshed."),
    "region": (400, "AuthorizationHeaderMalformed", "the region 'a' is wrong; expecting 'b'"),
    "elsewhere": (301, "PermanentRedirect", "Use another endpoint."),
}


class Answering(BaseHTTPRequestHandler):
    """Gives every request the answer that its path names; to HEAD without the body, as S3 does."""

    def answer(self) -> None:
        status, code, message = ANSWERS[self.path.split("/")[1].split("?")[0]]
        body = f"<Error><Code>{code}</Code><Message>{message}</Message></Error>".encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/xml")
        self.send_header("x-amz-bucket-region", "eu-central-1")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = answer

    def log_message(self, format: str, *arguments: object) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """Its address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Answering)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
    thread.join()


READS: dict[str, Callable[[Store], object]] = {
    "get": lambda store: store.get("cones.json"),
    "range": lambda store: store.get_range("cones.json", 0, 8),
    "head": lambda store: store.head("cones.json"),
    "list": lambda store: store.list("log/"),
    "get_many": lambda store: list(store.get_many(["a", "b"])),
}


@pytest.mark.parametrize("read", READS.values(), ids=READS.keys())
@pytest.mark.parametrize(
    ("bucket", "says"),
    [
        ("expired", "does not accept these credentials"),
        ("unknown", "does not accept these credentials|Check credentials"),
        ("refresh", "does not accept these credentials"),
        ("region", "another region|not in this region"),
        ("elsewhere", "another region"),
    ],
)
def test_a_read_says_that_it_is_the_credentials_or_the_region(
    bucket: str, says: str, read: Callable[[Store], object], server: str
) -> None:
    store = open_store(f"s3://{bucket}/registry", endpoint_url=server, key="a", secret="b")
    with pytest.raises(StoreUnavailableError, match=says):
        read(store)


@pytest.fixture
def without_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attempts follow each other at once."""
    monkeypatch.setattr("cones_registry.store.base.FIRST_WAIT", 0.0)
    monkeypatch.setattr("cones_registry.store.base.LONGEST_WAIT", 0.0)


AZURE = (
    "DefaultEndpointsProtocol=http;AccountName=devstoreaccount1;AccountKey=a2V5;"
    "BlobEndpoint=http://127.0.0.1:1/devstoreaccount1;"
)


@pytest.mark.usefixtures("without_waiting")
@pytest.mark.parametrize(
    ("url", "options"),
    [
        ("az://bucket/registry", {"connection_string": AZURE}),
        ("s3://bucket/registry", {"endpoint_url": "http://127.0.0.1:1", "key": "a", "secret": "b"}),
        (
            "gs://bucket/registry",
            {"endpoint_url": "http://127.0.0.1:1", "token": "anon", "project": "cones"},
        ),
    ],
)
def test_a_server_that_is_not_there_is_asked_six_times_and_no_more(
    url: str, options: dict[str, str]
) -> None:
    """Clients that try again themselves made that a hundred times, and ten minutes."""
    with pytest.raises(StoreUnavailableError, match="6 attempts failed"):
        Registry.open(url, **options)


@pytest.mark.parametrize(
    "url", ["s3://KEY:SECRET@models/x", "s3a://KEY:SECRET@models", "gs://user:SECRET@models/x"]
)
def test_credentials_in_a_url_are_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(UsageError, match="holds credentials") as caught:
        open_store(url)
    assert "SECRET" not in str(caught.value)
    assert "SECRET" not in repr(caught.value.__context__)


def test_an_azure_url_may_name_container_and_account() -> None:
    options = {"account_name": "account", "account_key": "a2V5"}
    store = open_store("abfss://models@account.dfs.core.windows.net/x", **options)
    assert "account" in store.place
