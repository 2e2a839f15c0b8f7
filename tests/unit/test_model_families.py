"""Families beside Stable Diffusion, each as a tiny pipeline of its own classes: drawing."""

from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL.Image import Image

from cones_registry.attention import find_phrases, is_cached, shut, subject_rows, text_attentions
from cones_registry.base_model import BaseModel
from cones_registry.errors import UsageError
from cones_registry.generation import Generator, Request
from cones_registry.mask import ConceptMask

MakeMask = Callable[..., ConceptMask]
PROMPT = "a photo of zwp dog on the wall"  # the token is several pieces in most vocabularies
# What a user would write to draw with the stock pipeline, at the tiny model's own size.
STOCK: dict[str, dict[str, Any]] = {
    "pixart-sigma": {"clean_caption": False, "use_resolution_binning": False},
    "kolors": {},
    "sana": {
        "height": 32,
        "width": 32,
        "clean_caption": False,
        "use_resolution_binning": False,
    },
    "hunyuan-dit": {"use_resolution_binning": False},
    "stable-diffusion-3": {},
    "flux": {"height": 16, "width": 16},
    "qwen-image": {"height": 16, "width": 16},
    "wan": {"height": 16, "width": 16, "num_frames": 1, "output_type": "pil"},
    "ltx-video": {"height": 32, "width": 32, "num_frames": 1, "output_type": "pil"},
}
JOINT = ("stable-diffusion-3", "flux", "qwen-image")
SIZED = ("flux", "qwen-image", "wan", "ltx-video")  # models without a size of their own


@pytest.fixture(params=STOCK)
def family(request: pytest.FixtureRequest) -> str:
    if request.param == "kolors":
        pytest.importorskip("sentencepiece")
    return str(request.param)


@pytest.fixture
def base(family: str, family_folder: Callable[[str], Path]) -> BaseModel:
    return BaseModel.load(family_folder(family), device="cpu")


def pixels(images: Sequence[Image]) -> np.ndarray:
    return np.stack([np.asarray(image, dtype=np.int16) for image in images])


def drawn(base: BaseModel, family: str, requests: Sequence[Request], **more: Any) -> np.ndarray:
    size = {side: STOCK[family][side] for side in ("height", "width") if family in SIZED}
    settings = {"steps": 2, "guidance_scale": 3.0, **size, **more}
    return pixels(Generator(base).generate(requests, **settings))


def stock(base: BaseModel, family: str, requests: Sequence[Request]) -> np.ndarray:
    more = dict(STOCK[family])
    if family == "qwen-image":
        more |= {"true_cfg_scale": 3.0, "negative_prompt": [" "] * len(requests)}
    else:
        more["guidance_scale"] = 3.0
    generators = [torch.Generator().manual_seed(request.seed) for request in requests]
    prompts = [request.prompt for request in requests]
    base.pipeline.set_progress_bar_config(disable=True)
    output = base.pipeline(prompts, num_inference_steps=2, generator=generators, **more)
    frames = getattr(output, "frames", None)
    return pixels(output.images if frames is None else [each[0] for each in frames])


def apart(base: BaseModel, mask: ConceptMask) -> ConceptMask:
    """The members of ``mask`` in layers that read text alone."""
    joined = {
        name
        for block in text_attentions(base.denoiser)
        if block.text_first
        for name in (block.key_name, block.value_name)
    }
    members = {name: mask.indices(name) for name in mask.table.names if name not in joined}
    return ConceptMask.from_indices(mask.table, members)


def part_of(mask: ConceptMask) -> Any:
    return SimpleNamespace(
        mask=mask, scope="subject", token="zwp", class_noun="dog", refs=("local/dog:1",)
    )


def composition(base: BaseModel, *parts: Any) -> Any:
    return SimpleNamespace(base=base.fingerprint, table=base.layer_table, parts=parts)


def test_pictures_are_the_stock_pipelines_without_a_mask_and_follow_shut_with_one(
    base: BaseModel, family: str, random_mask: MakeMask
) -> None:
    assert is_cached(base.denoiser) is (family not in JOINT)
    mask = apart(base, random_mask(base.layer_table, seed=1))
    requests = [Request(PROMPT, seed=1), Request("a red circle", seed=2)]
    plain = drawn(base, family, requests)
    assert np.array_equal(plain, stock(base, family, requests))
    masked = Request(PROMPT, seed=1, mask=mask)
    with shut(base.denoiser, mask):
        expected = stock(base, family, [masked])
    alone = drawn(base, family, [masked])
    assert np.abs(alone - expected).max() <= 1
    assert np.abs(alone - plain[:1]).max() > 1
    # A mixed batch: its pictures are those of each request alone, the plain one's to the bit.
    mixed = drawn(base, family, [masked, requests[1]])
    assert np.abs(mixed[:1] - alone).max() <= 1
    assert np.array_equal(mixed[1:], plain[1:])


def test_a_subject_acts_at_the_rows_of_its_words_and_changes_the_picture(
    base: BaseModel, family: str, random_mask: MakeMask
) -> None:
    rows = subject_rows(base, PROMPT, find_phrases(PROMPT, token="zwp", class_noun="dog"))
    assert 0 < int(rows.sum()) < 16
    other = "the red star on the wall and zwp dog"
    moved = subject_rows(base, other, find_phrases(other, token="zwp", class_noun="dog"))
    assert int(moved.sum()) == int(rows.sum())
    assert not torch.equal(moved, rows)
    part = part_of(random_mask(base.layer_table, seed=1))
    subject = Request(PROMPT, seed=1, composition=composition(base, part))
    plain = Request(PROMPT, seed=1)
    pictures = drawn(base, family, [subject, plain])
    assert not np.array_equal(pictures[0], pictures[1])
    assert np.array_equal(pictures[1:], drawn(base, family, [plain, plain])[1:])


@pytest.mark.parametrize("family", JOINT, indirect=True)
def test_masked_rows_alone_differ_from_what_the_plain_projections_give(
    base: BaseModel, family: str, random_mask: MakeMask
) -> None:
    """Of the first layers, whose text no mask has touched before."""
    mask = random_mask(base.layer_table, seed=1)
    rows = subject_rows(base, PROMPT, find_phrases(PROMPT, token="zwp", class_noun="dog"))
    block = text_attentions(base.denoiser)[0]
    seen: list[torch.Tensor] = []
    hook = block.key.register_forward_hook(lambda *given: seen.append(given[2]))
    try:
        request = Request(PROMPT, seed=1, composition=composition(base, part_of(mask)))
        for each in (request, Request(PROMPT, seed=1)):
            drawn(base, family, [each], steps=1, guidance_scale=1.0)
    finally:
        hook.remove()
    masked, plain = seen[0][0], seen[-1][0]
    changed = (masked != plain).any(dim=1)
    assert torch.equal(changed, rows[: len(changed)])


def test_single_stream_layers_mask_text_and_leave_the_picture_alone(
    family_folder: Callable[[str], Path], random_mask: MakeMask
) -> None:
    base = BaseModel.load(family_folder("flux"), device="cpu")
    mask = random_mask(base.layer_table, seed=1)
    with pytest.raises(UsageError, match="text and picture alike"), shut(base.denoiser, mask):
        pytest.fail("the block must not run")
    hooks, text = [], 512

    def reference(name: str, weight: torch.Tensor) -> Callable[..., torch.Tensor]:
        own = weight * torch.from_numpy(mask.multiplier(name))

        def hook(layer: Any, given: Any, output: torch.Tensor) -> torch.Tensor:
            own_rows = torch.nn.functional.linear(given[0][:, :text], own, layer.bias)
            return torch.cat([own_rows, output[:, text:]], dim=1)

        return hook

    try:
        for block in text_attentions(base.denoiser):
            for name, layer in block.projections:
                hooks.append(layer.register_forward_hook(reference(name, layer.weight)))
        expected = drawn(base, "flux", [Request(PROMPT, seed=1)])
    finally:
        for hook in hooks:
            hook.remove()
    got = drawn(base, "flux", [Request(PROMPT, seed=1, mask=mask)])
    assert np.abs(got - expected).max() <= 1


def test_a_family_that_is_refused_is_named() -> None:
    from cones_registry.layers import LayerTable

    class ZImageTransformer2DModel(torch.nn.Module):
        pass

    with pytest.raises(UsageError, match="Z-Image is not supported"):
        LayerTable.from_unet(ZImageTransformer2DModel())
