"""Rivals in an evaluation: trained on each set of subjects, drawn by their own models."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cones_registry.base_model import BaseModel
from cones_registry.batch.report import Progress
from cones_registry.digest import sha256_bytes
from cones_registry.errors import ConesError, ConflictError
from cones_registry.evaluation.fields import make_folder, read_object, write_object
from cones_registry.evaluation.plan import EvaluationPlan, Item
from cones_registry.evaluation.rows import Row

if TYPE_CHECKING:
    from cones_registry.evaluation.baselines import Tuned

_LOGGER = logging.getLogger(__name__)
_TRAINED = "trained"
_KEPT_BYTES = 1 << 26
"""A rival's result up to this size is kept, so that a run started again does not train anew."""


def draw_rival(
    plan: EvaluationPlan,
    row: Row,
    folder: Path,
    base: BaseModel,
    batch_size: int,
    on_progress: Callable[[Progress], None] | None,
) -> tuple[float | None, dict[str, Any]]:
    """Train on each set of subjects, draw its prompts; bytes a concept and how it was trained.

    Raises ConflictError if the folder holds pictures of other prompts, settings or base model.
    """
    work: dict[tuple[str, ...], list[Item]] = {}
    for item in plan.items:
        work.setdefault(plan.training_set(row, item), []).append(item)
    _require_same_training(plan, row, folder, base)
    done, total = 0, sum(item.count for item in plan.items)
    sizes: dict[str, dict[str, Any]] = _read_record(folder)
    trainer = _Trainer(plan, row, folder, base)
    for names, items in work.items():
        missing = [
            item
            for item in items
            if not all((folder / "pictures" / f"{s}.png").exists() for s in item.picture_names())
        ]
        if missing:
            tuned = trainer.tuned(names)
            sizes["+".join(names)] = {
                "bytes": tuned.stored_bytes,
                "subjects": len(names),
                "seconds": round(tuned.seconds, 1),
                "parameters": {
                    key: tuned.parameters[key]
                    for key in ("steps", "learning_rate", "batch_size", "prior_weight")
                    if key in tuned.parameters
                },
            }
            write_object(folder / "training.json", sizes)
            _draw_items(missing, tuned, folder, plan, batch_size)
        done += sum(item.count for item in items)
        if on_progress is not None:
            on_progress(Progress(done, total, 0, 0.0, None))
    if not sizes:
        return None, {}
    fewest = min(each["subjects"] for each in sizes.values())
    single = [each["bytes"] / fewest for each in sizes.values() if each["subjects"] == fewest]
    together = {} if row.sets is None else {"trained jointly on": [list(s) for s in row.sets]}
    first = next(iter(sizes.values()))
    return sum(single) / len(single), {
        "baseline": row.baseline,
        **first["parameters"],
        **together,
    }


def _read_record(folder: Path) -> dict[str, dict[str, Any]]:
    file = folder / "training.json"
    if not file.exists():
        return {}
    return read_object(file)


def _require_same_training(plan: EvaluationPlan, row: Row, folder: Path, base: BaseModel) -> None:
    """ConflictError if the folder's pictures were made with other settings than the plan's now.

    What a folder of an older version does not say is taken to be the same.
    """
    file = folder / "settings.json"
    prompts = json.dumps([[item.prompt("token"), item.seed, item.count] for item in plan.items])
    settings = {
        "base": base.fingerprint,
        "prompts": sha256_bytes(prompts.encode()),
        "baseline": row.baseline,
        "training_steps": row.steps,
        "learning_rate": row.learning_rate,
        "sets": None if row.sets is None else [list(names) for names in row.sets],
        "steps": plan.steps,
        "guidance": plan.guidance,
    }
    if not file.exists():
        write_object(file, settings)
        return
    before = settings | read_object(file)
    if before != settings:
        changed = ", ".join(
            f"{key} {before.get(key)} and now {value}"
            for key, value in settings.items()
            if before.get(key) != value
        )
        raise ConflictError(
            f"{folder} holds pictures of row {row.name!r} as it was: {changed}. Give the row "
            "another name, draw to another folder (--out), or remove this one"
        )


class _Trainer:
    """A rival's models for sets of subjects, kept in the row's folder where they are small."""

    def __init__(self, plan: EvaluationPlan, row: Row, folder: Path, base: BaseModel) -> None:
        self._plan, self._row, self._base = plan, row, base
        self._folder = folder / _TRAINED

    def tuned(self, names: Sequence[str]) -> Tuned:
        """The rival trained on these subjects jointly; Textual Inversion's tokens put together."""
        from cones_registry.evaluation.baselines import combine, load_tuned

        name = self._row.baseline or ""
        if len(names) > 1 and name == "textual-inversion":
            return combine(self._base, [self.tuned([each]) for each in names])
        file = self._folder / f"{'+'.join(names)}.safetensors"
        if file.exists():
            try:
                return load_tuned(file, self._base)
            except ConesError as error:  # cut off, or of another version: trained again
                _LOGGER.warning("%s cannot be read again: %s", file, error)
        tuned = self._train(name, names)
        if tuned.stored_bytes <= _KEPT_BYTES:
            self._folder.mkdir(parents=True, exist_ok=True)
            tuned.save(file)
        return tuned

    def _train(self, name: str, names: Sequence[str]) -> Tuned:
        from cones_registry.evaluation.baselines import SubjectImages, train

        subjects = [self._plan.subjects[each] for each in names]
        return train(
            name,
            self._base,
            [SubjectImages(each.images, each.token, each.noun) for each in subjects],
            steps=self._row.steps,
            learning_rate=self._row.learning_rate,
        )


def _draw_items(
    items: Sequence[Item], tuned: Tuned, folder: Path, plan: EvaluationPlan, batch_size: int
) -> None:
    """Draw prompts with a rival's model, each picture with its recipe and the rival's name."""
    from cones_registry.generation import Generator, Request, encode_picture
    from cones_registry.generation.recipe import recipe_of

    asked = [
        (stem, Request(item.prompt("token"), seed=item.seed + number))
        for item in items
        for number, stem in enumerate(item.picture_names())
    ]
    make_folder(folder / "pictures")
    stream = Generator(tuned.base).stream(
        [request for _, request in asked],
        steps=plan.steps,
        guidance_scale=plan.guidance,
        batch_size=batch_size,
    )
    for (stem, request), picture in zip(asked, stream, strict=True):
        recipe = recipe_of(request, tuned.base, steps=plan.steps, guidance_scale=plan.guidance)
        data = encode_picture(picture, recipe | {"baseline": tuned.method})
        temporary = folder / "pictures" / f".{stem}.part"
        temporary.write_bytes(data)
        temporary.replace(folder / "pictures" / f"{stem}.png")
