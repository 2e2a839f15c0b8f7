"""The demo's subjects under trial: masks pushed to a registry in memory, drawn and judged."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from itertools import combinations

from cones_registry import BaseModel, Concept, ConceptMask, Generator, Registry
from cones_registry.demo.judge import Judge
from cones_registry.demo.measure import Trial, draw, group_trials, score, subject_trials
from cones_registry.demo.subjects import SUBJECTS, Subject


class SubjectBench:
    """The loaded model, the judge and a registry in memory.

    count: pictures of each subject alone; half as many of each pair.
    """

    def __init__(self, source: str, count: int) -> None:
        self.base, self.judge, self.count = BaseModel.load(source), Judge.load(), count
        self.generator = Generator(self.base)
        self.registry = Registry.create(f"memory://subjects-{time.time_ns()}")

    def push(self, subject: Subject, mask: ConceptMask, kind: str) -> Concept:
        """Keep a mask of a subject, acting at its own words."""
        return self.registry.push(
            f"{subject.name}-{kind}",
            mask,
            base=self.base,
            scope="subject",
            token=subject.token,
            class_noun=subject.noun,
        )

    def alone(self, concepts: Mapping[Subject, Concept]) -> list[float]:
        """For each subject the share of pictures with it right."""
        return [
            self._share(subject_trials(subject, self.count), [concept])
            for subject, concept in concepts.items()
        ]

    def pairs(self, concepts: Mapping[Subject, Concept]) -> list[float]:
        """For each pair of the demo's subjects the share of both that is right."""
        return [
            self._share(group_trials(pair, self.count // 2), [concepts[each] for each in pair])
            for pair in combinations(SUBJECTS, 2)
        ]

    def _share(self, trials: Sequence[Trial], concepts: Sequence[Concept]) -> float:
        composition = self.registry.resolve(*(concept.ref for concept in concepts))
        pictures = draw(self.generator, trials, composition=composition)
        return score(self.judge, trials, pictures)["thing"]
