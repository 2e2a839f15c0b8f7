"""All methods in both scopes on the demo's four subjects: `python tools/measure_extraction.py`.

For every method, scope and density: share of pictures with the subject right (unseen places and
backgrounds), held-out denoising losses relative to no mask (own, class, other), bytes on disk and
seconds. `--write` keeps the table in tools/results/extraction.{md,json}.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from pathlib import Path

import click
import numpy as np
import torch
from measured import conditions, keep, said
from PIL import Image

from cones_registry import BaseModel, Extractor, Generator, encode
from cones_registry.demo import world
from cones_registry.demo.judge import Judge
from cones_registry.demo.learn import companions, learn
from cones_registry.demo.measure import draw, score, subject_trials
from cones_registry.demo.subjects import SUBJECTS, Subject
from cones_registry.extraction import Companion
from cones_registry.extraction.held_out import held_out_losses
from cones_registry.record import Scope
from cones_registry.registry import Registry


def held_out_pictures(
    subject: Subject, folder: Path
) -> tuple[Path, list[Companion], list[Companion]]:
    """Fresh renders: the subject where extraction never saw it, its class, and other things."""
    generator = np.random.default_rng(77)
    own = folder / subject.name
    own.mkdir()
    for number, trial in enumerate(subject_trials(subject, 12)):
        place = trial.scene.things[0][0]
        Image.fromarray(world.render([trial.scene], generator)[0]).save(own / f"{number}.png")
        caption = f"at {place} a {{}}|on {trial.scene.background}\n"
        (own / f"{number}.txt").write_text(caption, encoding="utf-8")
    pools = (
        [thing for thing in world.things() if thing.shape == subject.noun],
        [thing for thing in world.things() if thing.shape != subject.noun],
    )
    kinds = []
    for pool in pools:
        scenes = [world.random_scene(generator, 1, pool) for _ in range(24)]
        pictures = world.render(scenes, generator)
        kinds.append(
            [
                Companion(Image.fromarray(picture), scene.caption())
                for picture, scene in zip(pictures, scenes, strict=True)
            ]
        )
    return own, kinds[0], kinds[1]


@click.command()
@click.option("--base", "source", default="demo", show_default=True)
@click.option("--method", "methods", multiple=True, default=("gates", "cones", "first-order"))
@click.option("--scope", "scopes", multiple=True, default=("subject", "prompt"))
@click.option("--density", "densities", multiple=True, type=float, help="Cut from one extraction.")
@click.option("--count", default=32, show_default=True, help="Pictures behind every share.")
@click.option("--threads", default=2, show_default=True)
@click.option("--write", is_flag=True)
def main(
    source: str,
    methods: tuple[str, ...],
    scopes: tuple[Scope, ...],
    densities: tuple[float, ...],
    count: int,
    threads: int,
    write: bool,
) -> None:
    """Measure and print."""
    torch.set_num_threads(threads)
    base, judge = BaseModel.load(source), Judge.load()
    extractor, generator = Extractor(base), Generator(base)
    registry = Registry.create(f"memory://measure-{time.time_ns()}")
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        held_out = {s.name: held_out_pictures(s, Path(temporary)) for s in SUBJECTS}
        for scope in scopes:
            for method in methods:
                for subject in SUBJECTS:
                    began = time.monotonic()
                    beside = companions(base, subject)
                    extraction = learn(extractor, subject, beside, scope=scope, method=method)
                    seconds = time.monotonic() - began
                    kinds = {"own": extraction}
                    kinds |= {
                        f"{d:g}": extraction.cut(d) for d in densities if d < extraction.density
                    }
                    for cut, kept in kinds.items():
                        concept = registry.push(
                            subject.name,
                            kept.mask,
                            base=base,
                            scope=scope,
                            token=subject.token,
                            class_noun=subject.noun,
                        )
                        trials = subject_trials(subject, count)
                        pictures = draw(
                            generator, trials, composition=registry.resolve(concept.ref)
                        )
                        own, same, other = held_out[subject.name]
                        losses = held_out_losses(
                            base,
                            kept.mask,
                            scope=scope,
                            token=subject.token,
                            class_noun=subject.noun,
                            own=own,
                            class_pictures=same,
                            other_pictures=other,
                        )
                        row = {
                            "method": method,
                            "scope": scope,
                            "subject": subject.name,
                            "cut": cut,
                            "density": kept.density,
                            "bytes": len(encode(kept.mask)),
                            "seconds": round(seconds, 1),
                            "own": losses.own,
                            "class": losses.class_,
                            "other": losses.other,
                            **score(judge, trials, pictures),
                        }
                        rows.append(row)
                        click.echo(json.dumps(row), err=True)
    table = _table(rows)
    click.echo(table)
    if write:
        record = {
            **conditions(base),
            "pictures": count,
            "rows": rows,
        }
        head = (
            "# Extraction: methods, scopes, densities\n\n"
            f"`python tools/measure_extraction.py --write`: {count} "
            "pictures a subject at places and on backgrounds extraction never saw, read by the "
            "judge. `accuracy`: shape, both colours and texture right at the right place. Losses "
            "are held-out denoising losses with the mask over those without it.\n\n"
        )
        keep("extraction", record, f"{head}{said(record)}\n\n{table}\n")


def _table(rows: list[dict[str, object]]) -> str:
    """Markdown: a row for each method, scope and density, the mean of the subjects last."""
    names = [subject.name for subject in SUBJECTS]
    lines = [
        f"| scope | method | density | {' | '.join(names)} "
        "| accuracy | own | class | other | s | bytes |",
        "|---" * (9 + len(names)) + "|",
    ]
    groups: dict[tuple[object, object, object], list[dict[str, object]]] = {}
    for row in rows:
        key = (row["scope"], row["method"], row["cut"])
        groups.setdefault(key, []).append(row)
    for (scope, method, _), found in groups.items():
        by_name = {row["subject"]: row for row in found}

        def mean(column: str, found: list[dict[str, object]] = found) -> float:
            return statistics.fmean(float(row[column]) for row in found)  # type: ignore[arg-type]

        each = [f"{by_name[n]['thing']:.2f}" if n in by_name else "" for n in names]
        lines.append(
            f"| {scope} | {method} | {mean('density'):.3f} | {' | '.join(each)} "
            f"| {mean('thing'):.2f} | {mean('own'):.3f} | {mean('class'):.3f} "
            f"| {mean('other'):.3f} | {mean('seconds'):.0f} | {mean('bytes'):.0f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
