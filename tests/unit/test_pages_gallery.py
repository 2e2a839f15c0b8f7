"""The gallery: what it shows, what it escapes, what it writes again."""

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest

from cones_registry import ConceptMask, LayerTable, Registry
from cones_registry.errors import ConflictError, CorruptDataError
from cones_registry.pages import gallery, write_gallery

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(1)> \"' & {{ 7 * 7 }}"


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry.create(tmp_path / "registry", cache=tmp_path / "cache")


def mask_of(number: int) -> ConceptMask:
    table = LayerTable.from_shapes({"block.attn2.to_k": (16, 8), "block.attn2.to_v": (16, 8)})
    chosen = np.arange(number, number + 9, dtype=np.int32)
    return ConceptMask.from_indices(table, {"block.attn2.to_k": chosen})


class Page(HTMLParser):
    """Links and text of a page; fails on anything that runs."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.words = ""
        self.feed(path.read_text("utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag not in ("script", "iframe", "object", "embed"), tag
        for name, value in attrs:
            assert not name.startswith("on"), (tag, name)
            if name in ("href", "src") and value is not None:
                assert not value.startswith(("javascript:", "data:", "http")), value
                self.links.append(value)

    def handle_data(self, data: str) -> None:
        self.words += data


def pages_below(folder: Path) -> dict[Path, Page]:
    return {path: Page(path) for path in sorted(folder.rglob("*.html"))}


def test_every_concept_has_a_card_and_a_page_and_every_link_leads_somewhere(
    registry: Registry, tmp_path: Path
) -> None:
    registry.push("alice/dog", mask_of(0), token="sks", class_noun="dog", scope="subject")
    registry.push("alice/dog", mask_of(3), token="sks", class_noun="dog", scope="subject")
    registry.push("bob/cat", mask_of(5), note="of bob", scope="prompt")
    report = write_gallery(registry, tmp_path / "out", title="Ours")
    assert report.concepts == 2
    pages = pages_below(tmp_path / "out")
    assert {path.relative_to(tmp_path / "out").as_posix() for path in pages} == {
        "index.html",
        "concepts/alice/dog.html",
        "concepts/bob/cat.html",
    }
    for path, page in pages.items():
        for link in page.links:
            assert link.startswith("#") or (path.parent / link).is_file(), (path, link)
    dog = pages[tmp_path / "out/concepts/alice/dog.html"].words
    assert "a sks dog" in dog and "<alice/dog>" in dog
    assert "2" in dog and "bob/cat" in dog


def test_a_page_tells_the_changes_of_its_own_concept_alone(
    registry: Registry, tmp_path: Path
) -> None:
    for number, ref in enumerate(("alice/a", "alice/b", "bob/a")):
        registry.push(ref, mask_of(number), scope="prompt")
    registry.alias("alice/b:1", "prod")
    registry.tag("alice/a", add=["sea"])
    write_gallery(registry, tmp_path / "out")
    told = {
        path.relative_to(tmp_path / "out/concepts").as_posix(): {
            kind for kind in ("push", "alias", "tag") if f"{kind} of version 1" in page.words
        }
        for path, page in pages_below(tmp_path / "out/concepts").items()
    }
    assert told == {
        "alice/a.html": {"push", "tag"},
        "alice/b.html": {"push", "alias"},
        "bob/a.html": {"push"},
    }


def test_hostile_notes_tags_and_words_are_shown_as_text(registry: Registry, tmp_path: Path) -> None:
    registry.push(
        "eve/x", mask_of(0), note=HOSTILE, token="sks", class_noun=HOSTILE, scope="prompt"
    )
    write_gallery(registry, tmp_path / "out", title=HOSTILE)
    for page in pages_below(tmp_path / "out").values():
        assert HOSTILE in page.words


def test_a_second_run_writes_only_what_changed(registry: Registry, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for number in range(4):
        registry.push(f"alice/c{number}", mask_of(10 * number), scope="prompt")
    write_gallery(registry, out, similar=False)
    again = write_gallery(registry, out, similar=False)
    assert (again.written, again.deleted) == (0, 0)
    registry.push("alice/c1", mask_of(77), scope="prompt")
    times = {path: path.stat().st_mtime_ns for path in out.rglob("*.html")}
    changed = write_gallery(registry, out, similar=False)
    newer = {path.name for path, time in times.items() if path.stat().st_mtime_ns != time}
    assert newer == {"c1.html", "index.html"} and changed.written == 2


def test_what_was_removed_loses_its_page_and_pages_that_led_there_are_made_again(
    registry: Registry, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    registry.push("alice/a", mask_of(0), scope="prompt")
    registry.push("alice/b", mask_of(1), scope="prompt")
    write_gallery(registry, out)
    assert "alice/b" in Page(out / "concepts/alice/a.html").words
    registry.remove("alice/b")
    write_gallery(registry, out)
    assert not (out / "concepts/alice/b.html").exists()
    assert "alice/b" not in Page(out / "concepts/alice/a.html").words


def test_many_concepts_are_spread_over_pages_that_lead_to_each_other(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gallery, "CARDS", 3)
    monkeypatch.setattr(gallery, "_AT_A_TIME", 4)
    for number in range(7):
        registry.push(f"alice/c{number}", mask_of(number), scope="prompt")
        registry.push(f"alice/c{number}", mask_of(number + 1), scope="prompt")
    report = write_gallery(registry, tmp_path / "out", similar=False)
    pages = [Page(tmp_path / "out" / name) for name in ("index.html", "page-2.html", "page-3.html")]
    shown = [
        f"alice/c{number}"
        for page in pages
        for number in range(7)
        if f"alice/c{number}" in page.words
    ]
    assert report.concepts == 7 and shown == [f"alice/c{number}" for number in range(7)]
    assert "page-2.html" in pages[0].links and "index.html" in pages[2].links


def test_files_of_others_are_neither_deleted_nor_written_over(
    registry: Registry, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.txt").write_text("mine")
    with pytest.raises(ConflictError, match="holds other files"):
        write_gallery(registry, out)
    (out / "thesis.txt").unlink()
    write_gallery(registry, out)
    (out / "thesis.txt").write_text("mine")
    write_gallery(registry, out)
    assert (out / "thesis.txt").read_text() == "mine"


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{",
        '{"format": "other", "files": {}}',
        '{"format": "cones gallery 1", "files": 3}',
    ],
)
def test_a_state_that_cannot_be_read_is_said_and_left_alone(
    registry: Registry, tmp_path: Path, content: str
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "gallery.json").write_text(content)
    with pytest.raises(CorruptDataError, match=r"gallery\.json"):
        write_gallery(registry, out)
    assert (out / "gallery.json").read_text() == content


def test_a_state_from_outside_cannot_name_files_to_delete(
    registry: Registry, tmp_path: Path
) -> None:
    out, victim = tmp_path / "out", tmp_path / "victim.txt"
    out.mkdir()
    victim.write_text("mine")
    entry: dict[str, Any] = {"digest": "x", "made_from": "", "leads_to": []}
    files = {"../victim.txt": entry, str(victim): entry, "a/../../victim.txt": entry}
    (out / "gallery.json").write_text(json.dumps({"format": gallery.FORMAT, "files": files}))
    write_gallery(registry, out)
    assert victim.read_text() == "mine"


def test_a_gallery_is_written_to_a_bucket_as_to_a_folder(registry: Registry) -> None:
    registry.push("alice/dog", mask_of(0), scope="prompt")
    write_gallery(registry, "memory://gallery-test/pages")
    memory = fsspec.filesystem("memory")
    assert memory.exists("/gallery-test/pages/concepts/alice/dog.html")
    assert write_gallery(registry, "memory://gallery-test/pages").written == 0
