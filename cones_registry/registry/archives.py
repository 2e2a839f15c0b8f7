"""Archives: concepts as one self-contained file, `.tar.zst`, to carry between registries.

    cones-archive.json        format and the list of concepts, each with its blob's digest
    bases/<sha256>.json       base models, as in a registry
    blobs/<sha256>.parquet    masks

Reading one writes nothing to disk but what is pushed: members are read by exact name, so links,
absolute paths and `..` have nowhere to lead; anything unexpected is refused.
"""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import zstandard
from ulid import ULID

from cones_registry.catalog.copy import State
from cones_registry.catalog.documents import seal, unseal
from cones_registry.catalog.events import RECORD_KEYS
from cones_registry.catalog.fold import Version
from cones_registry.catalog.reader import versions_where
from cones_registry.codec import decode, read_ranks
from cones_registry.digest import Digest, require_digest
from cones_registry.errors import (
    BaseModelMismatchError,
    CorruptDataError,
    StoreUnavailableError,
)
from cones_registry.layers import LayerTable
from cones_registry.manifest import Concept, Provenance, Ref
from cones_registry.mask import ConceptMask
from cones_registry.ranking import Ranks
from cones_registry.registry.archive_members import INDEX, read_members
from cones_registry.registry.bases import Bases, encode_base, parse_parameters
from cones_registry.registry.drafts import Push
from cones_registry.registry.histories import history_of
from cones_registry.registry.ledger import Ledger
from cones_registry.registry.lookup import as_ref, find, find_versions
from cones_registry.registry.pushing import Pusher


@dataclass(frozen=True)
class ArchiveReport:
    """What an archive holds: concepts, distinct blobs, and its size in bytes."""

    concepts: int
    blobs: int
    size: int


@dataclass(frozen=True)
class _Source:
    """The base of an imported mask, as `push` takes it."""

    fingerprint: Digest
    layer_table: LayerTable
    published_source: str | None
    parameters: int | None


def export_archive(
    ledger: Ledger,
    bases: Bases,
    path: str | os.PathLike[str],
    refs: Iterable[str | Ref | Concept] | None,
    default_owner: str,
) -> ArchiveReport:
    """Write concepts to `path`, whole or not at all; see `Registry.export_archive`."""
    state = ledger.fresh()
    if refs is None:
        concepts = find(state)
    else:
        versions = find_versions(state, [as_ref(ref, default_owner) for ref in refs])
        concepts = [_plain(version.record, version.tags) for version in versions]
    blobs = list(dict.fromkeys(concept.blob_digest for concept in concepts))
    fingerprints = sorted({concept.base for concept in concepts})
    index = {
        "concepts": [concept.to_json() for concept in concepts],
        "bases": fingerprints,
        "from": ledger.registry_id,
    }
    target = Path(path)
    aside = target.with_name(f".{target.name}.{ULID()}")
    try:
        with aside.open("wb") as file:
            with (
                zstandard.ZstdCompressor(level=1).stream_writer(file, closefd=False) as packed,
                tarfile.open(fileobj=packed, mode="w|", format=tarfile.PAX_FORMAT) as archive,
            ):
                _add(archive, INDEX, seal("archive", index))
                for fingerprint in fingerprints:
                    _add(archive, _base_member(fingerprint), encode_base(bases.get(fingerprint)))
                for digest, data in ledger.blobs.get_many(blobs):
                    _add(archive, _blob_member(digest), data)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(target)
    except OSError as error:
        raise StoreUnavailableError(f"cannot write {target}: {error}") from error
    finally:
        aside.unlink(missing_ok=True)
    return ArchiveReport(len(concepts), len(blobs), target.stat().st_size)


def _plain(record: dict[str, Any], tags: list[str]) -> Concept:
    return Concept.from_json({**record, "tags": tags})


def _add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    archive.addfile(member, io.BytesIO(data))


def _base_member(fingerprint: Digest) -> str:
    return f"bases/{fingerprint.removeprefix('sha256:')}.json"


def _blob_member(digest: Digest) -> str:
    return f"blobs/{digest.removeprefix('sha256:')}.parquet"


def import_archive(
    ledger: Ledger, pusher: Pusher, path: str | os.PathLike[str], owner: str | None
) -> list[Concept]:
    """Push what an archive holds; see `Registry.import_archive`."""
    ledger.require_writable()
    members = read_members(Path(path))
    try:
        name, data = next(members)
    except StopIteration:
        raise CorruptDataError(f"{path} is an empty archive") from None
    if name != INDEX:
        raise CorruptDataError(f"{path} starts with {name[:100]!a}; expected {INDEX}")
    index = unseal("archive", data, f"{path}: {INDEX}")
    listed = index.get("concepts")
    if not isinstance(listed, list):
        raise CorruptDataError(f"{path}: its index lists no concepts")
    concepts = [_listed(each) for each in listed]
    wanted_blobs = {_blob_member(concept.blob_digest): concept for concept in concepts}
    wanted_bases = {_base_member(concept.base) for concept in concepts}
    masks: dict[Digest, ConceptMask] = {}
    histories: dict[Digest, tuple[Any, ...]] = {}
    ranks: dict[Digest, Ranks | None] = {}
    bases: dict[Digest, _Source] = {}
    for name, data in members:
        if name in wanted_bases:
            base = _parse_base(name, data)
            bases[base.fingerprint] = base
        elif name in wanted_blobs:
            digest = wanted_blobs[name].blob_digest
            require_digest(data, digest, f"{name} in {path}")
            masks[digest] = decode(data)
            histories[digest] = history_of(data)
            ranks[digest] = read_ranks(data)
        else:
            raise CorruptDataError(f"{path} holds {name[:100]!a}, which its index does not name")
    pushes = [
        _push(path, concept, masks, histories, ranks, bases, owner)
        for concept in _oldest_first(concepts)
    ]
    here = _versions_here(ledger.fresh_now(), pushes)
    pushed = iter(
        pusher.push_many(
            push for push, version in zip(pushes, here, strict=True) if version is None
        )
    )
    return [
        next(pushed) if version is None else _plain(version.record, version.tags)
        for version in here
    ]


def _versions_here(state: State, pushes: list[Push]) -> list[Version | None]:
    """For each push, oldest first, the version that is here already.

    Of each concept the oldest versions are, as far as they are here in the archive's order. From
    the first that is not, all are new: so the newest of the archive is the newest here, and an
    archive that was imported is found whole.
    """
    left: dict[str, list[Version]] = {}
    found: list[Version | None] = []
    for push in pushes:
        if push.ref not in left:
            ref = as_ref(push.ref, "local")
            left[push.ref] = versions_where(
                state,
                "owner = ? AND name = ? AND NOT removed",
                [ref.owner, ref.name],
                rest="ORDER BY version",
            )
        versions = left[push.ref]
        position = next((i for i, each in enumerate(versions) if _is_same(each, push)), None)
        found.append(None if position is None else versions[position])
        left[push.ref] = [] if position is None else versions[position + 1 :]
    return found


def _is_same(version: Version, push: Push) -> bool:
    """Whether a version is in every way of use what a push would make."""
    record = version.record
    base = push.mask.table.digest if push.base is None else push.base.fingerprint
    return (
        record["mask_digest"] == push.mask.digest
        and record["base"] == base
        and record["scope"] == push.scope
        and record["token"] == push.token
        and record["class_noun"] == push.class_noun
        # One without scores cannot be cut; one with them can stand for one without.
        and (record["ranked"] or push.scores is None)
    )


def _oldest_first(concepts: list[Concept]) -> list[Concept]:
    return sorted(concepts, key=lambda concept: (concept.owner, concept.name, concept.version))


def _push(
    path: Any,
    concept: Concept,
    masks: dict[Digest, ConceptMask],
    histories: dict[Digest, tuple[Any, ...]],
    ranks: dict[Digest, Ranks | None],
    bases: dict[Digest, _Source],
    owner: str | None,
) -> Push:
    mask, base = masks.get(concept.blob_digest), bases.get(concept.base)
    if mask is None or base is None:
        raise CorruptDataError(f"{path} lacks the mask or the base model of {concept.ref}")
    if mask.digest != concept.mask_digest:
        raise CorruptDataError(f"{path}: {concept.ref} is {concept.mask_digest}, not {mask.digest}")
    if base.layer_table != mask.table:
        raise BaseModelMismatchError(f"{path}: {concept.ref} does not fit its base {concept.base}")
    provenance = concept.provenance
    if provenance is not None and histories[concept.blob_digest]:
        provenance = Provenance(
            **{**provenance.__dict__, "history": histories[concept.blob_digest]}
        )
    return Push(
        f"{owner or concept.owner}/{concept.name}",
        mask,
        base=None if base.fingerprint == mask.table.digest else base,
        scope=concept.scope,
        tags=concept.tags,
        note=concept.note,
        token=concept.token,
        class_noun=concept.class_noun,
        provenance=provenance,
        scores=ranks[concept.blob_digest],
    )


def _parse_base(name: str, data: bytes) -> _Source:
    body = unseal("base", data, name)
    source = body.get("source")
    fingerprint = body.get("fingerprint")
    if not isinstance(fingerprint, str) or _base_member(fingerprint) != name:
        raise CorruptDataError(f"{name} speaks of {str(fingerprint)[:100]!a}")
    return _Source(
        fingerprint,
        LayerTable.from_json(body.get("table")),
        source if isinstance(source, str) else None,
        parse_parameters(body.get("parameters")),
    )


def _listed(value: Any) -> Concept:
    """A concept of an archive's index."""
    if not isinstance(value, dict):
        raise CorruptDataError("an archive's index lists something that is no concept")
    return Concept.from_json({key: each for key, each in value.items() if key in RECORD_KEYS})
