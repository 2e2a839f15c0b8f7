"""One run from a job file to pictures: plan, skip what is there, draw, write, report."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from cones_registry.attention import names_token
from cones_registry.batch.compositions import Compositions
from cones_registry.batch.engine import BaseIdentity, Engine, EngineSettings, Task
from cones_registry.batch.fields import BadJobsError, BadLine, lines_digest
from cones_registry.batch.index import KEY as INDEX_KEY
from cones_registry.batch.index import encode_index
from cones_registry.batch.job import Job, parse_jobs
from cones_registry.batch.manifest import KEY as MANIFEST_KEY
from cones_registry.batch.manifest import RunManifest, decode_manifest, require_same_run
from cones_registry.batch.plan import Chunk, make_chunks
from cones_registry.batch.report import BatchReport, Failure, Progress
from cones_registry.batch.worker import Outcome
from cones_registry.digest import sha256_bytes
from cones_registry.errors import (
    BaseModelMismatchError,
    ConesError,
    ConflictError,
    NotFoundError,
    UsageError,
)
from cones_registry.generation import library_versions
from cones_registry.generation.recipe import FORMATS
from cones_registry.manifest import Concept
from cones_registry.store import Store, open_store

DEFAULT_BATCH_SIZE = 8
_PICTURES = "pictures/"
_REPORT_KEY = "report.json"


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
    store = out if isinstance(out, Store) else open_store(out)
    parsed, bad = parse_jobs(jobs)
    old = _existing(store)
    if old is not None:
        require_same_run(old, jobs=lines_digest(jobs), format=format, batch_size=batch_size)
    pins, good, unusable = _pin(parsed, compositions, old.pins if old else {})
    bad = sorted(bad + unusable, key=lambda line: line.line)
    if bad and not keep_going:
        raise BadJobsError(bad)
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
        run = _Run(
            store,
            make_chunks(good, pins, manifest.batch_size, manifest.defaults),
            format,
            on_progress,
        )
        run.draw(engine)
    finally:
        engine.stop()
    return run.finish(identity.fingerprint, bad, time.monotonic() - started)


def _existing(store: Store) -> RunManifest | None:
    try:
        return decode_manifest(store.get(MANIFEST_KEY))
    except NotFoundError:
        return None


def _pin(
    jobs: Sequence[Job], compositions: Compositions, pinned: Mapping[str, Concept]
) -> tuple[dict[str, Concept], list[Job], list[BadLine]]:
    """Refs to versions; jobs whose concepts exist and go together, and lines where they do not."""
    pins = dict(pinned)
    troubles: dict[tuple[str, ...], str | None] = {}
    good: list[Job] = []
    bad: list[BadLine] = []
    for job in jobs:
        if job.concepts not in troubles:
            troubles[job.concepts] = _trouble(job.concepts, compositions, pins)
        reason = troubles[job.concepts] or _unnamed(job, pins)
        if reason is None:
            good.append(job)
        else:
            bad.append(BadLine(job.line, reason))
    return pins, good, bad


def _trouble(
    refs: tuple[str, ...], compositions: Compositions, pins: dict[str, Concept]
) -> str | None:
    """Why these concepts cannot be drawn together, or None; pins those that exist."""
    try:
        for ref in refs:
            if ref not in pins:
                pins[ref] = compositions.pin(ref)
        compositions.get(tuple(pins[ref] for ref in refs))
    except ConesError as error:
        return str(error)
    return None


def _unnamed(job: Job, pins: Mapping[str, Concept]) -> str | None:
    for ref in job.concepts:
        concept = pins[ref]
        if concept.scope == "subject" and not names_token(job.prompt, concept.token or " "):
            return f"the prompt {job.prompt!r} does not name {ref!r} by its token {concept.token!r}"
    return None


def _require_base(pins: Mapping[str, Concept], identity: BaseIdentity, base: str) -> None:
    for ref, concept in pins.items():
        if concept.base not in (identity.fingerprint, identity.table):
            raise BaseModelMismatchError(
                f"{ref!r} was made for base model {concept.base}, {base!r} is "
                f"{identity.fingerprint}. Give the base model it was made for"
            )


@dataclass
class _Run:
    """The pictures of one run: which are there, which failed."""

    store: Store
    chunks: tuple[Chunk, ...]
    format: str
    on_progress: Callable[[Progress], None] | None
    files: dict[str, tuple[str, int]] = field(default_factory=dict)
    errors: dict[str, Failure] = field(default_factory=dict)
    kept: frozenset[str] = frozenset()

    def draw(self, engine: Engine) -> None:
        """Draw what is missing and write each picture as it comes."""
        suffix = f".{self.format}"
        there = {
            entry.key.removeprefix(_PICTURES).removesuffix(suffix)
            for entry in self.store.list(_PICTURES)
            if entry.key.endswith(suffix)
        }
        names = {picture.name for chunk in self.chunks for picture in chunk.pictures}
        self.kept = frozenset(there & names)
        tasks = []
        for chunk in self.chunks:
            wanted = frozenset(picture.name for picture in chunk.pictures) - self.kept
            if wanted:
                tasks.append(Task(chunk, wanted))
        began = time.monotonic()
        self._tell(len(names), began)
        for outcomes in engine.run(tasks):
            for outcome in outcomes:
                self._keep(outcome)
            self._tell(len(names), began)

    def _keep(self, outcome: Outcome) -> None:
        picture = outcome.picture
        if outcome.data is None:
            reason = outcome.error or "no picture and no reason"
            self.errors[picture.name] = Failure(picture.line, picture.number, reason)
            return
        self.store.put_new(self._key(picture.name), outcome.data)
        self.files[picture.name] = sha256_bytes(outcome.data), len(outcome.data)

    def _key(self, name: str) -> str:
        return f"{_PICTURES}{name}.{self.format}"

    def _tell(self, total: int, began: float) -> None:
        if self.on_progress is None:
            return
        made, failed = len(self.files), len(self.errors)
        done = len(self.kept) + made
        seconds = time.monotonic() - began
        rate = (made + failed) / seconds if seconds > 0 else 0.0
        left = (total - done - failed) / rate if rate > 0 else None
        self.on_progress(Progress(done, total, failed, rate, left))

    def finish(self, base: str, bad: Sequence[BadLine], seconds: float) -> BatchReport:
        """Write the index and the report."""
        made = len(self.files)
        for name in sorted(self.kept):
            data = self.store.get(self._key(name))
            self.files[name] = sha256_bytes(data), len(data)
        reasons = {name: failure.reason for name, failure in self.errors.items()}
        index = encode_index(self.chunks, self.files, reasons, base=base, format=self.format)
        skipped = [Failure(line.line, None, line.reason) for line in bad]
        failures = sorted(
            [*skipped, *self.errors.values()], key=lambda each: (each.line, each.number or 0)
        )
        report = BatchReport(
            sum(len(chunk.pictures) for chunk in self.chunks),
            made,
            len(self.kept),
            tuple(failures),
            seconds,
        )
        self._replace(INDEX_KEY, index)
        text = json.dumps(report.to_json(), indent=1, ensure_ascii=False)
        self._replace(_REPORT_KEY, text.encode())
        return report

    def _replace(self, key: str, data: bytes) -> None:
        """Both files say what the pictures say already; between the two calls they are missing."""
        self.store.delete(key)
        self.store.put_new(key, data)
