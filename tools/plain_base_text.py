"""The first stage of the plain base model: its text encoder learns from captions and pictures.

Contrastively, as CLIP did: whole captions against whole pictures, and words against positions
(FILIP, arXiv 2111.07783), among hard negatives that differ in one fact. What it learns is which
words belong together, so that a noun's row knows its tint and its place.
"""

from __future__ import annotations

import math
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import plain_base as parts
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional
from transformers import CLIPTextModel

from cones_registry.demo.drawn_world.pictures import render
from cones_registry.demo.drawn_world.scenes import (
    BACKGROUNDS,
    DRAWINGS,
    HELD_OUT,
    NOUNS,
    PLACES,
    TINTS,
    Scene,
    Telling,
    caption,
    random_scene,
    random_telling,
)


class PictureTower(nn.Module):
    """The contrastive partner of the text encoder: one vector per position, one per picture."""

    def __init__(self, width: int = 96, size: int = 128) -> None:
        super().__init__()
        self.enter = nn.Conv2d(parts.CHANNELS + 2, width, 3, 1, 1)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.GroupNorm(8, width), nn.Conv2d(width, width, 3, 1, 1), nn.GELU())
            for _ in range(2)
        )
        self.position = nn.Conv2d(width, size, 1)
        self.whole = nn.Sequential(
            nn.Conv2d(width, width, 3, 2, 1), nn.GELU(), nn.Flatten(), nn.Linear(16 * width, size)
        )
        line = torch.linspace(-1, 1, 8)
        self.register_buffer("place", torch.stack(torch.meshgrid(line, line, indexing="ij")))

    def forward(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """``float32 [n, CHANNELS, 8, 8]`` -> unit vectors ``[n, 64, size]`` and ``[n, size]``."""
        place = self.place.expand(len(latents), -1, -1, -1)
        hidden = functional.gelu(self.enter(torch.cat([latents, place], 1)))
        for block in self.blocks:
            hidden = hidden + block(hidden)
        by_position = self.position(hidden).flatten(2).transpose(1, 2)
        return functional.normalize(by_position, dim=-1), functional.normalize(
            self.whole(hidden), dim=-1
        )


class Contrast(nn.Module):
    """Captions against pictures: whole against whole (CLIP), word against position (FILIP)."""

    def __init__(self, text: CLIPTextModel, size: int = 128) -> None:
        super().__init__()
        self.text, self.pictures = text, PictureTower(size=size)
        self.whole = nn.Linear(parts.TEXT_WIDTH, size, bias=False)
        self.word = nn.Linear(parts.TEXT_WIDTH, size, bias=False)
        self.scale = nn.Parameter(torch.tensor([2.5, 2.5]))

    def forward(self, ids: Tensor, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Similarities of every caption to every picture, ``[n, n]``: whole, and by words."""
        start, end = ids[0, 0], ids[0, -1]
        ids = ids[:, : int((ids != end).sum(1).max()) + 1]
        rows = self.text(ids).last_hidden_state
        last = rows[torch.arange(len(ids)), (ids == end).int().argmax(1)]
        by_position, by_picture = self.pictures(latents)
        scale = self.scale.clamp(max=4.0).exp()
        whole = scale[0] * functional.normalize(self.whole(last), dim=-1) @ by_picture.T
        words = functional.normalize(self.word(rows), dim=-1)
        said = ((ids != start) & (ids != end)).float()
        best = torch.einsum("ild,jpd->ijlp", words, by_position).amax(-1)
        return whole, scale[1] * (best * said[:, None]).sum(-1) / said.sum(-1)[:, None]


def changed(scene: Scene, generator: np.random.Generator) -> Scene:
    """A hard negative: the scene with one fact changed, or with two things' facts exchanged.

    Most often things change places, which is what a text encoder learns last.
    """
    while True:
        found = _changed(scene, generator)
        if found != scene and not any(thing in HELD_OUT for _, thing in found.things):
            return found


def _changed(scene: Scene, generator: np.random.Generator) -> Scene:
    things = list(scene.things)
    what = str(generator.choice(("scene", "word", "places", "tints"), p=(0.1, 0.4, 0.35, 0.15)))
    if what == "scene":
        return Scene(tuple(BACKGROUNDS)[int(generator.integers(len(BACKGROUNDS)))], scene.things)
    if what == "word":
        at = int(generator.integers(len(things)))
        place, thing = things[at]
        kind = str(generator.choice(("noun", "drawing", "tint"), p=(0.3, 0.5, 0.2)))
        words = {"noun": NOUNS, "drawing": tuple(DRAWINGS), "tint": tuple(TINTS)}[kind]
        word = words[int(generator.integers(len(words)))]
        things[at] = (place, replace(thing, **{kind: word}))
        return Scene(scene.background, tuple(things))
    if what == "places" and len(things) == 1:
        place = tuple(PLACES)[int(generator.integers(len(PLACES)))]
        return Scene(scene.background, ((place, things[0][1]),))
    order = generator.permutation(len(things))
    others = [things[at][1] for at in order]
    return Scene(
        scene.background,
        tuple(
            (place, other if what == "places" else replace(thing, tint=other.tint))
            for (place, thing), other in zip(things, others, strict=True)
        ),
    )


def contrast_batch(
    generator: np.random.Generator, groups: int, each: int
) -> tuple[list[Scene], list[str]]:
    """``groups`` scenes with ``each - 1`` hard negatives of each, and a caption for all."""
    scenes: list[Scene] = []
    captions: list[str] = []
    for count in generator.choice([1, 2, 3, 4], groups, p=[0.2, 0.25, 0.25, 0.3]):
        first = random_scene(generator, int(count))
        full = generator.random() < 0.85  # else what was changed may go unsaid
        for scene in (first, *(changed(first, generator) for _ in range(each - 1))):
            scenes.append(scene)
            telling = Telling.full(len(scene.things)) if full else None
            captions.append(caption(scene, telling or random_telling(generator, len(scene.things))))
    return scenes, captions


def train_text(
    work: Path, steps: int, *, groups: int = 8, each: int = 4, rate: float = 1e-3
) -> None:
    """Fit the latents, train the text encoder, keep both in ``work``; goes on where it was."""
    torch.manual_seed(0)
    generator = np.random.default_rng()
    latents = parts.fit_latents(work)
    tokenizer = parts.build_tokenizer()
    tokens = parts.CaptionTokens(tokenizer)
    model = Contrast(parts.build_text_encoder(tokenizer))
    if (work / "contrast.safetensors").exists():
        model.load_state_dict(load_file(work / "contrast.safetensors"))
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=1e-3, fused=True)
    began, seen = time.time(), []
    for step in range(1, steps + 1):
        level = 0.5 * (1 + math.cos(math.pi * step / steps))
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1, step / 50) * (0.05 + 0.95 * level)
        scenes, captions = contrast_batch(generator, groups, each)
        code = latents.encode(parts.to_tensor([render(scene, generator) for scene in scenes]))
        similarities = model(tokens(captions), code)
        target = torch.arange(len(scenes))
        loss = sum(
            functional.cross_entropy(matrix, target) + functional.cross_entropy(matrix.T, target)
            for matrix in similarities
        )
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        right = [float((matrix.argmax(1) == target).float().mean()) for matrix in similarities]
        seen.append((float(loss.detach()), *right))
        if step % 50 == 0:
            mean = np.mean(seen[-50:], 0)
            line = {"stage": "text", "step": step, "seconds": round(time.time() - began)}
            line |= dict(zip(("loss", "whole", "words"), mean.round(3).tolist(), strict=True))
            parts.note(work, line)
        if step % 300 == 0 or step == steps:
            save_file(
                {name: value.contiguous() for name, value in model.text.state_dict().items()},
                work / "text.safetensors",
            )
            save_file(
                {k: v.contiguous() for k, v in model.state_dict().items()},
                work / "contrast.safetensors",
            )
