"""The work behind `tools/soak`."""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import object_store

from cones_registry import ConceptMask, LayerTable, Registry
from cones_registry.errors import (
    ConesError,
    ConflictError,
    NotFoundError,
    StoreUnavailableError,
)

WRITERS, COMPACTORS, PRUNERS, PURGERS, READERS = 8, 2, 1, 1, 2
GRACE = 20.0
"""Seconds. Longer than any push here takes; a real registry has hours and days."""

SHARED = 3
"""Masks that writers and purged owners have in common."""

TABLE = LayerTable.from_shapes({"a.attn2.to_k.weight": (320, 320)})


def mask_of(seed: int) -> ConceptMask:
    """The mask that a writer pushes for a number."""
    generator = np.random.default_rng(seed)
    indices = np.unique(generator.integers(0, 320 * 320, 300)).astype(np.int32)
    return ConceptMask.from_indices(TABLE, {TABLE.names[0]: indices})


class Worker:
    """What the processes share: where the registry is, where acknowledgements are noted."""

    def __init__(self, url: str, options: dict[str, Any], folder: Path, until: float) -> None:
        self.url, self.options, self.folder, self.until = url, options, folder, until

    def open(self, name: str) -> Registry:
        """A handle with a cache of the process's own."""
        return Registry.open(self.url, cache=self.folder / f"cache-{name}", **self.options)

    def running(self) -> bool:
        """Whether time is left."""
        return time.time() < self.until

    def note(self, kind: str, value: Any) -> None:
        """One line, written whole: acknowledged before, noted now."""
        path = self.folder / f"{kind}-{os.getpid()}.jsonl"
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.write(descriptor, json.dumps(value).encode() + b"\n")
        os.close(descriptor)

    def write(self) -> None:
        """Push to names of one's own and to names all share; remove some, tag some."""
        registry = self.open(f"writer-{os.getpid()}")
        chance = random.Random(os.getpid())
        while self.running():
            seed = chance.randrange(SHARED if chance.random() < 0.05 else 2**40)
            name = chance.choice([f"team/shared{chance.randrange(3)}", f"w{os.getpid()}/own"])
            try:
                concept = registry.push(name, mask_of(seed), scope="prompt")
            except ConflictError:  # its mask is being deleted by somebody who stands still
                self.note("refused", name)
                continue
            self.note("pushed", [concept.ref, seed])
            if chance.random() < 0.05:
                registry.tag(concept, add=["seen"])
                self.note("tagged", concept.ref)
            if chance.random() < 0.05:
                self.note("removing", concept.ref)
                registry.remove(concept)

    def compact(self) -> None:
        """Fold again and again."""
        registry = self.open(f"compactor-{os.getpid()}")
        while self.running():
            report = registry.compact(grace=GRACE)
            self.note("compacted", [report.manifest, report.folded, report.removed])
            time.sleep(1)

    def prune(self) -> None:
        """Delete what may go."""
        registry = self.open(f"pruner-{os.getpid()}")
        while self.running():
            report = registry.plan_prune(grace=GRACE).execute()
            self.note("pruned", [len(report.deleted), report.freed_bytes])
            time.sleep(2)

    def purge(self) -> None:
        """Push as one owner after the other, and purge each."""
        registry = self.open(f"purger-{os.getpid()}")
        for number in itertools.count():
            if not self.running():
                return
            owner = f"gone{os.getpid()}-{number}"
            try:
                registry.push_many(
                    [
                        (f"{owner}/a", mask_of(0), {"scope": "prompt"}),
                        (f"{owner}/b", mask_of(number), {"scope": "prompt"}),
                    ]
                )
                registry.plan_purge(owner=owner).execute()
                self.note("purged", owner)
            except (ConflictError, StoreUnavailableError) as error:
                self.note("refused", f"{owner}: {error}")
            time.sleep(3)

    def read(self) -> None:
        """List, and pull some of what is listed."""
        registry = self.open(f"reader-{os.getpid()}")
        chance = random.Random(os.getpid())
        while self.running():
            found = registry.find(limit=200)
            refs = [concept.ref for concept in found]
            if len(refs) != len(set(refs)):
                self.note("wrong", "a version is listed twice")
            lasting = [concept for concept in found if not concept.owner.startswith("gone")]
            for concept in chance.sample(lasting, min(5, len(lasting))):
                try:
                    if registry.pull(concept.ref).digest != concept.mask_digest:
                        self.note("wrong", f"{concept.ref} is another mask")
                except NotFoundError:
                    continue  # removed since it was listed
            self.note("read", len(found))


def spawn(work: Callable[[], None], worker: Worker) -> int:
    """Process id of a fork that does `work`; errors are noted."""
    pid = os.fork()
    if pid == 0:
        status = 0
        try:
            work()
        except ConesError as error:
            worker.note("failed", f"{type(error).__name__}: {error}")
        except BaseException as error:
            worker.note("wrong", f"{type(error).__name__}: {error}")
            status = 1
        finally:
            os._exit(status)
    return pid


def noted(folder: Path, kind: str) -> list[Any]:
    """Every complete line of one kind."""
    return [
        json.loads(line)
        for path in folder.glob(f"{kind}-*.jsonl")
        for line in path.read_text().splitlines()
    ]


def verify(worker: Worker) -> dict[str, Any]:
    """What a fresh reader finds, against what was acknowledged."""
    registry = worker.open("verifier")
    pushed = noted(worker.folder, "pushed")
    gone = set(noted(worker.folder, "removing"))
    found = {concept.ref: concept for concept in registry.find()}
    must = {ref: seed for ref, seed in pushed if ref not in gone}
    lost = sorted(must.keys() - found.keys())
    wrong = [
        ref
        for ref, seed in must.items()
        if ref in found and found[ref].mask_digest != mask_of(seed).digest
    ]
    refs = sorted(must.keys() & found.keys())
    for start in range(0, len(refs), 200):
        chunk = refs[start : start + 200]
        for ref, mask in zip(chunk, registry.pull_many(chunk), strict=True):
            if mask.digest != mask_of(must[ref]).digest:
                wrong.append(ref)
    tagged = [ref for ref in noted(worker.folder, "tagged") if ref in found]
    lost_tags = [ref for ref in tagged if "seen" not in found[ref].tags]
    purged = set(noted(worker.folder, "purged"))
    wrong += [ref for ref in found if ref.partition("/")[0] in purged]
    numbers = [ref for ref, _ in pushed]
    report = registry.check()
    return {
        "acknowledged": len(pushed),
        "lost": len(lost),
        "duplicated": len(numbers) - len(set(numbers)),
        "wrong": len(wrong) + len(noted(worker.folder, "wrong")),
        "lost_tags": len(lost_tags),
        "found_in_use": len(found),
        "removed_on_purpose": len(set(numbers) - found.keys()) - len(lost),
        "unacknowledged": len(found.keys() - {ref for ref, _ in pushed}),
        "refused": len(noted(worker.folder, "refused")),
        "purged": len(purged),
        "problems": [problem.message for problem in report.problems],
        "notes": noted(worker.folder, "wrong")[:5] + noted(worker.folder, "failed")[:5] + lost[:5],
    }


def main() -> int:
    """Run, verify, print."""
    parser = argparse.ArgumentParser(description="Writers, compactors, pruner, readers, kills.")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--kill-every", type=float, default=2.0, help="seconds between kills")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--write", action="store_true", help="keep tools/results/soak.md")
    arguments = parser.parse_args()
    chance = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as name, object_store.ministack(Path(name)) as options:
        folder = Path(name)
        url = f"s3://{object_store.make_bucket(options)}/registry"
        worker = Worker(url, options, folder, time.time() + arguments.seconds)

        def create() -> None:
            Registry.create(url, cache=folder / "cache-creator", **options)

        os.waitpid(spawn(create, worker), 0)
        worker.until = time.time() + arguments.seconds
        writers = [spawn(worker.write, worker) for _ in range(WRITERS)]
        others = [
            *(spawn(worker.compact, worker) for _ in range(COMPACTORS)),
            *(spawn(worker.prune, worker) for _ in range(PRUNERS)),
            *(spawn(worker.purge, worker) for _ in range(PURGERS)),
            *(spawn(worker.read, worker) for _ in range(READERS)),
        ]
        kills = pauses = 0
        asleep: dict[int, float] = {}
        """Process that stands still -> when it is woken."""
        while worker.running():
            time.sleep(chance.uniform(0, 2 * arguments.kill_every))
            for pid, until in list(asleep.items()):
                if time.time() >= until:
                    os.kill(pid, signal.SIGCONT)
                    del asleep[pid]
            if chance.random() < 0.3:
                pid = chance.choice([*writers, *others])
                # Up to longer than the grace: others compact and delete meanwhile.
                os.kill(pid, signal.SIGSTOP)
                asleep[pid] = time.time() + chance.uniform(0, 1.5 * GRACE)
                pauses += 1
                continue
            victim = chance.randrange(WRITERS)
            os.kill(writers[victim], signal.SIGKILL)
            os.waitpid(writers[victim], 0)
            asleep.pop(writers[victim], None)
            kills += 1
            writers[victim] = spawn(worker.write, worker)
        for pid in asleep:
            os.kill(pid, signal.SIGCONT)
        for pid in [*writers, *others]:
            os.waitpid(pid, 0)
        result = verify(worker) | {
            "seconds": arguments.seconds,
            "kills": kills,
            "pauses": pauses,
            "compactions": sum(1 for s, _, _ in noted(folder, "compacted") if s),
            "folded": sum(n for _, n, _ in noted(folder, "compacted")),
            "segments_removed": sum(n for _, _, n in noted(folder, "compacted")),
            "blobs_pruned": sum(n for n, _ in noted(folder, "pruned")),
            "reads": len(noted(folder, "read")),
        }
    sys.stdout.write(json.dumps(result, indent=2) + "\n")
    if arguments.write:
        (Path(__file__).parent / "results" / "soak.md").write_text(table(result), "utf-8")
    bad = ("lost", "duplicated", "wrong", "lost_tags", "problems")
    return 1 if any(result[key] for key in bad) else 0


def table(result: dict[str, Any]) -> str:
    """The figures as a page."""
    rows = [
        f"| {key.replace('_', ' ')} | {value} |"
        for key, value in result.items()
        if key not in ("notes", "problems")
    ]
    return "\n".join(
        [
            "# Soak",
            "",
            f"`tools/soak --write`: {WRITERS} writers, {COMPACTORS} compactors, {PRUNERS} pruner, "
            f"{PURGERS} purger, {READERS} readers on MiniStack; writers are killed with SIGKILL, "
            "and any is stopped with SIGSTOP for up to longer than the grace, at random.",
            "",
            f"{platform.platform()}, {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}; Python "
            f"{platform.python_version()}, s3fs {metadata.version('s3fs')}, ministack "
            f"{metadata.version('ministack')}.",
            "",
            "| what | figure |",
            "|---|---|",
            *rows,
            "",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
