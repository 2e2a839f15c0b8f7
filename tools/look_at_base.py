"""Look at the plain base model while it is being trained: pictures, wrong words, the judge.

    python tools/look_at_base.py                    # a sheet and the wrong words: a minute
    python tools/look_at_base.py --judged 256       # and the judge's figures

Reads the averaged weights of the last checkpoint in ``--work`` and writes ``look-STEP.png`` there;
the figures go into its ``curve.jsonl``.

*Wrong words*: how much the denoising error of single things rises when one word of the caption is
replaced by a wrong one, in percent. It is the earliest sign that the model reads a kind of word,
long before pictures show it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import click
import numpy as np
import plain_base as parts
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from train_base import WORK, Training

from cones_registry.demo.drawn_world.judge import Judge, accuracy
from cones_registry.demo.drawn_world.pictures import SIZE, render
from cones_registry.demo.drawn_world.scenes import (
    BACKGROUNDS,
    DRAWINGS,
    NOUNS,
    THINGS,
    TINTS,
    Scene,
    Telling,
    caption,
    random_scene,
)

TIMESTEPS = (999, 900, 800, 700, 600, 450, 250)


class Drawer:
    """Draws captions with the averaged weights; linear decoding."""

    def __init__(self, work: Path) -> None:
        self.training = Training.start(work)
        self.training.take_averages()
        self.unet = self.training.unet
        self.tokens = parts.CaptionTokens(parts.build_tokenizer())
        self.scheduler = parts.build_scheduler()

    @torch.no_grad()
    def rows(self, captions: Sequence[str]) -> Tensor:
        """``float32 [n, CONTEXT, TEXT_WIDTH]``."""
        return self.training.text(self.tokens(captions)).last_hidden_state

    @torch.no_grad()
    def draw(self, captions: Sequence[str], *, guidance: float, steps: int, seed: int) -> Tensor:
        """``float32 [n, 3, 64, 64]`` about [-1, 1]."""
        generator = torch.Generator().manual_seed(seed)
        code = torch.randn(len(captions), parts.CHANNELS, 8, 8, generator=generator)
        told, untold = self.rows(captions), self.rows([""]).expand(len(captions), -1, -1)
        self.scheduler.set_timesteps(steps)
        for step in self.scheduler.timesteps:
            both = self.unet(torch.cat([code, code]), step, torch.cat([untold, told])).sample
            without, within = both.chunk(2)
            found = without + guidance * (within - without)
            code = self.scheduler.step(found, step, code).prev_sample
        return self.training.latents.decode(code)


def wrong_words(drawer: Drawer, count: int = 64) -> dict[str, list[float]]:
    """Rise of the error in percent by kind of word, one figure per timestep of ``TIMESTEPS``."""
    generator = np.random.default_rng(7)
    torch.manual_seed(1)
    pool = tuple(thing for thing in THINGS if thing.tint != "natural")
    scenes = [random_scene(generator, 1, pool) for _ in range(count)]
    pictures = parts.to_tensor([render(scene, generator) for scene in scenes])
    code = drawer.training.latents.encode(pictures)
    noise = torch.randn_like(code)
    alphas = drawer.scheduler.alphas_cumprod
    rows = {
        kind: drawer.rows([_wrong(scene, kind, generator) for scene in scenes])
        for kind in ("true", "noun", "tint", "drawing", "background", "empty")
    }
    rises: dict[str, list[float]] = {kind: [] for kind in rows}
    for step in TIMESTEPS:
        noisy = alphas[step].sqrt() * code + (1 - alphas[step]).sqrt() * noise
        errors = {}
        for kind, told in rows.items():
            with torch.no_grad():
                found = drawer.unet(noisy, step, told).sample
            errors[kind] = float((found - code).square().mean())
        for kind, error in errors.items():
            rise = error if kind == "true" else 100 * (error / errors["true"] - 1)
            rises[kind].append(round(rise, 4 if kind == "true" else 1))
    return rises


def _wrong(scene: Scene, kind: str, generator: np.random.Generator) -> str:
    """The full caption of a single thing with one word of ``kind`` replaced."""

    def other(words: Sequence[str], but: str) -> str:
        rest = [word for word in words if word != but]
        return rest[int(generator.integers(len(rest)))]

    ((place, thing),) = scene.things
    colours = [tint for tint in TINTS if tint != "natural"]
    if kind == "empty":
        return ""
    if kind == "background":
        scene = replace(scene, background=other(tuple(BACKGROUNDS), scene.background))
    elif kind == "noun":
        thing = replace(thing, noun=other(NOUNS, thing.noun))
    elif kind == "tint":
        thing = replace(thing, tint=other(colours, thing.tint))
    elif kind == "drawing":
        thing = replace(thing, drawing=other(tuple(DRAWINGS), thing.drawing))
    return caption(replace(scene, things=((place, thing),)))


def judged(
    drawer: Drawer, count: int, counts: Sequence[int], *, guidance: float, steps: int
) -> dict[str, dict[str, float]]:
    """The judge's figures, ``count`` pictures for each number of things, told in full and bare."""
    judge, figures = Judge.load(), {}
    for things in counts:
        for name, telling in (
            ("full", Telling.full(things)),
            ("bare", Telling.bare(things)),
            ("bare, no places", Telling.bare(things, places=False)),
        ):
            generator = np.random.default_rng(99)
            scenes = [random_scene(generator, things) for _ in range(count)]
            captions = [caption(scene, telling) for scene in scenes]
            seen: list[Scene] = []
            for at in range(0, count, 32):
                shown = drawer.draw(captions[at : at + 32], guidance=guidance, steps=steps, seed=at)
                seen += judge.read_tensor(shown.clamp(-1, 1))
            found = asdict(accuracy(scenes, [telling] * count, seen))
            figures[f"{things} {name}"] = {
                kind: round(share, 3) for kind, share in found.items() if not math.isnan(share)
            }
            click.echo(f"{things} {name}: {figures[f'{things} {name}']}", err=True)
    return figures


def sheet(pictures: NDArray[np.uint8], columns: int, scale: int = 2, gap: int = 2) -> Image.Image:
    """Pictures in rows of ``columns``, each ``scale`` times as large."""
    side = SIZE * scale + gap
    page = Image.new("RGB", (columns * side, -(-len(pictures) // columns) * side), "white")
    for number, picture in enumerate(pictures):
        image = Image.fromarray(picture).resize((SIZE * scale,) * 2, Image.Resampling.NEAREST)
        page.paste(image, (number % columns * side, number // columns * side))
    return page


@click.command()
@click.option("--work", type=click.Path(path_type=Path), default=WORK)
@click.option("--counts", default="1,2,3,4", help="How many things, with commas.")
@click.option("--guidance", default=1.5, show_default=True)
@click.option("--steps", default=20, show_default=True)
@click.option(
    "--judged", "pictures_a_row", default=0, help="Pictures for each of the judge's rows."
)
@click.option("--wrong/--no-wrong", default=True, help="Measure the rise of wrong words.")
def main(
    work: Path, counts: str, guidance: float, steps: int, pictures_a_row: int, wrong: bool
) -> None:
    """Write a contact sheet of the last checkpoint and say what it has learnt."""
    torch.set_num_threads(1)
    drawer = Drawer(work)
    numbers = [int(count) for count in counts.split(",")]
    line: dict[str, object] = {"stage": "look", "step": drawer.training.steps}
    generator = np.random.default_rng(3)
    captions = []
    for things in numbers:
        for at in range(16 if len(numbers) < 3 else 8):
            telling = Telling.full(things) if at % 2 else Telling.bare(things)
            captions.append(caption(random_scene(generator, things), telling))
    shown = torch.cat(
        [
            drawer.draw(captions[at : at + 16], guidance=guidance, steps=steps, seed=at)
            for at in range(0, len(captions), 16)
        ]
    )
    file = work / f"look-{drawer.training.steps}.png"
    sheet(parts.to_pictures(shown), 8).save(file)
    file.with_suffix(".txt").write_text("\n".join(captions) + "\n", encoding="utf-8")
    if wrong:
        line["wrong words"] = {"timesteps": list(TIMESTEPS), **wrong_words(drawer)}
    if pictures_a_row:
        line["guidance"] = guidance
        line["judged"] = judged(drawer, pictures_a_row, numbers, guidance=guidance, steps=steps)
    parts.note(work, line)
    click.echo(str(file))


if __name__ == "__main__":
    main()
