"""At which rows a mask should act, measured: `python tools/measure_scope.py --write`.

The same subjects are learnt at the placeholder's row alone, at placeholder and class noun (the
default), at these and all rows after the prompt, and at every row (the paper's way), with several
seeds; drawn alone and in pairs. Then what the scope makes possible: one placeholder for two
concepts, and two concepts of one class in a picture. Concepts are kept in --work, so a run that was
stopped goes on. Writes tools/results/scope.{md,json}.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from statistics import NormalDist
from typing import Any

import click
import torch
from measured import conditions, keep, said
from reproduction_plan import SUBJECTS as MORE
from reproduction_plan import write_subjects

from cones_registry import BaseModel, Extractor, Generator, Registry, Request
from cones_registry.demo.judge import Judge
from cones_registry.demo.learn import SETTINGS, companions, learn
from cones_registry.demo.measure import BATCH, Trial, group_trials, score, subject_trials
from cones_registry.demo.subjects import SUBJECTS, Subject
from cones_registry.errors import NotFoundError
from cones_registry.record import Concept, Scope


@dataclass(frozen=True)
class Variant:
    """One way to choose the rows. label: in the table; rows: of ``ExtractionSettings``."""

    name: str
    label: str
    scope: Scope = "subject"
    rows: str = "phrase"


VARIANTS = (
    Variant("token", "placeholder", rows="token"),
    Variant("phrase", "placeholder and noun"),
    Variant("padding", "placeholder, noun, all after the prompt", rows="padding"),
    Variant("prompt", "every row (the paper)", scope="prompt"),
)


def interval(share: float, count: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share of ``count`` pictures."""
    z = NormalDist().inv_cdf(0.975)
    centre = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * (share * (1 - share) / count + z * z / (4 * count**2)) ** 0.5
    return max(0.0, centre - half), min(1.0, centre + half)


def shown(shares: list[float], count: int) -> str:
    """Mean of shares of ``count`` pictures each, with its interval."""
    mean = sum(shares) / len(shares)
    low, high = interval(mean, count * len(shares))
    return f"{mean:.2f} [{low:.2f}, {high:.2f}]"


class Study:
    """Learns what is missing and draws."""

    def __init__(self, source: str, work: Path, count: int, steps: int) -> None:
        self.base, self.judge = BaseModel.load(source), Judge.load()
        self.extractor = Extractor(self.base, cache_folder=work / "cache")
        self.generator, self.count, self.steps = Generator(self.base), count, steps
        url = str(work / "registry")
        try:
            self.registry = Registry.open(url, default_owner="demo")
        except NotFoundError:
            self.registry = Registry.create(url, default_owner="demo")

    def concept(
        self, subject: Subject, variant: Variant, seed: int, token: str | None = None
    ) -> Concept:
        """The concept, learnt unless it is there."""
        named = replace(subject, token=token or subject.token)
        name = f"{subject.name}-{variant.name}-{named.token}-{seed}"
        try:
            return self.registry.get(name)
        except NotFoundError:
            click.echo(f"learning {name}", err=True)
        extraction = learn(
            self.extractor,
            named,
            companions(self.base, named),
            scope=variant.scope,
            seed=seed,
            steps=self.steps,
            settings=replace(SETTINGS, rows=variant.rows),  # type: ignore[arg-type]
            progress=None,
        )
        return self.registry.push(
            name,
            extraction.mask,
            base=self.base,
            scope=variant.scope,
            token=named.token,
            class_noun=None if variant.rows == "token" else subject.noun,
            provenance=extraction.provenance,
        )

    def drawn(
        self, trials: list[Trial], concepts: list[Concept], variant: Variant
    ) -> dict[str, float]:
        """What the judge finds."""
        composition = self.registry.resolve(*(concept.ref for concept in concepts))
        pictures = self.generator.generate(
            [Request(trial.prompt, seed=trial.seed, composition=composition) for trial in trials],
            include_padding=variant.rows == "padding",
            batch_size=BATCH,
        )
        return score(self.judge, trials, pictures)

    def alone(self, variant: Variant, seed: int) -> list[float]:
        """Share of pictures with the subject right, for each subject."""
        return [
            self.drawn(
                subject_trials(subject, self.count), [self.concept(subject, variant, seed)], variant
            )["thing"]
            for subject in SUBJECTS
        ]

    def pairs(self, variant: Variant, seed: int) -> dict[str, dict[str, float]]:
        """For every pair: share with both right, and of things right."""
        return {
            f"{one.name} + {other.name}": self.drawn(
                group_trials([one, other], self.count),
                [self.concept(each, variant, seed) for each in (one, other)],
                variant,
            )
            for one, other in combinations(SUBJECTS, 2)
        }


@click.command()
@click.option("--base", "source", default="demo", show_default=True)
@click.option("--work", type=click.Path(path_type=Path), default=Path("build/scope"))
@click.option("--seeds", default=3, show_default=True, help="Of the default rows; others have one.")
@click.option("--count", default=32, show_default=True, help="Pictures behind every share.")
@click.option("--steps", default=300, show_default=True)
@click.option("--write", is_flag=True)
def main(source: str, work: Path, seeds: int, count: int, steps: int, write: bool) -> None:
    """Measure and print."""
    torch.set_num_threads(1)
    study = Study(source, work, count, steps)
    record: dict[str, Any] = {"rows": {}, "seeds": seeds, "pictures": count}
    lines = [
        "| the mask acts on | seeds | subject right, alone | both right, pairs | each, in pairs |",
        "|---|---|---|---|---|",
    ]
    for variant in VARIANTS:
        numbers = range(seeds if variant.name == "phrase" else 1)
        alone = [study.alone(variant, seed) for seed in numbers]
        pairs = [study.pairs(variant, seed) for seed in numbers]
        record["rows"][variant.name] = {"alone": alone, "pairs": pairs}
        both = [share["all"] for found in pairs for share in found.values()]
        each = [share["thing"] for found in pairs for share in found.values()]
        lines.append(
            f"| {variant.label} | {len(alone)} "
            f"| {shown([share for found in alone for share in found], count)} "
            f"| {shown(both, count)} | {shown(each, 2 * count)} |"
        )
        click.echo(lines[-1], err=True)
    phrase = VARIANTS[1]
    shared = [
        study.drawn(
            subject_trials(replace(subject, token="vbk"), count),
            [study.concept(subject, phrase, 0, token="vbk")],
            phrase,
        )["thing"]
        for subject in SUBJECTS[:2]
    ]
    write_subjects(study.base, work)
    circles = [SUBJECTS[0], *(each.at(work) for each in MORE if each.token == "vbk")]
    twins = study.drawn(
        group_trials(circles, count),
        [study.concept(each, phrase, 0) for each in circles],
        phrase,
    )
    record |= {"one placeholder": shared, "one noun": twins}
    lines += [
        "",
        f"One placeholder for two concepts ({SUBJECTS[0].name} and {SUBJECTS[1].name} both learnt "
        f"as `vbk`, one at a time): right alone {shown(shared, count)}.",
        "",
        "Two concepts of one noun in a picture (`sks circle` and `vbk circle`, each with its own "
        f"mask): both right {shown([twins['all']], count)}, each "
        f"{shown([twins['thing']], 2 * count)}.",
    ]
    table = "\n".join(lines)
    click.echo(table)
    if write:
        record |= conditions(study.base)
        head = (
            "# At which rows a mask acts\n\n"
            f"`python tools/measure_scope.py --write`: method `gates`, {steps} steps; {count} "
            "pictures for every subject and pair, at places and on backgrounds extraction never "
            f"saw; 95 % intervals (Wilson).\n\n"
        )
        keep("scope", record, f"{head}{said(record)}\n\n{table}\n")


if __name__ == "__main__":
    main()
