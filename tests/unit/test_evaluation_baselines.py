"""Baselines: one trainer, four methods, and a base model that stays as it is."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import Image

from cones_registry.errors import BaseModelMismatchError, CorruptDataError, UsageError
from cones_registry.evaluation.baselines import (
    BASELINES,
    SubjectImages,
    Tuned,
    combine,
    load_tuned,
    train,
)
from cones_registry.extraction import ExtractionSettings
from cones_registry.generation import Generator, Request

if TYPE_CHECKING:
    from cones_registry.base_model import BaseModel

FEW = ExtractionSettings(prior_count=2, prior_steps=1)


def subject(folder: Path, token: str, noun: str) -> SubjectImages:
    folder = folder / token
    folder.mkdir()
    generator = np.random.default_rng(len(token))
    for number in range(2):
        pixels = generator.integers(0, 255, (16, 16, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text("a photo of a {}")
    return SubjectImages(folder, token, noun)


@pytest.fixture
def tune(tiny_base: "BaseModel", tmp_path: Path) -> Callable[..., Tuned]:
    """``tune("lora", subjects, …)`` with few steps."""

    def run(method: str, subjects: list[SubjectImages], **options: Any) -> Tuned:
        few = {"steps": 2, "batch_size": 2, "settings": FEW, "cache_folder": tmp_path / "cache"}
        return train(method, tiny_base, subjects, **(few | options))

    return run


def weights(base: "BaseModel") -> dict[str, torch.Tensor]:
    parts = (base.denoiser, base.pipeline.text_encoder)
    return {
        f"{number}.{k}": v.clone()
        for number, p in enumerate(parts)
        for k, v in p.state_dict().items()
    }


@pytest.mark.parametrize("method", sorted(BASELINES))
def test_a_baseline_changes_its_own_copy_and_nothing_else(
    tune: Callable[..., Tuned], tiny_base: "BaseModel", tmp_path: Path, method: str
) -> None:
    before = weights(tiny_base)
    tuned = tune(method, [subject(tmp_path, "sks", "dog")])
    after = weights(tiny_base)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not any(part.requires_grad for part in tiny_base.denoiser.parameters())

    changed = {
        name for name, value in weights(tuned.base).items() if not torch.equal(before[name], value)
    }
    table = {f"0.{name}" for name in tiny_base.layer_table.names}
    if method == "textual-inversion":
        assert {name.split(".")[0] for name in changed} == {"1"}
        assert tuned.base.fingerprint == tiny_base.fingerprint
    else:
        assert changed & table
        assert tuned.base.fingerprint != tiny_base.fingerprint
    if method == "custom-diffusion":
        assert {name for name in changed if name.startswith("0.")} == table

    request = Request("a photo of a sks dog", seed=3)
    (own,) = Generator(tuned.base).generate([request], steps=2)
    (plain,) = Generator(tiny_base).generate([request], steps=2)
    assert np.asarray(own).tolist() != np.asarray(plain).tolist()

    file = tmp_path / "kept.safetensors"
    tuned.save(file)
    again = load_tuned(file, tiny_base)
    assert (again.method, again.words, again.stored_bytes) == (
        method,
        (("sks", "dog"),),
        tuned.stored_bytes,
    )
    (drawn,) = Generator(again.base).generate([request], steps=2)
    assert np.asarray(drawn).tolist() == np.asarray(own).tolist()


def test_what_a_user_keeps_is_counted_in_bytes(
    tune: Callable[..., Tuned], tiny_base: "BaseModel", tmp_path: Path
) -> None:
    own = [subject(tmp_path, "sks", "dog")]
    kv = 4 * tiny_base.layer_table.neuron_count
    unet = 4 * sum(part.numel() for part in tiny_base.denoiser.parameters())
    sizes = {method: tune(method, own, steps=1).stored_bytes for method in BASELINES}
    assert sizes["textual-inversion"] == 4 * 32
    assert sizes["custom-diffusion"] == kv + 4 * 32
    assert sizes["dreambooth"] == unet
    assert sizes["textual-inversion"] < sizes["lora"] < sizes["dreambooth"]


def test_several_subjects_are_trained_jointly_with_steps_for_each(
    tune: Callable[..., Tuned], tmp_path: Path
) -> None:
    both = [subject(tmp_path, "sks", "dog"), subject(tmp_path, "v", "cross")]
    seen: list[int] = []
    tuned = tune("custom-diffusion", both, at=[1], on_tuned=lambda step, _: seen.append(step))
    assert seen == [1]
    assert tuned.words == (("sks", "dog"), ("v", "cross"))
    assert tuned.history[-1]["step"] == 4
    assert tuned.parameters["collage_examples"] > 0  # each is a companion of the other
    assert tune("custom-diffusion", both, together=False).parameters["collage_examples"] == 0


def test_tokens_learnt_apart_draw_together_and_weights_do_not(
    tune: Callable[..., Tuned], tiny_base: "BaseModel", tmp_path: Path
) -> None:
    dog, cross = subject(tmp_path, "sks", "dog"), subject(tmp_path, "v", "cross")
    apart = [tune("textual-inversion", [each]) for each in (dog, cross)]
    joined = combine(tiny_base, apart)
    assert joined.words == (("sks", "dog"), ("v", "cross"))
    assert joined.stored_bytes == sum(each.stored_bytes for each in apart)
    # Whose words alone are learnt shares the denoiser, however many there are.
    assert all(each.base.denoiser is tiny_base.denoiser for each in (*apart, joined))
    request = Request("a sks dog", seed=1)
    pictures = [Generator(each.base).generate([request], steps=2)[0] for each in (joined, apart[0])]
    assert np.asarray(pictures[0]).tolist() == np.asarray(pictures[1]).tolist()
    with pytest.raises(UsageError, match="one token"):
        combine(tiny_base, [apart[0], apart[0]])
    with pytest.raises(UsageError, match="all subjects at once"):
        combine(tiny_base, [tune("lora", [dog])])


def test_equal_seeds_train_equal_weights(tune: Callable[..., Tuned], tmp_path: Path) -> None:
    own = [subject(tmp_path, "sks", "dog")]
    first, second, other = (tune("lora", own, seed=seed) for seed in (1, 1, 2))
    assert all(torch.equal(value, second.kept[name]) for name, value in first.kept.items())
    assert any(not torch.equal(value, other.kept[name]) for name, value in first.kept.items())


def test_what_cannot_be_trained_is_said_before_any_work(
    tune: Callable[..., Tuned], tmp_path: Path
) -> None:
    own = subject(tmp_path, "sks", "dog")
    with pytest.raises(UsageError, match="unknown baseline"):
        tune("magic", [own])
    with pytest.raises(UsageError, match="no subject"):
        tune("lora", [])
    with pytest.raises(UsageError, match="two subjects"):
        tune("lora", [own, own])
    for wrong in ({"steps": 0}, {"learning_rate": 0.0}, {"batch_size": 0}):
        with pytest.raises(UsageError, match="expected at least"):
            tune("lora", [own], **wrong)


def test_a_file_of_something_else_is_refused(
    tune: Callable[..., Tuned], tiny_base: "BaseModel", tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    file = tmp_path / "kept.safetensors"
    file.write_bytes(b"not weights")
    with pytest.raises(CorruptDataError, match="Train it again"):
        load_tuned(file, tiny_base)
    tune("textual-inversion", [subject(tmp_path, "sks", "dog")]).save(file)
    kept = {name: value[:3].clone() for name, value in load_file(file).items()}
    with_metadata = tmp_path / "short.safetensors"
    from safetensors import safe_open

    with safe_open(file, framework="pt") as opened:
        save_file(kept, with_metadata, metadata=opened.metadata())
    with pytest.raises(BaseModelMismatchError, match="does not fit"):
        load_tuned(with_metadata, tiny_base)
