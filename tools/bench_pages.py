"""What pages about very many concepts cost: search in the service, and a whole gallery.

`tools/bench pages` asks a service over 1,000 and over 100,000 concepts for the same pages (the
first, one by cursor, by words, by owner, by tag, by a condition; again with its ETag), walks
through all of them by cursor, and writes a gallery of 10,000 concepts twice. Each measurement runs
in a process of its own, whose peak memory is nobody else's. Every answer is checked. `--write`
keeps the table in tools/results/pages.md and pages.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import synthetic_catalogue
from bench_growth import TABLE, mask_of, peak

from cones_registry import Registry

FEW, MANY = 1_000, 100_000
GALLERY = 10_000
RESULTS = Path(__file__).parent / "results"
PAGES = {
    "first page": "/concepts",
    "by cursor": "/concepts?cursor=owner3/concept3",
    "by words": "/concepts?text=concept77",
    "by owner": "/concepts?owner=owner77",
    "by tag": "/concepts?tag=tag42",
    "by condition": "/concepts?filter=size<21KB",
}
MOST_RATIO = 20  # of the time at a thousand concepts, a hundred times as many
MOST_SEARCH_MEMORY = 300e6
MOST_GALLERY_MEMORY = 500e6


def search(folder: Path, count: int) -> dict[str, Any]:
    """Seconds of each page, of a walk through all, and what that weighs."""
    from starlette.testclient import TestClient

    from cones_registry import BaseModel
    from cones_registry.serving import ServiceSettings
    from cones_registry.serving.application import create_app
    from cones_registry.serving.service import Service

    with Registry.create(folder / "registry", cache=folder / "maker") as made:
        pushed = made.push("owner0/concept0", mask_of(0), scope="prompt")
        made.compact(grace=0)
        rows = synthetic_catalogue.concepts(count, pushed.base, TABLE.neuron_count)
        synthetic_catalogue.publish(made, {"concepts": rows})
    registry = Registry.open(
        folder / "registry", cache=folder / "cache", read_only=True, max_staleness=float("inf")
    )
    registry.sync()
    settings = ServiceSettings(hosts=frozenset({"testserver"}))
    app = create_app(Service(BaseModel.load("demo"), registry, settings))
    found: dict[str, Any] = {}
    before = peak()
    with TestClient(app) as client:
        for name, path in PAGES.items():
            taken = []
            for _ in range(7):
                began = time.perf_counter()
                answer = client.get(path)
                taken.append(time.perf_counter() - began)
                assert answer.status_code == 200 and 'class="card"' in answer.text, name
            found[name] = statistics.median(taken)
        known = client.get("/v1/concepts").headers["etag"]
        again = client.get("/v1/concepts", headers={"if-none-match": known})
        assert again.status_code == 304 and not again.content
        began, cursor, names = time.perf_counter(), None, 0
        last = ("", "")
        while True:
            asked = {"limit": 1000} | ({"cursor": cursor} if cursor else {})
            page = client.get("/v1/concepts", params=asked).json()
            keys = [(each["owner"], each["name"]) for each in page["data"]]
            assert keys == sorted(keys) and last < keys[0]
            last, names = keys[-1], names + len(keys)
            if not page["has_more"]:
                break
            cursor = page["next_cursor"]
        assert names == count, names
        found["all of them, a thousand at a time"] = time.perf_counter() - began
    found["memory"] = peak() - before
    return found


def gallery(folder: Path, count: int) -> dict[str, Any]:
    """Seconds of writing a gallery, of writing it again, and what that weighs."""
    from cones_registry.pages import write_gallery

    masks = [mask_of(number) for number in range(16)]
    with Registry.create(folder / "registry", cache=folder / "cache") as registry:
        for start in range(0, count, 1000):
            numbers = range(start, min(start + 1000, count))
            registry.push_many(
                [(f"owner{n % 97}/c{n}", masks[n % 16], {"scope": "prompt"}) for n in numbers]
            )
        before = peak()
        began = time.perf_counter()
        first = write_gallery(registry, folder / "out")
        middle = time.perf_counter()
        again = write_gallery(registry, folder / "out")
        ended = time.perf_counter()
        assert (first.concepts, first.deleted) == (count, 0), first
        assert (again.written, again.deleted) == (0, 0), again
        registry.push("owner5/c5", masks[3], scope="prompt")
        changed = write_gallery(registry, folder / "out")
        assert 1 <= changed.written <= 100, changed
    return {
        "first": middle - began,
        "again": ended - middle,
        "after one push": time.perf_counter() - ended,
        "files": first.written,
        "changed": changed.written,
        "memory": peak() - before,
    }


ACTIONS: dict[str, Callable[[Path, int], dict[str, Any]]] = {"search": search, "gallery": gallery}


def in_process(action: str, count: int) -> dict[str, Any]:
    """What an action finds in a process and a folder of its own."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "--action", action, folder, str(count)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{action} failed:\n{done.stderr}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def verdicts(found: dict[str, Any]) -> list[tuple[str, str, bool]]:
    """(what, figure, whether it is met) of every target."""
    one, many = found["few"], found["many"]
    said = []
    for name in PAGES:
        ratio = many[name] / one[name]
        what = f"{name}: at most {MOST_RATIO} × the time for 100 × the concepts"
        said.append((what, f"{ratio:.1f} ×", ratio <= MOST_RATIO))
    memory = many["memory"]
    what = f"search over {found['sizes'][1]:,}: at most {MOST_SEARCH_MEMORY / 1e6:.0f} MB more"
    said.append((what, f"{memory / 1e6:.0f} MB", memory <= MOST_SEARCH_MEMORY))
    memory = found["gallery"]["memory"]
    what = f"gallery of {found['sizes'][2]:,}: at most {MOST_GALLERY_MEMORY / 1e6:.0f} MB more"
    said.append((what, f"{memory / 1e6:.0f} MB", memory <= MOST_GALLERY_MEMORY))
    return said


def page(found: dict[str, Any]) -> str:
    """The table with machine and versions."""
    few, many, whole = found["sizes"]
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("duckdb", "pyarrow"))
    lines = [
        "# Pages",
        "",
        "`tools/bench pages --write`; what it does is said at the top of `tools/bench_pages.py`.",
        "",
        f"{platform.platform()}, {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}; Python "
        f"{platform.python_version()}, {versions}.",
        "",
        f"| page of the service, milliseconds | {few:,} concepts | {many:,} concepts |",
        "|---|---:|---:|",
    ]
    for name in (*PAGES, "all of them, a thousand at a time"):
        one, other = found["few"][name], found["many"][name]
        lines.append(f"| {name} | {1000 * one:.0f} | {1000 * other:.0f} |")
    made = found["gallery"]
    lines += [
        "",
        f"A gallery of {whole:,} concepts, {made['files']:,} files: {made['first']:.0f} s; written "
        f"again {made['again']:.1f} s; after one push {made['after one push']:.1f} s, "
        f"{made['changed']} files.",
        "",
        "| target | figure | |",
        "|---|---:|---|",
    ]
    lines += [f"| {what} | {value} | {'met' if met else 'missed'} |" for what, value, met in
              verdicts(found)]  # fmt: skip
    return "\n".join([*lines, ""])


def main() -> int:
    """Run, print, keep."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sizes", nargs=3, type=int, default=(FEW, MANY, GALLERY))
    parser.add_argument("--write", action="store_true", help="keep tools/results/pages.*")
    parser.add_argument("--no-assert", action="store_true", help="report missed targets only")
    arguments = parser.parse_args()
    os.environ["CONES_ACTOR"] = "bench"
    few, many, whole = arguments.sizes
    found = {
        "sizes": [few, many, whole],
        "few": in_process("search", few),
        "many": in_process("search", many),
        "gallery": in_process("gallery", whole),
    }
    table = page(found)
    sys.stdout.write(table)
    if arguments.write:
        (RESULTS / "pages.md").write_text(table, encoding="utf-8")
        (RESULTS / "pages.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    missed = not all(met for _, _, met in verdicts(found))
    return 1 if missed and not arguments.no_assert else 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["--action"]:
        _, _, action, place, number = sys.argv
        sys.stdout.write(json.dumps(ACTIONS[action](Path(place), int(number))) + "\n")
        sys.exit(0)
    sys.exit(main())
