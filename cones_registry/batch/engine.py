"""What an engine is: something that draws chunks, in any order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from cones_registry.base_model import BaseModel, GenerationDefaults
from cones_registry.batch.plan import Chunk
from cones_registry.batch.worker import Outcome


@dataclass(frozen=True)
class Task:
    """A chunk and the names of its pictures that are still missing."""

    chunk: Chunk
    wanted: frozenset[str]


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
    """Starts workers, draws tasks, stops. Results come as they are done."""

    def start(self, settings: EngineSettings) -> BaseIdentity:
        """Make the workers; returns what base model they have."""
        ...

    def draw(self, tasks: Sequence[Task]) -> Iterator[list[Outcome]]:
        """Draw all tasks; one list of outcomes for each, in the order they are done."""
        ...

    def stop(self) -> None:
        """Let go of the workers."""
        ...
