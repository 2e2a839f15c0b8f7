"""Benchmarks of compositions: plans with subjects alone and together, from published lists.

Two kinds of source are read:

- a list as CustomConcept101 (arXiv 2212.04488) publishes it, ``dataset.json`` for single subjects
  and ``dataset_multiconcept.json`` for sets of them; MC++ (arXiv 2404.05268) writes its sets of
  two, three and four in the same way. Prompts come from the files that the list names.
- a folder of one's own with a folder of photos for each subject, named ``NOUN-NAME``, such as
  ``dog-rex``. Prompts are :data:`PROMPTS`, sets are drawn at random with a fixed seed.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from math import comb
from pathlib import Path
from typing import Any, Final

from cones_registry.digest import quote
from cones_registry.errors import CorruptDataError, NotFoundError, UsageError
from cones_registry.evaluation.fields import needed, read_json
from cones_registry.evaluation.plan import FORMAT, EvaluationPlan
from cones_registry.evaluation.rows import MAX_SUBJECTS
from cones_registry.extraction.conditioning import RARE_WORDS
from cones_registry.extraction.images import photo_suffixes

OURS: Final = "cones"
"""Name of the row of concepts, and owner of what is learnt for it."""
MAX_NAME: Final = 80
MAX_SETS: Final = 10_000
MAX_PROMPTS: Final = 10_000
PROMPTS: Final[Mapping[int, tuple[str, ...]]] = {
    1: (
        "a photo of a {1}",
        "a {1} on the beach",
        "a {1} in the snow",
        "a {1} in front of a castle",
        "a {1} in a garden full of flowers",
        "a watercolor painting of a {1}",
    ),
    2: (
        "a photo of a {1} and a {2}",
        "a {1} next to a {2} on the beach",
        "a {1} and a {2} in the snow",
        "a {1} and a {2} in front of a castle",
        "a {1} beside a {2} in a garden full of flowers",
        "a watercolor painting of a {1} and a {2}",
    ),
    3: (
        "a photo of a {1}, a {2} and a {3}",
        "a {1}, a {2} and a {3} on the beach",
        "a {1}, a {2} and a {3} in the snow",
        "a watercolor painting of a {1}, a {2} and a {3}",
    ),
    4: (
        "a photo of a {1}, a {2}, a {3} and a {4}",
        "a {1}, a {2}, a {3} and a {4} on the beach",
        "a {1}, a {2}, a {3} and a {4} in the snow",
        "a watercolor painting of a {1}, a {2}, a {3} and a {4}",
    ),
}
_PLACE = re.compile(r"\{(\d+)\}")


@dataclass(frozen=True)
class BenchmarkSubject:
    """A subject of a benchmark: class noun and folder of photos."""

    name: str
    noun: str
    images: Path


@dataclass
class Benchmark:
    """Subjects and prompts, with ``{name}`` where a subject stands, as a plan has them."""

    subjects: dict[str, BenchmarkSubject] = field(default_factory=dict)
    prompts: list[str] = field(default_factory=list)

    def add(self, subject: BenchmarkSubject) -> str:
        """Keep a subject; its name, with a number where two folders have the same one."""
        name, number = subject.name, 1
        while (other := self.subjects.get(name)) is not None:
            if (other.images, other.noun) == (subject.images, subject.noun):
                return name
            number += 1
            name = f"{subject.name}-{number}"
        self.subjects[name] = BenchmarkSubject(name, subject.noun, subject.images)
        return name

    def plan(self, *, seeds: int, rivals: Sequence[str] = ()) -> dict[str, Any]:
        """The plan as a JSON object: the base model alone, our concepts, rivals, real pictures.

        Args:
            seeds: Pictures per prompt.
            rivals: Names of baselines; subjects get tokens when there are any.
        """
        tokens = self._tokens() if rivals else {}
        subjects = {
            subject.name: {"token": tokens.get(subject.name, ""), "noun": subject.noun}
            | {"images": str(subject.images)}
            for subject in self.subjects.values()
        }
        refs = {name: f"{OURS}/{name}" for name in subjects}
        return {
            "format": FORMAT,
            "subjects": subjects,
            "prompts": self.prompts,
            "seeds": seeds,
            "rows": [
                {"name": "base", "words": "noun"},
                {"name": OURS, "concepts": refs},
                *({"name": rival, "baseline": rival} for rival in rivals),
                {"name": "real", "pictures": "references"},
            ],
        }

    def _tokens(self) -> dict[str, str]:
        """A token per subject, such that subjects of one prompt have different ones."""
        beside: dict[str, set[str]] = {name: set() for name in self.subjects}
        for prompt in self.prompts:
            together = set(re.findall(r"\{([^{}]+)\}", prompt))
            for name in together:
                beside[name] |= together - {name}
        chosen: dict[str, str] = {}
        # Those with the most company first: the others then find a token left over.
        for name in sorted(beside, key=lambda each: (-len(beside[each]), each)):
            taken = {chosen[other] for other in beside[name] if other in chosen}
            free = [token for token in RARE_WORDS if token not in taken]
            if not free:
                raise UsageError(
                    f"subject {quote(name)} stands beside subjects with all of the "
                    f"{len(RARE_WORDS)} tokens that rivals are given. Compare fewer sets"
                )
            chosen[name] = free[0]
        return chosen


def read_benchmark(source: Path, *, sets: int, shuffled: int = 0) -> Benchmark:
    """The benchmark that a published list or a folder of folders describes.

    Args:
        source: A list as CustomConcept101's, or a folder of ``NOUN-NAME`` folders.
        sets: At most so many sets of each size, 0 for all of them.
        shuffled: Seed of the choice of sets of a folder.

    Raises:
        NotFoundError: The list, a folder of photos or a file of prompts is not there.
        CorruptDataError: The list is not JSON of this shape.
        UsageError: A folder without subjects, or a folder's name without a noun.
    """
    if source.is_dir():
        return _of_folder(source, sets, shuffled)
    return _of_list(source, sets)


def learning_lines(plan: EvaluationPlan, *, steps: int | None = None) -> str:
    """What the row of concepts has to learn, as a file of subjects (schema/batch.md).

    Args:
        steps: Learning steps per subject; None: the method's own number.
    """
    lines = []
    for subject in plan.subjects.values():
        line: dict[str, Any] = {
            "name": f"{OURS}/{subject.name}",
            "images": str(subject.images.absolute()),
            "class_noun": subject.noun,
        }
        if subject.token:
            line["token"] = subject.token
        if steps is not None:
            line["steps"] = steps
        lines.append(json.dumps(line, ensure_ascii=False))
    return "\n".join(lines) + "\n"


def _of_folder(source: Path, sets: int, shuffled: int) -> Benchmark:
    found, photos = Benchmark(), photo_suffixes()
    for folder in sorted(path for path in source.iterdir() if path.is_dir()):
        if not any(file.suffix.lower() in photos for file in folder.iterdir()):
            continue
        noun, dash, rest = folder.name.partition("-")
        if not dash or not rest or not noun.strip():
            raise UsageError(
                f"{folder}: expected the class noun and a name, as dog-rex; rename the folder"
            )
        found.add(BenchmarkSubject(_name(folder.name), noun.replace("_", " "), folder.absolute()))
    if not found.subjects:
        raise UsageError(
            f"{source} holds no folder of photos. Expected one per subject, as {source}/dog-rex/"
        )
    names = list(found.subjects)
    for size in range(1, min(MAX_SUBJECTS, len(names)) + 1):
        for group in _chosen(names, size, sets if size > 1 else 0, shuffled):
            found.prompts += [
                _PLACE.sub(lambda place, group=group: "{" + group[int(place[1]) - 1] + "}", prompt)  # type: ignore[misc]
                for prompt in PROMPTS[size]
            ]
    return found


def _chosen(names: Sequence[str], size: int, sets: int, seed: int) -> list[tuple[str, ...]]:
    """Sets of so many names: all of them, or ``sets`` that are drawn at random."""
    total = comb(len(names), size)
    if not sets and total > MAX_SETS:
        raise UsageError(
            f"{len(names)} subjects have {total:,} sets of {size}. Say with --sets how many to draw"
        )
    if not sets or total <= sets:
        return list(combinations(names, size))
    generator, found = random.Random(f"{seed} {size}"), set[tuple[str, ...]]()
    order = {name: at for at, name in enumerate(names)}
    while len(found) < sets:
        found.add(tuple(sorted(generator.sample(names, size), key=order.__getitem__)))
    return sorted(found)


def _of_list(source: Path, sets: int) -> Benchmark:
    content = read_json(source)
    if not isinstance(content, list) or not content:
        raise CorruptDataError(
            f"{source} holds {quote(content)}, expected a list as CustomConcept101's dataset.json"
        )
    found, taken = Benchmark(), dict.fromkeys(range(1, MAX_SUBJECTS + 1), 0)
    for number, entry in enumerate(content, 1):
        what = f"{source}, entry {number}"
        parts = entry if isinstance(entry, list) else [entry]
        if not all(isinstance(part, dict) for part in parts):
            raise CorruptDataError(f"{what}: expected objects")
        # A set ends with an object that names its prompts; a single subject names its own.
        listed = [part for part in parts if "instance_data_dir" in part]
        files = [
            part[key]
            for part in parts
            for key in (("prompt_filename_compose",) if len(listed) > 1 else ("prompt_filename",))
            if key in part
        ]
        if not 1 <= len(listed) <= MAX_SUBJECTS or not files:
            raise CorruptDataError(
                f"{what}: expected 1 to {MAX_SUBJECTS} subjects and a file of prompts"
            )
        if sets and taken[len(listed)] >= sets:
            continue
        taken[len(listed)] += 1
        group = [found.add(_listed(part, source, what)) for part in listed]
        if len(set(group)) < len(group):
            raise CorruptDataError(f"{what} names one subject twice")
        for prompt in _prompts(source.parent / _text(files[-1], what), what):
            found.prompts.append(_filled(prompt, group, what))
    return found


def _listed(part: Mapping[str, Any], source: Path, what: str) -> BenchmarkSubject:
    images = source.parent / needed(part, "instance_data_dir", str)
    if not images.is_dir():
        raise NotFoundError(
            f"{what}: no folder {images}. Download the benchmark's pictures beside its list"
        )
    noun = needed(part, "class_prompt", str).strip()
    return BenchmarkSubject(_name(images.name), noun, images.absolute())


def _name(folder: str) -> str:
    """A folder's name as plans and refs can have it."""
    name = re.sub(r"[^a-z0-9_-]+", "-", folder.lower()).strip("-")[:MAX_NAME]
    return name if re.match(r"[a-z]", name) else f"subject-{name}"


def _prompts(file: Path, what: str) -> list[str]:
    try:
        text = file.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise NotFoundError(f"{what}: no prompts in {file}: {error}") from error
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not 1 <= len(lines) <= MAX_PROMPTS:
        raise CorruptDataError(f"{what}: {file} has {len(lines):,} prompts, expected 1 to 10,000")
    return lines


def _filled(prompt: str, group: Sequence[str], what: str) -> str:
    """``{0}`` and ``{1}`` of the list's prompts, or ``{}`` for one subject, as names."""
    if len(group) == 1:
        prompt = prompt.replace("{}", "{0}")
    places = {int(place) for place in _PLACE.findall(prompt)}
    if places != set(range(len(group))):
        raise CorruptDataError(
            f"{what}: prompt {quote(prompt)} has no place for each of {len(group)} subjects"
        )
    return _PLACE.sub(lambda place: "{" + group[int(place[1])] + "}", prompt)


def _text(value: Any, what: str) -> str:
    if not isinstance(value, str) or "\0" in value:
        raise CorruptDataError(f"{what}: {quote(value)} is no file of prompts")
    return value
