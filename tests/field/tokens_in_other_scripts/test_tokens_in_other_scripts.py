"""A token is found beside other scripts and punctuation and in other case, or help is given."""

from typing import TYPE_CHECKING

import pytest

from cones_registry.attention import find_phrases, names_token
from cones_registry.errors import ConesError
from cones_registry.generation import Generator, Request

if TYPE_CHECKING:
    from cones_registry import BaseModel

FOUND = [
    "一个sks狗在草地上",
    "sks犬の写真",
    "사진sks강아지",
    "ภาพsksหมา",
    "a photo of sks, on grass",
    "a (sks) dog",
    '"sks" dog',
    "a photo of SKS dog",
    "a photo of Sks\ndog",
    "sks。",
    "«sks»",
    "sks—dog",
    "（sks）狗",
    "كلب sks في الحديقة",
    "كلبsks",
    "एक sks कुत्ता",
    "🐶sks🐶",
    "sks\N{VARIATION SELECTOR-16} dog",
    "a\N{NO-BREAK SPACE}sks dog",
]


@pytest.mark.parametrize("prompt", FOUND)
def test_a_token_is_found_as_people_write_it(prompt: str) -> None:
    assert names_token(prompt, "sks")
    (phrase,) = find_phrases(prompt, token="sks")
    assert prompt[phrase.start : phrase.token_end].lower() == "sks"


@pytest.mark.parametrize("prompt", ["a sksy dog", "asks dog", "sks1", "sks_1x", "a dog", "", "skß"])
def test_a_part_of_another_word_is_no_token(prompt: str) -> None:
    assert not names_token(prompt, "sks")


@pytest.mark.parametrize("token", ["größe", "犬丸", "собака", "ΣΚΣ"])
def test_tokens_of_other_scripts_are_found_in_other_case(token: str) -> None:
    assert names_token(f"a {token.upper()} dog", token.lower())
    assert names_token(f"一个{token}", token) or not token.isascii()


@pytest.mark.parametrize("prompt", FOUND)
def test_no_picture_is_drawn_without_the_subject(prompt: str, tiny_base: "BaseModel") -> None:
    """Either its rows are found in what the tokenizer reads, or it is told to put spaces."""
    from cones_registry.attention import subject_rows

    try:
        rows = subject_rows(tiny_base, prompt, find_phrases(prompt, token="sks"))
    except ConesError as error:
        assert "space" in str(error)
    else:
        assert rows.any()
        assert len(Generator(tiny_base).generate([Request(prompt)], steps=1)) == 1
