"""Which rows of a prompt belong to a concept."""

import copy
import unicodedata
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from cones_registry.attention import Phrase, find_phrases, names_token, row_count, subject_rows
from cones_registry.base_model import BaseModel
from cones_registry.errors import NotFoundError, UsageError


def texts(base: Any, prompt: str, rows: torch.Tensor, number: int = 0) -> list[str]:
    tokenizer = base.tokenizers[number]
    ids = tokenizer(prompt, padding="max_length", max_length=len(rows), truncation=True).input_ids
    tokens = tokenizer.convert_ids_to_tokens(ids)
    return [token for token, member in zip(tokens, rows.tolist(), strict=True) if member]


def searched(base: Any, prompt: str, token: str, noun: str | None = None, **more: Any) -> Any:
    return subject_rows(base, prompt, find_phrases(prompt, token=token, class_noun=noun), **more)


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
        ("(sks dog)", "sks", "dog", ["sks</w>", "dog</w>"]),
    ],
)
def test_rows_are_those_of_the_phrase(
    tiny_base: BaseModel, prompt: str, token: str, noun: str | None, expected: list[str] | None
) -> None:
    found = texts(tiny_base, prompt, searched(tiny_base, prompt, token, noun))
    if expected is None:
        assert "".join(found).replace("</w>", "") == "<new-1>dog"
    else:
        assert found == expected


def test_a_phrase_is_found_by_its_place_whatever_else_is_called_the_same(
    tiny_base: BaseModel,
) -> None:
    prompt = "sks dog and sks dog"
    second = Phrase(12, 15, 19)
    assert subject_rows(tiny_base, prompt, [second]).nonzero()[:, 0].tolist() == [4, 5]
    assert subject_rows(tiny_base, prompt, [second], choice="token").nonzero().tolist() == [[4]]
    assert not subject_rows(tiny_base, prompt, []).any()


def test_all_tokenizers_of_a_model_count(family_folder: Callable[[str], Path]) -> None:
    base = BaseModel.load(family_folder("stable-diffusion-xl"), device="cpu")
    other = BaseModel.load(family_folder("pixart"), device="cpu").tokenizers[0]
    assert len(base.tokenizers) == 2
    both: Any = SimpleNamespace(
        pipeline=base.pipeline, tokenizers=(base.tokenizers[0], other), lock=base.lock
    )
    rows = subject_rows(both, "a red sks dog", [Phrase(6, 9, 13)])
    assert rows.nonzero()[:, 0].tolist() == [2, 3, 4]  # the second has no start token


def test_text_that_the_pipeline_trims_and_lowers_moves_the_places(
    family_folder: Callable[[str], Path],
) -> None:
    base = BaseModel.load(family_folder("pixart"), device="cpu")
    prompt = "  İ A Red SKS Dog "
    rows = searched(base, prompt, "sks", "dog")
    assert texts(base, prompt.lower().strip(), rows) == ["▁sks", "▁dog"]


def test_all_vectors_of_a_textual_inversion_token_count(tiny_base: BaseModel) -> None:
    tokenizer = copy.deepcopy(tiny_base.tokenizers[0])
    tokenizer.add_tokens(["<cat-toy>", "<cat-toy>_1", "<cat-toy>_2"])
    pipeline = copy.copy(tiny_base.pipeline)
    base: Any = SimpleNamespace(pipeline=pipeline, tokenizers=(tokenizer,), lock=tiny_base.lock)
    prompt = "red <cat-toy> dog and <cat-toy> dog"
    rows = subject_rows(base, prompt, [Phrase(22, 31, 35)], length=24)
    assert rows.nonzero()[:, 0].tolist() == [7, 8, 9, 10]
    written = "a <cat-toy> <cat-toy>_1 <cat-toy>_2 dog"
    (phrase,) = find_phrases(written, token="<cat-toy>", class_noun="dog")
    assert written[phrase.start : phrase.end] == "<cat-toy> <cat-toy>_1 <cat-toy>_2 dog"


def test_part_of_a_longer_word_is_not_the_token() -> None:
    for prompt in ("a sksy dog", "a xsks dog", "sks_2 dog", "sks1"):
        assert not names_token(prompt, "sks"), prompt
    with pytest.raises(NotFoundError, match=r"'sks'.*'a sksy dog'"):
        find_phrases("a sksy dog", token="sks", class_noun="dog")


@pytest.mark.parametrize(
    ("prompt", "token", "found"),
    [
        ("一个sks狗", "sks", "sks"),
        ("sksの写真", "sks", "sks"),
        ("「SKS」、", "sks", "SKS"),
        ("그림sks은", "sks", "sks"),
        ("一只狗在", "狗", "狗"),
        ("ein KÖTER!", "köter", "KÖTER"),
        (unicodedata.normalize("NFD", "ein köter"), "köter", unicodedata.normalize("NFD", "köter")),
        ("ein koter", "köter", None),
        (unicodedata.normalize("NFD", "ein köt"), "ko", None),
        ("СКС пёс", "скс", "СКС"),
        ("GRÖSSE", "größe", "GRÖSSE"),
    ],
)
def test_a_token_is_found_in_other_scripts_and_cases(
    prompt: str, token: str, found: str | None
) -> None:
    assert names_token(prompt, token) is (found is not None)
    places = find_phrases(prompt, token=token, required=False)
    assert [prompt[each.start : each.end] for each in places] == ([found] if found else [])


def test_a_token_that_is_read_as_others_beside_its_neighbour_asks_for_spaces(
    tiny_base: BaseModel,
) -> None:
    with pytest.raises(UsageError, match=r"'sks' at column 3 is read as .*Write 'sks' with spaces"):
        searched(tiny_base, "一个sks狗", "sks")
    assert texts(tiny_base, "一个 sks 狗", searched(tiny_base, "一个 sks 狗", "sks")) == ["sks</w>"]


def test_missing_token_names_token_and_prompt_and_the_way_out() -> None:
    with pytest.raises(NotFoundError, match=r"'sks'.*'a red dog'.*'sks dog'"):
        find_phrases("a red dog", token="sks", class_noun="dog")
    assert find_phrases("a red dog", token="sks", required=False) == ()


@pytest.mark.parametrize("before", [21, 22, 30])
def test_words_that_the_text_encoder_does_not_read_are_an_error(
    tiny_base: BaseModel, before: int
) -> None:
    prompt = "a " * before + "sks dog"
    with pytest.raises(NotFoundError, match=f"'sks dog' at column {2 * before + 1} is cut off"):
        searched(tiny_base, prompt, "sks", "dog")
    with pytest.raises(NotFoundError, match="the first 24 tokens"):
        searched(tiny_base, "sks dog and " + prompt, "sks", "dog")


def test_words_that_just_fit_are_read(tiny_base: BaseModel) -> None:
    prompt = "a " * 20 + "sks dog"
    assert searched(tiny_base, prompt, "sks", "dog").nonzero()[:, 0].tolist() == [21, 22]
    cut_behind = prompt + " on the wall"
    assert searched(tiny_base, cut_behind, "sks", "dog").nonzero()[:, 0].tolist() == [21, 22]


def test_which_rows_count_can_be_chosen(tiny_base: BaseModel) -> None:
    prompt = "a sks dog on the wall"
    token = searched(tiny_base, prompt, "sks", "dog", choice="token")
    assert token.nonzero().tolist() == [[2]]
    padded = searched(tiny_base, prompt, "sks", "dog", choice="padding")
    assert padded.tolist() == [False, False, True, True, False, False, False] + [True] * 17
    with pytest.raises(UsageError, match="phrase, token, padding"):
        searched(tiny_base, prompt, "sks", choice="all")


def test_length_is_that_of_the_text_encoder(tiny_base: BaseModel) -> None:
    assert row_count(tiny_base) == 24
    rows = searched(tiny_base, "sks", "sks", length=9)
    assert rows.tolist() == [False, True] + [False] * 7


def test_empty_token_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="empty"):
        find_phrases("a dog", token=" ")
    assert not names_token("a dog", " ")


def test_tokenizer_without_offsets_is_refused(tiny_base: BaseModel) -> None:
    slow = SimpleNamespace(
        is_fast=False, model_max_length=8, tokenize=lambda text: ["?"], added_tokens_encoder={}
    )
    base: Any = SimpleNamespace(
        pipeline=tiny_base.pipeline, tokenizers=(slow,), lock=tiny_base.lock
    )
    with pytest.raises(UsageError, match="offsets"):
        searched(base, "sks", "sks")
