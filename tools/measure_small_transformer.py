"""Concepts on the small transformer: `python tools/measure_small_transformer.py FOLDER --write`.

FOLDER is what `python tools/train_small_transformer.py export FOLDER` wrote. The base draws single
things told in full; then each of the demo's four subjects is learnt (scope `subject`, gates) and
drawn at places and on backgrounds that learning never saw, with its mask and without. The demo's
judge says what is right. Kept as tools/results/small-transformer.{md,json,png}.
"""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path

import click
import torch
from measured import RESULTS, conditions, keep, said
from subject_bench import SubjectBench

from cones_registry import Extractor
from cones_registry.demo.learn import SETTINGS, companions, learn
from cones_registry.demo.measure import described_trials, draw, score, subject_trials
from cones_registry.demo.sheet import Strip, contact_sheet
from cones_registry.demo.subjects import SUBJECTS


@click.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False))
@click.option("--count", default=30, show_default=True, help="Pictures a row.")
@click.option("--method", default="gates", show_default=True, help="Or quick-gates.")
@click.option("--steps", type=int, help="Of learning; the method's own if not given.")
@click.option("--alone/--company", default=True, help="Whether subjects are learnt alone.")
@click.option("--seed", default=0, show_default=True)
@click.option("--write", is_flag=True, help="Keep the page in tools/results.")
def main(
    folder: str, count: int, method: str, steps: int | None, alone: bool, seed: int, write: bool
) -> None:
    """Learn the four subjects on FOLDER's base and say how often they are drawn."""
    torch.set_num_threads(1)
    bench = SubjectBench(folder, count)
    before = conditions(bench.base)
    trained = json.loads((Path(folder) / "training.json").read_text(encoding="utf-8"))
    base_trials = described_trials(count, 1)
    told = draw(bench.generator, base_trials)
    described = score(bench.judge, base_trials, told)
    lines = [
        "| pictures of one thing | thing right | shape | colour | place | background | density |",
        "|---|---|---|---|---|---|---|",
        _line("the base, told in full", described, ""),
    ]
    click.echo(lines[-1])
    rows = [{"row": "described", **described}]
    strips = [Strip("The base, told in full", (("", tuple(told[:8])),))]
    settings = replace(SETTINGS, collage_share=0.0) if alone else SETTINGS
    for subject in SUBJECTS:
        began = time.monotonic()
        beside = [] if alone else companions(bench.base, subject, seed=seed)
        extraction = learn(
            Extractor(bench.base),
            subject,
            beside,
            method=method,
            seed=seed,
            settings=settings,
            steps=steps,
        )
        seconds = round(time.monotonic() - began)
        concept = bench.push(subject, extraction.mask, "gates")
        composition = bench.registry.resolve(concept.ref)
        trials = subject_trials(subject, count)
        shown = []
        for name, parts in (("without", {}), ("with", {"composition": composition})):
            pictures = draw(bench.generator, trials, **parts)
            found = score(bench.judge, trials, pictures)
            density = f"{extraction.density:.1%}" if parts else ""
            lines.append(_line(f"{subject.name}, {name} its mask", found, density))
            click.echo(lines[-1])
            rows.append({"row": f"{subject.name} {name}", "seconds": seconds, **found})
            shown.append((f"{name} the mask", tuple(pictures[:4])))
        strips.append(Strip(f"{subject.name}: {subject.thing.words()}", tuple(shown)))
        for name in ("without", "with"):
            mean = sum(each["thing"] for each in rows if each["row"].endswith(f" {name}"))
            click.echo(f"{name}: {mean / (len(strips) - 1):.3f} of subjects so far", err=True)
    if not write:
        return
    page = (
        "# Concepts on a small transformer trained by flow matching\n\n"
        f"`python tools/measure_small_transformer.py FOLDER --write`: {count} pictures a row, "
        f"{method} at the subject's own words, learnt "
        f"{'alone' if alone else 'in company'}, seed {seed}. The base: "
        f"`tools/train_small_transformer.py`, {trained['steps']} steps from random "
        f"weights in {trained['seconds']} seconds of one thread, beside the demo base's "
        "autoencoder and the plain shapes' text encoder; its weights and curve are kept in "
        f"`tools/assets/small-transformer`. Pictures: small-transformer.png.\n\n{said(before)}\n\n"
        + "\n".join(lines)
        + "\n"
    )
    keep(
        "small-transformer",
        {
            **before,
            "trained": trained,
            "method": method,
            "steps": steps,
            "count": count,
            "rows": rows,
        },
        page,
    )
    contact_sheet(strips).save(RESULTS / "small-transformer.png")


def _line(name: str, found: dict[str, float], density: str) -> str:
    shares = (f"{found[each]:.2f}" for each in ("thing", "shape", "colour", "place", "background"))
    return f"| {name} | {' | '.join(shares)} | {density} |"


if __name__ == "__main__":
    main()
