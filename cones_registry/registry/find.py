"""Find: from refs and filters to versions."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import Any, Final

from cones_registry.catalog.copy import State
from cones_registry.catalog.fold import Version
from cones_registry.catalog.reader import any_of, concepts_of, run_query, versions_where
from cones_registry.catalog.tables import version_of
from cones_registry.digest import quote
from cones_registry.errors import NotFoundError, UsageError
from cones_registry.record import SCOPES, Concept
from cones_registry.refs import Ref, check_alias, check_name, parse_ref

AnyRef = str | Ref | Concept

NEWEST_FIRST: Final = "created DESC, owner, name, version DESC"


def as_ref(value: str | Ref | Concept, default_owner: str) -> Ref:
    """The ref a user gave, with an owner; a Concept stands for its own version."""
    if isinstance(value, Concept):
        return Ref(value.owner, value.name, version=value.version)
    ref = value if isinstance(value, Ref) else parse_ref(value)
    if ref.owner is None:
        return Ref(default_owner, ref.name, ref.version, ref.alias, ref.digest)
    return ref


def find_version(state: State, ref: Ref, *, removed: bool = False) -> Version:
    """The one version a ref names.

    Args:
        state: the local copy.
        ref: with an owner.
        removed: look among removed versions instead of those in use.

    Raises:
        NotFoundError: there is none; the message says what there is.
    """
    found = _matching(state, ref, "removed" if removed else "NOT removed")
    if found:
        return found[0]
    raise _not_found(state, ref, removed)


def find_versions(state: State, refs: Sequence[Ref]) -> list[Version]:
    """As `find_version` for each; those that say their version are looked up in one query."""
    exact = {(ref.owner, ref.name, ref.version) for ref in refs if ref.version is not None}
    known: dict[tuple[Any, ...], Version] = {}
    if len(exact) > 1:
        condition, params = any_of(("owner", "name", "version"), sorted(exact))
        for row in versions_where(state, f"{condition} AND NOT removed", params):
            known[row.record.place] = row
    return [
        known.get((ref.owner, ref.name, ref.version)) or find_version(state, ref) for ref in refs
    ]


def _matching(state: State, ref: Ref, condition: str) -> list[Version]:
    sql, params = "owner = ? AND name = ?", [ref.owner, ref.name]
    more: list[Any] = []
    if ref.version is not None:
        sql, more = sql + " AND version = ?", [ref.version]
    elif ref.digest is not None:
        sql, more = sql + " AND (mask_digest = ? OR blob_digest = ?)", [ref.digest, ref.digest]
    elif ref.alias is not None:
        sql += " AND version = (SELECT version FROM aliases WHERE owner = ? AND name = ?"
        sql, more = sql + " AND alias = ?)", [ref.owner, ref.name, ref.alias]
    # An exact version is one row, and sorting it takes as long as finding it.
    rest = "" if ref.version is not None else "ORDER BY pruned, version DESC LIMIT 1"
    return versions_where(state, f"{sql} AND {condition}", [*params, *more], rest=rest)


def _not_found(state: State, ref: Ref, removed: bool) -> NotFoundError:
    text = str(ref)
    gone = _matching(state, ref, "removed")
    if removed:
        if _matching(state, ref, "NOT removed"):
            return NotFoundError(f"{text!r} is not removed, so there is nothing to restore")
    elif gone:
        hint = "" if gone[0].pruned else f". To have it back: cones restore {gone[0].record.ref}"
        return NotFoundError(f"{gone[0].record.ref} was removed{hint}")
    rows = run_query(
        state,
        "SELECT max(version) AS newest, count(*) AS versions FROM concepts "
        "WHERE owner = ? AND name = ? AND NOT removed",
        [ref.owner, ref.name],
    ).to_pylist()
    if rows[0]["versions"]:
        what = "version" if ref.version else "alias" if ref.alias else "mask"
        return NotFoundError(
            f"no {what} {text!r}; the newest version is {rows[0]['newest']}. "
            f"See: cones list {ref.owner}/{ref.name}"
        )
    names = run_query(
        state,
        "SELECT DISTINCT owner || '/' || name AS path FROM concepts WHERE NOT removed "
        "AND (owner = ? OR name = ?) LIMIT 2000",
        [ref.owner, ref.name],
    ).to_pylist()
    path = f"{ref.owner}/{ref.name}"
    near = difflib.get_close_matches(path, [row["path"] for row in names], n=1, cutoff=0.5)
    hint = f"Did you mean {near[0]!r}?" if near else "See: cones list"
    asked = "" if text == path else f" ({quote(text)})"
    return NotFoundError(f"no concept {path}{asked}. {hint}")


def find(
    state: State,
    *,
    owner: str | None = None,
    name: str | None = None,
    tag: str | Iterable[str] | None = None,
    base: str | None = None,
    scope: str | None = None,
    alias: str | None = None,
    token: str | None = None,
    method: str | None = None,
    mask_digest: str | None = None,
    text: str | None = None,
    removed: bool = False,
    where: tuple[str, Sequence[Any]] | None = None,
    order_by: str = NEWEST_FIRST,
    limit: int | None = None,
    default_owner: str = "local",
) -> list[Concept]:
    """Versions that fit every condition given; see `Registry.find`."""
    conditions = ["removed" if removed else "NOT removed"]
    params: list[Any] = []

    def need(sql: str, *values: Any) -> None:
        conditions.append(sql)
        params.extend(values)

    if name is not None and "/" in name:
        ref = as_ref(name, default_owner)
        if ref.version or ref.alias or ref.digest or owner not in (None, ref.owner):
            raise UsageError(f"name is {quote(name)}; expected a concept's name or owner/name")
        owner, name = ref.owner, ref.name
    if owner is not None:
        need("owner = ?", check_name(owner, "owner"))
    if name is not None:
        need("name = ?", check_name(name, "name"))
    for each in (tag,) if isinstance(tag, str) else tag or ():
        need("list_contains(tags, ?)", each)
    if alias is not None:
        need(
            "(owner, name, version) IN (SELECT (owner, name, version) FROM aliases "
            "WHERE alias = ?)",
            check_alias(alias),
        )
    if scope is not None and scope not in SCOPES:
        raise UsageError(f"scope is {quote(scope)}; expected one of {', '.join(SCOPES)}")
    for column, value in (
        ("base", getattr(base, "fingerprint", base)),
        ("scope", scope),
        ("token", token),
        ("method", method),
        ("mask_digest", mask_digest),
    ):
        if value is not None:
            need(f"{column} = ?", value)
    if text is not None:
        need(
            "contains(lower(concat_ws(' ', owner, name, note, token, class_noun, "
            "array_to_string(tags, ' '))), lower(?))",
            text,
        )
    if where is not None:
        need(f"({where[0]})", *where[1])
    rest = f"ORDER BY {order_by}"
    if limit is not None:
        if type(limit) is not int or limit < 0:
            raise UsageError(f"limit is {quote(limit)}; expected a whole number of at least 0")
        rest += f" LIMIT {limit}"
    sql = f"SELECT * EXCLUDE (sketch) FROM concepts WHERE {' AND '.join(conditions)} {rest}"
    rows = run_query(state, sql, params).to_pylist()
    return concepts_of(state, [version_of(row) for row in rows])
