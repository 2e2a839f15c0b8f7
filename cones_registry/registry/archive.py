"""Archives: concepts as one self-contained file, `.tar.zst`, to carry between registries.

    cones-archive.json        format and the list of concepts: their records
    bases/<sha256>.json       base models, as in a registry
    masks/<sha256>.parquet    mask objects
    previews/<sha256>.webp    pictures of the concepts; one that is lost stops nothing

Reading one writes nothing to disk but what is pushed: members are read by exact name, so links,
absolute paths and `..` have nowhere to lead; anything unexpected is refused. Archives of format 1,
as version 0.1 wrote them, are read too: their masks lie below `blobs/`, and loss histories in the
footers of those.
"""

from __future__ import annotations

import dataclasses
import io
import os
import tarfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import zstandard
from ulid import ULID

from cones_registry.catalog.copy import State
from cones_registry.catalog.documents import parse_json, seal, unseal
from cones_registry.catalog.fold import Version
from cones_registry.catalog.keys import preview_key
from cones_registry.catalog.reader import concept_of, versions_where
from cones_registry.codec import decode, read_footer, read_ranks
from cones_registry.digest import Digest, require_digest
from cones_registry.errors import (
    BaseModelMismatchError,
    CorruptDataError,
    StoreUnavailableError,
)
from cones_registry.layers import LayerTable
from cones_registry.mask import ConceptMask
from cones_registry.ranking import Ranks
from cones_registry.record import Concept, Provenance, parse
from cones_registry.refs import Ref
from cones_registry.registry import claims
from cones_registry.registry.archive_members import INDEX, read_members
from cones_registry.registry.bases import Bases, encode_base, parse_parameters
from cones_registry.registry.drafts import Push
from cones_registry.registry.find import as_ref, find, find_versions
from cones_registry.registry.push import Pusher
from cones_registry.registry.session import Session


@dataclass(frozen=True)
class ArchiveReport:
    """What an archive holds: concepts, distinct blobs, and its size in bytes."""

    concepts: int
    blobs: int
    size: int


@dataclass(frozen=True)
class _Source:
    """The base of an imported mask, as `push` takes it.

    What an archive says of where to load it from is not taken over: the record of a base model is
    written once, so a stranger would decide for ever which hub model `generate` loads. ``demo`` is
    this package's own.
    """

    fingerprint: Digest
    layer_table: LayerTable
    published_source: str | None
    parameters: int | None
    is_said: bool = True


def export_archive(
    session: Session,
    bases: Bases,
    path: str | os.PathLike[str],
    refs: Iterable[str | Ref | Concept] | None,
    default_owner: str,
) -> ArchiveReport:
    """Write concepts to `path`, whole or not at all; see `Registry.export_archive`."""
    state = session.fresh()
    if refs is None:
        concepts = find(state)
    else:
        versions = find_versions(state, [as_ref(ref, default_owner) for ref in refs])
        concepts = [concept_of(version) for version in versions]
    concepts = [_whole(session, concept) for concept in concepts]
    blobs = list(dict.fromkeys(concept.blob_digest for concept in concepts))
    fingerprints = sorted({concept.base for concept in concepts})
    index = {
        "concepts": [concept.dump() for concept in concepts],
        "bases": fingerprints,
        "from": session.registry_id,
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
                for digest, data in session.watched(
                    "exporting", session.masks.get_many(blobs), len(blobs)
                ):
                    _add(archive, _mask_member(digest), data)
                pictures = dict.fromkeys(d for concept in concepts for d in concept.previews)
                keys = [preview_key(digest) for digest in pictures]
                for digest, (_, found) in zip(pictures, session.store.get_many(keys), strict=True):
                    if found is not None:
                        _add(archive, _preview_member(digest), found)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(target)
    except OSError as error:
        raise StoreUnavailableError(f"cannot write {target}: {error}") from error
    finally:
        aside.unlink(missing_ok=True)
    return ArchiveReport(len(concepts), len(blobs), target.stat().st_size)


def _whole(session: Session, concept: Concept) -> Concept:
    """A version with its loss history, and without what other versions of it are called."""
    provenance = concept.provenance
    if concept.history_steps:
        provenance = claims.read_record(session.store, *concept.place).provenance
    return dataclasses.replace(concept, provenance=provenance, aliases=())


def _add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    archive.addfile(member, io.BytesIO(data))


def _base_member(fingerprint: Digest) -> str:
    return f"bases/{fingerprint.removeprefix('sha256:')}.json"


def _mask_member(digest: Digest) -> str:
    return f"masks/{digest.removeprefix('sha256:')}.parquet"


def _preview_member(digest: Digest) -> str:
    return f"previews/{digest.removeprefix('sha256:')}.webp"


def import_archive(
    session: Session, pusher: Pusher, path: str | os.PathLike[str], owner: str | None
) -> list[Concept]:
    """Push what an archive holds; see `Registry.import_archive`."""
    session.require_writable()
    members = read_members(Path(path))
    try:
        name, data = next(members)
    except StopIteration:
        raise CorruptDataError(f"{path} is an empty archive") from None
    if name != INDEX:
        raise CorruptDataError(f"{path} starts with {name[:100]!a}; expected {INDEX}")
    index, is_first = _index(path, data)
    listed = index.get("concepts")
    if not isinstance(listed, list):
        raise CorruptDataError(f"{path}: its index lists no concepts")
    concepts = [Concept.from_json(each) for each in listed]
    folder = "blobs/" if is_first else "masks/"
    wanted_masks = {folder + _mask_member(c.blob_digest).rpartition("/")[2]: c for c in concepts}
    wanted_bases = {_base_member(concept.base) for concept in concepts}
    wanted_previews = {_preview_member(d): d for concept in concepts for d in concept.previews}
    masks: dict[Digest, ConceptMask] = {}
    histories: dict[Digest, tuple[Any, ...]] = {}
    ranks: dict[Digest, Ranks | None] = {}
    bases: dict[Digest, _Source] = {}
    previews: dict[Digest, bytes] = {}
    total = len(wanted_bases) + len(wanted_masks) + len(wanted_previews)
    for name, data in session.watched("reading the archive", members, total):
        if name in wanted_bases:
            base = _parse_base(name, data)
            bases[base.fingerprint] = base
        elif name in wanted_masks:
            digest = wanted_masks[name].blob_digest
            require_digest(data, digest, f"{name} in {path}")
            masks[digest] = decode(data)
            histories[digest] = _history_of(data) if is_first else ()
            ranks[digest] = read_ranks(data)
        elif name in wanted_previews:
            require_digest(data, wanted_previews[name], f"{name} in {path}")
            previews[wanted_previews[name]] = data
        else:
            raise CorruptDataError(f"{path} holds {name[:100]!a}, which its index does not name")
    pushes = [
        _push(path, concept, masks, histories, ranks, bases, previews, owner)
        for concept in _oldest_first(concepts)
    ]
    here = _versions_here(session.fresh_now(), pushes)
    pushed = iter(
        pusher.push_many(
            (push for push, version in zip(pushes, here, strict=True) if version is None),
            verb="import",
        )
    )
    return [next(pushed) if version is None else concept_of(version) for version in here]


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
        record.mask_digest == push.mask.digest
        and record.base == base
        and record.scope == push.scope
        and record.token == push.token
        and record.class_noun == push.class_noun
        # One without scores cannot be cut; one with them can stand for one without.
        and (record.ranked or push.scores is None)
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
    previews: dict[Digest, bytes],
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
        provenance = dataclasses.replace(provenance, history=histories[concept.blob_digest])
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
        previews=tuple(previews[digest] for digest in concept.previews if digest in previews),
    )


def _parse_base(name: str, data: bytes) -> _Source:
    body = unseal("base", data, name)
    fingerprint = body.get("fingerprint")
    if not isinstance(fingerprint, str) or _base_member(fingerprint) != name:
        raise CorruptDataError(f"{name} speaks of {str(fingerprint)[:100]!a}")
    return _Source(
        fingerprint,
        LayerTable.from_json(body.get("table")),
        "demo" if body.get("source") == "demo" else None,
        parse_parameters(body.get("parameters")),
    )


def _index(path: Any, data: bytes) -> tuple[dict[str, Any], bool]:
    """(the index of an archive, whether version 0.1 wrote it)."""
    source = f"{path}: {INDEX}"
    document = parse_json(data, source)
    if isinstance(document, dict) and document.get("format") == "cones-archive/1":
        return unseal("archive", data, source, version=1), True
    return unseal("archive", data, source), False


def _history_of(data: bytes) -> tuple[Mapping[str, Any], ...]:
    """The loss history that version 0.1 kept in a mask's footer."""
    concept = read_footer(data).get("concept") or {}
    provenance = concept.get("provenance") or {"method": ""}
    return parse(provenance, Provenance, "a provenance in a mask's footer").history
