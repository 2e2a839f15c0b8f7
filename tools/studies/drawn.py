"""Concepts on the plain base of the drawn world: learnt from five pictures, drawn, and judged.

    python tools/train_base.py export /tmp/plain-base
    python tools/studies/drawn.py base /tmp/plain-base            # what captions alone draw
    python tools/studies/drawn.py subjects /tmp/plain-base        # subjects alone and together

Rows go into ``--out`` (``tools/results/drawn.jsonl``), one JSON object per line, each with its
setting, the number of pictures and the digest of the base model. Subjects are things that the base
was never shown (``scenes.HELD_OUT``); the judge was trained on rendered pictures alone.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path

import click
import numpy as np
import torch
from PIL import Image

from cones_registry import BaseModel, Generator, Registry, Request
from cones_registry.demo.drawn_world.judge import Judge, accuracy
from cones_registry.demo.drawn_world.pictures import render
from cones_registry.demo.drawn_world.scenes import (
    BACKGROUNDS,
    HELD_OUT,
    PLACES,
    RARE_WORDS,
    THINGS,
    Scene,
    Telling,
    Thing,
    caption,
    random_scene,
)
from cones_registry.extraction import Companion, ExtractionSettings, Extractor, base_companions

RESULTS = Path(__file__).parent.parent / "results" / "drawn.jsonl"
SHOWN_PLACES = ("middle", "left", "right", "top left", "bottom right")
"""Where a subject stands in its five pictures."""
OPPOSITE = {"left": "right", "right": "left", "top left": "bottom right"}
OPPOSITE |= {"bottom right": "top left"}
SETTINGS = ExtractionSettings(collage_share=0.85, collage_limit=256)
BATCH = 16


@dataclass(frozen=True)
class Subject:
    """A held-out thing and the word it is learnt by."""

    thing: Thing
    token: str

    @property
    def name(self) -> str:
        """Its name in the registry: ``flat-blue-cat``."""
        return self.thing.words().replace(" ", "-")

    @property
    def phrase(self) -> str:
        """How a prompt names it."""
        return f"{self.token} {self.thing.noun}"


SUBJECTS = tuple(
    Subject(thing, token) for thing, token in zip(HELD_OUT[:8], RARE_WORDS, strict=True)
)


@dataclass(frozen=True)
class Trial:
    """A prompt, what a right picture of it shows, and what of that is judged."""

    prompt: str
    scene: Scene
    telling: Telling
    seed: int


def write_pictures(subject: Subject, folder: Path, number: int) -> None:
    """Five pictures of a subject with their captions; ``{}`` stands for it there."""
    folder.mkdir(parents=True)
    generator = np.random.default_rng([2303, number])
    grounds = list(BACKGROUNDS)
    for at, place in enumerate(SHOWN_PLACES):
        scene = Scene(grounds[(at + number) % len(grounds)], ((place, subject.thing),))
        Image.fromarray(render(scene, generator)).save(folder / f"{at}.png")
        words = f"{PLACES[place][2]} a {{}} | {BACKGROUNDS[scene.background]}\n"
        (folder / f"{at}.txt").write_text(words, encoding="utf-8")


def companions(base: BaseModel, subject: Subject, number: int, each: int) -> list[Companion]:
    """Pictures of other things where the subject does not stand, drawn by the base model."""
    generator = np.random.default_rng([7, number])
    grounds, prompts = list(BACKGROUNDS), []
    names = [word for word in RARE_WORDS if word != subject.token]
    for at, place in enumerate(SHOWN_PLACES):
        if place not in OPPOSITE:
            continue
        behind = BACKGROUNDS[grounds[(at + number) % len(grounds)]]
        for count in range(each):
            thing = THINGS[int(generator.integers(len(THINGS)))]
            words = f"{generator.choice(names)} {thing.noun}" if count % 2 else thing.words()
            prompts.append(f"{PLACES[OPPOSITE[place]][2]} a {words} | {behind}")
    defaults = base.defaults
    return list(
        base_companions(
            base,
            prompts,
            number,
            steps=defaults.steps,
            guidance_scale=defaults.guidance_scale,
            batch_size=BATCH,
        )
    )


def trials(subjects: Sequence[Subject], count: int) -> list[Trial]:
    """Prompts with these subjects, in every order and at places as scenes have them."""
    generator = np.random.default_rng([2000, len(subjects)])
    made = []
    for at in range(count):
        places = random_scene(generator, len(subjects)).things
        order = generator.permutation(len(subjects))
        placed = tuple(
            (place, subjects[who].thing) for (place, _), who in zip(places, order, strict=True)
        )
        scene = Scene(list(BACKGROUNDS)[at % len(BACKGROUNDS)], placed)
        names = {number: subjects[who].phrase for number, who in enumerate(order)}
        telling = Telling.full(len(subjects))
        made.append(Trial(caption(scene, names=names), scene, telling, 2000 + at))
    return made


def told(count: int, things: int, *, bare: bool, places: bool) -> list[Trial]:
    """Captions of random scenes: everything said, or nouns alone."""
    generator = np.random.default_rng([11, things])
    make = Telling.bare if bare else Telling.full
    made = []
    for at in range(count):
        scene = random_scene(generator, things)
        telling = make(things, places=places)
        made.append(Trial(caption(scene, telling), scene, telling, at))
    return made


class Bench:
    """The base model, its generator, the judge, and the file of results."""

    def __init__(self, source: str, out: Path) -> None:
        torch.set_num_threads(1)
        self.base, self.judge, self.out = BaseModel.load(source), Judge.load(), out
        self.registry = Registry.create(f"memory://drawn-{time.time_ns()}")
        self.generator = Generator(self.base, registry=self.registry)

    def score(self, asked: Sequence[Trial], refs: Sequence[str] = ()) -> dict[str, float]:
        """Shares that are right, in [0, 1]."""
        pictures = self.draw(asked, refs)
        found = accuracy(
            [trial.scene for trial in asked],
            [trial.telling for trial in asked],
            self.judge.read(pictures),
        )
        return {name: round(value, 4) for name, value in asdict(found).items()}

    def draw(self, asked: Sequence[Trial], refs: Sequence[str] = ()) -> list[Image.Image]:
        """A picture per trial, with the concepts of ``refs``."""
        composition = self.registry.resolve(*refs) if refs else None
        requests = [
            Request(trial.prompt, seed=trial.seed, composition=composition) for trial in asked
        ]
        return list(self.generator.generate(requests, batch_size=BATCH))

    def keep(self, **row: object) -> None:
        """Add a row to the results, and say it."""
        line = json.dumps({**row, "base": self.base.fingerprint[:19]})
        with self.out.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
        print(line, flush=True)


@click.group()
@click.option("--out", type=click.Path(path_type=Path), default=RESULTS, show_default=True)
@click.pass_context
def main(context: click.Context, out: Path) -> None:
    """Measure concepts on the plain base of the drawn world."""
    context.obj = out


@main.command("base")
@click.argument("source")
@click.option("--count", default=256, show_default=True, help="Pictures per row.")
@click.pass_obj
def base_command(out: Path, source: str, count: int) -> None:
    """What captions alone draw, told in full and by bare nouns, one to four things."""
    bench = Bench(source, out)
    for things in (1, 2, 3, 4):
        for bare in (False, True):
            shares = bench.score(told(count, things, bare=bare, places=True))
            bench.keep(row="bare" if bare else "full", things=things, pictures=count, **shares)


@main.command("subjects")
@click.argument("source")
@click.option("--subjects", "number", default=4, show_default=True)
@click.option("--count", default=32, show_default=True, help="Pictures per subject and per set.")
@click.option("--sets", default=6, show_default=True, help="Sets of two, three and four each.")
@click.option("--steps", type=int, help="Of learning, instead of the method's own number.")
@click.option("--beside", default=6, show_default=True, help="Companions per picture.")
@click.option("--seed", default=0, show_default=True)
@click.option("--sheet", type=click.Path(path_type=Path), help="A contact sheet of some of them.")
@click.pass_obj
def subjects_command(
    out: Path,
    source: str,
    number: int,
    count: int,
    sets: int,
    steps: int | None,
    beside: int,
    seed: int,
    sheet: Path | None,
) -> None:
    """Subjects learnt with the package's defaults, alone and together, beside none and told."""
    bench = Bench(source, out)
    chosen, refs = SUBJECTS[:number], dict[Subject, str]()
    shown: list[list[Image.Image]] = []
    with tempfile.TemporaryDirectory() as folder:
        for at, subject in enumerate(chosen):
            photos = Path(folder) / subject.name
            write_pictures(subject, photos, at)
            began = time.monotonic()
            extraction = Extractor(bench.base).extract(
                photos,
                token=subject.token,
                class_noun=subject.thing.noun,
                companions=tuple(companions(bench.base, subject, at, beside)),
                settings=SETTINGS,
                steps=steps,
                seed=seed,
                progress=None,
            )
            seconds = time.monotonic() - began
            refs[subject] = bench.registry.push(subject.name, extraction).ref
            asked = trials([subject], count)
            bench.keep(
                row="subject",
                subject=subject.name,
                pictures=count,
                density=round(extraction.density, 4),
                seconds=round(seconds),
                seed=seed,
                steps=steps,
                **bench.score(asked, [refs[subject]]),
                without=bench.score(asked)["thing"],
            )
            shown.append(
                [Image.open(file).convert("RGB") for file in sorted(photos.glob("*.png"))[:3]]
                + bench.draw(asked[:5], [refs[subject]])
            )
    for size in (2, 3, 4):
        groups = list(combinations(chosen, size))
        picked = np.random.default_rng(size).permutation(len(groups))[:sets]
        per_set = max(4, count // 4)
        found = []
        for which in picked:
            group = groups[which]
            asked = trials(group, per_set)
            found.append(bench.score(asked, [refs[each] for each in group]))
            shown.append(bench.draw(asked[:8], [refs[each] for each in group]))
        if found:
            mean = {
                key: round(float(np.mean([each[key] for each in found])), 4) for key in found[0]
            }
            bench.keep(row="together", subjects=size, sets=len(found), pictures=per_set, **mean)
    if sheet is not None:
        width = max(map(len, shown))
        board = Image.new("RGB", (width * 66, len(shown) * 66), "white")
        for y, row in enumerate(shown):
            for x, picture in enumerate(row):
                board.paste(picture, (x * 66, y * 66))
        board.save(sheet)


if __name__ == "__main__":
    main()
