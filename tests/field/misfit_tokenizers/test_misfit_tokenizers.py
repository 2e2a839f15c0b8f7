"""A tokenizer and its text encoder fit each other, or loading says why not."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cones_registry.base_model import BaseModel
from cones_registry.errors import CorruptDataError


def test_a_tokenizer_that_asks_for_more_rows_than_are_read_is_refused(
    folder: Path, edit: Callable[..., None]
) -> None:
    edit(folder / "tokenizer/tokenizer_config.json", model_max_length=77)
    with pytest.raises(CorruptDataError, match=r"after 77 tokens, its text encoder reads 24"):
        BaseModel.load(folder, device="cpu")


def test_a_tokenizer_that_asks_for_fewer_rows_is_fine(
    folder: Path, edit: Callable[..., None]
) -> None:
    edit(folder / "tokenizer/tokenizer_config.json", model_max_length=20)
    assert BaseModel.load(folder, device="cpu").tokenizers[0].model_max_length == 20


def test_a_token_without_a_row_in_the_text_encoder_is_named(folder: Path) -> None:
    file = folder / "tokenizer/tokenizer.json"
    content = json.loads(file.read_text())
    content["added_tokens"].append(
        {
            "id": 1 + max(each["id"] for each in content["added_tokens"]),
            "content": "<cat>",
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": False,
        }
    )
    file.write_text(json.dumps(content))
    with pytest.raises(CorruptDataError, match=r"token '<cat>' the number .*counted from 0"):
        BaseModel.load(folder, device="cpu")


def test_an_encoder_may_have_rows_to_spare(
    folder: Path, edit: Callable[..., None], reweigh: Callable[..., None]
) -> None:
    import torch

    def grow(weights: dict[str, Any]) -> None:
        name = next(each for each in weights if "token_embedding" in each)
        weights[name] = torch.cat([weights[name], torch.zeros(8, weights[name].shape[1])])
        edit(folder / "text_encoder/config.json", vocab_size=len(weights[name]))

    reweigh(folder / "text_encoder/model.safetensors", grow)
    BaseModel.load(folder, device="cpu")


def test_added_tokens_behind_the_end_of_text_need_the_ends_own_number(
    folder: Path, edit: Callable[..., None], reweigh: Callable[..., None]
) -> None:
    """A text encoder that is told 2 takes the largest number in a prompt for its end."""
    import torch

    def grow(weights: dict[str, Any]) -> None:
        name = next(each for each in weights if "token_embedding" in each)
        weights[name] = torch.cat([weights[name], torch.zeros(1, weights[name].shape[1])])
        edit(folder / "text_encoder/config.json", vocab_size=len(weights[name]), eos_token_id=2)

    reweigh(folder / "text_encoder/model.safetensors", grow)
    BaseModel.load(folder, device="cpu")
    file = folder / "tokenizer/tokenizer.json"
    content = json.loads(file.read_text())
    number = 1 + max(each["id"] for each in content["added_tokens"])
    content["added_tokens"].append(content["added_tokens"][-1] | {"id": number, "content": "<cat>"})
    file.write_text(json.dumps(content))
    with pytest.raises(CorruptDataError, match=r'Set "eos_token_id": \d+ in text_encoder'):
        BaseModel.load(folder, device="cpu")
