"""Pipelines that are in memory already as base models."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cones_registry.base_model import BaseModel
from cones_registry.errors import UsageError
from cones_registry.extraction import Extractor, FirstOrder
from cones_registry.generation import Generator, Request
from cones_registry.mask import ConceptMask

MakeMask = Callable[..., ConceptMask]


@pytest.fixture
def pipeline(tiny_pipeline_folder: Path) -> Any:
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(
        str(tiny_pipeline_folder), safety_checker=None, requires_safety_checker=False
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def state_of(pipeline: Any) -> dict[str, Any]:
    """All that drawing or learning might leave behind."""
    weights = {
        f"{part}.{name}": (parameter.detach().clone(), parameter.requires_grad, parameter.grad)
        for part in ("unet", "vae", "text_encoder")
        for name, parameter in getattr(pipeline, part).named_parameters()
    }
    training = [part.training for part in pipeline.unet.modules()]
    scheduler = dict(pipeline.scheduler.config)
    return {"weights": weights, "training": training, "scheduler": scheduler}


def assert_unchanged(before: dict[str, Any], pipeline: Any) -> None:
    after = state_of(pipeline)
    for name, (values, gradient, held) in before["weights"].items():
        now = after["weights"][name]
        assert torch.equal(values, now[0]) and gradient == now[1], name
        assert held is None and now[2] is None, name
    assert (before["training"], before["scheduler"]) == (after["training"], after["scheduler"])


def test_a_pipeline_in_memory_is_the_base_model_of_its_folder(
    pipeline: Any, tiny_base: BaseModel, random_mask: MakeMask
) -> None:
    before = state_of(pipeline)
    base = BaseModel.from_pipeline(pipeline)
    assert base.pipeline is pipeline
    assert base.fingerprint == tiny_base.fingerprint
    assert base.published_source is None
    half = copy.deepcopy(pipeline).to(torch.float16)
    assert BaseModel.from_pipeline(half).fingerprint == tiny_base.fingerprint
    mask = random_mask(base.layer_table)
    request = Request("a red dog", mask=mask, seed=3)
    (own,), (loaded,) = (Generator(each).generate([request], steps=2) for each in (base, tiny_base))
    assert np.array_equal(np.asarray(own), np.asarray(loaded))
    assert_unchanged(before, pipeline)


def test_learning_from_a_pipeline_leaves_it_as_it_was(pipeline: Any, tmp_path: Path) -> None:
    pipeline.unet.train()
    before = state_of(pipeline)
    assert pipeline.unet.conv_in.weight.requires_grad
    pictures = [Image.new("RGB", (16, 16), colour) for colour in ("red", "brown", "orange")]
    extraction = Extractor(BaseModel.from_pipeline(pipeline), cache_folder=tmp_path).extract(
        pictures, class_noun="dog", method=FirstOrder(steps=1), density=0.1, progress=None
    )
    assert len(extraction.mask) > 0
    assert_unchanged(before, pipeline)


def test_weights_in_bfloat16_are_told_by_the_files_they_came_from(
    pipeline: Any, tiny_base: BaseModel
) -> None:
    rounded = copy.deepcopy(pipeline).to(torch.bfloat16)
    assert BaseModel.from_pipeline(rounded).fingerprint == tiny_base.fingerprint
    with torch.no_grad():
        rounded.unet.get_parameter(tiny_base.layer_table.names[0])[0, 0] += 1
    with pytest.raises(UsageError, match=r"cannot be told: .*values.*float16 or float32"):
        BaseModel.from_pipeline(rounded)
    rounded.register_to_config(_name_or_path=None)
    with pytest.raises(UsageError, match="cannot be told"):
        BaseModel.from_pipeline(rounded)


def test_what_is_no_plain_pipeline_is_refused_with_the_way_out(pipeline: Any) -> None:
    with pytest.raises(UsageError, match="Give the pipeline itself"):
        BaseModel.from_pipeline(pipeline.unet)
    pytest.importorskip("peft")
    from peft import LoraConfig

    pipeline.unet.add_adapter(LoraConfig(target_modules=["to_k", "to_v"]))
    with pytest.raises(UsageError, match=r"LoRA layers.*unload_lora_weights"):
        BaseModel.from_pipeline(pipeline)
