"""Train the demo world's dual encoder on renders: ``python tools/train_demo_dual_encoder.py``.

Each picture comes with a caption that says part of what it shows, and with one that is wrong in
one word; which captions are true of which pictures of a batch is computed, and cosines are learnt
to tell (sigmoid loss, arXiv 2303.15343). The same for pictures of one thing and pictures in which
it stands or does not. A generated picture is never seen. Prints how often the right caption, and
the right thing, beats one that is wrong in one word, on fresh clean renders.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, replace
from pathlib import Path

import click
import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch.nn import functional
from train_demo_judge import POOL, spoil

from cones_registry.demo import world
from cones_registry.demo.dual_encoder import WEIGHTS, DualEncoderNetwork, word_numbers
from cones_registry.demo.world import Scene, Thing


@dataclass(frozen=True)
class Said:
    """One thing as a caption names it; None: not said."""

    shape: str
    place: str | None = None
    thing: Thing | None = None

    def words(self) -> str:
        """With article and, where said, the place."""
        name = self.shape if self.thing is None else self.thing.words()
        return f"a {name}" if self.place is None else f"at {self.place} a {name}"

    def fits(self, place: str, thing: Thing) -> bool:
        """Whether it is true of the thing at this place."""
        return (
            self.place in (None, place)
            and self.shape == thing.shape
            and self.thing in (None, thing)
        )


@dataclass(frozen=True)
class Caption:
    """What a caption says of a picture, and what it leaves out."""

    said: tuple[Said, ...]
    background: str | None

    def text(self) -> str:
        """In words."""
        ground = "" if self.background is None else f" on {self.background}"
        return " and ".join(each.words() for each in self.said) + ground

    def true_of(self, scene: Scene) -> bool:
        """Whether every thing said is another thing of the scene."""
        if self.background not in (None, scene.background):
            return False
        return self._placed(self.said, list(scene.things))

    def _placed(self, said: tuple[Said, ...], things: list[tuple[str, Thing]]) -> bool:
        if not said:
            return True
        return any(
            said[0].fits(*each) and self._placed(said[1:], things[:at] + things[at + 1 :])
            for at, each in enumerate(things)
        )


def describe(generator: np.random.Generator, scene: Scene) -> Caption:
    """A true caption that leaves some of it out."""
    things = list(scene.things)
    if len(things) > 1 and generator.random() < 0.25:
        things = things[: int(generator.integers(1, len(things)))]
    placed = generator.random() < 0.8
    said = tuple(
        Said(thing.shape, place if placed else None, thing if generator.random() < 0.6 else None)
        for place, thing in things
    )
    return Caption(said, scene.background if generator.random() < 0.75 else None)


def wrong(generator: np.random.Generator, caption: Caption) -> Caption:
    """The caption with one thing said differently."""
    at = int(generator.integers(len(caption.said) + (caption.background is not None)))
    if at == len(caption.said):
        grounds = [each for each in world.BACKGROUNDS if each != caption.background]
        return replace(caption, background=str(generator.choice(grounds)))
    said = list(caption.said)
    said[at] = _wrong(generator, said[at])
    return replace(caption, said=tuple(said))


def _wrong(generator: np.random.Generator, said: Said) -> Said:
    choice = generator.random()
    if said.place is not None and choice < 0.25:
        places = [each for each in world.PLACES if each != said.place]
        return replace(said, place=str(generator.choice(places)))
    if said.thing is None or choice < 0.45:
        shape = str(generator.choice([each for each in world.SHAPES if each != said.shape]))
        thing = None if said.thing is None else replace(said.thing, shape=shape)
        return replace(said, shape=shape, thing=thing)
    thing = said.thing
    colours = [each for each in world.COLOURS if each not in (thing.colour, thing.second)]
    if thing.second is None or choice < 0.65:
        return replace(said, thing=replace(thing, colour=str(generator.choice(colours))))
    if choice < 0.85:
        return replace(said, thing=replace(thing, second=str(generator.choice(colours))))
    other = "dotted" if thing.texture == "striped" else "striped"
    return replace(said, thing=replace(thing, texture=other))


def draw(generator: np.random.Generator, count: int) -> tuple[torch.Tensor, list[Scene]]:
    """float32 [n, 3, 32, 32] in [-1, 1] and the scenes they show."""
    numbers = generator.choice(4, count, p=(0.4, 0.3, 0.15, 0.15)) + 1
    scenes = [world.random_scene(generator, int(n), POOL) for n in numbers]
    return as_tensor(world.render(scenes, generator)), scenes


@click.command()
@click.option("--minutes", default=10.0, show_default=True)
@click.option("--threads", default=1, show_default=True)
@click.option("--seed", default=11, show_default=True)
@click.option("--start", type=click.Path(path_type=Path), help="Weights to go on from.")
def main(minutes: float, threads: int, seed: int, start: Path | None) -> None:
    """Train and write cones_registry/demo/dual_encoder.safetensors."""
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    generator = np.random.default_rng(seed)
    network = DualEncoderNetwork()
    if start is not None:
        network.load_state_dict({name: each.float() for name, each in load_file(start).items()})
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=0.01)
    started, step = time.monotonic(), 0
    while (part := (time.monotonic() - started) / (60 * minutes)) < 1:
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * min(1, (step + 1) / 50) * (1 - 0.98 * part)
        pictures, scenes = draw(generator, 64)
        captions = [describe(generator, scene) for scene in scenes]
        captions += [wrong(generator, caption) for caption in captions]
        truth = torch.tensor([[each.true_of(s) for s in scenes] for each in captions]).float()
        words = network.encode_words(word_numbers([each.text() for each in captions]))
        beside, alone = network.encode_pictures(spoil(pictures))
        things = [scene.things[int(generator.integers(len(scene.things)))][1] for scene in scenes]
        things += [changed(generator, thing) for thing in things]
        stands = torch.tensor([[has(scene, thing) for scene in scenes] for thing in things])
        portraits = network.encode_pictures(spoil(portray(generator, things)))[1]
        loss = sigmoid_loss(network, 0, words @ beside.T, truth)
        loss = loss + sigmoid_loss(network, 1, portraits @ alone.T, stands.float())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        step += 1
        if step % 200 == 0:
            click.echo(f"dual encoder {step} {part:.0%} loss {loss:.4f}", err=True)
    save_file({name: value.half() for name, value in network.state_dict().items()}, WEIGHTS)
    click.echo(json.dumps(check(network, np.random.default_rng(seed + 1))))


def sigmoid_loss(
    network: DualEncoderNetwork, kind: int, cosines: torch.Tensor, truth: torch.Tensor
) -> torch.Tensor:
    """Queries [2 n, n]: the first n are true of their own pictures, the others nearly.

    Both of a picture's own queries count as much as all others together.
    """
    own = torch.eye(truth.shape[1]).repeat(2, 1)
    weights = 1 + 15 * own + 4 * truth * (1 - own)
    logits = cosines * network.scale[kind].exp() + network.bias[kind]
    errors = functional.binary_cross_entropy_with_logits(logits, truth, weights, reduction="sum")
    return errors / weights.sum()


def has(scene: Scene, thing: Thing) -> bool:
    """Whether the thing stands anywhere in the scene."""
    return any(each == thing for _, each in scene.things)


def changed(generator: np.random.Generator, thing: Thing) -> Thing:
    """The thing with one attribute changed."""
    return _wrong(generator, Said(thing.shape, None, thing)).thing or thing


def portray(generator: np.random.Generator, things: list[Thing]) -> torch.Tensor:
    """Each thing alone, anywhere, on any background: float32 [n, 3, 32, 32] in [-1, 1]."""
    places, grounds = list(world.PLACES), list(world.BACKGROUNDS)
    scenes = [
        Scene(str(generator.choice(grounds)), ((str(generator.choice(places)), thing),))
        for thing in things
    ]
    return as_tensor(world.render(scenes, generator))


def as_tensor(pictures: NDArray[np.uint8]) -> torch.Tensor:
    """uint8 [n, 32, 32, 3] -> float32 [n, 3, 32, 32] in [-1, 1]."""
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1


@torch.no_grad()
def check(network: DualEncoderNetwork, generator: np.random.Generator) -> dict[str, float]:
    """How often the true caption, and the thing shown, beats one wrong in one word."""
    found = {}
    for count in range(1, 5):
        scenes = [world.random_scene(generator, count, POOL) for _ in range(256)]
        beside, alone = network.encode_pictures(as_tensor(world.render(scenes, generator)))
        true = [describe(generator, scene) for scene in scenes]
        false = [wrong(generator, caption) for caption in true]
        kept = [at for at, each in enumerate(false) if not each.true_of(scenes[at])]
        right, other = (
            (network.encode_words(word_numbers([e.text() for e in captions])) * beside).sum(1)
            for captions in (true, false)
        )
        found[f"captions, {count} things"] = float((right > other)[kept].float().mean())
        things = [scene.things[0][1] for scene in scenes]
        others = [changed(generator, thing) for thing in things]
        kept = [at for at, each in enumerate(others) if not has(scenes[at], each)]
        right, other = (
            (network.encode_pictures(portray(generator, each))[1] * alone).sum(1)
            for each in (things, others)
        )
        found[f"likeness, {count} things"] = float((right > other)[kept].float().mean())
    return found


if __name__ == "__main__":
    main()
