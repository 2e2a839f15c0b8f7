"""Drawing the rows of an evaluation: ours through the batch engine, rivals by their own models."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cones_registry.base_model import BaseModel
from cones_registry.batch.compositions import Compositions
from cones_registry.batch.engine import Engine
from cones_registry.batch.report import Failure, Progress
from cones_registry.batch.run import run_batch
from cones_registry.errors import ConesError, UsageError
from cones_registry.evaluation.fields import write_object
from cones_registry.evaluation.gallery import Gallery, Sample, ShownSubject
from cones_registry.evaluation.plan import EvaluationPlan, Item
from cones_registry.evaluation.rows import Row
from cones_registry.extraction.images import read_pictures

if TYPE_CHECKING:
    from cones_registry.evaluation.baselines import Tuned

_LOGGER = logging.getLogger(__name__)
_TRAINED = "trained"
_KEPT_BYTES = 1 << 26
"""A rival's result up to this size is kept, so that a run started again does not train anew."""


@dataclass(frozen=True)
class RowSettings:
    """What all rows share. base: source of the base model; device, dtype: as ``BaseModel.load``."""

    base: str
    device: str = "auto"
    dtype: str = "auto"
    batch_size: int = 16


def job_lines(plan: EvaluationPlan, row: Row) -> str:
    """The row as a job file (schema/batch.md): line n is item n of the plan."""
    lines = []
    for item in plan.items:
        job: dict[str, Any] = {"prompt": item.prompt(row.said), "seed": item.seed}
        refs = row.refs(item.subjects)
        if refs is not None:
            job["concepts"] = refs
        if plan.steps is not None:
            job["steps"] = plan.steps
        if plan.guidance is not None:
            job["guidance"] = plan.guidance
        lines.append(json.dumps(job | {"count": item.count}, ensure_ascii=False))
    return "\n".join(lines) + "\n"


def draw_row(
    plan: EvaluationPlan,
    row: Row,
    folder: Path,
    settings: RowSettings,
    *,
    engine: Callable[[Compositions], Engine],
    compositions: Compositions,
    registry: str | None = None,
    keep_going: bool = False,
    on_progress: Callable[[Progress], None] | None = None,
) -> tuple[Gallery, tuple[Failure, ...]]:
    """Draw one row into ``folder`` and keep what it shows as ``gallery.json``.

    Started again it draws only what is missing. Failures are pictures that could not be drawn;
    they are left out of the gallery. Raises what ``run_batch`` and training a rival raise.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if row.pictures is not None:
        gallery = _real(plan, row)
        gallery.write(folder)
        return gallery, ()
    base = BaseModel.load(settings.base, device=settings.device, dtype=settings.dtype)
    used: dict[str, Any] = {
        "steps": plan.steps or base.defaults.steps,
        "guidance": base.defaults.guidance_scale if plan.guidance is None else plan.guidance,
    }
    failures: tuple[Failure, ...] = ()
    size: float | None = None
    if row.baseline is not None:
        size, trained = _draw_rival(plan, row, folder, base, settings.batch_size, on_progress)
        used |= trained
    else:
        report = run_batch(
            job_lines(plan, row),
            str(folder),
            engine=engine(compositions),
            base=settings.base,
            compositions=compositions,
            registry=registry,
            device=settings.device,
            dtype=settings.dtype,
            batch_size=settings.batch_size,
            keep_going=keep_going,
            on_progress=on_progress,
        )
        failures = report.failures
        if row.concepts is not None:
            drawn = {ref for item in plan.items for ref in row.refs(item.subjects) or ()}
            kept = [compositions.pin(ref) for ref in sorted(drawn)]
            size = sum(concept.blob_bytes for concept in kept) / len(kept)
            used |= _learnt(kept[0].provenance, kept[0].scope)
            used["density"] = round(sum(concept.density for concept in kept) / len(kept), 4)
    gallery = Gallery(
        row.name,
        tuple(_samples(plan, folder)),
        _shown(plan),
        base.fingerprint,
        settings.base,
        base.layer_table.neuron_count,
        size,
        used,
    )
    gallery.write(folder)
    return gallery, failures


def _learnt(provenance: Any, scope: str) -> dict[str, Any]:
    """How the concepts of a row were found."""
    found: dict[str, Any] = {"scope": scope}
    if provenance is not None:
        found["method"] = provenance.method
        for key in ("steps", "batch_size"):
            if key in provenance.parameters:
                found[f"learning_{key}"] = provenance.parameters[key]
    return found


def _shown(plan: EvaluationPlan) -> dict[str, ShownSubject]:
    return {
        name: ShownSubject(name, subject.images, subject.noun, subject.description)
        for name, subject in plan.subjects.items()
    }


def _samples(plan: EvaluationPlan, folder: Path) -> Iterator[Sample]:
    """The pictures that are there, each with what it should show."""
    for item in plan.items:
        names = tuple(subject.name for subject in item.subjects)
        full = all(subject.description for subject in item.subjects)
        described = item.prompt("description") if full else ""
        for stem in item.picture_names():
            file = folder / "pictures" / f"{stem}.png"
            if file.exists():
                yield Sample(file, item.prompt("noun"), names, described)


def _real(plan: EvaluationPlan, row: Row) -> Gallery:
    """Every reference picture as a picture of its subject: the upper bound."""
    samples = []
    for name, subject in plan.subjects.items():
        for picture in read_pictures(subject.images).pictures:
            text = f"a photo of a {subject.noun}"
            if picture.caption is not None:
                text = picture.caption.text(subject.noun)
            described = ""
            if picture.caption is not None and subject.description:
                described = picture.caption.text(subject.description)
            samples.append(Sample(subject.images / picture.name, text, (name,), described))
    return Gallery(row.name, tuple(samples), _shown(plan), settings={"pictures": "real"})


def _draw_rival(
    plan: EvaluationPlan,
    row: Row,
    folder: Path,
    base: BaseModel,
    batch_size: int,
    on_progress: Callable[[Progress], None] | None,
) -> tuple[float | None, dict[str, Any]]:
    """Train on each set of subjects, draw its prompts; bytes a concept and how it was trained."""
    work: dict[tuple[str, ...], list[Item]] = {}
    for item in plan.items:
        work.setdefault(plan.training_set(row, item), []).append(item)
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
    found: dict[str, dict[str, Any]] = json.loads(file.read_text("utf-8"))
    return found


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
        if not all(subject.token for subject in subjects):
            raise UsageError(f"row {self._row.name!r} needs a token for every subject")
        steps = self._row.steps
        return train(
            name,
            self._base,
            [SubjectImages(each.images, each.token, each.noun) for each in subjects],
            steps=None if steps is None else steps * len(subjects),
        )


def _draw_items(
    items: Sequence[Item], tuned: Tuned, folder: Path, plan: EvaluationPlan, batch_size: int
) -> None:
    """Draw prompts with a rival's model, each picture with its recipe."""
    from cones_registry.generation import Generator, Request, encode_picture, library_versions

    asked = [
        (stem, Request(item.prompt("token"), seed=item.seed + number))
        for item in items
        for number, stem in enumerate(item.picture_names())
    ]
    (folder / "pictures").mkdir(exist_ok=True)
    versions: Mapping[str, str] = library_versions()
    stream = Generator(tuned.base).stream(
        [request for _, request in asked],
        steps=plan.steps,
        guidance_scale=plan.guidance,
        batch_size=batch_size,
    )
    for (stem, request), picture in zip(asked, stream, strict=True):
        recipe = {
            "format": "cones recipe 1",
            "prompt": request.prompt,
            "seed": request.seed,
            "baseline": tuned.method,
            "base": tuned.base.fingerprint,
            "concepts": [],
            "versions": dict(versions),
        }
        data = encode_picture(picture, recipe)
        temporary = folder / "pictures" / f".{stem}.part"
        temporary.write_bytes(data)
        temporary.replace(folder / "pictures" / f"{stem}.png")
