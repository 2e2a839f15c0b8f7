"""Which rows of a prompt belong to a concept."""

from typing import Any

import pytest
import torch

from cones_registry.attention import subject_rows
from cones_registry.base_model import BaseModel
from cones_registry.errors import NotFoundError, UsageError


@pytest.fixture
def tokenizer(tiny_base: BaseModel) -> Any:
    return tiny_base.tokenizers[0]


def texts(tokenizer: Any, prompt: str, rows: torch.Tensor) -> list[str]:
    ids = tokenizer(prompt, padding="max_length", max_length=len(rows), truncation=True).input_ids
    tokens = tokenizer.convert_ids_to_tokens(ids)
    return [token for token, member in zip(tokens, rows.tolist(), strict=True) if member]


@pytest.mark.parametrize(
    ("prompt", "token", "noun", "expected"),
    [
        ("a photo of sks dog on the left", "sks", "dog", ["sks</w>", "dog</w>"]),
        ("a photo of SKS Dog", "sks", "dog", ["sks</w>", "dog</w>"]),
        ("a dog and sks dog and a dog", "sks", "dog", ["sks</w>", "dog</w>"]),
        ("sks dog, red sks dog", "sks", "dog", ["sks</w>", "dog</w>"] * 2),
        ("sks on the left, a dog right", "sks", "dog", ["sks</w>"]),
        ("the sks red dog", "sks", "dog", ["sks</w>"]),
        ("a photo of sks", "sks", None, ["sks</w>"]),
        ("the V1 circle and the V2 circle", "V2", "circle", ["v</w>", "2</w>", "circle</w>"]),
        ("a V1 teddy  bear", "V1", "teddy bear", ["v</w>", "1</w>", "teddy</w>", "bear</w>"]),
        ("a <new-1> dog!", "<new-1>", "dog", None),
        ("sks dogs and sks", "sks", "dog", ["sks</w>", "sks</w>"]),
    ],
)
def test_rows_are_those_of_the_phrase(
    tokenizer: Any, prompt: str, token: str, noun: str | None, expected: list[str] | None
) -> None:
    found = texts(tokenizer, prompt, subject_rows(tokenizer, prompt, token=token, class_noun=noun))
    if expected is None:
        assert "".join(found).replace("</w>", "") == "<new-1>dog"
    else:
        assert found == expected


def test_part_of_a_longer_word_is_not_the_token(tokenizer: Any) -> None:
    with pytest.raises(NotFoundError, match=r"'sks'.*'a sksy dog'"):
        subject_rows(tokenizer, "a sksy dog", token="sks", class_noun="dog")


def test_missing_token_names_token_and_prompt_and_the_way_out(tokenizer: Any) -> None:
    with pytest.raises(NotFoundError, match=r"'sks'.*'a red dog'.*'sks dog'"):
        subject_rows(tokenizer, "a red dog", token="sks", class_noun="dog")
    assert not subject_rows(tokenizer, "a red dog", token="sks", required=False).any()


def test_token_past_the_end_of_what_is_read_is_an_error(tokenizer: Any) -> None:
    with pytest.raises(NotFoundError, match="past the 24 tokens"):
        subject_rows(tokenizer, "a " * 30 + "sks dog", token="sks", class_noun="dog")


def test_padding_rows_are_included_on_request(tokenizer: Any) -> None:
    rows = subject_rows(
        tokenizer, "a sks dog on the wall", token="sks", class_noun="dog", include_padding=True
    )
    assert rows.tolist() == [False, False, True, True, False, False, False] + [True] * 17


def test_length_is_that_of_the_text_encoder(tokenizer: Any) -> None:
    assert (
        subject_rows(tokenizer, "sks", token="sks", length=9).tolist()
        == [False, True] + [False] * 7
    )


def test_empty_token_is_a_usage_error(tokenizer: Any) -> None:
    with pytest.raises(UsageError, match="empty"):
        subject_rows(tokenizer, "a dog", token=" ")


def test_tokenizer_without_offsets_is_refused() -> None:
    class Slow:
        is_fast = False
        model_max_length = 8

    with pytest.raises(UsageError, match="offsets"):
        subject_rows(Slow(), "sks", token="sks")
