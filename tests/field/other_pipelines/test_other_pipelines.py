"""A folder that is no text-to-image pipeline is refused when it is loaded, and told what it is."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from cones_registry.base_model import BaseModel
from cones_registry.errors import CorruptDataError, UsageError


@pytest.mark.parametrize(
    ("pipeline", "what"),
    [
        ("StableDiffusionImg2ImgPipeline", "image-to-image"),
        ("StableDiffusionXLImg2ImgPipeline", "refiner"),
        ("StableDiffusionInpaintPipeline", "inpainting"),
        ("StableDiffusionXLInpaintPipeline", "inpainting"),
        ("StableDiffusionControlNetPipeline", "ControlNet"),
        ("StableDiffusionControlNetInpaintPipeline", "inpainting"),
        ("StableDiffusionXLControlNetUnionPipeline", "ControlNet"),
        ("StableDiffusionXLAdapterPipeline", "adapter"),
        ("StableDiffusionInstructPix2PixPipeline", "editing"),
        ("StableDiffusionUpscalePipeline", "upscaling"),
        ("StableDiffusionLatentUpscalePipeline", "upscaling"),
        ("StableDiffusionDepth2ImgPipeline", "depth-to-image"),
        ("StableDiffusionImageVariationPipeline", "variations"),
        ("LatentConsistencyModelImg2ImgPipeline", "image-to-image"),
        ("KandinskyPriorPipeline", "first half"),
        ("OnnxStableDiffusionPipeline", "ONNX"),
        ("FlaxStableDiffusionPipeline", "Flax"),
    ],
)
def test_a_pipeline_that_needs_a_picture_is_no_base_model(
    folder: Path, edit: Callable[..., None], pipeline: str, what: str
) -> None:
    edit(folder / "model_index.json", _class_name=pipeline)
    with pytest.raises(UsageError, match=rf"{what}.*Expected a text-to-image pipeline"):
        BaseModel.load(folder, device="cpu")


@pytest.mark.parametrize("channels", [5, 7, 8, 9])
def test_a_unet_that_reads_more_than_latents_was_made_for_something_else(
    folder: Path,
    edit: Callable[..., None],
    reweigh: Callable[..., None],
    channels: int,
) -> None:
    def widen(weights: dict[str, Any]) -> None:
        kernel = weights["conv_in.weight"]
        weights["conv_in.weight"] = torch.cat([kernel] * 3, 1)[:, :channels].contiguous()

    reweigh(folder / "unet/diffusion_pytorch_model.safetensors", widen)
    edit(folder / "unet/config.json", in_channels=channels)
    with pytest.raises(UsageError, match=rf"reads {channels} channels .*makes 4.*inpainting"):
        BaseModel.load(folder, device="cpu")


@pytest.mark.parametrize(
    ("family", "pipeline"),
    [
        ("stable-diffusion", "StableDiffusionXLPipeline"),
        ("stable-diffusion-xl", "StableDiffusionPipeline"),
    ],
)
def test_an_index_of_another_family_is_named(
    family_folder: Callable[[str], Path],
    tmp_path: Path,
    edit: Callable[..., None],
    family: str,
    pipeline: str,
) -> None:
    folder = tmp_path / "mixed"
    shutil.copytree(family_folder(family), folder)
    edit(folder / "model_index.json", _class_name=pipeline)
    with pytest.raises(CorruptDataError, match=f"says {pipeline}, and its parts"):
        BaseModel.load(folder, device="cpu")


def test_a_controlnet_beside_the_unet_is_named(folder: Path, edit: Callable[..., None]) -> None:
    (folder / "controlnet").mkdir()
    edit(folder / "model_index.json", controlnet=["diffusers", "ControlNetModel"])
    with pytest.raises(UsageError, match="ControlNet"):
        BaseModel.load(folder, device="cpu")


def test_one_part_of_a_pipeline_is_no_base_model(folder: Path) -> None:
    with pytest.raises(UsageError, match=r"only the config\.json of one part"):
        BaseModel.load(folder / "unet", device="cpu")


@pytest.mark.parametrize("file", ["pytorch_lora_weights.safetensors", "adapter_config.json"])
def test_a_lora_is_no_base_model(tmp_path: Path, file: str) -> None:
    save_file({"lora": torch.zeros(2)}, tmp_path / file)
    with pytest.raises(UsageError, match="it holds a LoRA"):
        BaseModel.load(tmp_path, device="cpu")


def test_a_folder_with_one_checkpoint_file_says_how_to_convert_it(tmp_path: Path) -> None:
    save_file({"x": torch.zeros(2)}, tmp_path / "dreamy.safetensors")
    with pytest.raises(UsageError, match=r"dreamy\.safetensors.*from_single_file"):
        BaseModel.load(tmp_path, device="cpu")


def test_a_folder_of_a_newer_library_says_to_upgrade(
    folder: Path, edit: Callable[..., None]
) -> None:
    edit(
        folder / "model_index.json",
        _diffusers_version="9.1.0",
        unet=["diffusers", "UNetOfTomorrow"],
    )
    with pytest.raises(CorruptDataError, match=r"written by diffusers 9\.1\.0.*upgrade diffusers"):
        BaseModel.load(folder, device="cpu")
