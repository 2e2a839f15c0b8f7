"""Compiled denoisers: one graph for every mix of masks, counted by the compiler itself."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch._dynamo.utils import counters

from cones_registry.base_model import BaseModel
from cones_registry.generation import Generator, Request
from cones_registry.mask import ConceptMask


@pytest.mark.parametrize("family", ["stable-diffusion", "stable-diffusion-xl", "pixart"])
@pytest.mark.parametrize("way", ["wrapped", "in-place"])
def test_no_recompilation_between_mixes_of_masks(
    family_folder: Callable[[str], Path],
    random_mask: Callable[..., ConceptMask],
    family: str,
    way: str,
) -> None:
    base = BaseModel.load(family_folder(family), device="cpu")
    table = base.layer_table
    first = [Request("a dog", mask=random_mask(table, seed=1)), Request("a star")]
    second = [Request("sks dog"), Request("a red star", mask=random_mask(table, seed=2))]
    generator = Generator(base)
    settings: dict[str, Any] = {"steps": 2, "guidance_scale": 3.0}
    expected = [generator.generate(mix, **settings) for mix in (first, second)]
    torch._dynamo.reset()
    counters.clear()
    try:
        # The graph is what is counted; no code generator is needed for that.
        options: dict[str, Any] = {"backend": "eager", "fullgraph": True}
        if way == "wrapped":
            compiled = torch.compile(base.denoiser, **options)
            setattr(base.pipeline, base.denoiser_name, compiled)
        else:
            base.denoiser.compile(**options)
        drawn = [generator.generate(first, **settings)]
        assert counters["stats"]["unique_graphs"] == 1
        with torch.compiler.set_stance("fail_on_recompile"):
            drawn.append(generator.generate(second, **settings))
            generator.generate([Request("a dog"), Request("a dog")], **settings)
        assert counters["stats"]["unique_graphs"] == 1
    finally:
        base.unload()
        torch._dynamo.reset()
    for got, wanted in zip(drawn, expected, strict=True):
        for image, picture in zip(got, wanted, strict=True):
            difference = np.asarray(image, np.int16) - np.asarray(picture, np.int16)
            assert np.abs(difference).max() <= 1


@pytest.mark.parametrize("family", ["stable-diffusion-3", "flux"])
def test_joint_models_have_one_graph_for_every_mix_and_threads_keep_apart(
    family_folder: Callable[[str], Path],
    random_mask: Callable[..., ConceptMask],
    family: str,
) -> None:
    base = BaseModel.load(family_folder(family), device="cpu")
    masks = [random_mask(base.layer_table, seed=seed) for seed in (1, 2)]
    mixes = [
        [Request("a dog", mask=masks[0]), Request("a star")],
        [Request("sks dog"), Request("a red star", mask=masks[1])],
        [Request("a dog"), Request("a star")],
    ]
    generator = Generator(base)
    settings: dict[str, Any] = {"steps": 2, "guidance_scale": 3.0, "height": 16, "width": 16}

    def drawn(mix: list[Request]) -> np.ndarray:
        images = generator.generate(mix, **settings)
        return np.stack([np.asarray(image, np.int16) for image in images])

    expected = [drawn(mix) for mix in mixes]
    assert not np.array_equal(expected[0][0], expected[2][0])
    torch._dynamo.reset()
    counters.clear()
    try:
        base.denoiser.compile(backend="eager", fullgraph=True)
        got = [drawn(mixes[0])]
        graphs = counters["stats"]["unique_graphs"]
        assert graphs == 1
        with torch.compiler.set_stance("fail_on_recompile"):
            got += [drawn(mix) for mix in mixes[1:]]
        with ThreadPoolExecutor(3) as pool:  # each draws what it draws alone
            together = list(pool.map(drawn, mixes))
        assert counters["stats"]["unique_graphs"] == graphs
    finally:
        base.unload()
        torch._dynamo.reset()
    for alone, compiled, beside in zip(expected, got, together, strict=True):
        assert np.abs(compiled - alone).max() <= 1
        assert np.array_equal(compiled, beside)
