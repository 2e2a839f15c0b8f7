"""Precision and density of masks, from one extraction: `python tools/measure_precision.py --write`.

The demo's four subjects are learnt once each by gates at their own words. The same masks are kept
at four precisions (what a member is multiplied by: 0 in a binary mask; else twice its averaged
latent, between 0 and 1, as learnt) and cut to lower densities by the scores of that extraction.
Each goes the whole way: pushed, resolved, drawn alone and (precisions) in pairs. `--write` keeps
tools/results/precision.{md,json} and density.png.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path

import click
import numpy as np
import torch
from measured import RESULTS, conditions, keep, said
from subject_bench import SubjectBench

from cones_registry import ConceptMask, Extractor
from cones_registry.demo.learn import companions, learn
from cones_registry.demo.subjects import SUBJECTS
from cones_registry.extraction import Extraction
from cones_registry.extraction.gates import OPEN
from cones_registry.factors import PRECISIONS

DENSITIES = (0.05, 0.02, 0.01, 0.005, 0.002)


def graded(extraction: Extraction, precision: str) -> ConceptMask:
    """The mask's members with factors: 0 where the latent was 0 or less, 1 at the edge to open."""
    mask = extraction.mask
    if precision == "binary" or extraction.scores is None:
        return mask
    indices = {name: mask.indices(name) for name in mask.table.names}
    factors = {}
    for name, chosen in indices.items():
        latent = OPEN - extraction.scores[name].reshape(-1)[chosen]
        factors[name] = np.clip(latent / OPEN, 0, 1).astype(np.float32)
    return ConceptMask.from_indices(mask.table, indices, factors, precision=precision)  # type: ignore[arg-type]


@click.command()
@click.option("--base", "source", default="demo", show_default=True)
@click.option("--count", default=32, show_default=True, help="Pictures of each subject.")
@click.option("--steps", type=int, help="Of learning; the method's own otherwise.")
@click.option("--write", is_flag=True)
def main(source: str, count: int, steps: int | None, write: bool) -> None:
    """Measure and print."""
    torch.set_num_threads(1)
    bench = SubjectBench(source, count)
    extractor = Extractor(bench.base)
    learnt = []
    for subject in SUBJECTS:
        beside = companions(bench.base, subject)
        learnt.append(learn(extractor, subject, beside, progress=None, steps=steps))
        click.echo(f"{subject.name}: {learnt[-1].density:.2%}", err=True)
    rows = [precision_row(bench, learnt, precision) for precision in PRECISIONS]
    curve = [density_row(bench, learnt, density) for density in (None, *DENSITIES)]
    text = page(rows, curve, bench, learnt)
    click.echo(text)
    if write:
        record = {
            **conditions(bench.base),
            "pictures": count,
            "precision": rows,
            "density": curve,
        }
        keep("precision", record, text)
        plot(curve, RESULTS / "density.png")


def precision_row(
    bench: SubjectBench, learnt: Sequence[Extraction], precision: str
) -> dict[str, float | str]:
    """All subjects alone and all pairs, at one precision."""
    concepts = {
        subject: bench.push(subject, graded(extraction, precision), precision)
        for subject, extraction in zip(SUBJECTS, learnt, strict=True)
    }
    row: dict[str, float | str] = {
        "precision": precision,
        "alone": statistics.fmean(bench.alone(concepts)),
        "pairs": statistics.fmean(bench.pairs(concepts)),
        "bytes": statistics.fmean(concept.blob_bytes for concept in concepts.values()),
    }
    click.echo(json.dumps(row), err=True)
    return row


def density_row(
    bench: SubjectBench, learnt: Sequence[Extraction], density: float | None
) -> dict[str, float]:
    """All subjects alone, cut to one density; None: as learnt."""
    cut = [
        each if density is None or density >= each.density else each.cut(density) for each in learnt
    ]
    concepts = {
        subject: bench.push(subject, each.mask, f"cut-{density or 'none'}".replace(".", "-"))
        for subject, each in zip(SUBJECTS, cut, strict=True)
    }
    row = {
        "density": statistics.fmean(each.density for each in cut),
        "alone": statistics.fmean(bench.alone(concepts)),
        "bytes": statistics.fmean(concept.blob_bytes for concept in concepts.values()),
    }
    click.echo(json.dumps(row), err=True)
    return row


def page(
    rows: list[dict[str, float | str]],
    curve: list[dict[str, float]],
    bench: SubjectBench,
    learnt: Sequence[Extraction],
) -> str:
    """Both tables."""
    parameters = learnt[0].provenance.parameters
    binary, full = (
        next(row for row in rows if row["precision"] == each) for each in ("binary", "float32")
    )
    gap = float(full["alone"]) - float(binary["alone"])
    lines = [
        "# Precision and density",
        "",
        "`python tools/measure_precision.py --write`: the demo's four subjects, gates of scope "
        f"`subject`, {parameters.get('steps')} steps, one extraction each; {bench.count} pictures "
        "of every subject at places and on backgrounds that were not learnt, and half as many of "
        "every pair, read by the judge: share of subjects right in shape, both colours, texture "
        f"and place. One seed. {said(conditions(bench.base))}",
        "",
        "| factors | alone | pairs | bytes a concept |",
        "|---|---:|---:|---:|",
        *(
            f"| {r['precision']} | {r['alone']:.3f} | {r['pairs']:.3f} | {r['bytes']:,.0f} |"
            for r in rows
        ),
        "",
        f"Float32 factors less binary ones, alone: {100 * gap:+.1f} points (hoped for: at most 3; "
        f"{'so it is' if gap <= 0.03 else '**missed**'}).",
        "",
        "## Density",
        "",
        "The same extractions cut to fewer neurons by their scores, without learning again "
        "([plot](density.png)).",
        "",
        "| density | alone | bytes a concept |",
        "|---:|---:|---:|",
        *(f"| {r['density']:.2%} | {r['alone']:.3f} | {r['bytes']:,.0f} |" for r in curve),
        "",
    ]
    return "\n".join(lines)


def plot(curve: list[dict[str, float]], file: Path) -> None:
    """Share right over density."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(6, 4), layout="constrained")
    axis.semilogx(
        [100 * row["density"] for row in curve], [row["alone"] for row in curve], marker="o"
    )
    axis.set(xlabel="neurons shut, %", ylabel="subject right", ylim=(0, 1))
    axis.grid(alpha=0.3)
    figure.savefig(file, dpi=110)
    pyplot.close(figure)


if __name__ == "__main__":
    main()
