"""Concepts in the calls of pipelines that a user has: what is drawn, and that nothing stays."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cones_registry import concepts
from cones_registry.base_model import BaseModel
from cones_registry.errors import BaseModelMismatchError, NotFoundError, UsageError
from cones_registry.generation import Generator, Request
from cones_registry.mask import ConceptMask
from cones_registry.registry import Registry

MakeMask = Callable[..., ConceptMask]
SETTINGS: dict[str, Any] = {"num_inference_steps": 2, "guidance_scale": 3.0}


@pytest.fixture
def pipeline(tiny_pipeline_folder: Path) -> Any:
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(
        str(tiny_pipeline_folder), safety_checker=None, requires_safety_checker=False
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture
def registry(tiny_base: BaseModel, random_mask: MakeMask, tmp_path: Path) -> Iterator[Registry]:
    with Registry.create(tmp_path / "concepts", cache=tmp_path / "cache") as registry:
        for seed, ref in enumerate(["alice/dog", "bob/dog", "alice/dog"]):
            mask = random_mask(tiny_base.layer_table, seed=seed, density=0.15)
            words: dict[str, Any] = {"token": "sks", "class_noun": "dog", "scope": "subject"}
            registry.push(ref, mask, base=tiny_base, **words)
        style = random_mask(tiny_base.layer_table, seed=9, density=0.1)
        registry.push("alice/green", style, base=tiny_base, scope="prompt")
        registry.alias("alice/dog:1", "prod")
        yield registry


def noise(seed: int) -> torch.Generator:
    return torch.Generator("cpu").manual_seed(seed)


def pixels(images: list[Any]) -> np.ndarray:
    return np.stack([np.asarray(image) for image in images])


def drawn(base: BaseModel, registry: Registry, *requests: Request) -> np.ndarray:
    generator = Generator(base, registry=registry)
    return pixels(generator.generate(requests, steps=2, guidance_scale=3.0))


def assert_as_it_was(pipeline: Any, kind: type, processors: dict[str, Any]) -> None:
    assert type(pipeline) is kind
    assert pipeline.unet.attn_processors == processors
    assert {type(part) for part in linears(pipeline)} == {torch.nn.Linear}


def linears(pipeline: Any) -> list[Any]:
    modules = pipeline.unet.named_modules()
    return [part for name, part in modules if name.endswith(("to_k", "to_v"))]


def test_a_stock_call_draws_the_concepts_that_its_prompt_names(
    pipeline: Any, registry: Registry, tiny_base: BaseModel
) -> None:
    kind, processors = type(pipeline), dict(pipeline.unet.attn_processors)
    plain = pipeline("a sks dog on wall", generator=noise(4), **SETTINGS).images
    with concepts(pipeline, registry, "alice/dog:prod") as served:
        assert served is pipeline
        named = pipeline("a <alice/dog> on wall", generator=noise(4), **SETTINGS).images
        by_token = pipeline("a sks dog on wall", generator=noise(4), **SETTINGS).images
        other = pipeline("a <bob/dog> on wall", generator=noise(4), **SETTINGS).images
        newest = pipeline("a <alice/dog:2> on wall", generator=noise(4), **SETTINGS).images
        nothing = pipeline("a red star", generator=noise(4), **SETTINGS).images
    assert_as_it_was(pipeline, kind, processors)
    asked = ["alice/dog:1", "alice/dog:1", "bob/dog:1", "alice/dog:2"]
    requests = [Request(f"a <{ref}> on wall", seed=4) for ref in asked]
    for request, images in zip(requests, (named, by_token, other, newest), strict=True):
        assert np.array_equal(pixels(images), drawn(tiny_base, registry, request))
        assert not np.array_equal(pixels(images), pixels(plain))
    again = pipeline("a sks dog on wall", generator=noise(4), **SETTINGS).images
    assert np.array_equal(pixels(again), pixels(plain))
    stock = pipeline("a red star", generator=noise(4), **SETTINGS).images
    assert np.array_equal(pixels(nothing), pixels(stock))


def test_several_prompts_and_pictures_of_one_call(
    pipeline: Any, registry: Registry, tiny_base: BaseModel
) -> None:
    prompts = ["a <alice/dog:1>", "a star and <bob/dog>"]
    generators = [noise(seed) for seed in (1, 2, 3, 4)]
    with concepts(pipeline, registry):
        images = pipeline(
            prompts,
            negative_prompt=["red", "a <alice/dog:1>"],
            num_images_per_prompt=2,
            generator=generators,
            **SETTINGS,
        ).images
    requests = [
        Request(prompts[number // 2], seed=number + 1, negative_prompt=negative)
        for number, negative in enumerate(["red", "red", "a <alice/dog:1>", "a <alice/dog:1>"])
    ]
    expected = drawn(tiny_base, registry, *requests).astype(int)
    assert np.abs(pixels(images).astype(int) - expected).max() <= 1


def test_concepts_of_the_whole_prompt_act_in_every_call(
    pipeline: Any, registry: Registry, tiny_base: BaseModel, tmp_path: Path
) -> None:
    with concepts(pipeline, tmp_path / "concepts", "alice/green", cache=tmp_path / "other"):
        images = pipeline("a star", generator=noise(2), **SETTINGS).images
        both = pipeline("a <bob/dog>", generator=noise(2), **SETTINGS).images
    green = registry.resolve("alice/green")
    expected = drawn(
        tiny_base,
        registry,
        Request("a star", seed=2, composition=green),
        Request("a <bob/dog>", seed=2, composition=green),
    )
    assert np.array_equal(pixels(images), expected[:1])
    assert np.abs(pixels(both).astype(int) - expected[1:].astype(int)).max() <= 1


def other_pipelines(pipeline: Any) -> dict[str, tuple[Any, dict[str, Any]]]:
    """Pipelines of the same U-Net that take pictures: name -> pipeline and what it is given."""
    from diffusers import (
        ControlNetModel,
        StableDiffusionControlNetPipeline,
        StableDiffusionImg2ImgPipeline,
        StableDiffusionInpaintPipeline,
    )

    torch.manual_seed(1)
    picture = Image.new("RGB", (16, 16), "teal")
    half = Image.new("L", (16, 16))
    half.paste(255, (0, 0, 8, 16))
    controlnet = ControlNetModel.from_unet(
        pipeline.unet, conditioning_embedding_out_channels=(4, 8)
    )
    with torch.no_grad():  # or it would add nothing
        torch.nn.init.normal_(controlnet.controlnet_mid_block.weight, std=0.1)
    parts = {key: value for key, value in pipeline.components.items() if key != "image_encoder"}
    same: dict[str, Any] = {**parts, "requires_safety_checker": False}
    pictures = {"image": picture, "strength": 1.0}
    return {
        "img2img": (StableDiffusionImg2ImgPipeline(**same), pictures),
        "inpaint": (
            StableDiffusionInpaintPipeline(**same),
            {**pictures, "mask_image": half, "height": 16, "width": 16},
        ),
        "controlnet": (
            StableDiffusionControlNetPipeline(**same, controlnet=controlnet),
            {"image": picture},
        ),
    }


@pytest.mark.parametrize("name", ["img2img", "inpaint", "controlnet"])
def test_pipelines_of_the_same_unet_that_take_pictures_are_served(
    pipeline: Any, registry: Registry, name: str
) -> None:
    other, given = other_pipelines(pipeline)[name]
    other.set_progress_bar_config(disable=True)
    kind, processors = type(other), dict(other.unet.attn_processors)

    def draw(prompt: str) -> np.ndarray:
        return pixels(other(prompt, generator=noise(5), **given, **SETTINGS).images)

    plain = draw("a sks dog on wall")
    with concepts(other, registry):
        named, untouched = draw("a <bob/dog> on wall"), draw("a sks dog on wall")
    assert not np.array_equal(named, plain)
    assert np.array_equal(untouched, plain)
    assert np.array_equal(draw("a sks dog on wall"), plain)
    assert_as_it_was(other, kind, processors)


def test_what_cannot_be_served_is_refused_and_nothing_stays(
    pipeline: Any, registry: Registry, random_mask: MakeMask, tiny_base: BaseModel
) -> None:
    kind, processors = type(pipeline), dict(pipeline.unet.attn_processors)
    registry.push(
        "alice/foreign",
        random_mask(tiny_base.layer_table),
        base="sha256:" + "0" * 64,
        scope="prompt",
    )
    with concepts(pipeline, registry):
        for prompt, error in (
            ("a <alice/cat>", NotFoundError),
            ("a <alice/foreign>", BaseModelMismatchError),
            ("a <alice/dog", UsageError),
            (None, UsageError),
        ):
            with pytest.raises(error):
                pipeline(prompt, **SETTINGS)
    assert_as_it_was(pipeline, kind, processors)
    with pytest.raises(NotFoundError), concepts(pipeline, registry, "alice/cat"):
        pass
    with pytest.raises(ZeroDivisionError), concepts(pipeline, registry):
        raise ZeroDivisionError
    assert_as_it_was(pipeline, kind, processors)
