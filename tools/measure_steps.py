"""How few steps gates need: `python tools/measure_steps.py --write`.

The demo's four subjects are learnt with fewer and fewer steps, from open gates and from a first
pass of first-order scores (`quick-gates`, with 100); drawn alone and in pairs. A step is one
gradient, and so is each batch of the first pass. Writes tools/results/steps.{md,json}.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from statistics import fmean
from typing import Any

import click
import torch
from measured import conditions, keep, said
from subject_bench import SubjectBench

from cones_registry import Extractor
from cones_registry.demo.learn import companions, learn
from cones_registry.demo.subjects import SUBJECTS
from cones_registry.extraction import Gates

STEPS = (25, 50, 100, 150, 300)
FIRST_PASS = 16


@click.command()
@click.option("--base", "source", default="demo", show_default=True)
@click.option("--steps", multiple=True, type=int, default=STEPS, show_default=True)
@click.option("--count", default=32, show_default=True, help="Pictures behind every share.")
@click.option("--write", is_flag=True)
def main(source: str, steps: Sequence[int], count: int, write: bool) -> None:
    """Measure and print."""
    torch.set_num_threads(1)
    bench = SubjectBench(source, count)
    extractor = Extractor(bench.base)
    beside = {subject.name: companions(bench.base, subject) for subject in SUBJECTS}
    rows: list[dict[str, Any]] = []
    for first in (0, FIRST_PASS):
        for number in steps:
            method = Gates(steps=number, warm_start=first)
            seconds, concepts = [], {}
            for subject in SUBJECTS:
                began = time.process_time()
                extraction = learn(
                    extractor,
                    subject,
                    beside[subject.name],
                    method=method,  # type: ignore[arg-type]
                    progress=None,
                )
                seconds.append(time.process_time() - began)
                concepts[subject] = bench.push(subject, extraction.mask, f"{first}-{number}")
            rows.append(
                {
                    "first_pass": first,
                    "steps": number,
                    "alone": bench.alone(concepts),
                    "pairs": bench.pairs(concepts),
                    "seconds": fmean(seconds),
                }
            )
            click.echo(json.dumps(rows[-1]), err=True)
    record = {**conditions(bench.base), "pictures": count, "rows": rows}
    text = page(record)
    click.echo(text)
    if write:
        keep("steps", record, text)


def page(record: dict[str, Any]) -> str:
    """The table in Markdown."""
    lines = [
        "# How few steps gates need",
        "",
        f"`python tools/measure_steps.py --write`: {record['pictures']} pictures of each subject "
        f"alone, {record['pictures'] // 2} of each pair; share of subjects right in shape, both "
        "colours and texture, read by the judge. Gradients: steps and the batches of the first "
        "pass. Seconds of one core a subject, pictures read and encoded among them.",
        "",
        said(record),
        "",
        "| gates start | steps | gradients | "
        + " | ".join(subject.name for subject in SUBJECTS)
        + " | alone | in pairs | s |",
        "|---|" + "---:|" * (len(SUBJECTS) + 5),
    ]
    for row in record["rows"]:
        start = "at first-order scores" if row["first_pass"] else "open"
        each = " | ".join(f"{share:.2f}" for share in row["alone"])
        lines.append(
            f"| {start} | {row['steps']} | {row['steps'] + row['first_pass']} | {each} | "
            f"**{fmean(row['alone']):.2f}** | {fmean(row['pairs']):.2f} | {row['seconds']:.0f} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
