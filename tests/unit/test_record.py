"""Refs and concept records."""

import dataclasses
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cones_registry.errors import CorruptDataError, UsageError
from cones_registry.record import Concept, Provenance
from cones_registry.refs import Ref, check_alias, parse_ref

DIGEST = "sha256:" + "0123456789abcdef" * 4
PARTS = st.from_regex(r"[a-z0-9]([a-z0-9_-]|\.(?!\.)){0,98}", fullmatch=True)
ALIASES = PARTS.filter(lambda text: not text.isdigit())


class TestRef:
    @pytest.mark.parametrize(
        ("text", "ref"),
        [
            ("dog", Ref(None, "dog")),
            ("alice/dog", Ref("alice", "dog")),
            ("alice/dog:3", Ref("alice", "dog", version=3)),
            ("dog:3", Ref(None, "dog", version=3)),
            ("alice/dog:prod", Ref("alice", "dog", alias="prod")),
            ("dog:v3", Ref(None, "dog", alias="v3")),
            ("dog:3.1", Ref(None, "dog", alias="3.1")),
            (f"alice/dog@{DIGEST}", Ref("alice", "dog", digest=DIGEST)),
            (f"dog@{DIGEST}", Ref(None, "dog", digest=DIGEST)),
            ("0/7:999999999", Ref("0", "7", version=999_999_999)),
            ("a-b_c.d/e.f-g_h", Ref("a-b_c.d", "e.f-g_h")),
        ],
    )
    def test_parses_and_formats_back(self, text: str, ref: Ref) -> None:
        assert parse_ref(text) == ref
        assert ref.format() == str(ref) == text

    @given(
        owner=st.none() | PARTS,
        name=PARTS,
        suffix=st.one_of(
            st.just({}),
            st.integers(1, 999_999_999).map(lambda version: {"version": version}),
            ALIASES.map(lambda alias: {"alias": alias}),
            st.just({"digest": DIGEST}),
        ),
    )
    def test_every_ref_survives_the_round_trip(
        self, owner: str | None, name: str, suffix: dict[str, Any]
    ) -> None:
        ref = Ref(owner, name, **suffix)

        assert parse_ref(ref.format()) == ref

    @given(st.text() | st.text("a./:@", max_size=8))
    def test_any_text_parses_or_is_a_usage_error(self, text: str) -> None:
        try:
            ref = parse_ref(text)
        except UsageError as error:
            assert str(error).isprintable()
            assert len(str(error)) < 500
        else:
            assert ref.format() == text

    @pytest.mark.parametrize(
        ("text", "fact"),
        [
            ("", "'' is not a ref"),
            ("Dog", "capital letter 'D'"),
            ("alice/", "name is empty"),
            ("/dog", "owner is empty"),
            ("a/b/c", "owner 'a/b' has the character '/'"),
            ("..", "name '..' contains '..'"),
            ("alice/../dog", "has the character '/'"),
            ("a..b", "contains '..'"),
            (".hidden", "starts with '.'"),
            ("-rf", "starts with '-'"),
            ("dog\0", r"'\x00' (U+0000)"),
            ("dog\n", r"'\n' (U+000A)"),
            ("d\u043eg", r"'\u043e' (U+043E)"),  # Cyrillic o
            ("do\u200bg", "(U+200B)"),
            ("dog ", "' ' (U+0020)"),
            ("１", "(U+FF11)"),
            ("x" * 101, "name has 101 characters"),
            ("x" * 10_000, "name has 10000 characters"),
            ("dog:", "alias is empty"),
            ("dog:0", "'0' is not a version"),
            ("dog:007", "'007' is not a version"),
            ("dog:1000000000", "is not a version"),
            ("dog:" + "9" * 10_000, "is not a version"),
            ("dog:-1", "starts with '-'"),
            ("dog:1:2", "has the character ':'"),
            ("dog@latest", "'latest' is not a digest"),
            (f"dog:3@{DIGEST}", "both ':' and '@'"),
            (f"dog@{DIGEST}:3", "is not a digest"),
            ("dog:Prod", "capital letter 'P'"),
        ],
    )
    def test_what_is_no_ref_says_why_and_what_is(self, text: str, fact: str) -> None:
        with pytest.raises(UsageError) as caught:
            parse_ref(text)

        message = str(caught.value)
        assert fact in message
        assert any(word in message for word in ("Allowed:", "Expected", "written 1 to"))
        assert len(message) < 500

    @pytest.mark.parametrize("wrong", [None, 3, b"dog", ["dog"]])
    def test_what_is_no_text_is_no_ref(self, wrong: Any) -> None:
        with pytest.raises(UsageError, match="is not a ref"):
            parse_ref(wrong)

    @pytest.mark.parametrize(
        "wrong",
        [
            {"version": 1, "alias": "a"},
            {"alias": "a", "digest": DIGEST},
            {"version": 0},
            {"version": -1},
            {"alias": "12"},
            {"digest": "sha256:12"},
        ],
    )
    def test_a_ref_that_cannot_be_written_cannot_be_made(self, wrong: dict[str, Any]) -> None:
        with pytest.raises(UsageError):
            Ref("alice", "dog", **wrong)

    def test_an_alias_of_digits_would_be_a_version(self) -> None:
        with pytest.raises(UsageError, match="as in 'v12'"):
            check_alias("12")


PROVENANCE = Provenance(
    method="gates",
    seed=7,
    parameters={"steps": 500, "density": 0.1, "nested": {"rates": [0.05, 0.005]}},
    image_digests=(DIGEST,),
    history=({"step": 0, "loss": 1.5}, {"step": 1, "loss": 1.25}),
    versions={"torch": "2.13.0"},
    prompt="a photo of V1 dog",
    created="2026-11-22T14:00:00Z",
    parents=("alice/dog:1",),
)
CONCEPT = Concept(
    owner="alice",
    name="dog",
    version=3,
    base=DIGEST,
    mask_digest=DIGEST,
    blob_digest=DIGEST,
    blob_bytes=1234,
    neuron_count=10,
    table_neuron_count=1000,
    density=0.01,
    precision="binary",
    layout="gap8",
    scope="subject",
    token="V1",
    class_noun="dog",
    tags=("animal", "toy"),
    note="",
    created="2026-11-22T14:00:00Z",
    aliases=("prod",),
    provenance=PROVENANCE,
)


class TestConcept:
    def test_survives_json(self) -> None:
        assert Concept.from_json(json.loads(json.dumps(CONCEPT.to_json()))) == CONCEPT

    def test_survives_json_without_what_is_optional(self) -> None:
        bare = dataclasses.replace(CONCEPT, provenance=None, token=None, tags=(), aliases=())

        assert Concept.from_json(json.loads(json.dumps(bare.to_json()))) == bare

    def test_ref_names_owner_name_and_version(self) -> None:
        assert CONCEPT.ref == "alice/dog:3"
        assert parse_ref(CONCEPT.ref) == Ref("alice", "dog", version=3)

    def test_keys_of_a_later_version_are_ignored(self) -> None:
        assert Concept.from_json(CONCEPT.to_json() | {"colour": "red"}) == CONCEPT

    @pytest.mark.parametrize(
        ("key", "value"),
        [
            ("owner", "Alice"),
            ("name", "../x"),
            ("version", 0),
            ("version", "3"),
            ("version", True),
            ("base", "sha256:12"),
            ("scope", "everywhere"),
            ("precision", "int8"),
            ("tags", "animal"),
            ("tags", [1]),
            ("removed", 1),
            ("density", "high"),
            ("provenance", []),
            ("provenance", {"seed": 1}),
            ("provenance", {"method": "gates", "history": [1]}),
        ],
    )
    def test_a_wrong_value_is_corrupt(self, key: str, value: Any) -> None:
        with pytest.raises(CorruptDataError, match="not a concept record"):
            Concept.from_json(CONCEPT.to_json() | {key: value})

    @pytest.mark.parametrize("wrong", [None, [], "x", {}])
    def test_what_is_no_record_is_corrupt(self, wrong: Any) -> None:
        with pytest.raises(CorruptDataError, match="not a concept record"):
            Concept.from_json(wrong)
