"""Learning rate and steps of the baselines, on one subject: `python tools/measure_baselines.py`.

The same small grid for all of them: three learning rates, steps at three points of one run. The
subject is none of the demo's four, so that what is chosen here is not fitted to what is compared.
`--write` keeps the table in tools/results/baselines.{md,json}.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import click
import diffusers
import numpy as np
import peft
import torch
from measured import conditions, keep
from PIL import Image

from cones_registry import BaseModel, Generator
from cones_registry.demo import world
from cones_registry.demo.judge import Judge
from cones_registry.demo.measure import (
    Trial,
    described_trials,
    draw,
    score,
)
from cones_registry.evaluation.baselines import BASELINES, SubjectImages, Tuned, train
from cones_registry.extraction import base_companions

SUBJECT = world.Thing("square", "red", "dotted", "cyan")
TOKEN = "vbk"
RATES = {  # around what each paper takes, scaled to a model of 3 M parameters
    "textual-inversion": (3e-3, 1e-2, 3e-2, 1e-1),  # more, as none draws the texture
    "dreambooth": (3e-5, 1e-4, 3e-4),
    "custom-diffusion": (3e-4, 1e-3, 3e-3),
    "lora": (1e-3, 3e-3, 1e-2),
}


def reference_pictures(folder: Path, thing: world.Thing) -> None:
    """Five pictures with captions, made as those of the demo's subjects."""
    generator = np.random.default_rng(2304)
    grounds = list(world.BACKGROUNDS)
    for at, place in enumerate(world.PLACES):
        ground = grounds[at % len(grounds)]
        scene = world.Scene(ground, ((place, thing),))
        Image.fromarray(world.render([scene], generator)[0]).save(folder / f"{place}.png")
        (folder / f"{place}.txt").write_text(f"at {place} a {{}} | on {ground}\n", encoding="utf-8")


def trials(folder: Path, count: int) -> list[Trial]:
    """Prompts with the subject at places and on backgrounds of no reference picture."""
    seen = {path.read_text(encoding="utf-8").strip() for path in folder.glob("*.txt")}
    scenes = [
        world.Scene(ground, ((place, SUBJECT),))
        for place in world.PLACES
        for ground in world.BACKGROUNDS
        if f"at {place} a {{}} | on {ground}" not in seen
    ]
    name = f"{TOKEN} {SUBJECT.shape}"
    return [
        Trial(scene.caption(names={0: name}), scene, 1000 + at)
        for at, scene in enumerate((scenes * count)[:count])
    ]


@click.command()
@click.option("--base", "source", default="demo", show_default=True)
@click.option("--method", "methods", multiple=True, default=tuple(BASELINES))
@click.option("--rate", "rates", multiple=True, type=float, help="Only these learning rates.")
@click.option("--steps", "points", multiple=True, type=int, default=(75, 150, 300))
@click.option("--count", default=24, show_default=True, help="Pictures behind every share.")
@click.option("--log", type=click.Path(path_type=Path), help="Rows so far, one JSON a line.")
@click.option("--write", is_flag=True)
def main(
    source: str,
    methods: tuple[str, ...],
    rates: tuple[float, ...],
    points: tuple[int, ...],
    count: int,
    log: Path | None,
    write: bool,
) -> None:
    """Measure and print."""
    torch.set_num_threads(1)
    base, judge = BaseModel.load(source), Judge.load()
    rows = [json.loads(line) for line in log.read_text().splitlines()] if log else []
    done = {(row["method"], row["learning_rate"]) for row in rows}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        reference_pictures(folder, SUBJECT)
        subject = SubjectImages(folder, TOKEN, SUBJECT.shape, _companions(base, folder))
        for method in methods:
            for rate in RATES[method]:
                if (method, rate) in done or (rates and rate not in rates):
                    continue

                def measure(
                    step: int, tuned: Tuned, method: str = method, rate: float = rate
                ) -> None:
                    generator = Generator(tuned.base)
                    own, other = trials(folder, count), described_trials(count, 1)
                    row = {
                        "method": method,
                        "learning_rate": rate,
                        "steps": step,
                        "subject": score(judge, own, draw(generator, own))["thing"],
                        "other": score(judge, other, draw(generator, other))["thing"],
                        "loss": tuned.history[-1]["loss"],
                        "bytes": tuned.stored_bytes,
                        "seconds": round(tuned.seconds, 1),
                    }
                    rows.append(row)
                    click.echo(json.dumps(row), err=True)
                    if log:
                        with log.open("a") as file:
                            file.write(json.dumps(row) + "\n")

                last = max(points)
                tuned = train(
                    method,
                    base,
                    [subject],
                    steps=last,
                    learning_rate=rate,
                    at=[point for point in points if point < last],
                    on_tuned=measure,
                )
                measure(last, tuned)
    table = _table(rows)
    click.echo(table)
    if write:
        record = {
            **conditions(base),
            "pictures": count,
            "versions": {each.__name__: each.__version__ for each in (torch, diffusers, peft)},
            "rows": rows,
        }
        keep("baselines", record, _page(record, table))


def _companions(base: BaseModel, folder: Path) -> tuple[object, ...]:
    generator = np.random.default_rng(0)
    pool = world.things()
    prompts = []
    for file in sorted(folder.glob("*.txt")):
        place, ground = file.stem, file.read_text(encoding="utf-8").split("|")[1].strip()
        if place in world.OPPOSITE:
            for _ in range(6):
                thing = pool[int(generator.integers(len(pool)))]
                prompts.append(f"at {world.OPPOSITE[place]} a {thing.words()} | {ground}")
    return base_companions(
        base,
        prompts,
        steps=base.defaults.steps,
        guidance_scale=base.defaults.guidance_scale,
        batch_size=32,
    )


def best(rows: list[dict[str, object]]) -> dict[str, object]:
    """Of the rows with the most steps the highest mean of both shares, then the lowest loss."""
    last = max(row["steps"] for row in rows)  # type: ignore[type-var]
    ended = [row for row in rows if row["steps"] == last]
    return max(ended, key=lambda row: (row["subject"] + row["other"], -row["loss"]))  # type: ignore[operator]


def _table(rows: list[dict[str, object]]) -> str:
    lines = [
        "| method | learning rate | steps | subject | other | loss | bytes kept | s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for method in dict.fromkeys(row["method"] for row in rows):
        found = [row for row in rows if row["method"] == method]
        chosen = best(found)
        for row in sorted(found, key=lambda r: (r["learning_rate"], r["steps"])):  # type: ignore[arg-type,return-value]
            mark = "**" if row is chosen else ""
            lines.append(
                f"| {mark}{BASELINES[str(method)].title}{mark} | {row['learning_rate']:g} "
                f"| {row['steps']} | {mark}{row['subject']:.2f}{mark} | {row['other']:.2f} "
                f"| {row['loss']:.4f} | {row['bytes']:,} | {row['seconds']:.0f} |"
            )
    return "\n".join(lines)


def _page(record: dict[str, object], table: str) -> str:
    versions = ", ".join(f"{k} {v}" for k, v in record["versions"].items())  # type: ignore[attr-defined]
    return (
        "# Settings of the baselines\n\n"
        "`python tools/measure_baselines.py --write`: every method with the same grid on one "
        f"subject that is compared nowhere else (a {SUBJECT.words()}, called “{TOKEN} "
        f"{SUBJECT.shape}”). `subject`: share of {record['pictures']} pictures, at places and on "
        "backgrounds of no reference picture, in which it is right in shape, both colours and "
        "texture. `other`: the same for fully described things, which tuning should leave alone. "
        "Bold: the highest mean of the two at 300 steps, the budget that all get: the default in "
        "`evaluation/baselines/method.py`. "
        "Steps of one learning rate are points of one run of 300, batches of 8 and half as many "
        "class pictures on top (none for Textual Inversion). Textual Inversion was given more "
        "learning rates, as few of its pictures show the ornament: it learns shape and colour "
        "(loss and pictures agree), which is most of what one word of this base model can say. "
        "Seconds include class pictures and the load of a shared machine.\n\n"
        f"Base {record['fingerprint']}; {record['machine']}; {versions}; one seed.\n\n{table}\n"
    )


if __name__ == "__main__":
    main()
