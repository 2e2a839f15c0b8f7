"""Base models with one fault each, made from the tiny pipeline of every test."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cones_registry.base_model import BaseModel

UNET = "unet/diffusion_pytorch_model.safetensors"
TEXT = "text_encoder/model.safetensors"


@pytest.fixture(autouse=True)
def empty_cache() -> None:
    BaseModel.cache.clear()


@pytest.fixture
def folder(tiny_pipeline_folder: Path, tmp_path: Path) -> Path:
    """A copy of the tiny Stable Diffusion, to be damaged."""
    target = tmp_path / "base"
    shutil.copytree(tiny_pipeline_folder, target)
    return target


@pytest.fixture
def edit() -> Callable[..., None]:
    """``edit(file, key=value)``: other values in a JSON file."""

    def change(file: Path, **changes: Any) -> None:
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))

    return change


@pytest.fixture
def reweigh() -> Callable[[Path, Callable[[dict[str, Any]], Any]], None]:
    """``reweigh(file, change)``: ``change`` gets the tensors of a weight file, by name."""
    from safetensors.torch import load_file, save_file

    def change(file: Path, function: Callable[[dict[str, Any]], Any]) -> None:
        weights = load_file(file)
        function(weights)
        save_file(weights, file, {"format": "pt"})

    return change
