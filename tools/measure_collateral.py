"""Less collateral from whole-prompt masks, tried: `python tools/measure_collateral.py --write`.

Masks of scope `prompt` change every prompt. Remedies, all cut from one extraction a subject:
leaving out neurons that several subjects' masks share ("general" ones, as CNS, arXiv 2510.02296,
does), leaving out neurons whose shutting harms ordinary prompts most, a limit to every layer's
density, and lower densities. For each: the subject alone, pairs by union, and pictures of ordinary
prompts under the mask. Writes tools/results/collateral.{md,json}.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from statistics import fmean

import click
import numpy as np
import torch
from measured import conditions, keep, said
from PIL import Image

from cones_registry import BaseModel, ConceptMask, Extractor, Generator
from cones_registry.attention import edited
from cones_registry.demo import world
from cones_registry.demo.judge import Judge
from cones_registry.demo.learn import companions, learn
from cones_registry.demo.measure import described_trials, draw, group_trials, score, subject_trials
from cones_registry.demo.subjects import SUBJECTS
from cones_registry.extraction.conditioning import encode_pictures
from cones_registry.extraction.noise import NoiseSchedule
from cones_registry.extraction.weights import FlatWeights

Masks = list[ConceptMask]


def ordinary_harm(base: BaseModel, batches: int = 12) -> dict[str, np.ndarray]:
    """−θ · ∂L/∂θ of ordinary prompts, by layer: how much the loss rises per share shut."""
    weights, schedule = FlatWeights(base), NoiseSchedule.of(base.pipeline.scheduler)
    generator, noises = np.random.default_rng(7), torch.Generator().manual_seed(7)
    total = torch.zeros_like(weights.values)
    for _ in range(batches):
        scenes = [world.random_scene(generator, 1, world.things()) for _ in range(16)]
        clean = encode_pictures(base, [Image.fromarray(p) for p in world.render(scenes, generator)])
        captions = [scene.caption() for scene in scenes]
        with torch.no_grad():
            rows = base.pipeline.encode_prompt(captions, base.device, 1, False)[0]
        timesteps = schedule.stratified(len(scenes), noises, towards_noise=1.0)
        noise = torch.randn(clean.shape, generator=noises)
        leaf = weights.values.detach().requires_grad_()
        unet = edited(base.denoiser, [weights.edit(leaf, None)])
        noisy = schedule.noisy(clean, noise, timesteps)
        predicted = unet(noisy, timesteps, encoder_hidden_states=rows).sample
        loss = (predicted - schedule.target(clean, noise, timesteps)).square().mean()
        (gradient,) = torch.autograd.grad(loss, leaf)
        total -= leaf.detach() * gradient / batches
    return {name: value.numpy() for name, value in weights.split(total).items()}


def without_general(masks: Masks, least: int) -> Masks:
    """Each mask without the neurons that at least ``least`` of the masks hold."""
    table = masks[0].table
    general = ConceptMask.from_dense(
        {
            name: np.sum([mask.to_dense(name) for mask in masks], axis=0) >= least
            for name in table.names
        },
        table=table,
    )
    return [mask - general for mask in masks]


def without_harmful(masks: Masks, harm: dict[str, np.ndarray], share: float) -> Masks:
    """Each mask without those ``share`` of its neurons whose shutting harms most."""
    found = []
    for mask in masks:
        dense = {name: mask.to_dense(name) for name in mask.table.names}
        held = np.concatenate([harm[name].reshape(-1)[dense[name].reshape(-1)] for name in dense])
        edge = np.quantile(held, 1 - share)
        kept = {
            name: member & (harm[name].reshape(member.shape) < edge)
            for name, member in dense.items()
        }
        found.append(ConceptMask.from_dense(kept, table=mask.table))
    return found


def without_random(masks: Masks, share: float) -> Masks:
    """Each mask without ``share`` of its neurons, drawn by chance: what any thinning does."""
    generator = np.random.default_rng(11)
    return [
        ConceptMask.from_dense(
            {
                name: (member := mask.to_dense(name)) & (generator.random(member.shape) >= share)
                for name in mask.table.names
            },
            table=mask.table,
        )
        for mask in masks
    ]


def with_layer_limit(masks: Masks, scores: list[dict[str, np.ndarray]], limit: float) -> Masks:
    """Each mask with at most ``limit`` of any layer, its neurons of highest score."""
    found = []
    for mask, score_of in zip(masks, scores, strict=True):
        kept = {}
        for name in mask.table.names:
            member = mask.to_dense(name)
            values = np.where(member, score_of[name].reshape(member.shape), -np.inf).reshape(-1)
            most = round(limit * values.size)
            if int(member.sum()) > most:
                edge = np.partition(values, values.size - most)[values.size - most]
                member = member & (values >= edge).reshape(member.shape)
            kept[name] = member
        found.append(ConceptMask.from_dense(kept, table=mask.table))
    return found


@click.command()
@click.option("--base", "source", default="demo", show_default=True)
@click.option("--method", default="gates", show_default=True)
@click.option("--steps", type=int, help="Instead of the method's own.")
@click.option("--count", default=32, show_default=True, help="Pictures behind every share.")
@click.option("--write", is_flag=True)
def main(source: str, method: str, steps: int | None, count: int, write: bool) -> None:
    """Measure and print."""
    torch.set_num_threads(1)
    base, judge = BaseModel.load(source), Judge.load()
    extractor, generator = Extractor(base), Generator(base)
    learnt = [
        learn(extractor, s, companions(base, s), scope="prompt", method=method, steps=steps)
        for s in SUBJECTS
    ]
    masks = [each.mask for each in learnt]
    scores = [dict(each.scores) for each in learnt]
    harm = ordinary_harm(base)
    remedies: dict[str, Callable[[], Masks]] = {
        "none": lambda: masks,
        "half of the density": lambda: [each.cut(each.density / 2).mask for each in learnt],
        "a tenth of the density": lambda: [each.cut(each.density / 10).mask for each in learnt],
        "without neurons of all four masks": lambda: without_general(masks, 4),
        "without neurons of two or more masks": lambda: without_general(masks, 2),
        "without the tenth that harms ordinary prompts most": lambda: without_harmful(
            masks, harm, 0.1
        ),
        "without the half that harms ordinary prompts most": lambda: without_harmful(
            masks, harm, 0.5
        ),
        "without a tenth drawn by chance": lambda: without_random(masks, 0.1),
        "without half drawn by chance": lambda: without_random(masks, 0.5),
        "at most 5 % of any layer": lambda: with_layer_limit(masks, scores, 0.05),
    }
    lines = [
        "| remedy | density | subject alone | each, in pairs | both, in pairs | ordinary prompts |",
        "|---|---|---|---|---|---|",
    ]
    rows = []
    ordinary = described_trials(count, 1, seed=3)

    def measured(name: str, kept: Masks | None) -> None:
        alone, pairs, plain = [], [], []
        for number, subject in enumerate(SUBJECTS):
            mask = kept[number] if kept else None
            for found, trials in ((alone, subject_trials(subject, count)), (plain, ordinary)):
                found.append(score(judge, trials, draw(generator, trials, mask=mask)))
        for one, other in combinations(range(len(SUBJECTS)), 2):
            trials = group_trials([SUBJECTS[one], SUBJECTS[other]], count)
            union = kept[one] | kept[other] if kept else None
            pairs.append(score(judge, trials, draw(generator, trials, mask=union)))
        row = {
            "remedy": name,
            "density": fmean(mask.density for mask in kept) if kept else 0.0,
            "alone": fmean(each["thing"] for each in alone),
            "each in pairs": fmean(each["thing"] for each in pairs),
            "both in pairs": fmean(each["all"] for each in pairs),
            "ordinary": fmean(each["thing"] for each in plain),
        }
        rows.append(row)
        lines.append(
            f"| {name} | {row['density']:.1%} | {row['alone']:.2f} | {row['each in pairs']:.2f} "
            f"| {row['both in pairs']:.2f} | {row['ordinary']:.2f} |"
        )
        click.echo(lines[-1], err=True)

    measured("no mask", None)
    for name, make in remedies.items():
        measured(name, make())
    table = "\n".join(lines)
    click.echo(table)
    if write:
        record = {
            **conditions(base),
            "method": method,
            "pictures": count,
            "rows": rows,
        }
        head = (
            "# Less collateral from whole-prompt masks\n\n"
            f"`python tools/measure_collateral.py --write`: method `{method}`, scope `prompt`, one "
            f"seed, {count} pictures for every subject and pair. Shares of things right in shape, "
            "colours and texture at their place; `ordinary prompts`: things described in full, "
            f"drawn under each subject's mask.\n\n"
        )
        keep("collateral", record, f"{head}{said(record)}\n\n{table}\n")


if __name__ == "__main__":
    main()
