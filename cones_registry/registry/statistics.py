"""Statistics: what a registry holds, and what the same concepts would take in other forms."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from cones_registry.catalog.copy import State
from cones_registry.catalog.reader import run_query
from cones_registry.digest import Digest
from cones_registry.errors import NotFoundError
from cones_registry.layers import LayerTable
from cones_registry.registry.bases import Bases
from cones_registry.registry.session import Session

LORA_RANK: Final = 4
DENSITY_BOUNDS: Final = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3)
"""Upper ends of the histogram's classes; the last one goes up to 1."""
MOST_OWNERS: Final = 10

KNOWN_UNETS: Final[Mapping[Digest, tuple[str, int]]] = {
    "sha256:7ddd0f2cbf4969bf9b959db7b68e602973729f05ea62decfdeb9279efa0c1988": (
        "Stable Diffusion 1.x",
        859_520_964,
    ),
    "sha256:5c37b09b6bbdd694415efab3f653a6428b9950bc5c55b3676cb6bea00a0d20f2": (
        "Stable Diffusion 2.x",
        865_910_724,
    ),
    "sha256:f809b14ef3d34e219903157e22bf4495671e87f820f57fec06839086ba2aecfe": (
        "Stable Diffusion XL",
        2_567_463_684,
    ),
}
"""Digest of a layer table -> (whose it is, parameters of the whole U-Net), for base models whose
record does not say how many parameters they have. A test counts them from the published configs."""


@dataclass(frozen=True)
class OwnerShare:
    """What one owner keeps: concepts, versions in use, and the bytes of their distinct blobs."""

    owner: str
    concepts: int
    versions: int
    blob_bytes: int


@dataclass(frozen=True)
class BaseShare:
    """What the versions in use of one base model take, and would take otherwise.

    Attributes:
        base: fingerprint.
        source: hub id or "demo", None where it is not known.
        versions: in use.
        neurons: of the layer table.
        raw_bytes: members as int32 indices.
        dense_bytes: the K/V weights of every version as float32.
        lora_bytes: a LoRA of rank 4 on the same weights, float32.
        unet_bytes: the whole denoiser for every version, float32; None where nobody recorded its
            size.
    """

    base: Digest
    source: str | None
    versions: int
    neurons: int
    raw_bytes: int
    dense_bytes: int
    lora_bytes: int
    unet_bytes: int | None


@dataclass(frozen=True)
class Statistics:
    """What a registry holds.

    Attributes:
        owners, concepts, versions: in use.
        removed: versions that can be restored.
        bases: base models of versions in use.
        blobs, blob_bytes: distinct objects with masks in the store, as the catalogue has them.
        used_bytes: those that versions in use refer to.
        undivided_bytes: the same if every version had an object of its own.
        by_base: for each base model what its versions would take in other forms.
        densities: versions in use with a density up to each of DENSITY_BOUNDS, the rest last.
        largest_owners: those with most bytes.
        stored: first part of the key -> (objects, bytes) of everything in the store, if it was
            listed.
    """

    owners: int
    concepts: int
    versions: int
    removed: int
    bases: int
    blobs: int
    blob_bytes: int
    used_bytes: int
    undivided_bytes: int
    by_base: tuple[BaseShare, ...]
    densities: tuple[int, ...]
    largest_owners: tuple[OwnerShare, ...]
    stored: Mapping[str, tuple[int, int]] = field(default_factory=dict)

    @property
    def saved_by_dedup(self) -> int:
        """Bytes that equal masks would take a second time."""
        return self.undivided_bytes - self.used_bytes

    @property
    def raw_bytes(self) -> int:
        """Members of all versions in use as int32 indices."""
        return sum(each.raw_bytes for each in self.by_base)

    @property
    def dense_bytes(self) -> int:
        """K/V weights of all versions in use as float32."""
        return sum(each.dense_bytes for each in self.by_base)

    @property
    def lora_bytes(self) -> int:
        """LoRAs of rank 4 on the same K/V weights for all versions in use, float32."""
        return sum(each.lora_bytes for each in self.by_base)

    @property
    def unet_bytes(self) -> int | None:
        """Whole denoisers for all versions in use, float32; None if one's size is not known."""
        sizes = [each.unet_bytes for each in self.by_base]
        return None if None in sizes else sum(size or 0 for size in sizes)

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            **asdict(self),
            "saved_by_dedup": self.saved_by_dedup,
            "raw_bytes": self.raw_bytes,
            "dense_bytes": self.dense_bytes,
            "lora_bytes": self.lora_bytes,
            "unet_bytes": self.unet_bytes,
            "density_bounds": [*DENSITY_BOUNDS, 1],
            "stored": {
                name: {"objects": objects, "bytes": size}
                for name, (objects, size) in self.stored.items()
            },
        }


def statistics(session: Session, bases: Bases, *, list_store: bool) -> Statistics:
    """Counts and sizes, now; see `Registry.stats`."""
    state = session.fresh()
    (counts,) = run_query(state, _COUNTS).to_pylist()
    return Statistics(
        **counts,
        by_base=tuple(_base_share(bases, **row) for row in run_query(state, _BY_BASE).to_pylist()),
        densities=_densities(state),
        largest_owners=tuple(
            OwnerShare(**row) for row in run_query(state, _OWNERS, [MOST_OWNERS]).to_pylist()
        ),
        stored=_listed(session) if list_store else {},
    )


def lora_parameters(table: LayerTable, rank: int = LORA_RANK) -> int:
    """Parameters of a LoRA on every layer: rank · (out + in), as down and up projection."""
    return sum(rank * (layer.rows + layer.cols) for layer in table.layers)


def _base_share(bases: Bases, base: Digest, versions: int, members: int, neurons: int) -> BaseShare:
    try:
        known = bases.get(base)
    except NotFoundError:  # `check` reports it; the rest can still be counted
        known = None
    source = known.source if known else None
    parameters = known.parameters if known else None
    if known and parameters is None and known.table.digest in KNOWN_UNETS:
        name, parameters = KNOWN_UNETS[known.table.digest]
        source = source or name
    return BaseShare(
        base=base,
        source=source,
        versions=versions,
        neurons=neurons,
        raw_bytes=4 * members,
        dense_bytes=4 * neurons * versions,
        lora_bytes=4 * lora_parameters(known.table) * versions if known else 0,
        unet_bytes=None if parameters is None else 4 * parameters * versions,
    )


def _densities(state: State) -> tuple[int, ...]:
    found = [0] * (len(DENSITY_BOUNDS) + 1)
    classes = " ".join(
        f"WHEN density <= {bound} THEN {place}" for place, bound in enumerate(DENSITY_BOUNDS)
    )
    for row in run_query(
        state,
        f"SELECT CASE {classes} ELSE {len(DENSITY_BOUNDS)} END AS place, count(*) AS versions "
        "FROM concepts WHERE NOT removed GROUP BY place",
    ).to_pylist():
        found[row["place"]] = row["versions"]
    return tuple(found)


def _listed(session: Session) -> dict[str, tuple[int, int]]:
    """Objects and bytes below each first part of a key, the most bytes first."""
    found: dict[str, tuple[int, int]] = {}
    for entry in session.store.list(""):
        name = entry.key.partition("/")[0]
        objects, size = found.get(name, (0, 0))
        found[name] = objects + 1, size + entry.size
    return dict(sorted(found.items(), key=lambda item: -item[1][1]))


_COUNTS: Final = """
    WITH blobs AS (
        SELECT blob_digest, any_value(blob_bytes) AS size, bool_or(NOT removed) AS used
        FROM concepts WHERE NOT pruned GROUP BY blob_digest
    )
    SELECT count(DISTINCT owner) FILTER (NOT removed) AS owners,
        count(DISTINCT (owner, name)) FILTER (NOT removed) AS concepts,
        count(*) FILTER (NOT removed) AS versions,
        count(*) FILTER (removed AND NOT pruned) AS removed,
        count(DISTINCT base) FILTER (NOT removed) AS bases,
        (SELECT count(*) FROM blobs) AS blobs,
        (SELECT coalesce(sum(size), 0)::BIGINT FROM blobs) AS blob_bytes,
        (SELECT coalesce(sum(size) FILTER (used), 0)::BIGINT FROM blobs) AS used_bytes,
        coalesce(sum(blob_bytes) FILTER (NOT removed), 0)::BIGINT AS undivided_bytes
    FROM concepts
"""
_BY_BASE: Final = """
    SELECT base, count(*) AS versions, sum(neuron_count)::BIGINT AS members,
        any_value(table_neuron_count) AS neurons
    FROM concepts WHERE NOT removed GROUP BY base ORDER BY versions DESC, base
"""
_OWNERS: Final = """
    SELECT owner, count(DISTINCT name) AS concepts, sum(versions)::BIGINT AS versions,
        sum(size)::BIGINT AS blob_bytes
    FROM (
        SELECT owner, name, 0 AS versions, 0 AS size FROM concepts WHERE NOT removed
        UNION ALL
        SELECT owner, any_value(name), count(*), any_value(blob_bytes)
        FROM concepts WHERE NOT removed GROUP BY owner, blob_digest
    ) GROUP BY owner ORDER BY blob_bytes DESC, owner LIMIT ?
"""
