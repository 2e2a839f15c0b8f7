"""What was acknowledged, and what must therefore be so: the rules of the registry.

Every operation has a beginning and an end, counted in steps of the run. One that was acknowledged
has taken effect between the two; one that failed, or whose machine was killed, may have. A
*register* is one fact that operations change (whether a version is removed, where an alias stands):
it must hold what an operation said that no other acknowledged one began after.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from cones_registry import ConceptMask, LayerTable
from cones_registry.errors import ConesError

TABLE = LayerTable.from_shapes({"a.attn2.to_k.weight": (8, 16)})
ACKNOWLEDGED, UNCLEAR, VOID = "acknowledged", "unclear", "void"


def mask_of(seed: int) -> ConceptMask:
    """One of the few masks that are pushed."""
    generator = np.random.default_rng(seed)
    indices = np.flatnonzero(generator.random(128) < 0.2).astype(np.int32)
    return ConceptMask.from_indices(TABLE, {TABLE.names[0]: indices})


MASKS = [mask_of(seed) for seed in range(4)]


@dataclass(eq=False)
class Operation:
    """One call of one machine.

    Attributes:
        verb: the method.
        owner, name: what it concerns; "" where nothing or everything.
        about: which register it sets: ("removed", ref), ("tag", ref, tag), ("alias", owner, name,
            alias) or ("quota", owner); None for other verbs.
        value: what it sets the register to.
        pushes: (owner, name, mask number) of each mask of a push.
        mark: the note that tells its versions from all others.
        refs: refs that a push was given, in order.
    """

    verb: str
    machine: str
    owner: str = ""
    name: str = ""
    about: tuple[Any, ...] | None = None
    value: Any = None
    pushes: tuple[tuple[str, str, int], ...] = ()
    mark: str = ""
    key: str | None = None
    begin: float = 0.0
    end: float = math.inf
    outcome: str = UNCLEAR
    refs: tuple[str, ...] = ()
    error: str = ""

    def __str__(self) -> str:
        what = self.about or self.refs or self.pushes or self.owner
        text = f"[{self.begin:g}-{self.end:g}] {self.machine} {self.verb} {what}"
        return f"{text} -> {self.value if self.about else self.outcome} {self.error}".rstrip()


@dataclass
class Model:
    """The operations of one run."""

    operations: list[Operation] = field(default_factory=list)
    findings: list[str] = field(default_factory=list)

    def acknowledged(self, verb: str = "") -> Iterable[Operation]:
        """Those that were acknowledged."""
        return (
            each
            for each in self.operations
            if each.outcome == ACKNOWLEDGED and verb in ("", each.verb)
        )

    def versions(self) -> dict[str, tuple[Operation, int]]:
        """ref -> (the push that was given it, its mask) of every acknowledged version."""
        return {
            ref: (push, mask)
            for push in self.acknowledged("push")
            for ref, (_, _, mask) in zip(push.refs, push.pushes, strict=True)
        }

    # -- what must be so --------------------------------------------------------------------------

    def register(self, about: tuple[Any, ...], before: float = math.inf) -> set[Any]:
        """Values a register may have; None: what it had before anything was said."""
        said = [each for each in self.operations if each.about == about and each.begin < before]
        certain = [each for each in said if each.outcome == ACKNOWLEDGED and each.end < before]
        values = {
            each.value for each in said if not any(other.begin > each.end for other in certain)
        }
        return values if certain else values | {None}

    def fate(self, ref: str, push: Operation, before: float = math.inf) -> str:
        """What a reader must find of a version: "live", "gone" or "any"."""
        owner = ref.partition("/")[0]
        fate = "live"
        for purge in self.operations:
            if purge.verb != "purge" or purge.owner != owner or purge.begin >= before:
                continue
            if purge.outcome == ACKNOWLEDGED and push.end < purge.begin and purge.end < before:
                return "gone"
            if push.begin < purge.end:
                fate = "any"
        if self.register(("removed", ref), before) - {None, False}:
            return "any"
        return fate

    def check_numbers(self) -> None:
        """A version number names one mask forever; one key is one version."""
        given: dict[str, Operation] = {}
        for push in self.acknowledged("push"):
            for ref in push.refs:
                other = given.setdefault(ref, push)
                if other is not push and (push.mark != other.mark):
                    self.findings.append(f"number given twice: {ref}: {other} and {push}")
        keys: dict[tuple[str, str, str], Operation] = {}
        for push in self.acknowledged("push"):
            if push.key is None:
                continue
            other = keys.setdefault((push.owner, push.name, push.key), push)
            purged = any(each.verb == "purge" for each in self.operations)
            if other.refs != push.refs and not purged:
                self.findings.append(f"one key, two versions: {other} and {push}")

    def check_reading(self, concepts: list[Any], reader: str, since: float = math.inf) -> None:
        """What a reader that began at `since` must see, and may not."""
        found = {concept.ref: concept for concept in concepts}
        if len(found) != len(concepts):
            self.findings.append(f"{reader} lists a version twice")
        for ref, (push, mask) in self.versions().items():
            if push.end >= since:
                continue
            fate = self.fate(ref, push, since)
            if since < math.inf and self._concerned(ref, push.end):
                continue  # something may have changed it while it was read
            if fate == "live" and ref not in found:
                self.findings.append(f"acknowledged, and {reader} does not see it: {ref} of {push}")
            elif fate == "gone" and ref in found:
                self.findings.append(f"purged, and {reader} sees it: {ref} of {push}")
            if ref in found and found[ref].mask_digest != MASKS[mask].digest:
                self.findings.append(f"{reader} sees another mask at {ref} of {push}")
        marks: dict[str, int] = {}
        for concept in concepts:
            marks[concept.note] = marks.get(concept.note, 0) + 1
        for push in self.operations:
            count = marks.get(push.mark, 0) if push.verb == "push" else 0
            if count > len(push.pushes):
                self.findings.append(f"pushed once, and {reader} sees {count}: {push}")
            elif 0 < count < len(push.pushes) and not self._touched(push):
                self.findings.append(f"{reader} sees half a commit: {push}")

    def check_registers(self, concepts: list[Any], quotas: dict[str, Any], reader: str) -> None:
        """Tags, aliases and quotas stand where the last acknowledged change put them."""
        found = {concept.ref: concept for concept in concepts}
        for about in {each.about for each in self.operations if each.about}:
            values = self.register(about)
            kind = about[0]
            if kind == "removed":
                if values == {True} and about[1] in found:
                    self.findings.append(f"removed, and {reader} sees it: {about[1]}")
                continue
            if kind == "tag" and about[1] in found:
                now: Any = about[2] in found[about[1]].tags
                values = {bool(value) for value in values}
            elif kind == "alias":
                owner, name, alias = about[1:]
                standing = [
                    concept.version
                    for concept in concepts
                    if (concept.owner, concept.name) == (owner, name) and alias in concept.aliases
                ]
                now = standing[0] if standing else None
                hidden = {f"{owner}/{name}:{value}" for value in values} - found.keys()
                if now is None and hidden:
                    continue
            elif kind == "quota" and not self._purged(about[1]):
                now = quotas.get(about[1])
            else:
                continue
            if now not in values:
                said = "; ".join(str(each) for each in self.operations if each.about == about)
                self.findings.append(
                    f"{reader} finds {about} at {now!r}, it must be in {values!r}: {said}"
                )

    def check_purged(self, objects: dict[str, tuple[bytes, float]]) -> None:
        """After an acknowledged purge nothing in the store speaks of the owner."""
        for purge in self.acknowledged("purge"):
            later = any(
                each.owner == purge.owner and each is not purge and each.end > purge.begin
                for each in self.operations
            )
            if later:
                continue
            for key, (data, _) in objects.items():
                if purge.owner in key or purge.owner.encode() in _plain(data):
                    self.findings.append(f"{key} speaks of {purge.owner} after {purge}")

    def _concerned(self, ref: str, end: float) -> bool:
        """Whether anything that hides a version began after its push."""
        owner = ref.partition("/")[0]
        return any(
            (each.about == ("removed", ref) or (each.verb == "purge" and each.owner == owner))
            for each in self.operations
        )

    def _touched(self, push: Operation) -> bool:
        owners = {owner for owner, _, _ in push.pushes}
        return any(
            (each.verb == "purge" and each.owner in owners)
            or (each.about and each.about[0] == "removed" and each.owner in owners)
            for each in self.operations
        )

    def _purged(self, owner: str) -> bool:
        return any(each.verb == "purge" and each.owner == owner for each in self.operations)


def perform(
    model: Model, operation: Operation, step: Callable[[], float], call: Callable[[Any], Any]
) -> Callable[[Any], Any]:
    """`call` with its beginning, end and outcome written into `operation`."""

    def work(registry: Any) -> Any:
        operation.begin = step()
        model.operations.append(operation)
        try:
            result = call(registry)
        except Exception as error:
            operation.error = f"{type(error).__name__}: {str(error)[:160]}"
            if not isinstance(error, ConesError) or type(error).__name__ == "CorruptDataError":
                model.findings.append(f"unexpected error: {operation}")
            raise
        else:
            operation.outcome = ACKNOWLEDGED
            if operation.verb == "push":
                operation.refs = tuple(concept.ref for concept in result)
            elif operation.verb == "alias":
                operation.value = result.version
            return result
        finally:
            operation.end = step()

    return work


def _plain(data: bytes) -> bytes:
    """Bytes in which names can be searched for: what was compressed is not."""
    if data[:4] == b"PAR1":
        with contextlib.suppress(pa.ArrowException, OSError):
            file = pq.ParquetFile(pa.BufferReader(data))
            metadata = repr(file.metadata.metadata).encode()
            return metadata + repr(file.read().to_pylist()).encode()
    with contextlib.suppress(zstandard.ZstdError):
        return zstandard.ZstdDecompressor().decompress(data, max_output_size=1 << 26)
    return data
