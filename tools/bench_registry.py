"""What the registry costs, against rivals in the same run.

`tools/bench registry [writers] [many] [million] [compactor]`:

* writers: eight processes, separate pushes of a 20 KB concept, against `deltalake` appends of the
  same rows (100 retries), on local disk and on MiniStack;
* many: `push_many(1000)` against writing the same files with the same durability and nothing else;
* million: runs of one million synthetic concepts: bytes a row, cold sync, lookups against
  the same SQL on a bare DuckDB file, incremental sync, peak memory;
* compactor: segments folded a second against segments written by eight processes, on MiniStack.

Every result is asserted to be right: what was acknowledged is counted in the catalogue. `--write`
keeps the table in tools/results/registry.md. `--seconds` sets how long writers write.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import object_store
import pyarrow as pa
import synthetic_catalogue

from cones_registry import ConceptMask, LayerTable, Registry
from cones_registry.codec import encode
from cones_registry.resolver.sketch import FORMAT
from cones_registry.store import open_store

WRITERS = 8
TABLE = LayerTable.from_shapes(
    {f"b{n}.attn2.to_{kind}.weight": (640, 768) for n in range(2) for kind in "kv"}
)
ROWS = int(os.environ.get("CONES_BENCH_ROWS", "1000000"))
"""Concepts of the part `million`; fewer for a trial."""


class Bench:
    """Collects lines `(what, ours, rival, ratio, target)`, missed targets and the reasons."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, str, str, str, str]] = []
        self.missed: list[str] = []
        self.why: dict[str, str] = {}

    def add(
        self,
        what: str,
        ours: str,
        rival: str = "",
        ratio: float | None = None,
        least: float | None = None,
        most: float | None = None,
    ) -> None:
        """One line; `ratio` must be at least `least`, at most `most`."""
        target = f"≥ {least:g} ×" if least else f"≤ {most:g} ×" if most else ""
        if ratio is not None and (
            (least is not None and ratio < least) or (most is not None and ratio > most)
        ):
            self.missed.append(what)
            target += " missed"
        shown = f"{ratio:.2f} ×" if ratio is not None else ""
        self.lines.append((what, ours, rival, shown, target))
        sys.stderr.write("  ".join(filter(None, self.lines[-1])) + "\n")


def mask_of(seed: int) -> ConceptMask:
    """A mask of about 20 KB."""
    generator = np.random.default_rng(seed)
    return ConceptMask.from_indices(
        TABLE,
        {
            layer.name: np.unique(generator.integers(0, layer.neuron_count, 4300)).astype(np.int32)
            for layer in TABLE.layers
        },
    )


# -- processes -----------------------------------------------------------------------------------


def child(work: Callable[[], Any]) -> tuple[int, int]:
    """(process id, pipe) of a forked process that writes `work`'s result as JSON."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.close(read)
            with os.fdopen(write, "w") as file:
                json.dump(work(), file)
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    os.close(write)
    return pid, read


def in_children(works: list[Callable[[], Any]]) -> list[Any]:
    """Results of works that ran at the same time, each in a process of its own."""
    started = [child(work) for work in works]
    results = []
    for pid, read in started:
        with os.fdopen(read) as file:
            text = file.read()
        _, status = os.waitpid(pid, 0)
        if status:
            sys.exit("a process of the benchmark failed")
        results.append(json.loads(text))
    return results


def write_for(seconds: float, one: Callable[[int], None]) -> tuple[int, float]:
    """(commits, seconds) of calling `one` until time is up; the first call is not counted."""
    one(0)
    start = time.perf_counter()
    count = 0
    while time.perf_counter() - start < seconds:
        count += 1
        one(count)
    return count, time.perf_counter() - start


def registry_writer(url: str, options: dict[str, Any], number: int, seconds: float) -> Any:
    """Push until time is up."""
    registry = Registry.open(url, cache=tempfile.mkdtemp(), **options)
    masks = [mask_of(number * 1000 + n) for n in range(20)]
    # Each push must be a new mask, or it would be spared writing its blob.
    spare = np.arange(100, dtype=np.int32)

    def one(count: int) -> None:
        mask = masks[count % 20]
        if count >= 20:
            extra = {TABLE.names[0]: spare[: 1 + count // 20]}
            mask = mask | ConceptMask.from_indices(TABLE, extra)
        registry.push(f"writer{number}/c{count}", mask, tags=["bench"], scope="prompt")

    return write_for(seconds, one)


def delta_writer(url: str, options: dict[str, str], number: int, seconds: float) -> Any:
    """Append one row with the same bytes until time is up, 100 retries a commit."""
    from deltalake import CommitProperties, write_deltalake

    payload = np.random.default_rng(number).bytes(20_000)

    def one(count: int) -> None:
        row = pa.table(
            {
                "owner": [f"writer{number}"],
                "name": [f"c{count}"],
                "version": [1],
                "density": [0.01],
                "mask": pa.array([payload], pa.binary()),
            }
        )
        write_deltalake(
            url,
            row,
            mode="append",
            storage_options=options or None,
            commit_properties=CommitProperties(max_commit_retries=100),
        )

    return write_for(seconds, one)


def delta_options(options: dict[str, Any]) -> dict[str, str]:
    """How deltalake reaches the server that s3fs reaches with `options`."""
    if not options:
        return {}
    return {
        "AWS_ACCESS_KEY_ID": options["key"],
        "AWS_SECRET_ACCESS_KEY": options["secret"],
        "AWS_ENDPOINT_URL": options["endpoint_url"],
        "AWS_REGION": "eu-central-1",
        "AWS_ALLOW_HTTP": "true",
        "conditional_put": "etag",
    }


def rate(results: list[Any]) -> float:
    """Commits a second of all writers together."""
    return sum(count / seconds for count, seconds in results)


def writers(bench: Bench, where: str, url: str, options: dict[str, Any], seconds: float) -> float:
    """Separate pushes against deltalake appends."""
    registry_url = f"{url}/registry"
    in_children([lambda: Registry.create(registry_url, cache=tempfile.mkdtemp(), **options).id])
    ours = in_children(
        [
            lambda n=n: registry_writer(registry_url, options, n, seconds)  # type: ignore[misc]
            for n in range(WRITERS)
        ]
    )

    def count() -> int:
        registry = Registry.open(registry_url, cache=tempfile.mkdtemp(), **options)
        return len(registry.find())

    acknowledged = sum(c for c, _ in ours) + WRITERS
    assert in_children([count]) == [acknowledged], "acknowledged is not what is found"

    def make() -> None:
        delta_writer(f"{url}/delta", delta_options(options), 99, 0)

    in_children([make])
    theirs = in_children(
        [
            lambda n=n: delta_writer(  # type: ignore[misc]
                f"{url}/delta", delta_options(options), n, seconds
            )
            for n in range(WRITERS)
        ]
    )
    bench.add(
        f"{WRITERS} processes, separate pushes of 20 KB, {where}",
        f"{rate(ours):.0f} a second",
        f"deltalake {rate(theirs):.1f} a second",
        rate(ours) / rate(theirs),
        least=10,
    )
    return rate(ours)


def many(bench: Bench, folder: Path) -> None:
    """`push_many(1000)` against writing the same files."""

    def run(name: str) -> Any:
        registry = Registry.create(folder / name, cache=folder / f"cache-{name}")
        items = [(f"alice/c{n}", mask_of(n), {"scope": "prompt"}) for n in range(1000)]
        registry.sync()
        start = time.perf_counter()
        registry.push_many(items)
        ours = time.perf_counter() - start
        assert len(registry.find()) == 1000
        store = registry._session.store
        files = {entry.key: store.get(entry.key) for entry in store.list("")}
        copy = open_store(folder / f"{name}-copy")
        start = time.perf_counter()
        copy.put_many(files.items())
        return ours, time.perf_counter() - start, sum(map(len, files.values()))

    runs = [in_children([lambda n=n: run(f"many{n}")])[0] for n in range(1)]  # type: ignore[misc]
    ours, theirs = (statistics.median(each[i] for each in runs) for i in (0, 1))
    bench.add(
        "push_many(1000) of 20 KB, local disk",
        f"{1000 / ours:.0f} a second",
        f"the same {runs[0][2] / 1e6:.0f} MB of files alone {1000 / theirs:.0f} a second",
        theirs / ours,
        least=0.5,
    )
    bench.why["push_many"] = (
        "The rival has its files; of a pushed mask the bytes must be made first, and the main "
        f"thread of one process takes {making() * 1000:.1f} ms a concept for them (encoding, "
        "sketch, digest)."
    )


def making() -> float:
    """Seconds that making the bytes of one concept takes, without writing any."""
    masks = [mask_of(n) for n in range(100)]
    start = time.perf_counter()
    for mask in masks:
        encode(mask, footer={"mask": mask.digest})
        FORMAT.sketch(mask)
    return (time.perf_counter() - start) / len(masks)


# -- one million ---------------------------------------------------------------------------------


def synthesize(folder: Path) -> tuple[int, int]:
    """(bytes of the runs, rows) of a registry with a million concepts."""
    registry = Registry.create(folder / "registry", cache=folder / "cache")
    # One real push, so that the base is there.
    pushed = registry.push("owner0/real", mask_of(0), tags=["tag0"], scope="prompt")
    made = synthetic_catalogue.publish(
        registry,
        {
            "concepts": synthetic_catalogue.concepts(ROWS, pushed.base, TABLE.neuron_count),
            "aliases": synthetic_catalogue.aliases(ROWS),
        },
    )
    (run,) = made.tables["concepts"]
    (folder / "parts").mkdir()
    for part in run.parts:
        (folder / "parts" / Path(part.key).name).hardlink_to(folder / "registry" / part.key)
    return run.size, run.rows


def peak() -> float:
    """Peak resident memory of this process, MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def fresh_process(code: str, *arguments: str) -> Any:
    """The JSON that a new interpreter prints."""
    run = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False
    )
    if run.returncode:
        sys.exit(run.stderr)
    return json.loads(run.stdout.splitlines()[-1])


COLD = """
import json, resource, sys, time
from cones_registry import Registry
registry = Registry.open(sys.argv[1], cache=sys.argv[2])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
start = time.perf_counter()
report = registry.sync()
seconds = time.perf_counter() - start
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
rows = registry.query("SELECT count(*) AS n FROM concepts").to_pylist()[0]["n"]
print(json.dumps([seconds, peak / 1024, rows, report.segments]))
"""
BARE = """
import json, resource, sys, time
import duckdb
start = time.perf_counter()
with duckdb.connect(sys.argv[2]) as connection:
    connection.execute(
        f"CREATE TABLE concepts AS SELECT * FROM read_parquet('{sys.argv[1]}')")
seconds = time.perf_counter() - start
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps([seconds, peak / 1024]))
"""
QUERIES = {
    "point lookup": (
        "SELECT * FROM concepts WHERE owner = ? AND name = ? AND version = 1",
        [f"owner{654_321 % ROWS % 5000}", f"concept{654_321 % ROWS}"],
        1,
    ),
    "owner": ("SELECT * FROM concepts WHERE owner = ?", ["owner77"], ROWS // 5000),
    "tag": ("SELECT count(*) FROM concepts WHERE list_contains(tags, ?)", ["tag42"], 1),
    "newest 50": ("SELECT * FROM concepts ORDER BY created DESC LIMIT 50", [], 50),
}
LOOKUPS = """
import json, sys, time
import duckdb
from cones_registry import Registry
registry = Registry.open(sys.argv[1], cache=sys.argv[2], max_staleness=float("inf"))
bare = duckdb.connect(sys.argv[3], read_only=True)
result = {}
for name, (sql, params, rows) in json.loads(sys.argv[4]).items():
    ours, theirs = [], []
    for turn in range(12):
        start = time.perf_counter()
        answer = registry.query(sql, params)
        ours.append(time.perf_counter() - start)
        assert answer.num_rows == rows, (name, answer.num_rows)
        start = time.perf_counter()
        answer = bare.sql(sql, params=params).to_arrow_table()
        theirs.append(time.perf_counter() - start)
        assert answer.num_rows == rows
    result[name] = [sorted(ours[2:])[5], sorted(theirs[2:])[5]]
print(json.dumps(result))
"""


def million(bench: Bench, folder: Path) -> None:
    """A registry of a million concepts."""
    size, rows = in_children([lambda: synthesize(folder)])[0]
    url = str(folder / "registry")
    bench.add(f"runs of {ROWS:,} concepts", f"{size / rows:.0f} bytes a row")
    cold = [fresh_process(COLD, url, str(folder / f"cold{n}")) for n in range(3)]
    bare = [
        fresh_process(BARE, str(folder / "parts" / "*.parquet"), str(folder / f"bare{n}.duckdb"))
        for n in range(3)
    ]
    assert all(each[2] == rows for each in cold)
    ours, theirs = (statistics.median(each[0] for each in runs) for runs in (cold, bare))
    bench.add(
        "cold sync of it",
        f"{ours:.1f} s, peak {cold[0][1]:.0f} MB",
        f"DuckDB alone {theirs:.1f} s, peak {bare[0][1]:.0f} MB",
        ours / theirs,
        most=3,
    )
    found = fresh_process(
        LOOKUPS, url, str(folder / "cold0"), str(folder / "bare0.duckdb"), json.dumps(QUERIES)
    )
    for name, (mine, other) in found.items():
        bench.add(
            f"query: {name}",
            f"{mine * 1000:.1f} ms",
            f"bare DuckDB file {other * 1000:.1f} ms",
            mine / other,
            most=1.5,
        )

    def push() -> None:
        registry = Registry.open(url, cache=folder / "cold1")
        registry.push_many(
            [(f"late/c{n}", mask_of(n % 10), {"scope": "prompt"}) for n in range(1000)]
        )

    in_children([push])
    seconds, memory, total, applied = fresh_process(COLD, url, str(folder / "cold0"))
    assert total == rows + 1000
    assert applied == 1
    bench.add("sync of 1,000 new rows onto it", f"{seconds:.2f} s, peak {memory:.0f} MB")


def compactor(bench: Bench, url: str, options: dict[str, Any], fill: float) -> None:
    """Fold what the writers left."""

    def run() -> Any:
        registry = Registry.open(f"{url}/registry", cache=tempfile.mkdtemp(), **options)
        start = time.perf_counter()
        report = registry.compact(grace=0)
        return report.folded, time.perf_counter() - start, report.removed

    folded, seconds, removed = in_children([run])[0]
    assert removed >= folded
    bench.add(
        "compactor on MiniStack: read, fold, delete",
        f"{folded / seconds:.0f} segments a second ({folded} in {seconds:.1f} s)",
        f"{WRITERS} writers {fill:.0f} a second",
        folded / seconds / fill,
        least=2,
    )


def main() -> int:
    """Run, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("parts", nargs="*", help="writers, many, million, compactor; all otherwise")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--write", action="store_true", help="keep tools/results/registry.md")
    parser.add_argument("--no-assert", action="store_true", help="report missed targets only")
    arguments = parser.parse_args()
    parts = set(arguments.parts) or {"writers", "many", "million", "compactor"}
    bench = Bench()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["CONES_CACHE"] = str(folder / "cache")
        if "many" in parts:
            many(bench, folder)
        if "writers" in parts:
            writers(bench, "local disk", str(folder / "local"), {}, arguments.seconds)
            bench.why["local disk"] = (
                "A push is on disk when it is acknowledged: three files and the folders that are "
                "new are fsynced. deltalake's commits to a local disk are not."
            )
            if Path("/dev/shm").is_dir():
                with tempfile.TemporaryDirectory(dir="/dev/shm") as memory:
                    writers(bench, "/dev/shm", memory, {}, arguments.seconds)
            bench.why["/dev/shm"] = (
                "With nothing to wait for, two hardware threads make the bytes of all eight "
                "writers, and that is the limit."
            )
            bench.why["MiniStack"] = (
                "Server and writers share two hardware threads: each request costs s3fs and the "
                "server some milliseconds of them, each mask its encoding. No writer ever waits "
                "for another."
            )
        if parts & {"writers", "compactor"}:
            with object_store.ministack(folder) as options:
                url = f"s3://{object_store.make_bucket(options)}"
                fill = writers(bench, "MiniStack", url, options, arguments.seconds)
                compactor(bench, url, options, fill)
        if "million" in parts:
            million(bench, folder)
    table = report(bench)
    sys.stdout.write(table)
    if arguments.write:
        (Path(__file__).parent / "results" / "registry.md").write_text(table, encoding="utf-8")
    return 1 if bench.missed and not arguments.no_assert else 0


def report(bench: Bench) -> str:
    """The table with machine and versions."""
    versions = ", ".join(
        f"{name} {metadata.version(name)}"
        for name in ("duckdb", "pyarrow", "s3fs", "deltalake", "ministack", "zstandard")
    )
    lines = [
        "# Registry",
        "",
        "`tools/bench registry --write`. Ratios are of one run; other figures are this machine's.",
        "",
        f"{platform.platform()}, {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}; Python "
        f"{platform.python_version()}, {versions}.",
        "",
        "| what | registry | rival | ratio | target |",
        "|---|---|---|---|---|",
        *(f"| {' | '.join(line)} |" for line in bench.lines),
        "",
        *(
            f"- **Why {what} misses:** {why}"
            for what, why in bench.why.items()
            if any(what in missed for missed in bench.missed)
        ),
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
