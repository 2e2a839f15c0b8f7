"""Where neurons lie and what their words attend to: `python tools/measure_attention.py`.

Eight subjects of the demo's world, two of each class, are learnt with one method. Counted: density
of each layer, K against V; overlap of two subjects of one class against two of different classes;
and how much of the attention of the subject's words falls on the subject, with its mask and
without. `--write` keeps tools/results/attention.{md,json} and attention.png.
"""

from __future__ import annotations

import itertools
import statistics
from pathlib import Path

import click
import numpy as np
import torch
from measured import RESULTS, conditions, keep
from PIL import Image, ImageDraw
from reproduction_plan import SUBJECTS, write_subjects

from cones_registry import BaseModel, ConceptMask, Extractor, Generator, Request
from cones_registry.attention import find_phrases, record_maps, subject_rows
from cones_registry.attention.outlines import outlined
from cones_registry.demo import world
from cones_registry.demo.learn import companions, learn
from cones_registry.demo.measure import Trial
from cones_registry.demo.subjects import Subject
from cones_registry.errors import ConflictError, NotFoundError
from cones_registry.record import Scope
from cones_registry.registry import Registry

SHOWN = 4  # pictures of each kind on the sheet
ENLARGED = 128  # pixels
WINDOW = 8  # pixels on each side of a thing's centre that count as the thing


def learnt(
    base: BaseModel, registry: Registry, work: Path, scope: Scope, steps: int
) -> dict[str, str]:
    """Name -> ref of every subject's concept, learnt unless it is there."""
    extractor, refs = Extractor(base), {}
    for subject in (each.at(work) for each in SUBJECTS):
        name = f"{subject.name}-{scope}"
        try:
            concept = registry.get(name)
        except NotFoundError:
            beside = companions(base, subject)
            found = learn(extractor, subject, beside, scope=scope, steps=steps)
            concept = registry.push(
                name,
                found.mask,
                base=base,
                scope=scope,
                token=subject.token,
                class_noun=subject.noun,
                provenance=found.provenance,
            )
            click.echo(f"{concept.ref}: {concept.density:.1%}", err=True)
        refs[subject.name] = concept.ref
    return refs


def layer_rows(masks: dict[str, ConceptMask]) -> list[dict[str, object]]:
    """Mean density of each layer over the subjects, K and V side by side."""
    table = next(iter(masks.values())).table
    rows = []
    for key in (layer for layer in table.layers if ".to_k." in layer.name):
        shares = {}
        for letter, name in (("k", key.name), ("v", key.name.replace(".to_k.", ".to_v."))):
            size = table.layer(name).neuron_count
            shares[letter] = statistics.fmean(mask.count(name) / size for mask in masks.values())
        neurons = sum(
            mask.count(key.name) + mask.count(key.name.replace(".to_k.", ".to_v."))
            for mask in masks.values()
        )
        share = neurons / sum(len(mask) for mask in masks.values())
        rows.append({"block": key.name.split(".attn2")[0], **shares, "share": share})
    return rows


def overlap_rows(masks: dict[str, ConceptMask]) -> dict[str, list[float]]:
    """Jaccard over the Jaccard of independent masks, for pairs of one class and of two."""
    found: dict[str, list[float]] = {"same class": [], "different classes": []}
    sizes = np.array([layer.neuron_count for layer in next(iter(masks.values())).table.layers])
    subjects = {subject.name: subject for subject in SUBJECTS}
    for first, second in itertools.combinations(masks, 2):
        one, other = masks[first], masks[second]
        expected = float((one.counts * (other.counts / sizes)).sum())
        chance = expected / (len(one) + len(other) - expected)
        same = subjects[first].noun == subjects[second].noun
        found["same class" if same else "different classes"].append(one.jaccard(other) / chance)
    return found


def two_things(subject: Subject, count: int) -> list[Trial]:
    """Prompts with the subject first and a plain thing of another class opposite."""
    generator = np.random.default_rng([7, len(subject.name)])
    pool = [
        thing
        for thing in world.things()
        if thing.shape != subject.noun and thing.texture == "plain"
    ]
    trials = []
    for at in range(count):
        scene = world.random_scene(generator, 2, pool)
        (place, _), other = scene.things
        scene = world.Scene(scene.background, ((place, subject.thing), other))
        trials.append(Trial(scene.caption(names={0: subject.phrase}), scene, 400 + at))
    return trials


def attended(
    base: BaseModel, registry: Registry, ref: str, subject: Subject, count: int
) -> tuple[list[tuple[float, float]], list[tuple[Image.Image, Image.Image]]]:
    """Per picture: share of the subject's words' attention on the subject / on the other thing,
    as (without, with) the mask; and outlined pictures."""
    composition = registry.resolve(ref)
    trials = two_things(subject, count)
    requests = [
        Request(trial.prompt, seed=trial.seed, composition=parts)
        for parts in (None, composition)
        for trial in trials
    ]
    with record_maps(base.denoiser) as maps:
        pictures = Generator(base).generate(requests)
    contrasts, sheets = [], []
    for number, trial in enumerate(trials):
        phrases = find_phrases(trial.prompt, token=subject.token, class_noun=subject.noun)
        rows = subject_rows(base, trial.prompt, phrases)
        pair, shown = [], []
        for entry in (number, count + number):
            heat = maps.of(rows, entry - len(requests), shape=(world.SIZE, world.SIZE))
            own, other = (_around(heat, place) for place, _ in trial.scene.things)
            pair.append(own / (own + other))
            big = maps.of(rows, entry - len(requests), shape=(ENLARGED, ENLARGED))
            picture = pictures[entry].resize((ENLARGED, ENLARGED), Image.Resampling.NEAREST)
            shown.append(outlined(picture, big))
        contrasts.append((pair[0], pair[1]))
        sheets.append((shown[0], shown[1]))
    return contrasts, sheets


def _around(heat: np.ndarray, place: str) -> float:
    x, y = (round(value) for value in world.PLACES[place])
    rows = slice(max(y - WINDOW, 0), y + WINDOW)
    columns = slice(max(x - WINDOW, 0), x + WINDOW)
    return float(heat[rows, columns].sum())


@click.command()
@click.option("--base", "source", default="demo", show_default=True)
@click.option("--scope", default="subject", show_default=True)
@click.option("--steps", default=150, show_default=True, help="Of learning each subject.")
@click.option("--count", default=12, show_default=True, help="Pictures a subject.")
@click.option("--work", type=click.Path(path_type=Path), required=True, help="Subjects, registry.")
@click.option("--write", is_flag=True)
def main(source: str, scope: Scope, steps: int, count: int, work: Path, write: bool) -> None:
    """Measure and print."""
    torch.set_num_threads(1)
    base = BaseModel.load(source)
    work.mkdir(parents=True, exist_ok=True)
    write_subjects(base, work)
    try:
        registry = Registry.create(work / "registry")
    except ConflictError:
        registry = Registry.open(work / "registry")
    refs = learnt(base, registry, work, scope, steps)
    masks = {name: registry.pull(ref) for name, ref in refs.items()}
    found: dict[str, list[tuple[float, float]]] = {}
    strips = []
    for subject in SUBJECTS:
        found[subject.name], sheets = attended(base, registry, refs[subject.name], subject, count)
        strips.append((subject.phrase, sheets[:SHOWN]))
        without, with_mask = (
            statistics.fmean(pair[at] for pair in found[subject.name]) for at in (0, 1)
        )
        click.echo(f"{subject.name}: {without:.3f} -> {with_mask:.3f}", err=True)
    record = {
        **conditions(base),
        "scope": scope,
        "steps": steps,
        "count": count,
        "density": {name: mask.density for name, mask in masks.items()},
        "layers": layer_rows(masks),
        "overlap": overlap_rows(masks),
        "attention": found,
    }
    page = _page(record)
    click.echo(page)
    _sheet(strips).save(work / "attention.png")
    if write:
        keep("attention", record, page)
        _sheet(strips).save(RESULTS / "attention.png")


def _sheet(strips: list[tuple[str, list[tuple[Image.Image, Image.Image]]]]) -> Image.Image:
    """Two subjects a row, each without the mask above and with it below."""
    cell, label = ENLARGED + 4, 16
    width = SHOWN * cell + 12
    rows = -(-len(strips) // 2)
    sheet = Image.new("RGB", (2 * width, rows * (2 * cell + label)), (255, 255, 255))
    pen = ImageDraw.Draw(sheet)
    for number, (title, pairs) in enumerate(strips):
        left, top = number % 2 * width, number // 2 * (2 * cell + label)
        pen.text((left, top + 2), f"{title}: without the mask, with it", (40, 40, 40))
        for at, pair in enumerate(pairs):
            for below, picture in enumerate(pair):
                sheet.paste(picture, (left + at * cell, top + label + below * cell))
    return sheet


def _page(record: dict[str, object]) -> str:
    layers: list[dict[str, object]] = record["layers"]  # type: ignore[assignment]
    overlap: dict[str, list[float]] = record["overlap"]  # type: ignore[assignment]
    attention: dict[str, list[tuple[float, float]]] = record["attention"]  # type: ignore[assignment]
    densities: dict[str, float] = record["density"]  # type: ignore[assignment]
    lines = [
        "# Where the neurons lie, and what their words attend to",
        "",
        f"`python tools/measure_attention.py --work FOLDER --write`: eight subjects, two of each "
        f"class, learnt by gates of scope `{record['scope']}` in {record['steps']} steps. Base "
        f"{record['fingerprint']}; {record['machine']}; torch {record['torch']}; one seed.",
        "",
        "## Layers",
        "",
        f"Mean density over the subjects (whole masks: {min(densities.values()):.1%} to "
        f"{max(densities.values()):.1%}).",
        "",
        "| cross-attention of | K | V | V / K | of all neurons |",
        "|---|---|---|---|---|",
    ]
    for row in layers:
        k, v = float(row["k"]), float(row["v"])  # type: ignore[arg-type]
        ratio = f"{v / k:.1f}" if k else ""
        lines.append(f"| {row['block']} | {k:.1%} | {v:.1%} | {ratio} | {row['share']:.1%} |")
    lines += [
        "",
        "## Overlap",
        "",
        "Jaccard index of two masks over that of independent masks with as many members in each "
        "layer; 1 is chance.",
        "",
        "| pairs | n | mean | lowest … highest |",
        "|---|---|---|---|",
    ]
    for kind, values in overlap.items():
        mean, low, high = statistics.fmean(values), min(values), max(values)
        lines.append(f"| {kind} | {len(values)} | {mean:.2f} | {low:.2f} … {high:.2f} |")
    lines += [
        "",
        "## Attention",
        "",
        f"{record['count']} pictures a subject, with one plain thing of another class opposite it. "
        "Of the attention that the subject's words (placeholder and noun) get at the two things, "
        "the share that lies on the subject; 0.5 is no preference. Same prompts and seeds. "
        "attention.png shows outlines at half of each map's range.",
        "",
        "| subject | without the mask | with it | pictures in which it is higher |",
        "|---|---|---|---|",
    ]
    for name, pairs in attention.items():
        without, with_mask = (statistics.fmean(pair[at] for pair in pairs) for at in (0, 1))
        higher = sum(pair[1] > pair[0] for pair in pairs)
        lines.append(f"| {name} | {without:.3f} | {with_mask:.3f} | {higher} of {len(pairs)} |")
    every = [pair for pairs in attention.values() for pair in pairs]
    without, with_mask = (statistics.fmean(pair[at] for pair in every) for at in (0, 1))
    higher = sum(pair[1] > pair[0] for pair in every)
    lines.append(
        f"| **all** | **{without:.3f}** | **{with_mask:.3f}** | {higher} of {len(every)} |"
    )
    lines += [
        "",
        f"Where the words look hardly moves ({without:.3f} to {with_mask:.3f}), and what is drawn "
        "there is another thing altogether: the masks change what the words say more than where "
        "they are heard. (One seed; eight subjects; a base with an 8 × 8 grid.)",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
