"""Train the demo world's classifier on rendered pictures: ``python tools/train_demo_judge.py``.

Pictures are blurred, dimmed and made noisy at random, so that a soft generated edge does not
matter; a generated picture is never seen. Prints its accuracy on fresh clean renders.
"""

from __future__ import annotations

import json
import time

import click
import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch.nn import functional

from cones_registry.demo import world
from cones_registry.demo.judge import WEIGHTS, Judge, JudgeNetwork, accuracy

POOL = [*world.things(), *world.HELD_OUT]


def draw(generator: np.random.Generator, count: int) -> tuple[torch.Tensor, list[world.Scene]]:
    """float32 [n, 3, 32, 32] in [-1, 1] and the scenes they show."""
    scenes = [world.random_scene(generator, int(n), POOL) for n in generator.integers(1, 5, count)]
    pictures = torch.from_numpy(world.render(scenes, generator))
    return pictures.permute(0, 3, 1, 2).float() / 127.5 - 1, scenes


def spoil(pictures: torch.Tensor) -> torch.Tensor:
    """Blur, shift of colour, noise: the faults generated pictures have."""
    if torch.rand(()) < 0.5:
        pictures = functional.interpolate(
            functional.avg_pool2d(pictures, 2), scale_factor=2, mode="bilinear"
        )
    pictures = pictures + 0.12 * torch.randn(len(pictures), 3, 1, 1)
    return pictures + 0.2 * torch.rand(len(pictures), 1, 1, 1) * torch.randn_like(pictures)


def labels(scenes: list[world.Scene]) -> dict[str, torch.Tensor]:
    """Class numbers per place; -100 where nothing stands (ignored by the loss)."""
    colours, places = list(world.COLOURS), list(world.PLACES)
    table = np.full((len(scenes), len(places), 5), -100)
    table[:, :, 0] = 0
    for number, scene in enumerate(scenes):
        for place, thing in scene.things:
            second = -100 if thing.second is None else colours.index(thing.second)
            table[number, places.index(place)] = (
                1,
                world.SHAPES.index(thing.shape),
                colours.index(thing.colour),
                world.TEXTURES.index(thing.texture),
                second,
            )
    names = ("present", "shape", "colour", "texture", "second")
    found = {name: torch.from_numpy(table[:, :, at]) for at, name in enumerate(names)}
    grounds = list(world.BACKGROUNDS)
    return found | {"background": torch.tensor([grounds.index(s.background) for s in scenes])}


@click.command()
@click.option("--minutes", default=4.0, show_default=True)
@click.option("--threads", default=1, show_default=True)
@click.option("--seed", default=7, show_default=True)
def main(minutes: float, threads: int, seed: int) -> None:
    """Train and write cones_registry/demo/judge.safetensors."""
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    generator = np.random.default_rng(seed)
    network = JudgeNetwork()
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3)
    started, step = time.monotonic(), 0
    while (part := (time.monotonic() - started) / (60 * minutes)) < 1:
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * min(1, (step + 1) / 50) * (1 - 0.98 * part)
        pictures, scenes = draw(generator, 48)
        logits, truth = network(spoil(pictures)), labels(scenes)
        loss = sum(
            (
                functional.cross_entropy(logits[name].flatten(0, -2), truth[name].flatten())
                for name in truth
            ),
            torch.zeros(()),
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        step += 1
        if step % 100 == 0:
            click.echo(f"judge {step} {part:.0%} loss {loss:.4f}", err=True)
    save_file(network.state_dict(), WEIGHTS)
    pictures, scenes = draw(np.random.default_rng(seed + 1), 1000)
    images = [
        Image.fromarray(p)
        for p in ((pictures + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
    ]
    click.echo(json.dumps(accuracy(scenes, Judge.load().read(images))))


if __name__ == "__main__":
    main()
