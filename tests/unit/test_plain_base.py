"""The parts of the plain base model that training and drawing must agree on."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from cones_registry.demo.drawn_world import pictures, scenes

TOOL = Path(__file__).parents[2] / "tools" / "plain_base.py"


@pytest.fixture(scope="module")
def parts() -> ModuleType:
    spec = importlib.util.spec_from_file_location("plain_base", TOOL)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def shown(parts: ModuleType) -> torch.Tensor:
    generator = np.random.default_rng(3)
    drawn = [scenes.random_scene(generator, 1 + at % 4) for at in range(40)]
    return torch.as_tensor(parts.to_tensor([pictures.render(s, generator) for s in drawn]))


def test_fast_tokens_are_the_tokenizers_own(parts: ModuleType) -> None:
    tokenizer = parts.build_tokenizer()
    generator = np.random.default_rng(4)
    captions = [
        scenes.caption(scene, scenes.random_telling(generator, len(scene.things)))
        for scene in (scenes.random_scene(generator, 1 + at % 4) for at in range(24))
    ]
    captions += ["", *(f"a {word} cat" for word in scenes.RARE_WORDS)]
    slow = tokenizer(captions, padding="max_length", max_length=parts.CONTEXT).input_ids
    assert parts.CaptionTokens(tokenizer)(captions).tolist() == slow


def test_the_longest_caption_fits_into_the_context(parts: ModuleType) -> None:
    thing = scenes.Thing("cat", "soft", "red")
    scene = scenes.Scene("beach", tuple((place, thing) for place in scenes.CORNERS))
    ids = parts.CaptionTokens(parts.build_tokenizer())([scenes.caption(scene)])
    assert ids.shape == (1, parts.CONTEXT)
    with pytest.raises(ValueError, match="room for"):
        parts.CaptionTokens(parts.build_tokenizer())([scenes.caption(scene) + " and a cat"])


def test_latents_keep_nearly_all_of_a_picture(parts: ModuleType, shown: torch.Tensor) -> None:
    latents = parts.Latents.fit(shown)
    code = latents.encode(shown)
    assert code.shape == (40, parts.CHANNELS, 8, 8)
    assert float(code.var()) == pytest.approx(1, abs=0.1)
    assert float((latents.decode(code) - shown).square().mean().sqrt()) < 0.1


def test_the_autoencoder_encodes_as_the_latents_do(parts: ModuleType, shown: torch.Tensor) -> None:
    latents = parts.Latents.fit(shown)
    autoencoder = parts.build_autoencoder()
    parts.write_encoder(autoencoder, latents)
    with torch.no_grad():
        found = autoencoder.encode(shown[:4]).latents
    assert torch.allclose(found, latents.encode(shown[:4]), atol=1e-4)


def test_training_goes_on_from_the_kept_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(TOOL.parent))
    training = importlib.import_module("train_base")
    first, second = tmp_path / "first", tmp_path / "second"
    monkeypatch.setattr(training, "KEPT", tmp_path / "kept")
    first.mkdir()
    text = training.parts.build_text_encoder(training.parts.build_tokenizer())
    training.save_file(text.state_dict(), first / "text.safetensors")
    training.parts.note(first, {"stage": "text"})
    begun = training.Training.start(first)
    begun.steps, begun.seconds = 7, 70.0
    begun.save(first)
    training.keep(first)
    gone_on = training.Training.start(second)
    assert (gone_on.steps, gone_on.seconds) == (7, 70.0)
    assert training.Recipe.read(second) == training.Recipe.read(first)
    assert (second / "curve.jsonl").read_bytes() == (first / "curve.jsonl").read_bytes()
    for before, after in zip(begun.average, gone_on.average, strict=True):
        assert torch.equal(after, before.half().float())
