"""How the demo learns a subject: its pictures, beside things the base model draws itself."""

from __future__ import annotations

from collections.abc import Sequence

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
from cones_registry.manifest import Scope


def companions(
    base: BaseModel, subject: Subject, *, each: int = 6, seed: int = 0
) -> tuple[Companion, ...]:
    """Pictures of other things, drawn by the base model where the subject does not stand.

    each: how many for each reference picture.
    """
    generator = np.random.default_rng([seed, len(subject.name)])
    pool = world.things()
    prompts = []
    for file in sorted(subject.folder.glob("*.txt")):
        place, ground = file.stem, file.read_text(encoding="utf-8").split("|")[1].strip()
        if place not in world.OPPOSITE:
            continue
        for _ in range(each):
            thing = pool[int(generator.integers(len(pool)))]
            prompts.append(f"at {world.OPPOSITE[place]} a {thing.words()} | {ground}")
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
    settings: ExtractionSettings | None = None,
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
