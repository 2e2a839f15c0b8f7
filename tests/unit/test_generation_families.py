"""Every family of models we claim: stock pictures without masks, shut() with them, tokens found."""

from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL.Image import Image

from cones_registry.attention import shut
from cones_registry.base_model import BaseModel
from cones_registry.errors import UsageError
from cones_registry.generation import Generator, Request
from cones_registry.mask import ConceptMask

MakeMask = Callable[..., ConceptMask]
PROMPT = "a photo of sks dog on the wall"
FAMILIES = (
    "stable-diffusion",
    "stable-diffusion-2",
    "text-projection",
    "stable-diffusion-xl",
    "pixart",
)


@pytest.fixture(params=FAMILIES)
def base(request: pytest.FixtureRequest, family_folder: Callable[[str], Path]) -> BaseModel:
    return BaseModel.load(family_folder(request.param), device="cpu")


def stock(base: BaseModel, requests: Sequence[Request], **settings: Any) -> np.ndarray:
    negatives = [request.negative_prompt for request in requests]
    extra: dict[str, Any] = {"negative_prompt": negatives} if any(negatives) else {}
    if base.denoiser_name == "transformer":
        extra |= {"clean_caption": False, "use_resolution_binning": False}
    return pixels(
        base.pipeline(
            [request.prompt for request in requests],
            generator=[torch.Generator().manual_seed(request.seed) for request in requests],
            **settings,
            **extra,
        ).images
    )


def pixels(images: Sequence[Image]) -> np.ndarray:
    return np.stack([np.asarray(image, dtype=np.int16) for image in images])


def drawn(base: BaseModel, requests: Sequence[Request], **settings: Any) -> np.ndarray:
    steps = settings.pop("num_inference_steps")
    return pixels(Generator(base).generate(requests, steps=steps, **settings))


@pytest.mark.parametrize("guidance_scale", [1.0, 4.0])
def test_without_mask_the_pictures_are_the_stock_pipelines(
    base: BaseModel, guidance_scale: float
) -> None:
    settings: dict[str, Any] = {"num_inference_steps": 2, "guidance_scale": guidance_scale}
    requests = [Request("a red circle", seed=1), Request(PROMPT, seed=2)]
    assert np.array_equal(drawn(base, requests, **settings), stock(base, requests, **settings))
    requests = [
        Request("a red circle", seed=1, negative_prompt="blue"),
        Request(PROMPT, seed=2, negative_prompt="a dog"),
    ]
    assert np.array_equal(drawn(base, requests, **settings), stock(base, requests, **settings))


@pytest.mark.parametrize("guidance_scale", [1.0, 4.0])
def test_mixed_batch_agrees_with_shut(
    base: BaseModel, random_mask: MakeMask, guidance_scale: float
) -> None:
    settings: dict[str, Any] = {"num_inference_steps": 2, "guidance_scale": guidance_scale}
    requests = [
        Request(PROMPT, seed=1, mask=random_mask(base.layer_table, seed=1)),
        Request(PROMPT, seed=1),
        Request("a star", seed=2, mask=random_mask(base.layer_table, seed=2), negative_prompt="x"),
    ]
    pictures = drawn(base, requests, **settings)
    assert np.abs(pictures[:1] - pictures[1:2]).max() > 1
    for request, picture in zip(requests, pictures, strict=True):
        mask = request.mask or ConceptMask.empty(base.layer_table)
        with shut(base.denoiser, mask):
            assert np.abs(stock(base, [request], **settings) - picture).max() <= 1


def test_subject_rows_change_and_all_others_keep_their_bits(
    base: BaseModel, random_mask: MakeMask, monkeypatch: pytest.MonkeyPatch
) -> None:
    import cones_registry.generation.view as view

    part = SimpleNamespace(
        mask=random_mask(base.layer_table),
        scope="subject",
        token="sks",
        class_noun="dog",
        refs=("local/dog:1",),
    )
    composition = SimpleNamespace(base=base.fingerprint, table=base.layer_table, parts=(part,))
    made: list[Any] = []

    class Noted(view.RowEdits):
        def __init__(self, *args: Any, **named: Any) -> None:
            super().__init__(*args, **named)
            made.append(self)

    monkeypatch.setattr(view, "RowEdits", Noted)
    words = "A photo of SKS dog."
    for request in (Request(words, composition=composition), Request(words)):
        Generator(base).generate([request, Request(PROMPT)], steps=2, guidance_scale=3)
    masked, plain = (each.kept for each in made)
    # CLIP text starts with a start token, T5 text does not.
    first = 4 if base.denoiser_name == "unet" else 3
    for name, got in masked.items():
        changed = (got != plain[name]).any(dim=-1).nonzero().tolist()
        assert changed == [[2, first], [2, first + 1]]


def test_everything_is_checked_before_the_first_batch(base: BaseModel) -> None:
    generator = Generator(base)
    for slip in ({"guidance": 1}, {"foo": 1}, {"num_inference_steps": 4}, {"clean_caption": True}):
        with pytest.raises(UsageError, match=next(iter(slip))):
            generator.stream([Request(PROMPT)], **slip)
    callbacks: tuple[dict[str, Any], ...] = ({"on_step": print}, {"on_preview": print})
    for callback in callbacks:
        if generator.takes_on_step:
            generator.stream([Request(PROMPT)], **callback)
        else:
            with pytest.raises(UsageError, match="no callback after a step"):
                generator.stream([Request(PROMPT)], **callback)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_agrees_with_shut(
    family_folder: Callable[[str], Path], random_mask: MakeMask, dtype: str
) -> None:
    base = BaseModel.load(family_folder("stable-diffusion"), device="cpu", dtype=dtype)
    settings: dict[str, Any] = {"num_inference_steps": 2, "guidance_scale": 3.0}
    request = Request(PROMPT, seed=1, mask=random_mask(base.layer_table))
    assert request.mask is not None
    with shut(base.denoiser, request.mask):
        expected = stock(base, [request], **settings)
    assert np.abs(drawn(base, [request], **settings) - expected).mean() < 3
    plain = [Request(PROMPT, seed=1)]
    assert np.array_equal(drawn(base, plain, **settings), stock(base, plain, **settings))


def test_empty_negative_prompt_means_the_same_beside_a_full_one(
    family_folder: Callable[[str], Path],
) -> None:
    base = BaseModel.load(family_folder("stable-diffusion-xl"), device="cpu")
    settings: dict[str, Any] = {"num_inference_steps": 2, "guidance_scale": 4.0}
    requests = [Request(PROMPT, seed=1), Request(PROMPT, seed=1, negative_prompt="a red star")]
    pictures = drawn(base, requests, **settings)
    assert np.array_equal(pictures[:1], stock(base, requests[:1], **settings))
    assert np.array_equal(pictures[1:], stock(base, requests[1:], **settings))


@pytest.mark.parametrize("setting", ["plain", "attention-slices", "autoencoder-slices"])
def test_other_attention_and_slicing_keep_working(
    family_folder: Callable[[str], Path], random_mask: MakeMask, setting: str
) -> None:
    from diffusers.models.attention_processor import AttnProcessor

    base = BaseModel.load(family_folder("stable-diffusion"), device="cpu")
    settings: dict[str, Any] = {"num_inference_steps": 2, "guidance_scale": 3.0}
    requests = [
        Request(PROMPT, seed=1, mask=random_mask(base.layer_table)),
        Request("a star", seed=2),
    ]
    expected = drawn(base, requests, **settings)
    try:
        if setting == "plain":
            base.denoiser.set_attn_processor(AttnProcessor())
        elif setting == "attention-slices":
            base.pipeline.enable_attention_slicing(1)
        else:
            base.pipeline.vae.enable_slicing()
        assert np.abs(drawn(base, requests, **settings) - expected).max() <= 1
        plain = drawn(base, requests[1:], **settings)
        assert np.array_equal(plain, stock(base, requests[1:], **settings))
    finally:
        base.unload()


def test_what_cannot_be_served_is_drawn_in_place_and_says_so(
    family_folder: Callable[[str], Path],
    random_mask: MakeMask,
    caplog: pytest.LogCaptureFixture,
) -> None:
    base = BaseModel.load(family_folder("stable-diffusion"), device="cpu")
    settings: dict[str, Any] = {"num_inference_steps": 2, "guidance_scale": 3.0}
    requests = [
        Request(PROMPT, seed=1, mask=random_mask(base.layer_table, seed=1)),
        Request(PROMPT, seed=1),
        Request(PROMPT, seed=1, mask=random_mask(base.layer_table, seed=2)),
    ]
    expected = drawn(base, requests, **settings)

    class Unknown:
        def __init__(self, stock: Any) -> None:
            self.stock = stock

        def __call__(self, attn: Any, hidden_states: Any, **rest: Any) -> Any:
            return self.stock(attn, hidden_states, **rest)

    processors = base.denoiser.attn_processors
    before = {name: value.clone() for name, value in base.denoiser.state_dict().items()}
    base.denoiser.set_attn_processor({name: Unknown(p) for name, p in processors.items()})
    try:
        got = drawn(base, requests, **settings)
        assert np.abs(got - expected).max() <= 1
        assert "attention processor Unknown" in caplog.text
        after = base.denoiser.state_dict()
        assert all(torch.equal(after[name], value) for name, value in before.items())
        with pytest.raises(UsageError, match="mask_unconditional"):
            drawn(base, requests, mask_unconditional=False, **settings)
    finally:
        base.unload()
