"""Similar: which concepts of a registry shut much the same neurons as a given one.

Sketches in the catalogue tell which few are worth reading; the masks of those are compared exactly.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cones_registry.catalog.copy import State
from cones_registry.catalog.reader import run_query
from cones_registry.digest import Digest
from cones_registry.mask import ConceptMask
from cones_registry.record import Concept
from cones_registry.refs import Ref
from cones_registry.resolver.sketch import FORMAT

SHORTLIST: Final = 48
"""Masks that are read and compared exactly, besides twice as many as were asked for."""

_QUERY: Final = """
    SELECT owner, name, version, sketch, dense_rank() OVER (ORDER BY owner, name) AS concept
    FROM concepts WHERE base = ? AND NOT removed AND octet_length(sketch) = ?
"""


@dataclass(frozen=True)
class Similar:
    """One concept that is like another.

    Attributes:
        ref: the version of it that is most alike.
        jaccard: neurons both shut / neurons either shuts, in [0, 1].
        shared_count: neurons both shut; None where `jaccard` is an estimate.
        exact: whether the masks were compared; else the sketches.
    """

    ref: str
    jaccard: float
    shared_count: int | None
    exact: bool

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return dict(self.__dict__)


@dataclass(frozen=True)
class Sketches:
    """The sketches of all versions in use of one base model.

    Attributes:
        owners, names: of each version, Arrow strings [n].
        versions: int32 [n].
        concepts: which versions are of one concept, int64 [n].
        rows: uint8 [n, 256].
    """

    owners: pa.ChunkedArray
    names: pa.ChunkedArray
    versions: npt.NDArray[np.int32]
    concepts: npt.NDArray[np.int64]
    rows: npt.NDArray[np.uint8]

    @classmethod
    def of(cls, state: State, base: Digest) -> Sketches:
        """Those that a state of the catalogue has."""
        table = run_query(state, _QUERY, [base, FORMAT.byte_count])
        return cls(
            table["owner"],
            table["name"],
            table["version"].to_numpy(),
            table["concept"].to_numpy(),
            np.frombuffer(b"".join(table["sketch"].to_pylist()), np.uint8).reshape(
                -1, FORMAT.byte_count
            ),
        )

    def nearest(self, sketch: bytes, count: int, leave_out: Ref | None) -> list[tuple[Ref, float]]:
        """(version, estimated Jaccard index) of so many concepts, the most alike first.

        Args:
            sketch: of the mask they are compared with.
            count: of concepts; each stands with the version of it that is most alike.
            leave_out: a concept that is not wanted, whatever its version.
        """
        if not len(self.rows) or not sketch:
            return []  # the empty mask has nothing in common with any
        estimates = FORMAT.estimates(sketch, self.rows)
        # The most alike first; of equals the newest.
        order = np.lexsort((-self.versions, -estimates))
        _, firsts = np.unique(self.concepts[order], return_index=True)
        found = []
        for place in order[np.sort(firsts)].tolist():
            owner, name = self.owners[place].as_py(), self.names[place].as_py()
            ref = Ref(owner, name, version=int(self.versions[place]))
            if leave_out is None or (ref.owner, ref.name) != (leave_out.owner, leave_out.name):
                found.append((ref, float(estimates[place])))
                if len(found) >= count:
                    break
        return found


def nearest(
    sketches: Sketches,
    mask: ConceptMask,
    *,
    limit: int,
    leave_out: Ref | None,
    pull: Callable[[Iterable[Ref]], Iterable[tuple[Concept, ConceptMask]]],
) -> list[Similar]:
    """The `limit` concepts most like a mask, compared exactly."""
    shortlist = sketches.nearest(FORMAT.sketch(mask), SHORTLIST + 2 * limit, leave_out)
    compared = []
    for concept, other in pull(ref for ref, _ in shortlist):
        shared = len(mask & other)
        union = len(mask) + len(other) - shared
        compared.append(Similar(concept.ref, shared / union, shared, exact=True))
    return sorted(compared, key=lambda each: (-each.jaccard, each.ref))[:limit]
