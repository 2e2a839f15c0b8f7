"""Digests, and values shown in messages."""

import hashlib

import pytest

from cones_registry.digest import parse_digest, quote, sha256_bytes
from cones_registry.errors import UsageError

EMPTY = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


def test_digest_is_sha256_of_the_bytes() -> None:
    assert sha256_bytes(b"") == EMPTY
    assert sha256_bytes(memoryview(b"abc")) == "sha256:" + hashlib.sha256(b"abc").hexdigest()


def test_a_full_digest_parses_to_itself() -> None:
    assert parse_digest(EMPTY) == EMPTY


@pytest.mark.parametrize(
    "text",
    [
        "",
        "sha256:",
        EMPTY[:-1],
        EMPTY + "0",
        EMPTY.upper(),
        EMPTY[7:],
        "md5:" + EMPTY[7:],
        EMPTY + "\n",
        " " + EMPTY,
        "sha256:" + "٠" * 64,
        None,
        7,
    ],
)
def test_anything_else_is_no_digest(text: str) -> None:
    with pytest.raises(UsageError, match=r"is not a digest\. Expected 'sha256:'"):
        parse_digest(text)


@pytest.mark.parametrize("value", ["x" * 10**6, b"x" * 10**6, "\x1b[31mred", "ключ", ["x"] * 10**5])
def test_a_quoted_value_is_short_and_printable(value: object) -> None:
    assert len(quote(value)) <= 80
    assert quote(value).isascii()
    assert quote(value).isprintable()
