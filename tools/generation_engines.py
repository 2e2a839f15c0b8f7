"""The phase `ray` of `bench_generation.py`: one process against one and two Ray workers."""

from __future__ import annotations

import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import generation_models as models
from generation_measure import Rows

from cones_registry.batch import Compositions, Engine, LocalEngine, run_batch
from cones_registry.batch.ray_engine import RayEngine
from cones_registry.registry import Registry

GUIDANCE = 1.0
WAYS = {"local": "one process", "one": "one Ray worker", "two": "two Ray workers"}


@dataclass(frozen=True)
class Took:
    """Seconds of one run: until it draws, from then to the last picture, and to its end."""

    begin: float
    drawing: float
    end: float


def ray(bench: models.Bench) -> Rows:
    """The same jobs, each with a concept of its own, on one process and on Ray's workers.

    Every run is a whole one: the engine starts, draws into an empty folder, stops. Runs take turns.
    """
    os.environ["CONES_CACHE"] = str(models.cache_of(bench.folder))  # the workers' as well
    count = bench.requests
    jobs = "\n".join(
        json.dumps(
            {
                "prompt": models.prompt_for([number % len(bench.refs)]),
                "concepts": [bench.refs[number % len(bench.refs)]],
                "seed": number,
                "steps": bench.steps,
                "guidance": GUIDANCE,
            }
        )
        for number in range(count)
    )
    taken: dict[str, list[Took]] = {way: [] for way in WAYS}
    pictures: dict[str, dict[str, bytes]] = {}
    with bench.open() as registry, tempfile.TemporaryDirectory() as folder:
        for turn in range(bench.repeats):
            for way in WAYS if turn % 2 else reversed(WAYS):
                out = Path(folder) / f"{way}-{turn}"
                taken[way].append(_run(bench, registry, way, jobs, out))
                pictures[way] = {each.name: each.read_bytes() for each in out.glob("pictures/*")}
    if not pictures["local"] == pictures["one"] == pictures["two"]:
        raise RuntimeError("the engines drew different pictures")
    return _told(taken, bench)


def _run(bench: models.Bench, registry: Registry, way: str, jobs: str, out: Path) -> Took:
    compositions = Compositions(registry)
    engines: dict[str, Callable[[], Engine]] = {
        "local": lambda: LocalEngine(compositions),
        "one": lambda: RayEngine(workers=1),
        "two": lambda: RayEngine(workers=2),
    }
    told: list[float] = []
    started = time.perf_counter()
    report = run_batch(
        jobs, str(out), engine=engines[way](), base=bench.base.source, compositions=compositions,
        registry=registry.url, batch_size=bench.batch,
        on_progress=lambda _: told.append(time.perf_counter() - started),
    )  # fmt: skip
    whole = time.perf_counter() - started
    compositions.close()
    if not report.succeeded:
        raise RuntimeError(f"pictures failed: {report.failures[:3]}")
    return Took(told[0], told[-1] - told[0], whole - told[-1])


def _told(taken: dict[str, list[Took]], bench: models.Bench) -> Rows:
    rows, count = Rows(bench.at_scale), bench.requests
    for way, what in WAYS.items():
        begin = statistics.median(took.begin for took in taken[way])
        drawing = statistics.median(took.drawing for took in taken[way])
        end = statistics.median(took.end for took in taken[way])
        note = "the model was loaded before" if way == "local" else ""
        rows.note(f"{what}: seconds until it draws", begin, note)
        rows.note(f"{what}: pictures a second from then on", count / drawing)
        rows.note(f"{what}: seconds from the last picture to the end", end)
    pairs = list(zip(taken["local"], taken["one"], taken["two"], strict=True))
    ratio = statistics.median(local.drawing / two.drawing for local, _, two in pairs)
    rows.note("throughput, two Ray workers / one process: median of turns", ratio)
    ratio = statistics.median(local.drawing / one.drawing for local, one, _ in pairs)
    rows.note("throughput, one Ray worker / one process: median of turns", ratio)
    overhead = statistics.median(one.drawing - local.drawing for local, one, _ in pairs)
    rows.note("overhead of Ray a picture (one worker − one process), seconds", overhead / count)
    chunks = -(-count // bench.batch)
    rows.note(f"the same for {bench.batch} pictures drawn together", overhead / chunks)
    rows.note("pictures of the three, byte for byte equal", float(count))
    return rows
