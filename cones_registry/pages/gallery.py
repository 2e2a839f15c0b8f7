"""The gallery: a folder of plain pages with a card for every concept, servable from a bucket.

Written again, it changes only what changed: ``gallery.json`` beside the pages remembers what each
one was made from, and only files that it names are ever replaced or deleted.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

import fsspec

from cones_registry.digest import sha256_bytes
from cones_registry.errors import (
    ConesError,
    ConflictError,
    CorruptDataError,
    StoreUnavailableError,
)
from cones_registry.pages.templating import FOLDER, STYLE, Site, render
from cones_registry.pages.views import ConceptView, history_line, newest, provenance_facts, view
from cones_registry.quantities import counted

if TYPE_CHECKING:
    from cones_registry.catalog.history import Happening
    from cones_registry.record import Concept
    from cones_registry.registry import Registry

STATE: Final = "gallery.json"
FORMAT: Final = "cones gallery 1"
CARDS: Final = 120
"""Concepts on one page of cards."""
_LIKE: Final = 4
_CHANGES: Final = 50
_AT_A_TIME: Final = 1000  # versions read from the catalogue at a time
_WRITERS: Final = 8
_MOST_STATE_BYTES: Final = 256 << 20

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class GalleryReport:
    """What writing a gallery did.

    Attributes:
        concepts: cards.
        written, kept, deleted: files.
    """

    concepts: int
    written: int
    kept: int
    deleted: int


def write_gallery(
    registry: Registry,
    out: str | os.PathLike[str],
    *,
    title: str = "Concepts",
    where: tuple[str, tuple[Any, ...]] | None = None,
    similar: bool = True,
    on_progress: Progress | None = None,
    **storage_options: Any,
) -> GalleryReport:
    """Write a page of cards and a page for each concept; bring a gallery that is there up to date.

    Args:
        registry: whose concepts are shown.
        out: folder or URL; empty, or a gallery already.
        title: heading of the first page.
        where: an SQL condition over ``concepts`` and its values; None shows all.
        similar: whether a concept's page shows those most like it; each costs a comparison.
        on_progress: told (concepts done, concepts in all).
        storage_options: for the file system of ``out``.

    Raises:
        ConflictError: ``out`` holds other files and no gallery.
        CorruptDataError: its ``gallery.json`` cannot be read.
        StoreUnavailableError: ``out`` cannot be written.
    """
    with _Folder(out, storage_options) as folder:
        return _Gallery(registry, folder, title, where, similar, on_progress).write()


class _Gallery:
    """One run of writing a gallery."""

    def __init__(
        self,
        registry: Registry,
        folder: _Folder,
        title: str,
        where: tuple[str, tuple[Any, ...]] | None,
        similar: bool,
        on_progress: Progress | None,
    ) -> None:
        self._registry = registry
        self._folder = folder
        self._title = title
        self._where = where or ("true", ())
        self._similar = similar
        self._on_progress = on_progress
        self._shown: frozenset[str] = frozenset()
        self._history: tuple[str, dict[str, list[Happening]]] = "", {}
        # Templates and style are part of what a page is made from.
        sources = sorted((FOLDER / "templates").glob("*.html"))
        self._look = sha256_bytes(b"".join(path.read_bytes() for path in [*sources, STYLE]))

    def write(self) -> GalleryReport:
        self._shown = self._pages()
        total = len(self._shown)
        cards: list[ConceptView] = []
        page = done = 0
        self._folder.put("style.css", STYLE.read_bytes())
        for versions in self._concepts():
            cards.append(self._concept_page(versions))
            done += 1
            if len(cards) == CARDS:
                page += 1
                self._cards_page(cards, page, total)
                cards = []
            if self._on_progress is not None:
                self._on_progress(done, total)
        if cards or page == 0:
            self._cards_page(cards, page + 1, total)
        return self._folder.finish(done)

    def _pages(self) -> frozenset[str]:
        """The files of all concept pages of this run."""
        condition, values = self._where
        sql = f"SELECT DISTINCT owner, name FROM concepts WHERE {condition} AND NOT removed"
        found = self._registry.query(sql, values)
        pairs = zip(
            found.column("owner").to_pylist(), found.column("name").to_pylist(), strict=True
        )
        return frozenset(_concept_file(owner, name) for owner, name in pairs)

    def _concepts(self) -> Iterator[list[Concept]]:
        """The versions of each concept, concepts by owner and name; some at a time in memory."""
        condition, values = self._where
        after = ("", "")
        while True:
            found = self._registry.find(
                where=(f"({condition}) AND (owner, name) > (?, ?)", (*values, *after)),
                order_by="owner, name, version DESC",
                limit=_AT_A_TIME,
            )
            groups = [
                list(versions)
                for _, versions in groupby(found, lambda each: (each.owner, each.name))
            ]
            if len(found) == _AT_A_TIME:
                if len(groups) > 1:
                    groups.pop()  # perhaps not all of its versions: it comes again
                else:
                    owner, name = found[0].owner, found[0].name
                    groups = [self._registry.find(owner=owner, name=name)]
            yield from groups
            if len(found) < _AT_A_TIME:
                return
            after = groups[-1][0].owner, groups[-1][0].name

    def _concept_page(self, versions: list[Concept]) -> ConceptView:
        """Write the page of one concept, unless it is there as it would be; its card."""
        concept = newest(versions)
        card = view(concept)
        for digest in card.previews:
            self._folder.put_once(_preview_file(digest), partial(self._registry.preview, digest))
        path = _concept_file(concept.owner, concept.name)
        rows = [version.to_json() for version in versions]
        made_from = sha256_bytes(
            json.dumps([self._look, self._title, self._similar, rows], sort_keys=True).encode()
        )
        if not self._folder.is_current(path, made_from, self._shown):
            site = self._site(depth=2)
            alike = self._most_alike(concept)
            text = render(
                "concept.html",
                site,
                active="",
                concept=view(concept, mask=self._registry.pull(concept.ref)),
                versions=[view(version) for version in versions],
                provenance=provenance_facts(concept.provenance),
                history=[history_line(each) for each in self._changes(concept)],
                similar=[view(each) for each in alike],
            )
            leads_to = [_concept_file(each.owner, each.name) for each in alike]
            self._folder.put(path, text.encode(), made_from=made_from, leads_to=leads_to)
        return card

    def _changes(self, concept: Concept) -> list[Happening]:
        """The newest changes of a concept. Those of an owner are read once, as concepts come by."""
        owner, by_name = self._history
        if owner != concept.owner:
            by_name = {}
            for each in self._registry.history(owner=concept.owner):
                lines = by_name.setdefault(each.name, [])
                if len(lines) < _CHANGES:
                    lines.append(each)
            self._history = concept.owner, by_name
        return by_name.get(concept.name, [])

    def _most_alike(self, concept: Concept) -> list[Concept]:
        """The newest versions of concepts that are most like this one and shown as well."""
        if not self._similar:
            return []
        condition, values = self._where
        refs = [each.ref for each in self._registry.similar(concept.ref, limit=_LIKE)]
        found = {
            each.ref: each
            for each in self._registry.find(
                where=(f"({condition}) AND list_contains(?, ref)", (*values, refs))
            )
        }
        return [found[ref] for ref in refs if ref in found]

    def _cards_page(self, cards: list[ConceptView], page: int, total: int) -> None:
        last = max(1, -(-total // CARDS))
        pages = []
        for number in sorted({1, page - 1, page, page + 1, last} & set(range(1, last + 1))):
            rel = {page - 1: "prev", page + 1: "next"}.get(number, "")
            pages.append(
                {
                    "href": _cards_file(number),
                    "text": f"Page {number}",
                    "rel": rel,
                    "current": number == page,
                }
            )
        text = render(
            "concepts.html",
            self._site(depth=0),
            active="",
            heading=self._title,
            summary=f"{counted(total, 'concept')}, page {page} of {last}",
            problem="",
            concepts=cards,
            pages=pages if last > 1 else [],
        )
        self._folder.put(_cards_file(page), text.encode())

    def _site(self, *, depth: int) -> Site:
        """Links of a page that stands ``depth`` folders down."""
        up = "../" * depth
        return Site(
            title=self._title,
            home=f"{up}index.html",
            link=lambda name: f"{up}{name}",
            concept=lambda each: up + quote(_concept_file(each.owner, each.name)),
            preview=lambda digest: up + _preview_file(digest),
            footer="Written by cones gallery. The base model is never changed: a concept is a set "
            "of its weights that are shut.",
        )


def _cards_file(page: int) -> str:
    return "index.html" if page == 1 else f"page-{page}.html"


def _concept_file(owner: str, name: str) -> str:
    return f"concepts/{owner}/{name}.html"


def _preview_file(digest: str) -> str:
    return f"previews/{digest.partition(':')[2]}.webp"


class _Folder:
    """The files of a gallery: what is there, what was made from what, what is new.

    Used as a context manager; what was written is remembered even where a run is stopped.
    """

    def __init__(self, url: str | os.PathLike[str], storage_options: dict[str, Any]) -> None:
        self._url = os.fspath(url)
        try:
            self._fs, root = fsspec.core.url_to_fs(self._url, **storage_options)
        except (ImportError, OSError, ValueError) as error:
            raise StoreUnavailableError(f"cannot open {self._url}: {error}") from error
        self._root = root.rstrip("/")
        self._is_local = "file" in self._fs.protocol
        self._before = self._read_state()
        self._now: dict[str, dict[str, Any]] = {}
        self._written = 0
        self._writers = ThreadPoolExecutor(_WRITERS, thread_name_prefix="cones-gallery")
        self._writing: list[Future[None]] = []

    def __enter__(self) -> _Folder:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._writers.shutdown(cancel_futures=kind is not None)
        if kind is not None:
            with contextlib.suppress(ConesError):
                self._write_state({**self._before, **self._now})

    def is_current(self, path: str, made_from: str, shown: frozenset[str]) -> bool:
        """Keep a page that is there, made from the same, and leads only to pages that are shown."""
        entry = self._before.get(path)
        if (
            entry is None
            or entry["made_from"] != made_from
            or not shown.issuperset(entry["leads_to"])
        ):
            return False
        self._now[path] = entry
        return True

    def put(
        self, path: str, data: bytes, *, made_from: str = "", leads_to: list[str] | None = None
    ) -> None:
        """Write a file, unless it is there with the same content."""
        digest = sha256_bytes(data)
        entry = {"digest": digest, "made_from": made_from, "leads_to": leads_to or []}
        self._now[path] = entry
        if self._before.get(path, {}).get("digest") != digest:
            self._submit(path, data)

    def put_once(self, path: str, make: Callable[[], bytes]) -> None:
        """Write a file whose name says its content, unless it is there."""
        if path in self._now:
            return
        if path in self._before:
            self._now[path] = self._before[path]
            return
        self.put(path, make())

    def finish(self, concepts: int) -> GalleryReport:
        """Wait for what is being written, delete what is no longer part, remember all."""
        self._wait(self._writing)
        gone = [path for path in self._before if path not in self._now]
        self._write_state(self._now)
        for path in gone:
            with contextlib.suppress(FileNotFoundError):
                self._translated(path, partial(self._fs.rm_file, self._at(path)))
        return GalleryReport(concepts, self._written, len(self._now) - self._written, len(gone))

    def _submit(self, path: str, data: bytes) -> None:
        self._written += 1
        self._writing.append(self._writers.submit(self._write, path, data))
        if len(self._writing) >= 8 * _WRITERS:
            self._wait(self._writing)

    def _wait(self, writing: list[Future[None]]) -> None:
        while writing:
            writing.pop().result()

    def _write(self, path: str, data: bytes) -> None:
        self._translated(path, partial(self._replace, path, data))

    def _replace(self, path: str, data: bytes) -> None:
        """A reader sees the file before or after, on a disk too."""
        if not self._is_local:
            self._fs.pipe_file(self._at(path), data)
            return
        target = Path(self._at(path))
        target.parent.mkdir(parents=True, exist_ok=True)
        aside = target.with_name(f".{target.name}.{os.getpid()}.new")
        aside.write_bytes(data)
        aside.replace(target)

    def _read_state(self) -> dict[str, dict[str, Any]]:
        place = self._at(STATE)
        try:
            if self._fs.size(place) > _MOST_STATE_BYTES:
                raise CorruptDataError(
                    f"{place} is larger than any gallery's. Write to another --out"
                )
            content = json.loads(self._fs.cat_file(place))
        except FileNotFoundError:
            self._require_empty()
            return {}
        except (ValueError, RecursionError) as error:
            raise CorruptDataError(
                f"{place} is not what cones gallery wrote: {error}. Write to another folder"
            ) from error
        except OSError as error:
            raise StoreUnavailableError(f"cannot read {place}: {error}") from error
        files = content.get("files") if isinstance(content, dict) else None
        if not isinstance(files, dict) or content.get("format") != FORMAT:
            raise CorruptDataError(f"{place} is of no gallery. Write to another folder")
        return {path: entry for path, entry in files.items() if _is_entry(path, entry)}

    def _require_empty(self) -> None:
        try:
            there = self._fs.ls(self._root, detail=False)
        except FileNotFoundError:
            return
        except OSError as error:
            raise StoreUnavailableError(f"cannot read {self._url}: {error}") from error
        if there:
            raise ConflictError(
                f"{self._url} holds other files and no gallery. Name an empty folder, or a new one"
            )

    def _write_state(self, files: dict[str, dict[str, Any]]) -> None:
        text = json.dumps({"format": FORMAT, "files": files}, sort_keys=True)
        self._write(STATE, text.encode())

    def _translated(self, path: str, action: Callable[[], None]) -> None:
        try:
            action()
        except FileNotFoundError:
            raise
        except OSError as error:
            raise StoreUnavailableError(f"cannot write {self._at(path)}: {error}") from error

    def _at(self, path: str) -> str:
        return f"{self._root}/{path}"


def _is_entry(path: str, entry: Any) -> bool:
    """Whether the state's line is one of ours: it decides what may be deleted."""
    inside = not path.startswith("/") and ".." not in path.split("/")
    return (
        inside
        and isinstance(entry, dict)
        and isinstance(entry.get("digest"), str)
        and isinstance(entry.get("made_from"), str)
        and isinstance(entry.get("leads_to"), list)
    )
