"""The pictures of one run: which are there, which are drawn now, which failed."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

from cones_registry.batch.engine import Engine, Task
from cones_registry.batch.fields import BadLine
from cones_registry.batch.index import KEY as INDEX_KEY
from cones_registry.batch.index import encode_index
from cones_registry.batch.plan import Chunk
from cones_registry.batch.report import BatchReport, Failure, Progress
from cones_registry.batch.worker import Outcome
from cones_registry.digest import sha256_bytes
from cones_registry.errors import ConflictError
from cones_registry.store import KeyExistsError, Store

REPORT_KEY = "report.json"
_PICTURES = "pictures/"
_WRITERS = 8


@dataclass
class Drawing:
    """Draws what is missing of some chunks into a store, then writes the run's table and report."""

    store: Store
    chunks: tuple[Chunk, ...]
    format: str
    on_progress: Callable[[Progress], None] | None
    files: dict[str, tuple[str, int]] = field(default_factory=dict)
    errors: dict[str, Failure] = field(default_factory=dict)
    kept: frozenset[str] = frozenset()

    def draw(self, engine: Engine) -> None:
        """Draw what is missing; each picture is written as it comes, while the next are drawn."""
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
        with ThreadPoolExecutor(_WRITERS, thread_name_prefix="cones-write") as writers:
            writing: list[Future[None]] = []
            for outcomes in engine.run(tasks):
                _finish(writing)  # of the chunk before: a store that fails stops the run here
                writing = self._keep(outcomes, writers)
                self._tell(len(names), began)
            _finish(writing)

    def _keep(self, outcomes: Sequence[Outcome], writers: ThreadPoolExecutor) -> list[Future[None]]:
        """Record the outcomes and begin to write their pictures."""
        writing = []
        for outcome in outcomes:
            picture, data = outcome.picture, outcome.data
            if data is None:
                reason = outcome.error or "no picture and no reason"
                self.errors[picture.name] = Failure(picture.line, picture.number, reason)
                continue
            self.files[picture.name] = sha256_bytes(data), len(data)
            writing.append(writers.submit(self._write, self._key(picture.name), data))
        return writing

    def _write(self, key: str, data: bytes) -> None:
        try:
            self.store.put_new(key, data)
        except KeyExistsError:
            if self.store.get(key) != data:
                raise ConflictError(
                    f"{key} in {self.store.url} was written by someone else meanwhile, and is "
                    "another picture. Run one process at a time for each --out"
                ) from None

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

    def finish(self, base: str, bad: Sequence[BadLine], *, started: float) -> BatchReport:
        """Write the index and the report. started: ``time.monotonic()`` when the run began."""
        made, kept = len(self.files), sorted(self.kept)
        self.files.update(zip(kept, self.store.each(self._stored, kept), strict=True))
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
            time.monotonic() - started,
        )
        self._replace(INDEX_KEY, index)
        text = json.dumps(report.to_json(), indent=1, ensure_ascii=False)
        self._replace(REPORT_KEY, text.encode())
        return report

    def _stored(self, name: str) -> tuple[str, int]:
        """Digest and size of a picture that was there before."""
        data = self.store.get(self._key(name))
        return sha256_bytes(data), len(data)

    def _replace(self, key: str, data: bytes) -> None:
        """Both files say what the pictures say already; between the two calls they are missing."""
        self.store.delete(key)
        self.store.put_new(key, data)


def _finish(writing: Sequence[Future[None]]) -> None:
    """Wait; raises what the first write that failed raised."""
    for future in writing:
        future.result()
