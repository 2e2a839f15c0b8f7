"""What the demo measures: how well pictures show what their prompts ask for, by the judge."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle, islice, product

import numpy as np
from PIL import Image

from cones_registry.demo import world
from cones_registry.demo.judge import Judge, accuracy
from cones_registry.demo.subjects import Subject
from cones_registry.demo.world import Scene
from cones_registry.generation import Generator, Request

BATCH = 32  # pictures drawn at a time


@dataclass(frozen=True, slots=True)
class Trial:
    """A prompt, and the scene a right picture of it shows."""

    prompt: str
    scene: Scene
    seed: int


def described_trials(count: int, things: int, *, seed: int = 0) -> list[Trial]:
    """Prompts that describe every thing in full, for ``things`` things in a picture."""
    generator = np.random.default_rng([seed, things])
    pool = world.things()
    scenes = [world.random_scene(generator, things, pool) for _ in range(count)]
    return [Trial(scene.caption(), scene, seed + at) for at, scene in enumerate(scenes)]


def subject_trials(subject: Subject, count: int, *, seed: int = 1000) -> list[Trial]:
    """Prompts with one subject at every place and on every background that extraction never saw."""
    seen = {path.read_text(encoding="utf-8").strip() for path in subject.folder.glob("*.txt")}
    scenes = [
        Scene(ground, ((place, subject.thing),))
        for place, ground in product(world.PLACES, world.BACKGROUNDS)
        if f"at {place} a {{}} | on {ground}" not in seen
    ]
    return [
        Trial(scene.caption(names={0: subject.phrase}), scene, seed + at)
        for at, scene in enumerate(islice(cycle(scenes), count))
    ]


def group_trials(subjects: Sequence[Subject], count: int, *, seed: int = 2000) -> list[Trial]:
    """Prompts with two to four subjects, at every place and in every order in turn."""
    generator = np.random.default_rng([seed, len(subjects)])
    trials = []
    for at in range(count):
        places = world.random_scene(generator, len(subjects), world.things()).things
        order = generator.permutation(len(subjects))
        placed = tuple(
            (place, subjects[who].thing) for (place, _), who in zip(places, order, strict=True)
        )
        scene = Scene(list(world.BACKGROUNDS)[at % len(world.BACKGROUNDS)], placed)
        names = {number: subjects[who].phrase for number, who in enumerate(order)}
        trials.append(Trial(scene.caption(names=names), scene, seed + at))
    return trials


def draw(
    generator: Generator,
    trials: Sequence[Trial],
    *,
    guidance: float | None = None,
    steps: int | None = None,
    **parts: object,
) -> list[Image.Image]:
    """A picture for every trial; ``parts`` is ``mask=`` or ``composition=`` of the requests.

    guidance, steps: by default the base model's own.
    """
    requests = [Request(trial.prompt, seed=trial.seed, **parts) for trial in trials]  # type: ignore[arg-type]
    return list(
        generator.generate(requests, steps=steps, guidance_scale=guidance, batch_size=BATCH)
    )


def score(
    judge: Judge, trials: Sequence[Trial], pictures: Sequence[Image.Image]
) -> dict[str, float]:
    """Shares in [0, 1] as in :func:`cones_registry.demo.judge.accuracy`."""
    return accuracy([trial.scene for trial in trials], judge.read(pictures))
