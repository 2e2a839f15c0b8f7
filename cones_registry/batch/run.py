"""One run from a job file to pictures: plan, skip what is there, draw, write, report."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence

from cones_registry.attention import names_token
from cones_registry.base_model.versions import library_versions
from cones_registry.batch.compositions import Compositions
from cones_registry.batch.drawing import Drawing
from cones_registry.batch.engine import BaseIdentity, Engine, EngineSettings
from cones_registry.batch.fields import BadJobsError, BadLine, lines_digest
from cones_registry.batch.job import Job, parse_jobs
from cones_registry.batch.manifest import KEY as MANIFEST_KEY
from cones_registry.batch.manifest import RunManifest, decode_manifest, require_same_run
from cones_registry.batch.output import open_output
from cones_registry.batch.plan import Chosen, make_chunks, read_job
from cones_registry.batch.report import BatchReport, Progress
from cones_registry.errors import (
    BaseModelMismatchError,
    ConesError,
    ConflictError,
    NotFoundError,
    UsageError,
)
from cones_registry.generation.recipe import FORMATS
from cones_registry.record import Concept
from cones_registry.store import Store

DEFAULT_BATCH_SIZE = 8
_LOGGER = logging.getLogger(__name__)


def run_batch(
    jobs: str,
    out: str | os.PathLike[str] | Store,
    *,
    engine: Engine,
    base: str,
    compositions: Compositions,
    registry: str | None = None,
    device: str = "auto",
    dtype: str = "auto",
    batch_size: int | None = None,
    format: str | None = None,
    keep_going: bool = False,
    on_progress: Callable[[Progress], None] | None = None,
) -> BatchReport:
    """Draw all job lines into ``out``; started again, only what is missing.

    jobs: text of the job file. out: URL of a folder, on anything a registry can live on.
    engine: see ``Engine``. base: source of the base model.
    compositions: of the open registry that refs are resolved in.
    registry: its URL, for workers elsewhere. batch_size: pictures drawn together (8).
    format: "png" or lossless "webp".
    keep_going: skip lines that cannot be run; they are failures of the report.

    Refs are resolved once, at the start, and written to ``run.json``: an alias that moves later
    changes nothing in this run, not even after a restart. Pictures go to ``pictures/``, their
    table to ``index.parquet``, the report to ``report.json``.

    Raises BadJobsError (with every bad line) before anything is drawn or written, ConflictError if
    ``out`` holds another run, BaseModelMismatchError if the concepts were made for another base.
    """
    started = time.monotonic()
    if batch_size is not None and batch_size < 1:
        raise UsageError(f"batch size {batch_size}, expected at least 1")
    if format is not None and format not in FORMATS:
        raise UsageError(f"unknown picture format {format!r}. Expected {' or '.join(FORMATS)}")
    store = open_output(out)
    parsed, bad = parse_jobs(jobs)
    old = _existing(store)
    if old is not None:
        require_same_run(old, jobs=lines_digest(jobs), format=format, batch_size=batch_size)
    pins, good, unusable = _pin(parsed, compositions, old.pins if old else None)
    bad = sorted(bad + unusable, key=lambda line: line.line)
    if bad and not keep_going:
        raise BadJobsError(bad, len(good) + len(bad))
    format = old.format if old else format or "png"
    settings = EngineSettings(base, registry, device, dtype, format=format)
    try:
        identity = engine.start(settings)
        _require_base(pins, identity, base)
        manifest = old or RunManifest(
            lines_digest(jobs),
            identity.fingerprint,
            identity.dtype,
            format,
            batch_size or DEFAULT_BATCH_SIZE,
            identity.defaults,
            sum(job.count for job in good),
            pins,
            library_versions(),
        )
        if (manifest.base, manifest.dtype) != (identity.fingerprint, identity.dtype):
            raise ConflictError(
                f"the run in {store.url} began on base model {manifest.base} in {manifest.dtype}, "
                f"{base!r} is {identity.fingerprint} in {identity.dtype}. Continue with the same, "
                "or give another --out"
            )
        if old is None:
            store.put_new(MANIFEST_KEY, manifest.encode())
        elif dict(old.versions) != library_versions():
            _LOGGER.warning(
                "the run in %s began with %s, now there is %s: pictures drawn from here on may "
                "differ in their last bits from those a whole run would have made",
                store.url, dict(old.versions), library_versions(),
            )  # fmt: skip
        chunks = make_chunks(good, pins, manifest.batch_size, manifest.defaults)
        drawing = Drawing(store, chunks, format, identity.fingerprint, on_progress)
        drawing.draw(engine)
    finally:
        engine.stop()
    return drawing.finish(identity.fingerprint, bad, started=started)


def _existing(store: Store) -> RunManifest | None:
    try:
        return decode_manifest(store.get(MANIFEST_KEY))
    except NotFoundError:
        return None


def _pin(
    jobs: Sequence[Job], compositions: Compositions, pinned: Mapping[str, Concept] | None
) -> tuple[dict[str, Concept], list[Job], list[BadLine]]:
    """Refs to versions; jobs whose concepts exist and go together, and lines where they do not.

    pinned: what a run that goes on began with; what was no concept then is none now.
    """
    pins = dict(pinned or {})
    absent: set[str] = set()

    def concept_of(ref: str) -> Concept | None:
        if ref not in pins and "/" in ref:
            pins[ref] = compositions.pin(ref)
        elif ref not in pins and ref not in absent:
            try:
                if pinned is None and compositions.has_registry:
                    pins[ref] = compositions.pin(ref)
            except NotFoundError:
                absent.add(ref)
        return pins.get(ref)

    troubles: dict[tuple[str, ...], str | None] = {}
    good: list[Job] = []
    bad: list[BadLine] = []
    for job in jobs:
        if job.concepts not in troubles:
            troubles[job.concepts] = _trouble(job.weighted, compositions, pins)
        reason = troubles[job.concepts] or _misnamed(job, compositions, concept_of)
        if reason is None:
            good.append(job)
        else:
            bad.append(BadLine(job.line, reason))
    return pins, good, bad


def _trouble(
    weighted: Sequence[tuple[str, float]], compositions: Compositions, pins: dict[str, Concept]
) -> str | None:
    """Why these concepts cannot be drawn together, or None; pins those that exist."""
    try:
        for ref, _ in weighted:
            if ref not in pins:
                pins[ref] = compositions.pin(ref)
        compositions.check(tuple(Chosen(pins[ref], weight) for ref, weight in weighted))
    except ConesError as error:
        return str(error)
    return None


def _misnamed(
    job: Job, compositions: Compositions, concept_of: Callable[[str], Concept | None]
) -> str | None:
    """Why the prompts do not name the concepts that they are to be drawn with, or None."""
    try:
        reading, named = read_job(job, concept_of)
        given = [(concept_of(ref), weight) for ref, weight in job.weighted]
        chosen = tuple(Chosen(each, weight) for each, weight in given if each is not None)
        if named:
            compositions.check(chosen, named)
    except ConesError as error:
        return str(error)
    for each, (ref, _) in zip(chosen, job.weighted, strict=True):
        token = each.concept.token
        if each.concept.scope != "subject" or each.ref in reading.refs:
            continue
        if not names_token(reading.prompt.text, token or " "):
            return f"the prompt {job.prompt!r} does not name {ref!r} by its token {token!r}"
    return None


def _require_base(pins: Mapping[str, Concept], identity: BaseIdentity, base: str) -> None:
    for ref, concept in pins.items():
        if concept.base not in (identity.fingerprint, identity.table):
            raise BaseModelMismatchError(
                f"{ref!r} was made for base model {concept.base}, {base!r} is "
                f"{identity.fingerprint}. Give the base model it was made for"
            )
