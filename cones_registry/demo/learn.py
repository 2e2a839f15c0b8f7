"""How the demo learns a subject: its pictures, beside things the base model draws itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from cones_registry.base_model import BaseModel
from cones_registry.demo import world
from cones_registry.demo.measure import BATCH
from cones_registry.demo.subjects import Subject
from cones_registry.extraction import (
    Companion,
    Extraction,
    ExtractionSettings,
    Extractor,
    base_companions,
)
from cones_registry.extraction.progress import Progress
from cones_registry.record import Scope

SETTINGS: Final = ExtractionSettings(collage_share=0.85, collage_limit=256)
"""Mostly in company: named second, after other words, is where a subject is learnt last."""


def companions(
    base: BaseModel, subject: Subject, *, each: int = 12, seed: int = 0
) -> tuple[Companion, ...]:
    """Pictures of other things, drawn by the base model where the subject does not stand.

    Every other one is asked for by a placeholder and not described: so the subject is also learnt
    after words that mean nothing to the base model, as another concept's name does.
    each: how many for each reference picture.
    """
    generator = np.random.default_rng([seed, len(subject.name)])
    pool = world.things()
    names = [name for name in world.PLACEHOLDERS if name != subject.token]
    prompts = []
    for file in sorted(subject.folder.glob("*.txt")):
        place, ground = file.stem, file.read_text(encoding="utf-8").split("|")[1].strip()
        if place not in world.OPPOSITE:
            continue
        for number in range(each):
            thing = pool[int(generator.integers(len(pool)))]
            words = f"{generator.choice(names)} {thing.shape}" if number % 2 else thing.words()
            prompts.append(f"at {world.OPPOSITE[place]} a {words} | {ground}")
    return base_companions(
        base,
        prompts,
        seed,
        steps=base.defaults.steps,
        guidance_scale=base.defaults.guidance_scale,
        batch_size=BATCH,
    )


def learn(
    extractor: Extractor,
    subject: Subject,
    beside: Sequence[Companion],
    *,
    scope: Scope = "subject",
    method: str = "gates",
    seed: int = 0,
    settings: ExtractionSettings = SETTINGS,
    progress: Progress = "auto",
    **options: object,
) -> Extraction:
    """The subject's concept neurons.

    beside: pictures of other things, as ``companions`` draws them. options: go to
        ``Extractor.extract``.
    """
    return extractor.extract(
        subject.folder,
        token=subject.token,
        class_noun=subject.noun,
        scope=scope,
        method=method,
        seed=seed,
        companions=tuple(beside),
        settings=settings,
        progress=progress,
        **options,  # type: ignore[arg-type]
    )
