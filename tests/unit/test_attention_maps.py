"""Attention maps: what is recorded is what the model attends to, and recording changes nothing."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import Image

from cones_registry import cli
from cones_registry.attention import (
    find_phrases,
    record_maps,
    shut,
    subject_rows,
    text_attentions,
)
from cones_registry.attention.outlines import INK, heated, outlined
from cones_registry.errors import UsageError
from cones_registry.generation import Generator, Request

if TYPE_CHECKING:
    from cones_registry.base_model import BaseModel
    from cones_registry.mask import ConceptMask

PROMPT = "a photo of a sks dog on wall"


@pytest.mark.parametrize("family", ["sana", "hunyuan-dit", "stable-diffusion-3"])
def test_attention_that_is_not_known_is_refused(
    family_folder: Callable[[str], Path], family: str
) -> None:
    from cones_registry.base_model import BaseModel

    base = BaseModel.load(family_folder(family), device="cpu")
    with (
        pytest.raises(UsageError, match=r"not known for .* attends by"),
        record_maps(base.denoiser),
    ):
        pytest.fail("the block must not run")


def draw_plain(base: "BaseModel") -> Any:
    return base.pipeline(
        PROMPT,
        num_inference_steps=2,
        guidance_scale=2.0,
        generator=torch.Generator("cpu").manual_seed(3),
    ).images[0]


def rows_of(base: "BaseModel") -> torch.Tensor:
    return subject_rows(base, PROMPT, find_phrases(PROMPT, token="sks", class_noun="dog"))


def test_all_rows_together_get_all_attention(tiny_base: "BaseModel") -> None:
    plain = draw_plain(tiny_base)
    with record_maps(tiny_base.denoiser) as maps:
        again = draw_plain(tiny_base)
    assert np.array_equal(np.asarray(plain), np.asarray(again))
    assert set(maps.layers) == {block.path for block in text_attentions(tiny_base.denoiser)}
    rows = rows_of(tiny_base)
    whole = maps.of(torch.ones_like(rows), -1, shape=(16, 16))
    assert whole == pytest.approx(np.ones((16, 16)), abs=1e-5)
    own, rest = (maps.of(each, -1, shape=(16, 16)) for each in (rows, ~rows))
    assert own + rest == pytest.approx(whole, abs=1e-5)
    assert 0 < own.min() < own.max() < 1
    # The mean of the blocks is the map of the model.
    each = [maps.of(rows, -1, shape=(16, 16), layer=layer) for layer in maps.layers]
    assert np.mean(each, axis=0) == pytest.approx(own, abs=1e-5)


def test_served_rows_and_a_model_shut_in_place_attend_alike(
    tiny_base: "BaseModel", random_mask: Callable[..., "ConceptMask"]
) -> None:
    mask, rows = random_mask(tiny_base.layer_table), rows_of(tiny_base)
    with record_maps(tiny_base.denoiser) as plain:
        draw_plain(tiny_base)
    with record_maps(tiny_base.denoiser) as in_place, shut(tiny_base.denoiser, mask):
        draw_plain(tiny_base)
    with record_maps(tiny_base.denoiser) as served:
        requests = [Request(PROMPT, seed=3), Request(PROMPT, mask=mask, seed=3)]
        Generator(tiny_base).generate(requests, steps=2, guidance_scale=2.0)
    shape = (16, 16)
    assert served.of(rows, -2, shape=shape) == pytest.approx(
        plain.of(rows, -1, shape=shape), abs=1e-5
    )
    assert served.of(rows, -1, shape=shape) == pytest.approx(
        in_place.of(rows, -1, shape=shape), abs=1e-5
    )
    assert np.abs(in_place.of(rows, -1, shape=shape) - plain.of(rows, -1, shape=shape)).max() > 1e-3


def test_recording_ends_with_the_block_and_wrong_questions_are_refused(
    tiny_base: "BaseModel",
) -> None:
    with record_maps(tiny_base.denoiser) as maps:
        pass
    draw_plain(tiny_base)
    assert maps.layers == ()
    rows = rows_of(tiny_base)
    with pytest.raises(UsageError, match="no attention was recorded"):
        maps.of(rows, -1, shape=(16, 16))
    with record_maps(tiny_base.denoiser) as maps:
        draw_plain(tiny_base)
    with pytest.raises(UsageError, match="text has 24 rows"):
        maps.of(rows[:5], -1, shape=(16, 16))
    with pytest.raises(UsageError, match="no block"):
        maps.of(rows, -1, shape=(16, 16), layer="attic")


def test_an_outline_runs_around_what_is_above_the_level() -> None:
    heat = np.zeros((12, 12), np.float32)
    heat[3:9, 3:9] = 1
    drawn = np.asarray(outlined(Image.new("RGB", (12, 12)), heat, width=1))
    inked = (drawn == INK).all(-1)
    assert inked[3:9, 3:9].sum() == inked.sum() == 6 * 6 - 4 * 4
    assert np.asarray(heated(heat)).max() == 255
    flat = outlined(Image.new("RGB", (12, 12)), np.ones((12, 12), np.float32))
    assert not (np.asarray(flat) == INK).all(-1).any()  # a flat map has no inside


def test_rows_that_a_model_does_not_read_get_no_attention(
    family_folder: Callable[[str], Path],
) -> None:
    from cones_registry.base_model import BaseModel

    base = BaseModel.load(family_folder("pixart"), device="cpu")
    with record_maps(base.denoiser) as maps:
        Generator(base).generate([Request(PROMPT)], steps=1, guidance_scale=1)
    rows = rows_of(base)
    read = torch.arange(len(rows)) < len(base.tokenizers[0](PROMPT).input_ids)
    assert rows[read].sum() == rows.sum() == 2
    assert maps.of(read, -1, shape=(16, 16)) == pytest.approx(np.ones((16, 16)), abs=1e-5)
    assert maps.of(~read, -1, shape=(16, 16)).max() < 1e-5


def test_cones_attention_refuses_a_place_before_it_draws(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nowhere = ["-r", str(tmp_path / "none"), "--base", "none"]
    (tmp_path / "file").write_text("")
    drawn = ["attention", "dog", "--prompt", PROMPT, *nowhere]
    assert cli.run([*drawn, "-o", str(tmp_path / "map.xyz")]) == 2
    assert "map.xyz: expected a name that ends in .png, .webp, .jpg or .jpeg" in (
        capsys.readouterr().err
    )
    assert cli.run([*drawn, "-o", str(tmp_path / "file" / "map.png")]) == 14
    assert "cannot make the folder" in capsys.readouterr().err


@pytest.mark.parametrize("family", ["stable-diffusion-xl", "pixart"])
def test_cones_attention_draws_maps_for_every_family(
    tmp_path: Path,
    family: str,
    family_folder: Callable[[str], Path],
    random_mask: Callable[..., "ConceptMask"],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from cones_registry.base_model import BaseModel
    from cones_registry.registry import Registry

    monkeypatch.setenv("CONES_CACHE", str(tmp_path / "cache"))
    base = BaseModel.load(family_folder(family), device="cpu")
    registry = Registry.create(tmp_path / "concepts")
    mask = random_mask(base.layer_table)
    registry.push("dog", mask, base=base, scope="subject", token="sks", class_noun="dog")
    where = ["-r", str(tmp_path / "concepts"), "--base", str(family_folder(family))]
    out = tmp_path / "map.jpg"
    drawn = ["attention", "dog", "--prompt", PROMPT, "--steps", "2", *where]
    assert cli.run([*drawn, "-o", str(out)]) == 0
    with Image.open(out) as drawing:
        assert drawing.width >= 2 * 256


def test_cones_attention_draws_maps_of_a_concept(
    tmp_path: Path,
    tiny_base: "BaseModel",
    tiny_pipeline_folder: Path,
    random_mask: Callable[..., "ConceptMask"],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from cones_registry.registry import Registry

    monkeypatch.setenv("CONES_CACHE", str(tmp_path / "cache"))
    registry = Registry.create(tmp_path / "concepts")
    mask = random_mask(tiny_base.layer_table)
    words = {"token": "sks", "class_noun": "dog"}
    registry.push("dog", mask, base=tiny_base, scope="subject", **words)
    registry.push("nameless", mask, base=tiny_base, scope="prompt")
    where = ["-r", str(tmp_path / "concepts"), "--base", str(tiny_pipeline_folder), "--steps", "2"]
    out = tmp_path / "maps" / "dog.png"
    assert cli.run(["attention", "dog", "--prompt", PROMPT, "-o", str(out), *where]) == 0
    assert capsys.readouterr().out == f"{out}\n"
    drawn = Image.open(out)
    assert drawn.size == (2 * 256 + 8, 2 * 256 + 8)
    pixels = np.asarray(drawn)
    assert (pixels[:256] == INK).all(-1).any()
    assert not np.array_equal(pixels[264:, :256], pixels[264:, 264:])
    assert cli.run(["attention", "nameless", "--prompt", PROMPT, *where]) == 2
    assert "no token" in capsys.readouterr().err
    assert cli.run(["attention", "dog", "--prompt", "a dog", *where]) == 10
    assert "sks" in capsys.readouterr().err
