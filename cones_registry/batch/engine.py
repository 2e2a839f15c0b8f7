"""What an engine is: something that gives work to workers and brings results, in any order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from cones_registry.base_model import BaseModel, GenerationDefaults
from cones_registry.batch.compositions import Compositions
from cones_registry.batch.plan import Chunk
from cones_registry.batch.worker import Outcome, Worker

Result = TypeVar("Result")
ResultOut = TypeVar("ResultOut", covariant=True)


class Work(Protocol[ResultOut]):
    """One piece of work; it travels to the worker, its result travels back."""

    def do(self, worker: Worker) -> ResultOut:
        """The result. What goes wrong with this piece alone is part of it."""
        ...

    def lost(self, reason: str) -> ResultOut:
        """The result when no worker could do it."""
        ...

    def prepare(self, compositions: Compositions) -> None:
        """Fetch ahead what it needs."""
        ...


@dataclass(frozen=True)
class Task:
    """Work: draw a chunk. wanted: names of its pictures that are still missing."""

    chunk: Chunk
    wanted: frozenset[str]

    def do(self, worker: Worker) -> list[Outcome]:
        """One outcome for each wanted picture."""
        return worker.draw(self.chunk, self.wanted)

    def lost(self, reason: str) -> list[Outcome]:
        """Every wanted picture failed."""
        pictures = self.chunk.pictures
        return [Outcome(each, None, reason) for each in pictures if each.name in self.wanted]

    def prepare(self, compositions: Compositions) -> None:
        """Fetch the masks of the chunk."""
        compositions.prefetch(self.chunk)


@dataclass(frozen=True)
class EngineSettings:
    """What every worker of a run is made from.

    base: source of the base model. device, dtype: as ``BaseModel.load``. registry: URL.
    mask_bytes: bound on masks in memory, a worker. format: of the picture files.
    """

    base: str
    registry: str | None
    device: str = "auto"
    dtype: str = "auto"
    mask_bytes: int = 1 << 30
    format: str = "png"


@dataclass(frozen=True)
class BaseIdentity:
    """Which base model the workers have: fingerprint, its layer table's digest, dtype, defaults."""

    fingerprint: str
    table: str
    dtype: str
    defaults: GenerationDefaults


def identity_of(base: BaseModel) -> BaseIdentity:
    """The identity of a loaded base model."""
    return BaseIdentity(
        base.fingerprint,
        base.layer_table.digest,
        str(base.dtype).removeprefix("torch."),
        base.defaults,
    )


class Engine(Protocol):
    """Starts workers, gives them work, stops."""

    def start(self, settings: EngineSettings) -> BaseIdentity:
        """Make the workers; returns what base model they have."""
        ...

    def run(self, work: Sequence[Work[Result]]) -> Iterator[Result]:
        """Do all work; one result for each piece, in the order they are done."""
        ...

    def stop(self) -> None:
        """Let go of the workers."""
        ...
