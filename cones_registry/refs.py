"""Refs: how people name one version of one concept.

A ref is `[owner/]name`, then nothing (the newest version), `:3` (a version), `:prod` (an alias) or
`@sha256:…` (a mask digest).
"""

import re
from dataclasses import dataclass
from typing import Final

from cones_registry.digest import Digest, parse_digest, quote
from cones_registry.errors import UsageError

MAX_PART_LENGTH: Final = 100
MAX_VERSION: Final = 999_999_999

_PART: Final = re.compile(r"[a-z0-9][a-z0-9._-]*", re.ASCII)
_DIGITS: Final = re.compile(r"[0-9]+", re.ASCII)
_PART_RULE: Final = (
    f"1 to {MAX_PART_LENGTH} of the letters a-z, digits, '.', '_' and '-', "
    "starting with a letter or digit and without '..'"
)
_REF_RULE: Final = "[owner/]name, [owner/]name:version, [owner/]name:alias or [owner/]name@sha256:…"


@dataclass(frozen=True, slots=True)
class Ref:
    """A parsed ref. At most one of version, alias and digest is set; none means the newest version.

    `owner` is None where the ref did not give one; a registry then takes its default owner.
    """

    owner: str | None
    name: str
    version: int | None = None
    alias: str | None = None
    digest: Digest | None = None

    def __post_init__(self) -> None:
        if self.owner is not None:
            check_name(self.owner, "owner")
        check_name(self.name, "name")
        if sum(part is not None for part in (self.version, self.alias, self.digest)) > 1:
            raise UsageError("a ref has a version, an alias or a digest, not several of them")
        if self.version is not None and not 1 <= self.version <= MAX_VERSION:
            raise UsageError(
                f"no version {self.version}; versions are numbered from 1 to {MAX_VERSION}"
            )
        if self.alias is not None:
            check_alias(self.alias)
        if self.digest is not None:
            parse_digest(self.digest)

    def format(self) -> str:
        """The ref as text; `parse_ref` of it gives an equal ref."""
        text = self.name if self.owner is None else f"{self.owner}/{self.name}"
        if self.digest is not None:
            return f"{text}@{self.digest}"
        suffix = self.version if self.version is not None else self.alias
        return text if suffix is None else f"{text}:{suffix}"

    __str__ = format


def parse_ref(text: str) -> Ref:
    """Parse `[owner/]name[:version|:alias]` or `[owner/]name@sha256:…`.

    Raises:
        UsageError: anything else; the message says which part is wrong and what is allowed.
    """
    if not isinstance(text, str) or not text:
        raise UsageError(f"{quote(text)} is not a ref. Expected {_REF_RULE}")
    path, at, digest = text.partition("@")
    path, colon, suffix = path.partition(":")
    owner, slash, name = path.rpartition("/")
    if at and colon:
        raise UsageError(f"{quote(text)} has both ':' and '@'. Expected {_REF_RULE}")
    if slash:
        check_name(owner, "owner")
    check_name(name, "name")
    known_owner = owner if slash else None
    if at:
        return Ref(known_owner, name, digest=parse_digest(digest))
    if not colon:
        return Ref(known_owner, name)
    if _DIGITS.fullmatch(suffix):
        # Length first: int() of ten thousand digits is an error of its own.
        if suffix.startswith("0") or len(suffix) > len(str(MAX_VERSION)):
            raise UsageError(
                f"{quote(suffix)} is not a version. Versions are written 1 to {MAX_VERSION}, "
                "without leading zeros"
            )
        return Ref(known_owner, name, version=int(suffix))
    return Ref(known_owner, name, alias=check_alias(suffix))


def check_name(text: str, what: str) -> str:
    """Return `text` if it can name an owner or a concept, else raise `UsageError`.

    Args:
        text: the name.
        what: "owner", "name" or "alias", for the message.
    """
    if not isinstance(text, str):
        raise UsageError(f"{what} must be text, got {quote(text)}. Allowed: {_PART_RULE}")
    if not text:
        raise UsageError(f"{what} is empty. Allowed: {_PART_RULE}")
    if len(text) > MAX_PART_LENGTH:
        raise UsageError(f"{what} has {len(text)} characters. Allowed: {_PART_RULE}")
    if ".." in text or _PART.fullmatch(text) is None:
        raise UsageError(f"{what} {quote(text)} {_what_is_wrong(text)}. Allowed: {_PART_RULE}")
    return text


def check_alias(text: str) -> str:
    """Return `text` if it can be an alias, else raise `UsageError`."""
    check_name(text, "alias")
    if _DIGITS.fullmatch(text):
        raise UsageError(
            f"alias {quote(text)} would read as a version number. "
            f"Put a letter in it, as in 'v{text}'"
        )
    return text


def _what_is_wrong(text: str) -> str:
    for character in text:
        if _PART.fullmatch("a" + character) is None:
            if character.isascii() and character.isupper():
                return f"has the capital letter {character!r}"
            return f"has the character {character!a} (U+{ord(character):04X})"
    return "contains '..'" if ".." in text else f"starts with {text[0]!r}"
