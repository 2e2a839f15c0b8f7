"""Drawing the rows of an evaluation: ours through the batch engine, rivals by their own models."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cones_registry.base_model import BaseModel
from cones_registry.batch.compositions import Compositions
from cones_registry.batch.engine import Engine
from cones_registry.batch.report import Failure, Progress
from cones_registry.batch.run import run_batch
from cones_registry.evaluation.fields import make_folder
from cones_registry.evaluation.gallery import Gallery, Sample, ShownSubject
from cones_registry.evaluation.plan import EvaluationPlan
from cones_registry.evaluation.rivals import draw_rival
from cones_registry.evaluation.rows import Row
from cones_registry.extraction.images import read_pictures


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
        refs = row.refs(item.subjects)
        named = row.names(item.subjects)
        job: dict[str, Any] = {"prompt": item.prompt(row.said, named), "seed": item.seed}
        if refs is not None:
            refs = [ref for ref in refs if f"<{ref}>" not in named.values()]
        if refs:
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
    they are left out of the gallery. Raises StoreUnavailableError for a folder that cannot be made,
    and what ``run_batch`` and ``draw_rival`` raise.
    """
    make_folder(folder)
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
        size, trained = draw_rival(plan, row, folder, base, settings.batch_size, on_progress)
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
