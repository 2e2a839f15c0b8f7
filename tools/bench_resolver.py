"""What composing and comparing concepts costs, against rivals in the same run.

`tools/bench resolver [union] [resolve] [similar] [sketch]`:

* union: four masks of Stable Diffusion 1.x at 1 % and 10 %: merged, density by layer, exact counts
  of what each shuts alone, each pair shares and k of them share; against a bare bitmap OR, against
  pyroaring and against numpy's set functions on sorted indices;
* resolve: `registry.resolve` of four of them from a local registry and from MiniStack, cold and
  warm;
* similar: 100,000 synthetic concepts, the ten most alike, against the exact scan over all bitmaps;
* sketch: bytes of a sketch against its error and against what it finds.

Every result is asserted to be right. `--write` keeps tools/results/resolver.md and .json.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import object_store
import pyarrow as pa
import pyroaring
import synthetic_catalogue
from bench_registry import Bench

from cones_registry import Concept, ConceptMask, LayerTable, Registry
from cones_registry.bitmap import unpack_positions
from cones_registry.refs import Ref
from cones_registry.registry.similar import Sketches, nearest
from cones_registry.resolver import Composition, resolve
from cones_registry.resolver.sketch import FORMAT, SketchFormat

WIDTHS = [320, 320, 640, 640, 1280, 1280, 1280, 1280, 1280, 1280, 640, 640, 640, 320, 320, 320]
SD1 = LayerTable.from_shapes(
    {
        f"block{number}.attn2.to_{kind}.weight": (rows, 768)
        for number, rows in enumerate(WIDTHS)
        for kind in "kv"
    }
)
SMALL = LayerTable.from_shapes({"a.attn2.to_k.weight": (256, 256)})
CONCEPTS = int(os.environ.get("CONES_BENCH_ROWS", "100000"))
ALIKE = 0.1
"""Jaccard index from which a concept counts as alike; two that have nothing to do come to 0.03."""
KIN = 40
"""Concepts of each family in the synthetic population."""


def quickest(call: Callable[[], Any], repeats: int = 60) -> float:
    """Seconds, the least of several runs: what the work takes, not what else the machine does."""
    taken = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        taken.append(time.perf_counter() - start)
    return min(taken)


def random_mask(seed: int, density: float) -> ConceptMask:
    """A uniform mask of the SD 1.x table."""
    generator = np.random.default_rng(seed)
    return ConceptMask.from_indices(
        SD1,
        {
            layer.name: np.flatnonzero(
                generator.random(layer.neuron_count, np.float32) < density
            ).astype(np.int32)
            for layer in SD1.layers
        },
    )


def record(mask: ConceptMask, name: str) -> Concept:
    """A record of a mask that no registry has seen."""
    digest = mask.digest
    return Concept(
        owner="bench",
        name=name,
        version=1,
        base=mask.table.digest,
        mask_digest=digest,
        blob_digest=digest,
        blob_bytes=1,
        neuron_count=len(mask),
        table_neuron_count=mask.table.neuron_count,
        density=mask.density,
        precision="binary",
        layout="gap8",
        scope="prompt",
    )


# -- union ---------------------------------------------------------------------------------------


def explain(composition: Composition) -> Composition:
    """Everything that a composition counts when asked."""
    assert composition.contributions
    assert composition.overlaps
    assert composition.shared_by
    return composition


def union(bench: Bench, _: Path) -> None:
    """Four masks."""
    for density in (0.01, 0.1):
        masks = [random_mask(seed, density) for seed in range(4)]
        pairs = [(record(mask, f"c{number}"), mask) for number, mask in enumerate(masks)]
        assert all(mask.counts.size for mask in masks)
        words = [mask.words for mask in masks]

        def bare(words: list[Any] = words) -> Any:
            merged = words[0] | words[1]
            merged |= words[2]
            merged |= words[3]
            return merged

        def ours(pairs: list[Any] = pairs) -> Composition:
            return explain(resolve(pairs, max_density=1))

        found = ours()
        assert (found.mask.words == bare()).all()
        base = quickest(bare)
        name = f"{density:.0%}"
        taken = quickest(ours)
        bench.add(
            f"four masks at {name}: union, layers, exact overlaps",
            f"{taken * 1000:.2f} ms",
            f"bitmap OR alone {base * 1000:.2f} ms",
            taken / base,
            most=12,
        )
        drawn = quickest(lambda: resolve(pairs, max_density=1))  # noqa: B023
        bench.add(
            f"four masks at {name}: what drawing needs of that",
            f"{drawn * 1000:.2f} ms",
            f"bitmap OR alone {base * 1000:.2f} ms",
            drawn / base,
        )
        roaring(bench, name, found, words, taken)
        sets(bench, name, found, words, taken)


def roaring(bench: Bench, name: str, found: Composition, words: list[Any], taken: float) -> None:
    """The same counts by pyroaring."""
    bitmaps = [pyroaring.BitMap(unpack_positions(each).astype(np.uint32)) for each in words]

    def counts() -> tuple[int, list[int], list[int]]:
        total = pyroaring.BitMap.union(*bitmaps)
        alone = [
            each.difference_cardinality(
                pyroaring.BitMap.union(*(other for other in bitmaps if other is not each))
            )
            for each in bitmaps
        ]
        shared = [a.intersection_cardinality(b) for a, b in itertools.combinations(bitmaps, 2)]
        return len(total), alone, shared

    total, alone, shared = counts()
    assert total == len(found.mask)
    assert alone == [each.exclusive_count for each in found.contributions]
    assert shared == [each.shared_count for each in found.overlaps]
    theirs = quickest(counts, 7)
    bench.add(
        f"four masks at {name}: against roaring bitmaps (no layers, no k-fold counts)",
        f"{taken * 1000:.2f} ms",
        f"pyroaring {theirs * 1000:.2f} ms",
        taken / theirs,
    )


def sets(bench: Bench, name: str, found: Composition, words: list[Any], taken: float) -> None:
    """The same counts by numpy's set functions; union1d is known to be slower still."""
    indices = [unpack_positions(each).astype(np.int32) for each in words]

    def counts() -> tuple[int, list[int]]:
        _, times = np.unique(np.concatenate(indices), return_counts=True)
        shared = [
            np.intersect1d(a, b, assume_unique=True).size
            for a, b in itertools.combinations(indices, 2)
        ]
        return times.size, shared

    total, shared = counts()
    assert total == len(found.mask)
    assert shared == [each.shared_count for each in found.overlaps]
    theirs = quickest(counts, 1)
    bench.add(
        f"four masks at {name}: against numpy sets of int32 (union, pairs)",
        f"{taken * 1000:.2f} ms",
        f"np.unique, np.intersect1d {theirs * 1000:.0f} ms",
        taken / theirs,
    )


# -- resolve -------------------------------------------------------------------------------------


def resolving(bench: Bench, folder: Path) -> None:
    """Four concepts out of registries."""
    masks = [random_mask(seed, 0.1) for seed in range(6)]
    switching(bench, "local disk", str(folder / "registry"), {}, masks, folder)
    with object_store.ministack(folder) as options:
        url = f"s3://{object_store.make_bucket(options)}/registry"
        switching(bench, "MiniStack", url, options, masks, folder / "s3")


def switching(
    bench: Bench,
    where: str,
    url: str,
    options: dict[str, Any],
    masks: list[ConceptMask],
    folder: Path,
) -> None:
    """Cold and warm, at 10 %."""
    with Registry.create(url, cache=folder / "cache", **options) as registry:
        registry.push_many(
            [(f"bench/c{number}", mask, {"scope": "prompt"}) for number, mask in enumerate(masks)]
        )
    refs = [f"bench/c{number}" for number in range(len(masks))]
    four = refs[:4]
    expected = masks[0] | masks[1] | masks[2] | masks[3]

    def once(cache: Path) -> float:
        start = time.perf_counter()
        with Registry.open(url, cache=cache, **options) as opened:
            found = opened.resolve(*four, max_density=1)
            taken = time.perf_counter() - start
            assert found.mask == expected
        return taken

    cold = min(once(folder / f"cold{number}") for number in range(3))
    disk = min(once(folder / "cold0") for _ in range(3))
    bench.add(f"{where}: open, sync and resolve four at 10 %, nothing cached", f"{cold:.3f} s")
    bench.add(f"{where}: the same with the cache of this machine", f"{disk:.3f} s")
    with Registry.open(url, cache=folder / "cold0", **options) as opened:
        opened.pull_many(refs)
        chosen = iter(list(itertools.permutations(refs, 4)))
        seen: set[frozenset[str]] = set()
        taken = []
        for each in chosen:
            if frozenset(each) not in seen:
                seen.add(frozenset(each))
                start = time.perf_counter()
                opened.resolve(*each, max_density=1)
                taken.append(time.perf_counter() - start)
        bench.add(
            f"{where}: four concepts never combined before, masks in memory",
            f"{min(taken) * 1000:.2f} ms",
        )
        again = quickest(lambda: opened.resolve(*four, max_density=1), 31)
        bench.add(f"{where}: four that were combined before", f"{again * 1000:.2f} ms")
    stale = Registry.open(url, cache=folder / "cold0", max_staleness=60, **options)
    with stale as opened:
        opened.resolve(*four, max_density=1)
        again = quickest(lambda: opened.resolve(*four, max_density=1), 31)
        bench.add(f"{where}: the same, news asked for once a minute", f"{again * 1000:.3f} ms")


# -- similar -------------------------------------------------------------------------------------


def population(count: int) -> np.ndarray:
    """Packed masks, uint64 [count, 1024], density 6 %, in families of kin more or less alike."""
    generator = np.random.default_rng(0)
    words = SMALL.word_count

    def noise(rows: int, power: int) -> np.ndarray:
        found = generator.integers(0, 2**64, (rows, words), dtype=np.uint64)
        for _ in range(power - 1):
            found &= generator.integers(0, 2**64, (rows, words), dtype=np.uint64)
        return found

    masks = noise(count, 4)
    for start in range(0, count, KIN):
        rows = min(KIN, count - start)
        ancestor = masks[start].copy()
        # Kept from the ancestor: a share from 1/16 to 1/2, the first half of the family more.
        kept = np.concatenate([noise(rows // 2, 1), noise(rows - rows // 2, 3)])
        masks[start : start + rows] = (ancestor & kept) | (masks[start : start + rows] & ~kept)
        masks[start] = ancestor
    return masks


def some_kin(count: int, number: int) -> list[int]:
    """Ancestors, and concepts that have half of theirs, from families all over the population."""
    families = np.linspace(0, count // KIN - 1, number // 2).astype(int)
    return [int(family) * KIN + place for family in families for place in (0, 7)]


def exactly(words: np.ndarray, sizes: np.ndarray, number: int) -> np.ndarray:
    """Jaccard index of one concept with all, float64 [concepts]."""
    shared = np.bitwise_count(words & words[number]).sum(axis=1, dtype=np.int64)
    found: np.ndarray = shared / (sizes + sizes[number] - shared)
    return found


def similar(bench: Bench, folder: Path) -> None:
    """The ten most alike of 100,000."""
    words = population(CONCEPTS)
    masks = [ConceptMask.trusted(SMALL, row) for row in words]
    start = time.perf_counter()
    sketches = [FORMAT.sketch(mask) for mask in masks]
    making = (time.perf_counter() - start) / CONCEPTS
    registry = catalogue(folder, sketches)
    state = registry._session.fresh()
    start = time.perf_counter()
    loaded = Sketches.of(state, SMALL.digest)
    loading = time.perf_counter() - start
    assert loaded.rows.shape == (CONCEPTS, FORMAT.byte_count)

    def pull(refs: Iterable[Ref]) -> list[tuple[Concept, ConceptMask]]:
        return [(record(masks[int(ref.name)], ref.name), masks[int(ref.name)]) for ref in refs]

    def ours(number: int) -> list[str]:
        found = nearest(
            loaded, masks[number], limit=10, leave_out=Ref("bench", f"{number:06}"), pull=pull
        )
        return [each.ref.partition("/")[2].partition(":")[0] for each in found]

    def exact(number: int) -> list[str]:
        jaccard = exactly(words, sizes, number)
        order = np.argsort(-jaccard, kind="stable").tolist()
        return [f"{each:06}" for each in order if each != number and jaccard[each] >= ALIKE][:10]

    sizes = np.bitwise_count(words).sum(axis=1, dtype=np.int64)
    asked = some_kin(CONCEPTS, 12)
    wanted = {each: set(exact(each)) for each in asked}
    assert all(wanted.values())
    right = [len(set(ours(each)) & wanted[each]) / len(wanted[each]) for each in asked]
    taken = quickest(lambda: ours(asked[0]), 9)
    theirs = quickest(lambda: exact(asked[0]), 3)
    bench.add(
        f"ten most alike of {CONCEPTS:,} (65,536 neurons): "
        f"{statistics.fmean(right):.1%} of those at {ALIKE} or more found",
        f"{taken * 1000:.1f} ms, {loaded.rows.nbytes / 1e6:.0f} MB",
        f"exact scan {theirs * 1000:.0f} ms, {words.nbytes / 1e6:.0f} MB in memory",
        taken / theirs,
        most=0.5,
    )
    bench.add("reading their sketches out of the catalogue, once a state", f"{loading:.2f} s")
    bench.add("sketching a mask of 65,536 neurons", f"{making * 1000:.2f} ms")
    for density in (0.01, 0.1):
        mask = random_mask(0, density)
        bench.add(
            f"sketching a mask of SD 1.x at {density:.0%}",
            f"{quickest(lambda: FORMAT.sketch(mask)) * 1000:.2f} ms",  # noqa: B023
        )


def catalogue(folder: Path, sketches: list[bytes]) -> Registry:
    """A registry whose runs have a row for each sketch, and no blobs."""
    registry = Registry.create(folder / "many", cache=folder / "many-cache")
    number = len(sketches)
    names = [f"{each:06}" for each in range(number)]
    digest = SMALL.digest

    def same(value: Any, kind: pa.DataType) -> pa.Array:
        return pa.array([value] * number, kind)

    given = {
        "ref": pa.array([f"bench/{name}:1" for name in names]),
        "owner": same("bench", pa.string()),
        "name": pa.array(names),
        "version": same(1, pa.int32()),
        "neuron_count": same(4096, pa.int64()),
        "table_neuron_count": same(SMALL.neuron_count, pa.int64()),
        "density": same(4096 / SMALL.neuron_count, pa.float64()),
        "blob_bytes": same(3000, pa.int64()),
        "tags": same([], pa.list_(pa.string())),
        "removed": same(False, pa.bool_()),
        "pruned": same(False, pa.bool_()),
        "created": same(0, pa.timestamp("us")),
        "sketch": pa.array(sketches, pa.binary()),
    }
    for name, value in (
        ("base", digest), ("mask_digest", digest), ("blob_digest", digest), ("note", ""),
        ("precision", "binary"), ("layout", "gap8"), ("scope", "prompt"),
    ):  # fmt: skip
        given[name] = same(value, pa.string())
    rows = synthetic_catalogue.whole("concepts", pa.table(given))
    synthetic_catalogue.publish(registry, {"concepts": [rows]})
    # No commit says these rows, so a copy that was there before has nothing to read.
    return Registry.open(registry.url, cache=folder / "other-cache")


# -- sketch --------------------------------------------------------------------------------------

FORMATS = [
    SketchFormat(256, 4),
    SketchFormat(256, 8),
    SketchFormat(512, 4),
    SketchFormat(1024, 2),
    SketchFormat(2048, 1),
    SketchFormat(1024, 4),
    SketchFormat(1024, 8),
]


def sketching(bench: Bench, _: Path, count: int = 10_000) -> None:
    """Bytes, errors, and how much of the right answer a shortlist holds."""
    words = population(count)
    masks = [ConceptMask.trusted(SMALL, row) for row in words]
    sizes = np.bitwise_count(words).sum(axis=1, dtype=np.int64)
    asked = some_kin(count, 24)
    truth = [exactly(words, sizes, number) for number in asked]
    for form in FORMATS:
        sketches = np.frombuffer(b"".join(map(form.sketch, masks)), np.uint8).reshape(count, -1)
        held, errors = [], []
        for number, exact in zip(asked, truth, strict=True):
            estimates = form.estimates(sketches[number].tobytes(), sketches)
            best = {each for each in np.argsort(-exact)[:11].tolist() if exact[each] >= ALIKE}
            held.append(len(best & set(np.argsort(-estimates)[:69].tolist())) / len(best))
            errors.append(np.abs(estimates - exact).mean())
        bench.lines.append(
            (
                f"{form.buckets} × {form.bits} bit",
                f"{form.byte_count}",
                ", ".join(f"{form.error(jaccard):.4f}" for jaccard in (0.05, 0.3, 0.9)),
                f"{np.mean(errors):.4f}",
                f"{np.mean(held):.1%}",
            )
        )


def main() -> int:
    """Run, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("parts", nargs="*", help=f"{', '.join(PARTS)}; all otherwise")
    parser.add_argument(
        "--write", action="store_true", help="keep what was run in tools/results/resolver.*"
    )
    parser.add_argument("--no-assert", action="store_true", help="report missed targets only")
    arguments = parser.parse_args()
    results = Path(__file__).parent / "results" / "resolver.json"
    kept = json.loads(results.read_text("utf-8")) if results.exists() else {}
    missed = []
    with tempfile.TemporaryDirectory() as name:
        for part in arguments.parts or PARTS:
            bench, head = Bench(), machine()
            PARTS[part](bench, Path(name))
            kept[part] = {"machine": head, "lines": bench.lines}
            missed += bench.missed
            if arguments.write:
                text = json.dumps(kept, indent=1, ensure_ascii=False)
                results.write_text(text + "\n", encoding="utf-8")
                results.with_suffix(".md").write_text(report(kept), encoding="utf-8")
    sys.stdout.write(report(kept))
    return 1 if missed and not arguments.no_assert else 0


PARTS: dict[str, Callable[[Bench, Path], None]] = {
    "union": union,
    "resolve": resolving,
    "similar": similar,
    "sketch": sketching,
}


def machine() -> str:
    """Machine, load and versions."""
    versions = ", ".join(
        f"{name} {metadata.version(name)}"
        for name in ("numpy", "pyarrow", "duckdb", "pyroaring", "s3fs", "ministack")
    )
    return (
        f"{platform.platform()}, {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}; Python "
        f"{platform.python_version()}, {versions}."
    )


def report(kept: dict[str, Any]) -> str:
    """A table for each part, with machine and versions."""
    lines = [
        "# Resolver",
        "",
        "`tools/bench resolver --write`. Times are the least of several runs, as the machine is "
        "shared; ratios are of one run.",
    ]
    for part in PARTS:
        if part not in kept:
            continue
        lines += ["", f"## {part.capitalize()}", "", kept[part]["machine"], ""]
        if part == "sketch":
            lines += [
                "Standard error of a sketch at a Jaccard index, mean error over 10,000 synthetic "
                "concepts, and how many of the ten most alike (from 0.1 on) are among the 68 that "
                "are then compared exactly. 512 × 4 bit is what the catalogue keeps.",
                "",
                "| sketch | bytes a concept | error at 0.05, 0.3, 0.9 | mean error | found |",
            ]
        else:
            lines.append("| what | registry | rival | ratio | target |")
        lines += ["|---|---|---|---|---|"]
        lines += [f"| {' | '.join(line)} |" for line in kept[part]["lines"]]
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    sys.exit(main())
