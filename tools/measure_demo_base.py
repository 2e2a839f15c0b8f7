"""How well the demo base follows its captions: `python tools/measure_demo_base.py`.

Draws fresh captions with one and two things at several guidance scales and lets the judge,
which was trained on renders alone, read the pictures. Writes tools/results/demo-base.{md,json}
with `--write`.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

import click
import torch
from measured import conditions, keep, said
from PIL import Image

from cones_registry import BaseModel, Generator
from cones_registry.demo.judge import Judge
from cones_registry.demo.measure import described_trials, draw, score
from cones_registry.demo.sheet import Strip, contact_sheet

COLUMNS = ("shape", "colour", "texture", "place", "background", "thing", "all")


@click.command()
@click.option("--base", "source", default="demo", show_default=True)
@click.option("--count", default=128, show_default=True, help="Pictures behind every number.")
@click.option("--guidance", "scales", multiple=True, type=float, default=(1.0, 1.5, 2.0, 3.0))
@click.option("--things", "numbers", multiple=True, type=int, default=(1, 2, 3, 4))
@click.option("--steps", default=20, show_default=True)
@click.option("--threads", default=2, show_default=True)
@click.option("--write", is_flag=True, help="Keep the table in tools/results.")
@click.option("--sheet", type=click.Path(path_type=Path), help="Write some of the pictures here.")
def main(
    source: str,
    count: int,
    scales: tuple[float, ...],
    numbers: tuple[int, ...],
    steps: int,
    threads: int,
    write: bool,
    sheet: Path | None,
) -> None:
    """Measure and print; shares of 1."""
    torch.set_num_threads(threads)
    base = BaseModel.load(source)
    generator, judge = Generator(base), Judge.load()
    rows, strips = [], []
    began = time.monotonic()
    for things in numbers:
        trials = described_trials(count, things)
        for guidance in scales:
            pictures: list[Image.Image] = draw(generator, trials, guidance=guidance, steps=steps)
            row = {"things": things, "guidance": guidance, **score(judge, trials, pictures)}
            rows.append(row)
            click.echo(json.dumps(row, indent=None), err=True)
            strips.append(
                Strip(f"{things} things, guidance {guidance}", (("", tuple(pictures[:12])),))
            )
    if sheet is not None:
        contact_sheet(strips).save(sheet)
    lines = [
        "| things | guidance | " + " | ".join(COLUMNS) + " |",
        "|---" * (2 + len(COLUMNS)) + "|",
        *(
            f"| {row['things']} | {row['guidance']:g} | "
            + " | ".join(f"{row[column]:.3f}" for column in COLUMNS)
            + " |"
            for row in rows
        ),
    ]
    table = "\n".join(lines)
    click.echo(table)
    if write:
        record = {
            **conditions(base),
            "pictures": count,
            "steps": steps,
            "seconds": round(time.monotonic() - began),
            "rows": rows,
        }
        head = (
            "# How well the demo base follows its captions\n\n"
            f"`python tools/measure_demo_base.py --write`: {count} pictures a row, {steps} DDIM "
            "steps, read by a classifier trained on the renderer alone. `thing`: share of things "
            "right in shape, colour and texture at their place; `all`: share of pictures with "
            f"every thing right.\n\n"
        )
        keep("demo-base", record, f"{head}{said(record)}\n\n{table}\n")


if __name__ == "__main__":
    main()
