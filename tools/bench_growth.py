"""What an action costs when a thousand, and when a million concepts are kept.

`tools/bench growth [--sizes N ...]`, for a registry of each size on local disk:

* cold sync: a machine with nothing gets the whole catalogue;
* push: one concept, from a machine whose copy is current (median of fifteen);
* sync after one push of somebody else's (median of fifteen);
* fold of three commits;
* cold pull: one concept on a machine with nothing, from local disk and from MiniStack (medians of
  five machines);
* purge of an owner with a 5,000th of all concepts;
* folds of 1,000 new commits each, one after the other (mean).

Of each: seconds, bytes from and to the store, requests, bytes written to the local copy, peak
memory of the process. Above a million only cold sync, push, sync, fold of three commits and cold
pull from local disk are measured. Every answer is checked. `--write` puts these sizes into
tools/results/growth.json, beside the sizes that are there, and makes growth.md of all.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import object_store
import synthetic_catalogue

from cones_registry import ConceptMask, LayerTable, Registry
from cones_registry.catalog import runs
from cones_registry.catalog.events import Pushed
from cones_registry.catalog.reader import versions_where
from cones_registry.catalog.segments import encode_segment
from cones_registry.store import open_store

TABLE = LayerTable.from_shapes(
    {f"b{n}.attn2.to_{kind}.weight": (640, 768) for n in range(2) for kind in "kv"}
)
PUSHES = 16
COMMITS = 1_000
"""Commits a fold."""

SIZES = (1_000, 100_000, 1_000_000)
LARGEST_FOR_ALL = 1_000_000
DISK_BYTES = 2_500
"""A concept's share of the disk that a run needs: in runs, and in the copies of two machines."""

RESULTS = Path(__file__).parent / "results"
FIELDS = ("seconds", "fetched", "sent", "requests", "local", "peak")
COLUMNS = ("seconds", "from the store", "to the store", "requests", "local copy", "peak memory")


class Meter:
    """Counts what a handle asks of its store, and what its local copy writes."""

    def __init__(self, url: str, cache: str, **options: Any) -> None:
        store: Any = open_store(url, **options)
        self.fetched = self.sent = self.requests = 0
        self.read: list[str] = []
        for name in ("_get", "_get_range", "_create", "_list", "_head", "_delete"):
            setattr(store, name, self._counted(getattr(store, name)))
        self.cache = Path(cache)
        self._files: dict[str, tuple[int, int]] = {}
        self.registry = Registry.open(store, cache=cache)
        self.start()

    def _counted(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any) -> Any:
            answer = call(*arguments)
            self.requests += 1
            if isinstance(answer, bytes):
                self.fetched += len(answer)
                self.read.append(arguments[0])
            if len(arguments) == 2 and isinstance(arguments[1], bytes):
                self.sent += len(arguments[1])
            return answer

        return counted

    def _seen(self) -> dict[str, tuple[int, int]]:
        paths = self.cache.glob("registries/*/*")
        return {
            str(path): (status.st_mtime_ns, status.st_size)
            for path in paths
            if path.is_file() and (status := path.stat())
        }

    def start(self) -> None:
        """Count from here on."""
        self.fetched = self.sent = self.requests = 0
        self.read.clear()
        self._files = self._seen()
        self._began = time.perf_counter()

    def stop(self) -> dict[str, float]:
        """What it came to."""
        seconds = time.perf_counter() - self._began
        new = set(self._seen().items()) - set(self._files.items())
        return {
            "seconds": seconds,
            "fetched": self.fetched,
            "sent": self.sent,
            "requests": self.requests,
            "local": sum(size for _, (_, size) in new),
            "peak": peak(),
        }


def mask_of(seed: int) -> ConceptMask:
    """A mask of about 20 KB."""
    dice = np.random.default_rng(seed)
    return ConceptMask.from_indices(
        TABLE,
        {
            layer.name: np.unique(dice.integers(0, layer.neuron_count, 4300)).astype(np.int32)
            for layer in TABLE.layers
        },
    )


def peak() -> float:
    """Peak resident memory of this process, bytes. (Not of those it began as, as rusage says.)"""
    text = Path("/proc/self/status").read_text("ascii")
    return int(text.partition("VmHWM:")[2].split()[0]) * 1024


def make(folder: Path, count: int) -> Any:
    """A registry of `count` concepts, all folded, and a copy of it on one machine."""
    registry = Registry.create(folder / "registry", cache=folder / "maker")
    pushed = registry.push("owner0/concept0", mask_of(0), scope="prompt")
    registry.push("zoe/last", mask_of(1), scope="prompt")
    registry.compact(grace=0)
    made = synthetic_catalogue.publish(
        registry,
        {
            "concepts": synthetic_catalogue.concepts(count, pushed.base, TABLE.neuron_count),
            "aliases": synthetic_catalogue.aliases(count),
        },
    )
    return sum(run.size for run in made.tables["concepts"])


def cold(folder: Path, count: int) -> Any:
    """Get the whole catalogue."""
    meter = Meter(str(folder / "registry"), str(folder / "cache"))
    meter.registry.sync()
    result = meter.stop()
    (row,) = meter.registry.query("SELECT count(*) AS n FROM concepts").to_pylist()
    assert row["n"] == count, row
    return result


def push_and_sync(folder: Path, count: int) -> Any:
    """(push, sync after it), medians."""
    pusher = Meter(str(folder / "registry"), str(folder / "pusher"))
    reader = Meter(str(folder / "registry"), str(folder / "cache"))
    pusher.registry.sync()
    reader.registry.sync()
    pushes, syncs = [], []
    for number in range(PUSHES):
        mask = mask_of(1000 + number)
        pusher.start()
        pusher.registry.push(f"late/c{number}", mask, scope="prompt")
        pushes.append(pusher.stop())
        reader.start()
        assert reader.registry.sync().segments == 1
        syncs.append(reader.stop())
    assert len(reader.registry.find(owner="late")) == PUSHES
    shutil.rmtree(folder / "pusher")
    return [middle(pushes[1:]), middle(syncs[1:])]


def fold(folder: Path, count: int) -> Any:
    """Fold three commits."""
    meter = Meter(str(folder / "registry"), str(folder / "cache"))
    meter.registry.sync()
    meter.registry.compact()
    for number in range(3):
        meter.registry.push(f"three/c{number}", mask_of(number), scope="prompt")
    meter.registry.sync()
    meter.start()
    report = meter.registry.compact()
    assert report.folded == 3, report
    return meter.stop()


def folds(folder: Path, count: int, times: int) -> Any:
    """Fold 1,000 commits, again and again: the mean, and the bytes of their lines alone.

    The commits are written as pushes write them, without the masks: a fold reads none.
    """
    meter = Meter(str(folder / "registry"), str(folder / "cache"))
    session = meter.registry._session
    meter.registry.sync()
    (one,) = versions_where(session.state(), "owner = 'late' AND name = 'c7'")
    dice = np.random.default_rng(0)
    results, lines = [], []
    for number in range(times):
        commits = []
        for each in range(COMMITS):
            record = dataclasses.replace(
                one.record,
                owner=f"many{each % 97}",
                name=f"c{number}-{each}",
                mask_digest=f"sha256:{dice.bytes(32).hex()}",
                blob_digest=f"sha256:{dice.bytes(32).hex()}",
                sketch=dice.bytes(len(one.record.sketch)),
            )
            commits.append(encode_segment(session.segment([Pushed(record)], verb="push")))
        session.store.put_many(commits)
        meter.start()
        # Nobody else reads: so the log need not be kept for an hour.
        report = meter.registry.compact(grace=0)
        assert report.folded == COMMITS, report
        results.append(meter.stop())
        manifest = session.chain.read(report.manifest or 0)
        assert manifest is not None
        lines.append(
            min(run.size / run.rows for run in manifest.tables["concepts"] if run.rows) * COMMITS
        )
    found = meter.registry.query("SELECT count(*) AS n FROM concepts WHERE owner LIKE 'many%'")
    assert found.to_pylist() == [{"n": times * COMMITS}], found
    mean = {name: statistics.mean(each[name] for each in results) for name in FIELDS}
    return [mean | {"peak": peak()}, statistics.mean(lines)]


def pull(folder: Path, count: int) -> Any:
    """Pull one concept on a machine with nothing."""
    return _pull(str(folder / "registry"), folder / "nothing", {})


def pull_from_ministack(folder: Path, count: int) -> Any:
    """The same, of a copy of the registry on an S3 server."""
    with object_store.ministack(folder) as options:
        bucket = object_store.make_bucket(options)
        store = open_store(f"s3://{bucket}/registry", **options)
        for path in sorted((folder / "registry").rglob("*")):
            if path.is_file():
                store.put_new(str(path.relative_to(folder / "registry")), path.read_bytes())
        return _pull(store.url, folder / "nothing-of-s3", options)


def _pull(url: str, cache: Path, options: dict[str, Any]) -> Any:
    results = []
    for number in range(6):
        begun = time.perf_counter()
        meter = Meter(url, str(cache / str(number)), **options)
        opened = time.perf_counter() - begun
        mask = meter.registry.pull("late/c7:1")
        assert mask == mask_of(1007)
        result = meter.stop()
        results.append(result | {"seconds": result["seconds"] + opened})
    # The first one imports libraries and opens the connections of the process.
    return middle(results[1:])


def purge(folder: Path, count: int) -> Any:
    """Purge an owner; (figures, bytes of the runs and records that hold it, masks read)."""
    meter = Meter(str(folder / "registry"), str(folder / "cache"))
    meter.registry.sync()
    meter.registry.compact()
    chain = meter.registry._session.chain
    manifest = chain.read(chain.numbers()[-1])
    assert manifest is not None
    held = sum(
        part.size
        for found in manifest.tables.values()
        for run in found
        for part in run.parts
        if part.first[0] <= "owner77" <= part.last[0]
    )
    meter.start()
    receipt = meter.registry.plan_purge(owner="owner77").execute()
    assert receipt.found == 0
    masks = sum(key.startswith("masks/") for key in meter.read)
    return [meter.stop(), held, masks]


def middle(results: list[dict[str, float]]) -> dict[str, float]:
    """The median of each figure."""
    return {name: statistics.median(each[name] for each in results) for name in FIELDS}


ACTIONS: dict[str, Callable[..., Any]] = {
    each.__name__: each
    for each in (make, cold, push_and_sync, fold, folds, pull, pull_from_ministack, purge)
}


def in_process(action: str, *arguments: Any) -> Any:
    """What an action returns in a process of its own, whose memory is nobody else's."""
    done = subprocess.run(
        [sys.executable, __file__, "--action", action, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        sys.exit(f"{action} failed:\n{done.stderr}")
    answer = done.stdout.splitlines()[-1]
    # A large size takes long; what was measured of it is not lost with the rest.
    sys.stderr.write(f"{time.strftime('%H:%M:%S')} {action}: {answer}\n")
    return json.loads(answer)


def measure(count: int, times: int, where: Path | None) -> dict[str, Any]:
    """Every action at one size."""
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(dir=where, prefix="growth-") as name:
        folder = Path(name)
        free = shutil.disk_usage(folder).free
        if free < count * DISK_BYTES:
            sys.exit(
                f"{count:,} concepts need {count * DISK_BYTES / 1e9:.0f} GB in {folder.parent}, "
                f"which has {free / 1e9:.0f} GB. Give another place with --folder"
            )
        found["runs"] = in_process("make", folder, count)
        found["cold sync"] = in_process("cold", folder, count)
        pushed = in_process("push_and_sync", folder, count)
        found["push"], found["sync after one push"] = pushed
        found["fold of three commits"] = in_process("fold", folder, count)
        found["cold pull"] = in_process("pull", folder, count)
        if count <= LARGEST_FOR_ALL:
            found["cold pull from MiniStack"] = in_process("pull_from_ministack", folder, count)
            found["purge of an owner"], found["held"], found["masks"] = in_process(
                "purge", folder, count
            )
            found["fold of 1,000 commits"], found["lines"] = in_process(
                "folds", folder, count, times
            )
        found["on"] = f"{time.strftime('%Y-%m-%d')}, load {os.getloadavg()[0]:.1f}"
    return found


def verdicts(found: dict[int, dict[str, Any]]) -> list[tuple[str, str, bool]]:
    """(what, figure, whether it is met) of every target that these sizes can tell of."""
    measured = {size: each for size, each in found.items() if size <= LARGEST_FOR_ALL}
    if not measured:
        return []
    small, large = min(measured), max(measured)
    one, many = measured[small], measured[large]
    said: list[tuple[str, str, bool]] = []

    def ratio(action: str, most: float) -> None:
        if small == large:
            return
        value = many[action]["seconds"] / one[action]["seconds"]
        what = f"{action}: at most {most:g} × the time at {small:,}"
        said.append((what, f"{value:.2f} ×", value <= most))

    ratio("sync after one push", 2)
    local = many["sync after one push"]["local"]
    said.append(("sync after one push: at most 5 MB written", shown("local", local), local <= 5e6))
    ratio("push", 1.5)
    ratio("cold pull from MiniStack", 5)
    pulled = many["cold pull from MiniStack"]
    said.append(
        (
            "cold pull from MiniStack: at most 3 MB, 30 requests",
            f"{shown('fetched', pulled['fetched'])}, {pulled['requests']:.0f}",
            pulled["fetched"] <= 3e6 and pulled["requests"] <= 30,
        )
    )
    folded = many["fold of 1,000 commits"]
    said.append(
        (
            "fold of 1,000 commits: at most 10 × the bytes of their lines",
            f"{folded['sent'] / many['lines']:.1f} ×",
            folded["sent"] <= 10 * many["lines"],
        )
    )
    for action in ("fold of 1,000 commits", "fold of three commits"):
        most = max(each[action]["peak"] for each in found.values() if action in each)
        said.append((f"{action}: at most 500 MB of memory", shown("peak", most), most <= 500e6))
    purged, held = many["purge of an owner"]["fetched"], many["held"]
    said.append(
        (
            "purge of an owner: reads at most twice the runs that hold it",
            f"{purged / held:.2f} ×",
            purged <= 2 * held,
        )
    )
    masks = many["masks"]
    said.append(("purge of an owner: reads no mask", f"{masks}", not masks))
    return said


def shown(name: str, value: float) -> str:
    """One figure as people read it."""
    if name == "seconds":
        return f"{value:.2f}"
    if name == "requests":
        return f"{value:.0f}"
    return f"{value / 1e6:.2f} MB"


def report(found: dict[int, dict[str, Any]]) -> str:
    """The table with machine and versions."""
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("duckdb", "pyarrow"))
    measured = "; ".join(f"{size:,} on {each['on']}" for size, each in sorted(found.items()))
    lines = [
        "# Growth",
        "",
        "`tools/bench growth --write`. What an action costs with so many kept, on local disk.",
        "",
        f"{platform.platform()}, {os.cpu_count()} CPUs; Python {platform.python_version()}, "
        f"{versions}, runs of {runs.PART_ROWS} lines a part. Concepts: {measured}.",
        "",
        f"| action | concepts | {' | '.join(COLUMNS)} |",
        f"|---|---{'|---' * len(COLUMNS)}|",
    ]
    actions = dict.fromkeys(
        name for each in found.values() for name, value in each.items() if isinstance(value, dict)
    )
    for action in actions:
        for size, each in sorted(found.items()):
            if action in each:
                figures = " | ".join(shown(name, each[action][name]) for name in FIELDS)
                lines.append(f"| {action} | {size:,} | {figures} |")
    lines += ["", "| target | figure | |", "|---|---|---|"]
    lines += [
        f"| {what} | {value} | {'met' if met else 'missed'} |"
        for what, value, met in verdicts(found)
    ]
    return "\n".join([*lines, ""])


def kept() -> dict[int, dict[str, Any]]:
    """What is kept of runs before."""
    path = RESULTS / "growth.json"
    found = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    return {int(size): each for size, each in found.items()}


def main() -> int:
    """Run, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--sizes", nargs="+", type=int, default=SIZES, help="concepts kept")
    parser.add_argument("--folds", type=int, default=100, help="folds of 1,000 commits")
    parser.add_argument("--folder", type=Path, help="where the registries are made")
    parser.add_argument("--write", action="store_true", help="keep tools/results/growth.*")
    parser.add_argument("--no-assert", action="store_true", help="report missed targets only")
    arguments = parser.parse_args()
    os.environ["CONES_ACTOR"] = "bench"
    found = kept() if arguments.write else {}
    for size in arguments.sizes:
        sys.stderr.write(f"{size:,} concepts\n")
        found[size] = measure(size, arguments.folds, arguments.folder)
    table = report(found)
    sys.stdout.write(table)
    if arguments.write:
        (RESULTS / "growth.md").write_text(table, encoding="utf-8")
        data = json.dumps({str(size): found[size] for size in sorted(found)}, indent=2)
        (RESULTS / "growth.json").write_text(data + "\n", encoding="utf-8")
    missed = not all(met for _, _, met in verdicts(found))
    return 1 if missed and not arguments.no_assert else 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["--action"]:
        _, _, action, where, *rest = sys.argv
        sys.stdout.write(json.dumps(ACTIONS[action](Path(where), *map(int, rest))) + "\n")
        sys.exit(0)
    sys.exit(main())
