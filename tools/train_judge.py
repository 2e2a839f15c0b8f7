"""Train the drawn world's classifier on rendered pictures: ``python tools/train_judge.py``.

Pictures are made worse as generated ones are: reduced to a few principal components with noise
on them, blurred, lit otherwise. A generated picture is never seen. Prints how often it is right
about fresh clean renders, and about renders as the base model's latents give them back.
"""

from __future__ import annotations

import math
import time
from dataclasses import asdict

import click
import numpy as np
import plain_base as parts
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

from cones_registry.demo.drawn_world.judge import WEIGHTS, Judge, JudgeNetwork, accuracy
from cones_registry.demo.drawn_world.pictures import render
from cones_registry.demo.drawn_world.scenes import (
    BACKGROUNDS,
    DRAWINGS,
    EVERY_THING,
    NOUNS,
    PLACES,
    TINTS,
    Scene,
    Telling,
    random_scene,
)


def draw(generator: np.random.Generator, count: int) -> tuple[Tensor, list[Scene]]:
    """``float32 [count, 3, 64, 64]`` in [-1, 1] and the scenes they show, held-out things too."""
    scenes = [
        random_scene(generator, int(number), EVERY_THING)
        for number in generator.integers(1, 5, count)
    ]
    return parts.to_tensor([render(scene, generator) for scene in scenes]), scenes


def spoil(pictures: Tensor, latents: parts.Latents) -> Tensor:
    """The faults of generated pictures: few components, noise on them, blur, another light."""
    codes = latents.encode(pictures)
    codes = codes + 0.4 * torch.rand(len(codes), 1, 1, 1) * torch.randn_like(codes)
    coded = torch.rand(len(pictures), 1, 1, 1) < 0.7
    pictures = torch.where(coded, latents.decode(codes), pictures)
    if torch.rand(()) < 0.4:
        small = functional.avg_pool2d(pictures, 2)
        pictures = functional.interpolate(small, scale_factor=2, mode="bilinear")
    light = 0.06 * torch.randn(len(pictures), 3, 1, 1)
    return pictures + light + 0.1 * torch.rand(len(pictures), 1, 1, 1) * torch.randn_like(pictures)


def labels(scenes: list[Scene]) -> dict[str, Tensor]:
    """Class numbers by place, -100 where nothing stands; taken places as 0.0 and 1.0."""
    places = list(PLACES)
    table = np.full((3, len(scenes), len(places)), -100)
    for number, scene in enumerate(scenes):
        for place, thing in scene.things:
            table[:, number, places.index(place)] = (
                NOUNS.index(thing.noun),
                list(DRAWINGS).index(thing.drawing),
                list(TINTS).index(thing.tint),
            )
    grounds = list(BACKGROUNDS)
    return {
        **dict(zip(("noun", "drawing", "tint"), torch.from_numpy(table), strict=True)),
        "background": torch.tensor([grounds.index(scene.background) for scene in scenes]),
        "taken": torch.from_numpy(table[0] >= 0).float(),
    }


@click.command()
@click.option("--steps", default=600, show_default=True)
@click.option("--batch", default=24, show_default=True)
def main(steps: int, batch: int) -> None:
    """Write cones_registry/demo/drawn_world/judge.safetensors."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    generator = np.random.default_rng(6)
    latents = parts.Latents.fit(draw(generator, 1200)[0])
    network = JudgeNetwork()
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=1e-2, fused=True)
    began = time.time()
    for step in range(1, steps + 1):
        for group in optimizer.param_groups:
            level = 0.5 * (1 + math.cos(math.pi * step / steps))
            group["lr"] = 2e-3 * min(1, step / 50) * (0.02 + 0.98 * level)
        pictures, scenes = draw(generator, batch)
        found, wanted = network(spoil(pictures, latents)), labels(scenes)
        loss = functional.cross_entropy(found["background"], wanted["background"])
        loss = loss + 4 * functional.binary_cross_entropy_with_logits(
            found["taken"], wanted["taken"]
        )
        for name in ("noun", "drawing", "tint"):
            loss = loss + functional.cross_entropy(
                found[name].flatten(0, 1), wanted[name].flatten()
            )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 100 == 0:
            click.echo(
                f"{step} {time.time() - began:.0f} s, loss {float(loss.detach()):.3f}", err=True
            )
            save_file({k: v.half() for k, v in network.state_dict().items()}, WEIGHTS)
    judge = Judge(network)
    pictures, scenes = draw(generator, 400)
    tellings = [Telling.full(len(scene.things)) for scene in scenes]
    for kind, shown in (("clean", pictures), ("coded", latents.decode(latents.encode(pictures)))):
        click.echo(f"{kind}: {asdict(accuracy(scenes, tellings, judge.read_tensor(shown)))}")


if __name__ == "__main__":
    main()
