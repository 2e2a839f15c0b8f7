"""Every weight of a base model comes from its files, and the fingerprint is of these files."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from cones_registry.base_model import BaseModel
from cones_registry.errors import CorruptDataError, NotFoundError, UsageError

UNET = "unet/diffusion_pytorch_model.safetensors"
VAE = "vae/diffusion_pytorch_model.safetensors"
TEXT = "text_encoder/model.safetensors"
Reweigh = Callable[[Path, Callable[[dict[str, Any]], Any]], None]


@pytest.mark.filterwarnings("ignore")  # the libraries' own remarks
@pytest.mark.parametrize(
    ("file", "part"),
    [
        (UNET, "attn1.to_q.weight"),
        (UNET, "attn2.to_k.weight"),
        (UNET, "conv_in.bias"),
        (VAE, "decoder.conv_in.weight"),
        (TEXT, "layers.0.mlp.fc1.weight"),
        (TEXT, "token_embedding.weight"),
        (TEXT, "final_layer_norm.bias"),
    ],
)
def test_a_weight_that_is_in_no_file_is_named(
    folder: Path, reweigh: Reweigh, file: str, part: str
) -> None:
    reweigh(folder / file, lambda weights: weights.pop(next(k for k in weights if part in k)))
    with pytest.raises(CorruptDataError, match=rf"has no weight '.*{part}'"):
        BaseModel.load(folder, device="cpu")


def test_a_table_of_positions_may_be_absent_and_may_be_there(
    folder: Path, reweigh: Reweigh
) -> None:
    sound = BaseModel.load(folder, device="cpu").fingerprint
    reweigh(
        folder / TEXT,
        lambda weights: weights.update(
            {"text_model.embeddings.position_ids": torch.arange(24).unsqueeze(0)}
        ),
    )
    assert BaseModel.load(folder, device="cpu").fingerprint == sound


@pytest.mark.parametrize("family", ["pixart", "stable-diffusion-xl"])
def test_weights_that_are_tied_are_not_missed(
    family_folder: Callable[[str], Path], family: str
) -> None:
    BaseModel.load(family_folder(family), device="cpu")


@pytest.mark.parametrize("stored", [torch.float8_e4m3fn, torch.float8_e5m2])
@pytest.mark.parametrize("file", [UNET, VAE, TEXT])
def test_8_bit_floats_are_refused_with_the_weight_named(
    folder: Path, reweigh: Reweigh, file: str, stored: torch.dtype
) -> None:
    reweigh(folder / file, lambda w: w.update({k: v.to(stored) for k, v in w.items()}))
    with pytest.raises(UsageError, match=r"weight '.*' in .* is of type F8_.*float16"):
        BaseModel.load(folder, device="cpu")


def test_quantised_parts_are_refused(folder: Path, edit: Callable[..., None]) -> None:
    edit(folder / "unet/config.json", quantization_config={"quant_method": "bitsandbytes"})
    with pytest.raises(UsageError, match=r"quantised \(bitsandbytes\)"):
        BaseModel.load(folder, device="cpu")


def shard(folder: Path) -> list[Path]:
    """Two shards and their index in place of the U-Net's whole file."""
    whole = folder / UNET
    weights = load_file(whole)
    names = sorted(weights)
    shards = [whole.with_name(f"{whole.stem}-0000{n}-of-00002.safetensors") for n in (1, 2)]
    place: dict[str, str] = {}
    for number, file in enumerate(shards):
        part = {name: weights[name] for name in names[number::2]}
        save_file(part, file, {"format": "pt"})
        place |= dict.fromkeys(part, file.name)
    index = {"metadata": {"total_size": 1}, "weight_map": place}
    whole.with_name(f"{whole.name}.index.json").write_text(json.dumps(index))
    whole.unlink()
    return shards


def test_shards_are_the_same_base_model_as_the_whole_file(folder: Path) -> None:
    sound = BaseModel.load(folder, device="cpu").fingerprint
    shard(folder)
    assert BaseModel.load(folder, device="cpu").fingerprint == sound


def test_a_shard_that_the_index_names_must_be_there(folder: Path) -> None:
    shard(folder)[1].unlink()
    with pytest.raises(NotFoundError, match=r"00002-of-00002.*says it holds '"):
        BaseModel.load(folder, device="cpu")


@pytest.mark.filterwarnings("ignore")
def test_a_weight_that_a_shard_lacks_is_named(folder: Path, reweigh: Reweigh) -> None:
    reweigh(shard(folder)[0], lambda weights: weights.pop("conv_in.bias"))
    with pytest.raises(CorruptDataError, match=r"conv_in\.bias"):
        BaseModel.load(folder, device="cpu")


def test_two_shards_may_not_differ_about_a_weight(folder: Path, reweigh: Reweigh) -> None:
    first, second = shard(folder)
    name, values = next(iter(load_file(first).items()))
    reweigh(second, lambda weights: weights.update({name: values}))
    BaseModel.load(folder, device="cpu")
    reweigh(second, lambda weights: weights.update({name: values + 1}))
    with pytest.raises(CorruptDataError, match=rf"both hold weight '{name}'"):
        BaseModel.load(folder, device="cpu")


def test_weights_of_whole_numbers_are_refused_with_the_weight_named(
    folder: Path, reweigh: Reweigh
) -> None:
    reweigh(folder / UNET, lambda w: w.update({"conv_in.weight": w["conv_in.weight"].char()}))
    with pytest.raises(UsageError, match=r"'conv_in\.weight'.* of type I8"):
        BaseModel.load(folder, device="cpu")


@pytest.mark.parametrize("part", ["tokenizer", "text_encoder", "vae", "scheduler"])
def test_a_part_that_the_index_leaves_empty_is_named(
    folder: Path, edit: Callable[..., None], part: str
) -> None:
    edit(folder / "model_index.json", **{part: [None, None]})
    with pytest.raises(CorruptDataError, match=f"leaves '{part}' empty"):
        BaseModel.load(folder, device="cpu")


def test_the_second_text_encoder_is_looked_at_too(
    family_folder: Callable[[str], Path], tmp_path: Path, reweigh: Reweigh
) -> None:
    folder = tmp_path / "xl"
    shutil.copytree(family_folder("stable-diffusion-xl"), folder)
    file = folder / "text_encoder_2/model.safetensors"
    name = next(name for name in load_file(file) if "fc1.weight" in name)
    reweigh(file, lambda weights: weights.pop(name))
    with pytest.raises(CorruptDataError, match=r"text_encoder_2 has no weight '.*fc1\.weight'"):
        BaseModel.load(folder, device="cpu")


def test_an_index_cannot_reach_outside_its_folder(folder: Path) -> None:
    shard(folder)
    index = folder / f"{UNET}.index.json"
    index.write_text(index.read_text().replace("diffusion_pytorch_model-00001", "../unet/x"))
    with pytest.raises(CorruptDataError, match="outside its folder"):
        BaseModel.load(folder, device="cpu")


@pytest.mark.parametrize("leftover", ["stray-shard", "whole-file"])
def test_the_fingerprint_is_of_the_files_that_are_loaded(
    folder: Path, tmp_path: Path, leftover: str
) -> None:
    sound = BaseModel.load(folder, device="cpu")
    old = {name: value + 1 for name, value in load_file(folder / UNET).items()}
    if leftover == "whole-file":
        shard(folder)
        save_file(old, folder / UNET, {"format": "pt"})
    else:
        half = dict(list(old.items())[: len(old) // 2])
        stray = folder / "unet/diffusion_pytorch_model-00001-of-00002.safetensors"
        save_file(half, stray, {"format": "pt"})
    BaseModel.cache.clear()
    loaded = BaseModel.load(folder, device="cpu")
    assert loaded.fingerprint == sound.fingerprint
    for name, weight in loaded.denoiser.named_parameters():
        assert torch.equal(weight, dict(sound.denoiser.named_parameters())[name])


def test_variants_may_differ_from_part_to_part(folder: Path) -> None:
    sound = BaseModel.load(folder, device="cpu").fingerprint
    shutil.copy(folder / UNET, folder / "unet/diffusion_pytorch_model.fp16.safetensors")
    (folder / TEXT).rename(folder / "text_encoder/model.fp16.safetensors")
    assert BaseModel.load(folder, device="cpu").fingerprint == sound


def test_files_beside_the_weights_are_left_alone(folder: Path) -> None:
    sound = BaseModel.load(folder, device="cpu").fingerprint
    save_file({"lora": torch.zeros(2)}, folder / "unet/pytorch_lora_weights.safetensors")
    save_file({"ema": torch.zeros(2)}, folder / "unet/ema.safetensors")
    assert BaseModel.load(folder, device="cpu").fingerprint == sound


@pytest.mark.filterwarnings("ignore")
def test_a_header_that_lies_about_shapes_is_corrupt_data(folder: Path) -> None:
    data = (folder / TEXT).read_bytes()
    swapped = data.replace(b'"shape":[32,37]', b'"shape":[37,32]')
    assert swapped != data
    (folder / TEXT).write_bytes(swapped)
    with pytest.raises(CorruptDataError, match=r"another shape|shape|size"):
        BaseModel.load(folder, device="cpu")


def test_a_header_that_is_longer_than_its_file_is_corrupt_data(folder: Path) -> None:
    data = (folder / TEXT).read_bytes()
    (folder / TEXT).write_bytes((2**40).to_bytes(8, "little") + data[8:])
    with pytest.raises(CorruptDataError, match="cannot read the weights"):
        BaseModel.load(folder, device="cpu")
