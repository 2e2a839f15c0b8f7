"""Keys: how every object of a registry is called on the store. Nothing else may be kept there.

    cones.json                                          format, registry id, first epoch
    bases/<sha256>.json                                 a base model's layer table
    bases/<sha256>.loaded.json                          the same, of one who had the weights
    masks/ab/<sha256>.parquet                           a mask and nothing else
    previews/ab/<sha256>.webp                           pictures that records point to
    versions/<owner>/<name>/<number>.json               the record of a version; claims the number
    aliases/<owner>/<name>/<alias>/<generation>.json    a move of an alias
    pushes/<owner>/<name>/<key digest>/<generation>.json  the push that a key stands for
    quotas/<owner>/<generation>.json                    the latest generation holds
    log/<stamp>.<sha256>.json.zst                       one commit each
    deletions/<stamp>.json                              masks that are about to be deleted
    purged/<name digest>/<number>.json                  numbers that are never given again
    receipts/<stamp>.json                               proof of a purge
    clocks/<random>                                     made and deleted to see the store's time

Manifests, their publications in ``log/``, and runs are named in ``chain`` and ``runs``.
"""

from __future__ import annotations

import hashlib
import re
from typing import Final

from cones_registry.digest import Digest, parse_digest

ROOT: Final = "cones.json"
BASES: Final = "bases/"
MASKS: Final = "masks/"
PREVIEWS: Final = "previews/"
VERSIONS: Final = "versions/"
ALIASES: Final = "aliases/"
PUSHES: Final = "pushes/"
QUOTAS: Final = "quotas/"
LOG: Final = "log/"
DELETIONS: Final = "deletions/"
PURGED: Final = "purged/"
RECEIPTS: Final = "receipts/"

_PART: Final = r"([a-z0-9][a-z0-9._-]{0,99})"
_NUMBER: Final = r"([1-9][0-9]{0,8})"
_BASE: Final = re.compile(r"bases/([0-9a-f]{64})(\.loaded)?\.json", re.ASCII)
_MASK: Final = re.compile(r"masks/([0-9a-f]{2})/([0-9a-f]{64})\.parquet", re.ASCII)
_VERSION: Final = re.compile(rf"versions/{_PART}/{_PART}/{_NUMBER}\.json", re.ASCII)
_ALIAS: Final = re.compile(rf"aliases/{_PART}/{_PART}/{_PART}/{_NUMBER}\.json", re.ASCII)
_PUSH: Final = re.compile(rf"pushes/{_PART}/{_PART}/([0-9a-f]{{64}})/{_NUMBER}\.json", re.ASCII)
_QUOTA: Final = re.compile(rf"quotas/{_PART}/{_NUMBER}\.json", re.ASCII)
_PURGED: Final = re.compile(rf"purged/([0-9a-f]{{64}})/{_NUMBER}\.json", re.ASCII)


def base_key(fingerprint: Digest) -> str:
    """What is known of a base model."""
    return f"{BASES}{_hex(fingerprint)}.json"


def loaded_base_key(fingerprint: Digest) -> str:
    """What somebody who had its weights says of a base model that was known by hearsay."""
    return f"{BASES}{_hex(fingerprint)}.loaded.json"


def mask_key(digest: Digest) -> str:
    """A mask object; ``digest`` is of its bytes."""
    return f"{MASKS}{_hex(digest)[:2]}/{_hex(digest)}.parquet"


def preview_key(digest: Digest) -> str:
    """A picture; ``digest`` is of its bytes."""
    return f"{PREVIEWS}{_hex(digest)[:2]}/{_hex(digest)}.webp"


def version_key(owner: str, name: str, number: int) -> str:
    """The record of a version."""
    return f"{VERSIONS}{owner}/{name}/{number}.json"


def alias_key(owner: str, name: str, alias: str, generation: int) -> str:
    """One move of an alias."""
    return f"{ALIASES}{owner}/{name}/{alias}/{generation}.json"


def push_key(owner: str, name: str, key: str, generation: int) -> str:
    """The push that a key stands for; the text of the key stands there as a digest only."""
    digest = hashlib.sha256(f"cones push key 1\n{owner}/{name}\n{key}".encode()).hexdigest()
    return f"{PUSHES}{owner}/{name}/{digest}/{generation}.json"


def quota_key(owner: str, generation: int) -> str:
    """What an owner may keep."""
    return f"{QUOTAS}{owner}/{generation}.json"


def purged_prefix(name_digest: Digest) -> str:
    """Folder of the numbers of a purged name."""
    return f"{PURGED}{_hex(name_digest)}/"


def purged_key(name_digest: Digest, number: int) -> str:
    """Says that numbers up to ``number`` of a purged name are never given again."""
    return f"{purged_prefix(name_digest)}{number}.json"


def deletion_key(stamp: str) -> str:
    """Names masks that are about to be deleted."""
    return f"{DELETIONS}{stamp}.json"


def receipt_key(stamp: str) -> str:
    """Proof of a purge."""
    return f"{RECEIPTS}{stamp}.json"


def folders_of(owner: str, name: str | None) -> list[str]:
    """Every folder whose name says the owner, or the one concept."""
    rest = f"{owner}/{name}/" if name else f"{owner}/"
    named = [f"{folder}{rest}" for folder in (VERSIONS, ALIASES, PUSHES)]
    return named if name else [*named, f"{QUOTAS}{owner}/"]


def base_of(key: str) -> Digest | None:
    """The fingerprint in the key of a base model, None for any other key."""
    match = _BASE.fullmatch(key)
    return f"sha256:{match[1]}" if match else None


def mask_of(key: str) -> Digest | None:
    """The digest in a mask object's key, None for any other key."""
    match = _MASK.fullmatch(key)
    return f"sha256:{match[2]}" if match and match[2].startswith(match[1]) else None


def version_of(key: str) -> tuple[str, str, int] | None:
    """(owner, name, number) in a record's key, None for any other key."""
    match = _VERSION.fullmatch(key)
    return (match[1], match[2], int(match[3])) if match else None


def alias_of(key: str) -> tuple[str, str, str, int] | None:
    """(owner, name, alias, generation) in the key of an alias's move, None for any other key."""
    match = _ALIAS.fullmatch(key)
    return (match[1], match[2], match[3], int(match[4])) if match else None


def push_of(key: str) -> tuple[str, str, str, int] | None:
    """(owner, name, key digest, generation) in the key of a keyed push, None for any other."""
    match = _PUSH.fullmatch(key)
    return (match[1], match[2], match[3], int(match[4])) if match else None


def quota_of(key: str) -> tuple[str, int] | None:
    """(owner, generation) in a quota's key, None for any other key."""
    match = _QUOTA.fullmatch(key)
    return (match[1], int(match[2])) if match else None


def purged_of(key: str) -> tuple[Digest, int] | None:
    """(name digest, number) in the key of a purged number, None for any other key."""
    match = _PURGED.fullmatch(key)
    return (f"sha256:{match[1]}", int(match[2])) if match else None


def _hex(digest: Digest) -> str:
    return parse_digest(digest).removeprefix("sha256:")
