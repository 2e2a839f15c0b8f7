"""The report of `tools/reproduce --part table`: table, plot and contact sheet in tools/results."""

from __future__ import annotations

import json
import statistics
from collections import defaultdict
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from measured import conditions, said
from PIL import Image
from reproduction_plan import RIVALS, TUNED_ROWS, WORLD_ROW

from cones_registry import BaseModel
from cones_registry.demo.sheet import Strip, contact_sheet
from cones_registry.errors import NotFoundError
from cones_registry.evaluation.plan import EvaluationPlan, Item
from cones_registry.evaluation.report import markdown
from cones_registry.evaluation.scores import Scores, read_scores
from cones_registry.evaluation.table import MEASURES, Table, make_table

OURS_BEST = "gates/subject"
TITLE = "The table's shape on the demo base: one to four subjects"


def write_report(plan: EvaluationPlan, work: Path, base: BaseModel, results: Path) -> None:
    """Write table.md, table.json, table.png and table-pictures.png to ``results``."""
    names = [row.folder for row in plan.rows] + [WORLD_ROW]
    found: dict[str, Scores] = {}
    for name in names:
        try:
            found[name] = read_scores(work / "rows" / name)
        except NotFoundError:
            continue
    table = make_table(list(found.values()), title=TITLE)
    times: dict[str, float] = defaultdict(float)
    for file in sorted((work / "times").glob("*.json")):
        for what, seconds in json.loads(file.read_text()).items():
            times[what] += seconds
    results.mkdir(exist_ok=True)
    record = (
        table.to_json()
        | conditions(base)
        | {
            "details": {scores.method: details(scores) for scores in found.values()},
            "core_seconds": {what: round(seconds, 1) for what, seconds in times.items()},
            "versions": {name: version(name) for name in ("torch", "diffusers", "transformers")},
        }
    )
    (results / "table.json").write_text(json.dumps(record, indent=1) + "\n", "utf-8")
    text = markdown(table) + verdicts(table) + further(found) + shown(plan) + spent(times, base)
    (results / "table.md").write_text(text, "utf-8")
    plot(table, results / "table.png")
    sheet(plan, work, list(found)).save(results / "table-pictures.png", optimize=True)


def verdicts(table: Table) -> str:
    """What was hoped for, number of subjects by number of subjects, and whether it is so."""
    rows = {row.method: row for row in table.rows}
    rivals = [rows[name] for name in RIVALS if name in rows]
    lines = [
        "\n## What was to be shown\n",
        "Yes or no by the means, whose intervals are above.\n",
        "| row | subjects | claim | ours | rivals | holds |",
        "|---|---:|---|---:|---|---|",
    ]
    if not rivals:
        return ""
    for ours in (rows[name] for name in (OURS_BEST, *TUNED_ROWS) if name in rows):
        lines += _compared(ours, rivals, table.columns)
        custom = rows.get("custom-diffusion")
        if custom and custom.bytes_per_concept and ours.bytes_per_concept:
            saved = 1 - ours.bytes_per_concept / custom.bytes_per_concept
            lines.append(
                f"| {ours.method} | | storage at least 98 % below Custom Diffusion's float32 K/V | "
                f"{ours.bytes_per_concept:,.0f} bytes | {custom.bytes_per_concept:,.0f} bytes | "
                f"{'yes' if saved >= 0.98 else '**no**'}, {saved:.1%} less |"
            )
    return "\n".join(lines) + "\n"


def _compared(ours: Any, rivals: Sequence[Any], counts: Sequence[int]) -> list[str]:
    """A line for each number of subjects and claim."""
    lines = []
    for count in counts:
        for measure, share, claim in (
            ("text", 1.0, "text alignment at least Custom Diffusion's and DreamBooth's"),
            ("presence", 0.9, "presence at least nine tenths of the best rival's"),
        ):
            own = ours.cells[measure].get(count)
            named = {
                row.method: row.cells[measure][count].mean
                for row in rivals
                if count in row.cells[measure]
                and (
                    measure == "presence"
                    or RIVALS[row.method]["baseline"] in ("custom-diffusion", "dreambooth")
                )
            }
            if own is None or not named:
                continue
            holds = 0 < own.mean >= share * max(named.values())
            listed = ", ".join(f"{name} {value:.3f}" for name, value in named.items())
            verdict = "yes" if holds else "**no**"
            lines.append(
                f"| {ours.method} | {count} | {claim} | {own.mean:.3f} | {listed} | {verdict} |"
            )
    return lines


def details(scores: Scores) -> dict[str, dict[str, float]]:
    """Shares by number of subjects, as the classifier sees them at the places asked for."""
    groups: dict[int, list[dict[str, float]]] = defaultdict(list)
    for picture in scores.pictures:
        if picture.details:
            groups[len(picture.subjects)].append(dict(picture.details))
    return {
        str(count): {key: statistics.fmean(each[key] for each in group) for key in sorted(group[0])}
        for count, group in sorted(groups.items())
    }


def further(found: dict[str, Scores]) -> str:
    """What the classifier sees beyond the table: whole pictures right, attributes, places."""
    lines = [
        "\n## What the classifier sees at the places asked for\n",
        "Mean over one to four subjects; `all`: share of pictures in which every subject is right "
        "in everything at its place, by number of subjects.\n",
        "| method | shape | colour | texture | places taken | background | all: 1 | 2 | 3 | 4 |",
        "|---|" + "---:|" * 9,
    ]
    for scores in found.values():
        by_count = details(scores)
        if not by_count:
            continue
        means = [
            f"{statistics.fmean(each[key] for each in by_count.values()):.2f}"
            for key in ("shape", "colour", "texture", "place", "background")
        ]
        whole = [
            f"{by_count[str(count)]['all']:.2f}" if str(count) in by_count else "–"
            for count in range(1, 5)
        ]
        lines.append(f"| {scores.method} | {' | '.join([*means, *whole])} |")
    return "\n".join(lines) + "\n"


def spent(times: dict[str, float], base: BaseModel) -> str:
    """Processor time by stage."""
    total = sum(times.values())
    lines = [
        "\n## Time\n",
        f"`tools/reproduce --part table`: {total / 60:.0f} minutes of one core "
        f"(one thread a process, shared with other work). {said(conditions(base))}\n",
        "| stage | core seconds |",
        "|---|---:|",
        *(f"| {what} | {seconds:.0f} |" for what, seconds in sorted(times.items())),
    ]
    return "\n".join(lines) + "\n"


def plot(table: Table, file: Path) -> None:
    """One panel a measure: means with intervals over the number of subjects."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(MEASURES), figsize=(14, 4.5), layout="constrained")
    colours = pyplot.get_cmap("tab20")
    for axis, (measure, name) in zip(axes, MEASURES.items(), strict=True):
        for number, row in enumerate(table.rows):
            cells = row.cells[measure]
            counts = sorted(cells)
            means = [cells[count].mean for count in counts]
            errors = [
                [max(cells[c].mean - cells[c].low, 0) for c in counts],
                [max(cells[c].high - cells[c].mean, 0) for c in counts],
            ]
            shifted = [count + 0.02 * (number - len(table.rows) / 2) for count in counts]
            bound = row.method.startswith(("base", "real"))
            axis.errorbar(
                shifted,
                means,
                errors,
                label=row.method,
                color="0.5" if bound else colours(number),
                linestyle="--" if bound else "-",
                linewidth=2.5 if row.method == "gates/subject" else 1.2,
                marker="o",
                markersize=3,
                elinewidth=0.7,
            )
        axis.set(title=name, xlabel="subjects in the picture", xticks=list(table.columns))
        axis.grid(alpha=0.3)
    axes[-1].legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(file, dpi=110)
    pyplot.close(figure)


def chosen_items(plan: EvaluationPlan) -> list[Item]:
    """The first and the last prompt of each number of subjects."""
    by_count = [[item for item in plan.items if len(item.subjects) == n] for n in range(1, 5)]
    return [item for items in by_count for item in (items[0], items[-1])]


def shown(plan: EvaluationPlan) -> str:
    """Where to look."""
    prompts = "\n".join(
        f"{number}. {item.prompt('description')}"
        for number, item in enumerate(chosen_items(plan), start=1)
    )
    return (
        "\n## Pictures\n\n![The table as curves](table.png)\n\n"
        "The first picture of the same eight prompts by every method, not chosen:\n\n"
        f"![Pictures of every method](table-pictures.png)\n\n{prompts}\n"
    )


def sheet(plan: EvaluationPlan, work: Path, folders: list[str]) -> Image.Image:
    """The same prompts, drawn by every row: two of each number of subjects."""
    stems = [item.picture_names()[0] for item in chosen_items(plan)]
    strips = []
    for folder in folders:
        files = [work / "rows" / folder / "pictures" / f"{stem}.png" for stem in stems]
        if not all(file.exists() for file in files):
            continue
        pictures = tuple(Image.open(file).convert("RGB") for file in files)
        groups = tuple(
            (f"{at + 1} subject{'s' if at else ''}", pictures[2 * at : 2 * at + 2])
            for at in range(4)
        )
        strips.append(Strip(folder, groups))
    return contact_sheet(strips)
