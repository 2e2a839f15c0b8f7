"""A picture whose numbers became NaN or infinite is a failure; those beside it are made."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

from cones_registry.base_model import BaseModel
from cones_registry.batch import Compositions, LocalEngine, run_batch
from cones_registry.errors import CorruptDataError
from cones_registry.extraction.stock import draw_latents
from cones_registry.generation import FailedPicturesError, Generator, Request

UNET = "unet/diffusion_pytorch_model.safetensors"
VAE = "vae/diffusion_pytorch_model.safetensors"
TEXT = "text_encoder/model.safetensors"
Reweigh = Callable[[Path, Callable[[dict[str, Any]], Any]], None]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize(
    ("file", "part"),
    [(UNET, "conv_in.weight"), (VAE, "decoder.conv_in.bias"), (TEXT, "token_embedding.weight")],
)
def test_a_weight_that_is_no_number_is_named_at_load(
    folder: Path, reweigh: Reweigh, file: str, part: str, bad: float
) -> None:
    def damage(weights: dict[str, Any]) -> None:
        weights[next(name for name in weights if part in name)].view(-1)[3] = bad

    reweigh(folder / file, damage)
    with pytest.raises(CorruptDataError, match=rf"1 of the .*'.*{part}' in .* NaN or infinite"):
        BaseModel.load(folder, device="cpu")


def test_a_weight_that_float16_cannot_hold_says_so_at_load(folder: Path, reweigh: Reweigh) -> None:
    reweigh(folder / UNET, lambda weights: weights["conv_in.weight"].fill_(1e5))
    BaseModel.load(folder, device="cpu")
    with pytest.raises(CorruptDataError, match="what float16 holds: --dtype float32"):
        BaseModel.load(folder, device="cpu", dtype="float16")


def test_a_weight_that_is_no_number_in_its_file_needs_another_file(
    folder: Path, reweigh: Reweigh
) -> None:
    """NaN is no number that float16 could not hold: float32 would not help."""

    def damage(weights: dict[str, Any]) -> None:
        for name in weights:
            weights[name] = weights[name].bfloat16()
        weights["decoder.conv_in.bias"][0] = float("nan")

    reweigh(folder / VAE, damage)
    with pytest.raises(CorruptDataError, match=r"download it again$"):
        BaseModel.load(folder, device="cpu", dtype="float16")


@pytest.mark.parametrize(
    ("file", "key", "value"),
    [
        ("scheduler/scheduler_config.json", "beta_end", float("nan")),
        ("vae/config.json", "scaling_factor", 0.0),
        ("vae/config.json", "scaling_factor", float("inf")),
    ],
)
def test_a_setting_that_blackens_every_picture_is_named_at_load(
    folder: Path, edit: Callable[..., None], file: str, key: str, value: float
) -> None:
    edit(folder / file, **{key: value})
    with pytest.raises(CorruptDataError, match=key):
        BaseModel.load(folder, device="cpu")


@pytest.fixture
def one_bad_word(folder: Path, reweigh: Reweigh) -> Path:
    """A base model whose numbers overflow for prompts with the word "dog"."""
    number = json.loads((folder / "tokenizer/tokenizer.json").read_text())["model"]["vocab"]

    def overflow(weights: dict[str, Any]) -> None:
        table = weights[next(name for name in weights if "token_embedding" in name)]
        table[number["dog</w>"]] = 3e38

    reweigh(folder / TEXT, overflow)
    return folder


def test_one_picture_that_overflows_fails_alone(one_bad_word: Path) -> None:
    base = BaseModel.load(one_bad_word, device="cpu")
    requests = [Request(f"a photo of a {word}", seed=1) for word in ("square", "dog", "circle")]
    with pytest.raises(FailedPicturesError, match=r"picture 2 of 3 failed.*NaN") as caught:
        Generator(base).generate(requests, steps=2)
    assert list(caught.value.reasons) == [1]
    first, none, last = caught.value.pictures
    assert none is None
    assert first is not None
    assert last is not None
    assert first.getcolors(1) is None


def test_a_stream_gives_what_comes_before_and_raises_in_the_place(one_bad_word: Path) -> None:
    base = BaseModel.load(one_bad_word, device="cpu")
    requests = [Request("a square"), Request("a dog")]
    stream = Generator(base).stream(requests, steps=1)
    next(stream)
    with pytest.raises(FailedPicturesError, match="the picture failed"):
        next(stream)


def test_a_batch_makes_the_others_and_reports_the_one(one_bad_word: Path, tmp_path: Path) -> None:
    jobs = "\n".join(
        json.dumps({"prompt": f"a {word}", "steps": 2}) for word in ("square", "dog", "circle")
    )
    out = tmp_path / "out"
    report = run_batch(
        jobs,
        out,
        engine=LocalEngine(Compositions(None)),
        base=str(one_bad_word),
        compositions=Compositions(None),
        device="cpu",
    )
    assert (report.made, report.succeeded) == (2, False)
    (failure,) = report.failures
    assert failure.line == 2
    assert "NaN or infinite" in failure.reason
    assert len(list((out / "pictures").iterdir())) == 2
    index = pq.read_table(out / "index.parquet").to_pylist()
    assert [row["status"] for row in index] == ["made", "failed", "made"]


@pytest.mark.parametrize(
    ("file", "part", "said"),
    [
        (VAE, "post_quant_conv.weight", "the autoencoder's numbers .*force_upcast"),
        (UNET, "conv_in.weight", "its numbers became NaN .*--dtype float32"),
    ],
)
def test_what_overflows_in_float16_alone_says_what_helps(
    folder: Path, reweigh: Reweigh, file: str, part: str, said: str
) -> None:
    reweigh(folder / file, lambda weights: weights[part].fill_(6e4))
    sound = BaseModel.load(folder, device="cpu")
    assert len(Generator(sound).generate([Request("a dog")], steps=1)) == 1
    half = BaseModel.load(folder, device="cpu", dtype="float16")
    with pytest.raises(FailedPicturesError, match=said):
        Generator(half).generate([Request("a dog")], steps=1)


def test_class_pictures_of_a_base_that_overflows_are_not_learnt_from(one_bad_word: Path) -> None:
    base = BaseModel.load(one_bad_word, device="cpu")
    with pytest.raises(CorruptDataError, match=r"cannot draw .*NaN"):
        draw_latents(base, ["a dog"], seed=0, steps=1, guidance_scale=1.0)
    assert draw_latents(base, ["a cat"], seed=0, steps=1, guidance_scale=1.0).isfinite().all()


def test_a_picture_that_is_one_has_the_bits_of_the_stock_pipeline(tiny_base: BaseModel) -> None:
    ours = Generator(tiny_base).generate([Request("a dog", seed=3)], steps=2)[0]
    stock = tiny_base.pipeline(
        "a dog",
        num_inference_steps=2,
        guidance_scale=7.5,
        generator=torch.Generator("cpu").manual_seed(3),
    ).images[0]
    assert ours.tobytes() == stock.tobytes()


def test_the_command_says_why_there_is_no_picture(
    one_bad_word: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from cones_registry.cli import run

    out = tmp_path / "dog.png"
    drawn = ["generate", "a dog", "--base", str(one_bad_word), "--steps", "1", "--device", "cpu"]
    assert run([*drawn, "-o", str(out)]) == 13
    assert "became NaN or infinite" in capsys.readouterr().err
    assert not out.exists()
