"""The pictures of one run: which are there, which are drawn now, which failed."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field

from cones_registry.batch.engine import Engine, Task
from cones_registry.batch.fields import BadLine
from cones_registry.batch.index import KEY as INDEX_KEY
from cones_registry.batch.index import encode_index
from cones_registry.batch.plan import Chunk, Picture, Settings
from cones_registry.batch.report import BatchReport, Failure, Note, Progress
from cones_registry.batch.worker import Outcome
from cones_registry.digest import sha256_bytes
from cones_registry.errors import ConesError, ConflictError, NotFoundError
from cones_registry.generation import read_recipe
from cones_registry.store import KeyExistsError, Store

REPORT_KEY = "report.json"
PICTURES = "pictures/"
_REPLACED = "replaced/"
_WRITERS = 8
_LOGGER = logging.getLogger(__name__)


@dataclass
class Drawing:
    """Draws what is missing of some chunks into a store, then writes the run's table and report.

    base: fingerprint of the base model that draws. kept: pictures of an earlier run, by name.
    """

    store: Store
    chunks: tuple[Chunk, ...]
    format: str
    base: str
    on_progress: Callable[[Progress], None] | None
    files: dict[str, tuple[str, int]] = field(default_factory=dict)
    errors: dict[str, Failure] = field(default_factory=dict)
    kept: frozenset[str] = frozenset()
    notes: dict[int, str] = field(default_factory=dict)

    def draw(self, engine: Engine) -> None:
        """Draw what is missing; each picture is written as it comes, while the next are drawn."""
        suffix = f".{self.format}"
        there = {
            entry.key.removeprefix(PICTURES).removesuffix(suffix)
            for entry in self.store.list(PICTURES)
            if entry.key.endswith(suffix)
        }
        places = {
            picture.name: (chunk, picture) for chunk in self.chunks for picture in chunk.pictures
        }
        names = set(places)
        found = sorted(there & names)
        sound = self.store.each(lambda name: self._is_sound(name, *places[name]), found)
        self.kept = frozenset(name for name, good in zip(found, sound, strict=True) if good)
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

    def _is_sound(self, name: str, chunk: Chunk, picture: Picture) -> bool:
        """Whether the file of a picture is that picture; one that is not makes room for it.

        A picture that somebody else has put there is moved to ``replaced/`` first.
        """
        key = self._key(name)
        data = self.store.get(key)
        foreign = True
        try:
            trouble = _difference(read_recipe(data), picture, chunk.settings, self.base)
        except NotFoundError:
            trouble = "it carries no recipe"
        except ConesError as error:
            trouble, foreign = str(error), False
        if trouble is None:
            self.files[name] = sha256_bytes(data), len(data)
            return True
        _LOGGER.warning("%s is no picture of this run and is drawn again: %s", key, trouble)
        if foreign:
            with suppress(KeyExistsError):
                self.store.put_new(f"{_REPLACED}{name}.{self.format}", data)
        self.store.delete(key)
        return False

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
            if outcome.note is not None:
                self.notes[picture.line] = outcome.note
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
        return f"{PICTURES}{name}.{self.format}"

    def _tell(self, total: int, began: float) -> None:
        if self.on_progress is None:
            return
        done, failed = len(self.files), len(self.errors)
        made = done - len(self.kept)
        seconds = time.monotonic() - began
        rate = (made + failed) / seconds if seconds > 0 else 0.0
        left = (total - done - failed) / rate if rate > 0 else None
        self.on_progress(Progress(done, total, failed, rate, left))

    def finish(self, base: str, bad: Sequence[BadLine], *, started: float) -> BatchReport:
        """Write the index and the report. started: ``time.monotonic()`` when the run began."""
        made = len(self.files) - len(self.kept)
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
            tuple(Note(line, text) for line, text in sorted(self.notes.items())),
        )
        self._replace(INDEX_KEY, index)
        text = json.dumps(report.to_json(), indent=1, ensure_ascii=False)
        self._replace(REPORT_KEY, text.encode())
        return report

    def _replace(self, key: str, data: bytes) -> None:
        """Both files say what the pictures say already; between the two calls they are missing."""
        self.store.delete(key)
        self.store.put_new(key, data)


def _difference(
    recipe: Mapping[str, object], picture: Picture, settings: Settings, base: str
) -> str | None:
    """In what a picture's recipe is another than this run's, None where it is the same."""
    concepts = recipe.get("concepts")
    made_of = {
        "prompt": recipe.get("prompt"),
        "negative_prompt": recipe.get("negative_prompt"),
        "seed": recipe.get("seed"),
        "steps": recipe.get("steps"),
        "guidance": recipe.get("guidance"),
        "size": recipe.get("size"),
        "mask_unconditional": recipe.get("mask_unconditional"),
        "base": recipe.get("base"),
        "concepts": sorted(
            (str(each.get("ref")), str(each.get("mask_digest")))
            for each in (concepts if isinstance(concepts, list) else [])
            if isinstance(each, Mapping)
        ),
    }
    expected = {
        "prompt": picture.prompt,
        "negative_prompt": picture.negative_prompt,
        "seed": picture.seed,
        "steps": settings.steps,
        "guidance": settings.guidance,
        "size": list(settings.size) if settings.size else None,
        "mask_unconditional": settings.mask_unconditional,
        "base": base,
        # Given by ref or named in a prompt; the exact ref has the version and the weight.
        "concepts": sorted((each.ref, each.concept.mask_digest) for each in picture.chosen),
    }
    if settings.scheduler is not None:  # else the base model's own, whose name is not known here
        made_of["scheduler"], expected["scheduler"] = recipe.get("scheduler"), settings.scheduler
    other = [name for name in expected if made_of[name] != expected[name]]
    return f"its recipe has another {', '.join(other)}" if other else None


def _finish(writing: Sequence[Future[None]]) -> None:
    """Wait; raises what the first write that failed raised."""
    for future in writing:
        future.result()
