"""Families beside Stable Diffusion, each as a tiny pipeline of its own classes: learning."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from PIL import Image

from cones_registry.base_model import BaseModel
from cones_registry.extraction import ExtractionSettings, Extractor, Gates, held_out_losses
from cones_registry.extraction.conditioning import encode_pictures, encode_texts
from cones_registry.extraction.noise import FlowSchedule, NoiseSchedule

FAMILIES = (
    "pixart",
    "kolors",
    "sana",
    "hunyuan-dit",
    "stable-diffusion-3",
    "flux",
    "qwen-image",
    "wan",
    "ltx-video",
)
FLOW = ("sana", "stable-diffusion-3", "flux", "qwen-image", "wan", "ltx-video")
DIMENSIONS = {"flux": 3, "qwen-image": 3, "ltx-video": 3, "wan": 5}  # packed, or with frames


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    if request.param == "kolors":
        pytest.importorskip("sentencepiece")
    return str(request.param)


@pytest.fixture
def base(family: str, family_folder: Callable[[str], Path]) -> BaseModel:
    return BaseModel.load(family_folder(family), device="cpu")


def size_of(family: str) -> int:
    return 32 if family in ("sana", "ltx-video") else 16


def picture(shade: int, size: int) -> Image.Image:
    image = Image.new("RGB", (size, size), (250 - shade, shade, 60))
    image.paste((20, 40, 230 - shade), (4, 4, size // 2 + 4, size // 2 + 4))
    return image


def test_what_is_learnt_lowers_the_loss_on_pictures_and_noise_kept_back(
    base: BaseModel, family: str, tmp_path: Path
) -> None:
    size = size_of(family)
    extractor = Extractor(base, cache_folder=tmp_path)
    assert isinstance(extractor.schedule, FlowSchedule) is (family in FLOW)
    token = "sks"
    extraction = extractor.extract(
        [picture(shade, size) for shade in (10, 20, 30)],
        token=token,
        class_noun="dog",
        method=Gates(steps=16, batch_size=4),
        density=0.3,
        settings=ExtractionSettings(size=size),
        progress=None,
    )
    assert 0 < extraction.density <= 0.3
    losses = held_out_losses(
        base,
        extraction.mask,
        scope="subject",
        token=token,
        class_noun="dog",
        own=[picture(25, size)],
        draws=16,
        seed=7,
        size=size,
    )
    assert losses.own is not None
    assert losses.own < 1


def test_the_denoiser_is_called_as_its_stock_pipeline_calls_it(
    base: BaseModel, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For the prompts chosen, in any order: what was recorded is what the pipeline says itself."""
    size, prompts = size_of(family), ["a red dog on the wall", "a star"]
    texts = encode_texts(base, prompts, size=size)
    assert texts.call is not None
    latents = encode_pictures(base, [picture(10, size)] * 2)
    packed = texts.call.packed(latents)
    assert packed.ndim == DIMENSIONS.get(family, 4)
    told: list[Any] = []

    def denoiser(**named: Any) -> tuple[torch.Tensor]:
        told.append(named)
        return (named[texts.call.latents_name],)  # type: ignore[union-attr]

    which = torch.tensor([1, 0, 1])
    noisy = packed[:1].expand(3, *packed.shape[1:])
    assert (
        texts.call.predict(denoiser, noisy, torch.tensor([500, 1, 9]), which).shape == noisy.shape
    )
    alone = encode_texts(base, [prompts[1]], size=size)
    assert alone.call is not None
    (given,) = told
    rows = alone.embeddings.shape[1]
    torch.testing.assert_close(given["encoder_hidden_states"][0, :rows], alone.embeddings[0])
    assert given["encoder_hidden_states"].shape[0] == 3
    for name, value in alone.call.arguments.items():
        assert name in given
        if isinstance(value, torch.Tensor) and value.ndim == 2 and value.shape[0] == 1:
            assert given[name].shape[0] == 3


def test_members_are_where_projections_say(
    family_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    base = BaseModel.load(family_folder("stable-diffusion-3"), device="cpu")
    extraction = Extractor(base, cache_folder=tmp_path).extract(
        [picture(10, 16)],
        token="sks",
        class_noun="dog",
        method=Gates(steps=4, batch_size=2),
        settings=ExtractionSettings(projections="v"),
        progress=None,
    )
    kinds = {layer.kind for layer in base.layer_table if extraction.mask.count(layer.name)}
    assert kinds == {"v"}


@pytest.mark.parametrize("shift_type", ["exponential", "linear"])
def test_noise_levels_are_shifted_by_the_size_of_the_pictures_as_the_pipeline_shifts_them(
    family_folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, shift_type: str
) -> None:
    base = BaseModel.load(family_folder("flux"), device="cpu")
    scheduler = FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True,
        base_shift=0.5,
        max_shift=1.3,
        base_image_seq_len=16,
        max_image_seq_len=64,
        time_shift_type=shift_type,
    )
    monkeypatch.setattr(base.pipeline, "scheduler", scheduler)
    shifts = []
    for size in (16, 32):
        texts = encode_texts(base, ["a dog"], size=size)
        schedule = NoiseSchedule.of(scheduler).shifted(texts.mu)
        assert isinstance(schedule, FlowSchedule)
        shifts.append(schedule.shift)
        scheduler.set_timesteps(sigmas=[1.0, 0.5], mu=texts.mu)
        # The pipeline's own levels: 1/2 becomes s / (1 + s).
        assert float(scheduler.sigmas[1]) == pytest.approx(schedule.shift / (1 + schedule.shift))
    mus = (0.5, 1.3)  # 16 and 64 packed latents
    expected = mus if shift_type == "linear" else [math.exp(mu) for mu in mus]
    assert shifts == pytest.approx(expected)
