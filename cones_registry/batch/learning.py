"""Many concepts in one run: learn each subject line, keep its mask, push in one commit a chunk."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from cones_registry.batch.compositions import Compositions
from cones_registry.batch.engine import Engine, EngineSettings
from cones_registry.batch.fields import BadJobsError, BadLine, lines_digest
from cones_registry.batch.output import open_output
from cones_registry.batch.report import BatchReport, Failure, Progress
from cones_registry.batch.subject import Subject, parse_subjects
from cones_registry.batch.worker import Worker
from cones_registry.codec import decode, encode, read_footer, read_ranks
from cones_registry.errors import ConesError, ConflictError, CorruptDataError, NotFoundError
from cones_registry.extraction import ExtractionSettings, Extractor
from cones_registry.ranking import ranks_of
from cones_registry.record import Provenance
from cones_registry.store import Store

if TYPE_CHECKING:
    from cones_registry.registry import Registry

DEFAULT_PUSH_SIZE = 8
_FORMAT = "cones extraction run 1"
_MANIFEST_KEY = "run.json"
_REPORT_KEY = "report.json"
_MASKS = "masks/"
_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True)
class Learnt:
    """A subject's mask as file content, its record in the footer, or why there is none."""

    subject: Subject
    data: bytes | None
    error: str | None = None


@dataclass(frozen=True)
class Lesson:
    """Work: learn one subject."""

    subject: Subject

    def do(self, worker: Worker) -> Learnt:
        """The mask, or why there is none."""
        subject = self.subject
        try:
            extraction = Extractor(worker.base).extract(
                subject.images[0] if len(subject.images) == 1 else subject.images,
                token=subject.token,
                class_noun=subject.class_noun,
                method=subject.method,
                scope="prompt" if subject.scope == "prompt" else "subject",
                density=subject.density,
                tau=subject.tau,
                steps=subject.steps,
                seed=subject.seed,
                prompts=subject.prompts or None,
                companions=subject.companions,
                settings=ExtractionSettings(size=subject.size, projections=subject.projections),
                progress=None,
            )
        except Exception as error:  # one subject's failure is its result, whatever raised it
            name = "" if isinstance(error, ConesError) else f"{type(error).__name__}: "
            return Learnt(subject, None, f"{name}{error}")
        footer = extraction.record(worker.base.fingerprint, tags=subject.tags, note=subject.note)
        scores = extraction.scores if subject.keep_scores else None
        ranks = None if scores is None else ranks_of(extraction.mask, scores)
        return Learnt(subject, encode(extraction.mask, footer=footer, ranks=ranks))

    def lost(self, reason: str) -> Learnt:
        """No worker could learn it."""
        return Learnt(self.subject, None, reason)

    def prepare(self, compositions: Compositions) -> None:
        """Nothing is needed ahead."""


def run_learning(
    subjects: str,
    out: str | os.PathLike[str] | Store,
    registry: Registry,
    *,
    engine: Engine,
    base: str,
    device: str = "auto",
    dtype: str = "auto",
    push_size: int = DEFAULT_PUSH_SIZE,
    keep_going: bool = False,
    on_progress: Callable[[Progress], None] | None = None,
) -> BatchReport:
    """Learn every subject line and push it; started again, learn only what is missing.

    subjects: text of the file. out: URL of a folder for masks and report; what it holds already is
    not learnt again. Every ``push_size`` masks are pushed in one commit, with keys of their own, so
    that no restart pushes one twice. Pictures are read where the workers run.

    Raises BadJobsError before anything is learnt, ConflictError if ``out`` holds another run.
    """
    started = time.monotonic()
    store = open_output(out)
    parsed, bad = parse_subjects(subjects)
    if bad and not keep_going:
        raise BadJobsError(bad, len(parsed) + len(bad))
    digest = lines_digest(subjects)
    try:
        identity = engine.start(EngineSettings(base, None, device, dtype))
        _require_same_run(store, digest, identity.fingerprint)
        run = _Run(store, registry, digest, identity.fingerprint, push_size, on_progress)
        run.learn(parsed, engine)
    finally:
        engine.stop()
    return run.report(len(parsed), bad, time.monotonic() - started)


def _require_same_run(store: Store, digest: str, base: str) -> None:
    """Write the manifest, or compare with the one that is there."""
    manifest = {"format": _FORMAT, "subjects": digest, "base": base}
    try:
        old = json.loads(store.get(_MANIFEST_KEY))
    except NotFoundError:
        store.put_new(_MANIFEST_KEY, json.dumps(manifest, indent=1).encode())
        return
    except ValueError as error:
        raise CorruptDataError(f"{_MANIFEST_KEY} cannot be read: {error}") from error
    if old != manifest:
        raise ConflictError(
            f"{store.url} holds another run ({old}). Give this one another --out, or continue with "
            "the same file and base model"
        )


@dataclass
class _Run:
    store: Store
    registry: Registry
    digest: str
    base: str
    push_size: int
    on_progress: Callable[[Progress], None] | None
    made: int = 0
    kept: int = 0
    errors: list[Failure] = field(default_factory=list)
    unpushed: list[tuple[Subject, bytes]] = field(default_factory=list)

    def learn(self, subjects: Sequence[Subject], engine: Engine) -> None:
        """Learn what has no mask yet; push what has one."""
        there = {entry.key for entry in self.store.list(_MASKS)}
        missing = []
        for subject in subjects:
            key = _mask_key(subject)
            kept = self._kept(key) if key in there else None
            if kept is not None:
                self.kept += 1
                self._push_later(subject, kept)
            else:
                missing.append(Lesson(subject))
        began = time.monotonic()
        self._tell(len(subjects), began)
        for learnt in engine.run(missing):
            if learnt.data is None:
                reason = learnt.error or "no mask and no reason"
                self.errors.append(Failure(learnt.subject.line, None, reason))
            else:
                self.store.put_new(_mask_key(learnt.subject), learnt.data)
                self.made += 1
                self._push_later(learnt.subject, learnt.data)
            self._tell(len(subjects), began)
        self._push()

    def _kept(self, key: str) -> bytes | None:
        """A mask of an earlier run; None for a file that is no mask, which makes room for one."""
        data = self.store.get(key)
        try:
            decode(data)
            return data
        except CorruptDataError as error:
            _LOGGER.warning("%s is no mask and is learnt again: %s", key, error)
            self.store.delete(key)
            return None

    def _push_later(self, subject: Subject, data: bytes) -> None:
        self.unpushed.append((subject, data))
        if len(self.unpushed) >= self.push_size:
            self._push()

    def _push(self) -> None:
        if not self.unpushed:
            return
        items = [self._item(*each) for each in self.unpushed]
        try:
            self.registry.push_many(items)
        except ConflictError:
            # What an earlier run pushed was removed since. That is for its own line to say.
            for (subject, _), item in zip(self.unpushed, items, strict=True):
                try:
                    self.registry.push_many([item])
                except ConflictError as error:
                    self.errors.append(Failure(subject.line, None, str(error)))
        self.unpushed.clear()

    def _item(self, subject: Subject, data: bytes) -> dict[str, Any]:
        record = read_footer(data)["concept"]
        return {
            "ref": subject.name,
            "mask": decode(data),
            "base": self.base,
            "scope": subject.scope,
            "token": record["token"],
            "class_noun": subject.class_noun,
            "tags": subject.tags,
            "note": subject.note,
            "provenance": Provenance.from_json(record["provenance"]),
            "key": f"{self.digest}:{subject.line}",
            "scores": read_ranks(data),
        }

    def _tell(self, total: int, began: float) -> None:
        if self.on_progress is None:
            return
        done, failed = self.made + self.kept, len(self.errors)
        seconds = time.monotonic() - began
        rate = (self.made + failed) / seconds if seconds > 0 else 0.0
        left = (total - done - failed) / rate if rate > 0 else None
        self.on_progress(Progress(done, total, failed, rate, left))

    def report(self, total: int, bad: Sequence[BadLine], seconds: float) -> BatchReport:
        """Write the report."""
        skipped = [Failure(line.line, None, line.reason) for line in bad]
        failures = sorted([*skipped, *self.errors], key=lambda failure: failure.line)
        report = BatchReport(total, self.made, self.kept, tuple(failures), seconds)
        self.store.delete(_REPORT_KEY)
        text = json.dumps(report.to_json(), indent=1, ensure_ascii=False)
        self.store.put_new(_REPORT_KEY, text.encode())
        return report


def _mask_key(subject: Subject) -> str:
    return f"{_MASKS}{subject.line:06d}.parquet"
