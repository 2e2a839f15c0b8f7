"""What memory learning takes: foretold, and less of it where activations are computed again."""

import json
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from cones_registry.base_model import BaseModel
from cones_registry.errors import LimitExceededError, UsageError
from cones_registry.extraction import (
    ExtractionSettings,
    Extractor,
    Gates,
    held_out_losses,
    memory,
)
from cones_registry.extraction.loss import ConceptImplantingLoss
from cones_registry.extraction.materials import Materials
from cones_registry.extraction.recomputing import recomputing


def loss_on(base: BaseModel, *, size: int, batch: int) -> ConceptImplantingLoss:
    extractor = Extractor(base)
    materials = Materials.gather(
        base,
        [Image.new("RGB", (size, size), colour) for colour in ("red", "blue")],
        token="sks",
        class_noun="dog",
        prompts=None,
        companions=None,
    )
    return extractor._loss(materials, ExtractionSettings(size=size), "subject", batch, 0)


def peak_of(action: Callable[[], Any], file: Path) -> int:
    """Bytes that torch's allocator held at most during ``action``, beyond those at its start."""
    with torch.profiler.profile(profile_memory=True) as profile:
        torch.ones(1)
        action()
    profile.export_chrome_trace(str(file))
    events = json.loads(file.read_text(encoding="utf-8"))["traceEvents"]
    found = [event["args"] for event in events if event.get("name") == "[memory]"]
    held = [int(each["Total Allocated"]) for each in found]
    return max(held) - held[0]


@pytest.mark.parametrize("family", ["stable-diffusion", "sana", "stable-diffusion-3", "flux"])
def test_gradients_are_the_same_when_activations_are_computed_again(
    family_folder: Callable[[str], Path], family: str
) -> None:
    base = BaseModel.load(family_folder(family), device="cpu")
    loss = loss_on(base, size=32 if family == "sana" else 16, batch=2)
    flags = [part.gradient_checkpointing for part in checkpointed(base)]
    gradients = []
    for way in (nullcontext(), recomputing(base.denoiser)):
        with way:
            value = loss.ahead(flat := loss.weights.values.clone().requires_grad_())
        # Outside, as where another thread computes it: blocks are computed again with their edits.
        gradients.append(torch.autograd.grad(value, flat)[0])
    assert gradients[0].any()
    assert torch.equal(*gradients)
    assert [part.gradient_checkpointing for part in checkpointed(base)] == flags


def checkpointed(base: BaseModel) -> Iterator[Any]:
    return (part for part in base.denoiser.modules() if hasattr(part, "gradient_checkpointing"))


@pytest.mark.parametrize("family", ["stable-diffusion-3", "sana"])
def test_the_estimate_is_near_the_true_peak_with_and_without_checkpointing(
    family_folder: Callable[[str], Path], tmp_path: Path, family: str
) -> None:
    """Never far below it, and at most twice it: the largest block of these two is half of all."""
    base = BaseModel.load(family_folder(family), device="cpu")
    loss = loss_on(base, size=96, batch=4)
    told = memory.estimate(base, loss)
    assert told.activations is not None
    assert told.recomputed is not None
    assert told.recomputed < told.activations
    for foretold, way in (
        (told.needed, nullcontext()),
        (told.least, recomputing(base.denoiser)),
    ):
        with way:
            peak = peak_of(lambda: loss.gradient(loss.weights.values), tmp_path / "trace.json")
        assert 0.85 < foretold / peak < 2


def test_an_estimate_takes_no_batch_away(family_folder: Callable[[str], Path]) -> None:
    base = BaseModel.load(family_folder("stable-diffusion"), device="cpu")
    one, other = (loss_on(base, size=16, batch=2) for _ in range(2))
    memory.estimate(base, one)
    for _ in range(3):
        assert torch.equal(one(one.weights.values), other(other.weights.values))


def test_checkpointing_is_used_where_memory_asks_for_it_and_what_cannot_fit_is_refused(
    family_folder: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = BaseModel.load(family_folder("stable-diffusion-3"), device="cpu")
    extractor = Extractor(base, cache_folder=tmp_path)
    photo = [Image.new("RGB", (32, 32), "red")]
    settings = ExtractionSettings(size=32)
    words: dict[str, Any] = {"token": "sks", "class_noun": "dog", "settings": settings}
    told = extractor.memory(photo, method=Gates(batch_size=4), **words)
    assert f"{told}".count("with activation checkpointing") == 1
    used: list[bool] = []

    def learn(method: Gates, loss: ConceptImplantingLoss, **rest: Any) -> Any:
        used.append(any(part.gradient_checkpointing for part in checkpointed(base)))
        raise KeyboardInterrupt

    monkeypatch.setattr(Gates, "learn", learn)
    for free in (told.needed, told.least):
        monkeypatch.setattr(memory, "_free", lambda device, free=free: free)
        with pytest.raises(KeyboardInterrupt):
            extractor.extract(photo, method=Gates(batch_size=4), progress=None, **words)
    assert used == [False, True]
    monkeypatch.setattr(memory, "_free", lambda device: told.least - 1)
    with pytest.raises(LimitExceededError, match="bfloat16"):
        extractor.extract(photo, method=Gates(batch_size=4), progress=None, **words)


def test_a_model_without_checkpointing_says_so(
    family_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    base = BaseModel.load(family_folder("hunyuan-dit"), device="cpu")
    with pytest.raises(UsageError, match="no activation checkpointing"):
        Extractor(base, cache_folder=tmp_path).extract(
            [Image.new("RGB", (16, 16), "red")],
            token="sks",
            class_noun="dog",
            settings=ExtractionSettings(size=16, recompute=True),
            progress=None,
        )


def test_in_bfloat16_a_concept_is_learnt_in_half_of_the_memory(
    family_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    whole, half = (
        BaseModel.load(family_folder("stable-diffusion-3"), device="cpu", dtype=dtype)
        for dtype in ("float32", "bfloat16")
    )
    photo = [Image.new("RGB", (32, 32), "red")]
    settings = ExtractionSettings(size=32)
    words: dict[str, Any] = {"token": "sks", "class_noun": "dog"}
    method = Gates(steps=16, batch_size=4)
    told = [
        Extractor(base, cache_folder=tmp_path).memory(
            photo, method=method, settings=settings, **words
        )
        for base in (whole, half)
    ]
    assert told[1].model < 0.6 * told[0].model
    assert (told[1].activations or 0) < 0.7 * (told[0].activations or 0)
    extraction = Extractor(half, cache_folder=tmp_path).extract(
        photo, method=method, density=0.3, settings=settings, progress=None, **words
    )
    losses = held_out_losses(
        half, extraction.mask, scope="subject", own=photo, draws=16, seed=7, size=32, **words
    )
    assert losses.own is not None
    assert losses.own < 1
