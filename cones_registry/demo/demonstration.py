"""The whole way on one screen: photos in, concept neurons kept, composed pictures out."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from PIL import Image

from cones_registry.base_model import BaseModel
from cones_registry.demo.judge import Judge
from cones_registry.demo.learn import companions, learn
from cones_registry.demo.measure import (
    described_trials,
    draw,
    group_trials,
    score,
    subject_trials,
)
from cones_registry.demo.sheet import Strip, contact_sheet
from cones_registry.demo.subjects import SUBJECTS, Subject
from cones_registry.errors import ConflictError
from cones_registry.extraction import Companion, Extractor
from cones_registry.generation import Generator
from cones_registry.record import SCOPES, Concept, Scope
from cones_registry.registry import Registry

OWNER = "demo"
SHOWN = 5  # pictures of each kind on the contact sheet

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class DemoSize:
    """How much is drawn and learnt: pictures behind every share; None: the method's own steps."""

    base_trials: int = 64
    subject_trials: int = 32
    pair_trials: int = 16
    companions: int = 12
    learning_steps: int | None = None


@dataclass(frozen=True, slots=True)
class SubjectResult:
    """One subject with its mask and without; shares in [0, 1], sizes in bytes."""

    ref: str
    density: float
    neurons: int
    bytes: int
    raw_int32_bytes: int
    dense_kv_bytes: int
    unet_bytes: int
    saved: float  # against dense float32 K/V
    subject_accuracy: float
    subject_accuracy_without: float
    text_accuracy: float
    text_accuracy_without: float
    whole_prompt_accuracy: float


@dataclass(frozen=True, slots=True)
class PairResult:
    """Two subjects in one picture: the share in which both are right."""

    refs: tuple[str, str]
    scope: str
    both: float
    jaccard: float


@dataclass(frozen=True, slots=True)
class DemoReport:
    """What ``report.json`` holds."""

    base: dict[str, dict[str, float]]
    subjects: tuple[SubjectResult, ...]
    pairs: tuple[PairResult, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


def run(
    out: str | Path,
    *,
    source: str = "demo",
    size: DemoSize = DemoSize(),
    say: Say | None = None,
) -> DemoReport:
    """Learn, keep, combine and draw the four subjects; write everything to ``out``.

    Writes ``registry/``, ``contact-sheet.png`` and ``report.json``.
    say: called with a line for every stage.
    Raises ConflictError if ``out`` holds a registry already.
    """
    folder = Path(out).expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / "registry").exists():
        raise ConflictError(
            f"{folder / 'registry'} exists already, and the demo makes a new one. "
            f"Name an empty folder with --out, or delete {folder}"
        )
    return _Demo(folder, source, size, say or (lambda line: None)).run()


class _Demo:
    """One run: the loaded model, the registry and the judge."""

    def __init__(self, folder: Path, source: str, size: DemoSize, say: Say) -> None:
        self.folder, self.size, self.say = folder, size, say
        self.base = BaseModel.load(source)
        self.generator = Generator(self.base)
        self.judge = Judge.load()
        self.registry = Registry.create(folder / "registry", default_owner=OWNER)

    def run(self) -> DemoReport:
        self.say(f"base model {self.base.fingerprint[:19]}: following its captions")
        base = {
            "one_object": self._described(1),
            "two_objects": self._described(2),
        }
        extractor = Extractor(self.base)
        concepts: dict[str, list[Concept]] = {"subject": [], "prompt": []}
        for subject in SUBJECTS:
            beside = companions(self.base, subject, each=self.size.companions)
            for scope in SCOPES:
                concepts[scope].append(self._keep(extractor, subject, beside, scope))
        strips: list[Strip] = []
        subjects = tuple(
            self._subject(subject, concept, whole, strips)
            for subject, concept, whole in zip(
                SUBJECTS, concepts["subject"], concepts["prompt"], strict=True
            )
        )
        pairs = tuple(self._pairs(concepts, strips))
        report = DemoReport(base, subjects, pairs)
        contact_sheet(strips).save(self.folder / "contact-sheet.png")
        text = json.dumps(report.to_json(), indent=2) + "\n"
        (self.folder / "report.json").write_text(text, encoding="utf-8")
        return report

    def _described(self, things: int) -> dict[str, float]:
        trials = described_trials(self.size.base_trials, things)
        return score(self.judge, trials, draw(self.generator, trials))

    def _keep(
        self,
        extractor: Extractor,
        subject: Subject,
        beside: Sequence[Companion],
        scope: Scope,
    ) -> Concept:
        """Learn one subject and push it."""
        name = subject.name if scope == "subject" else f"{subject.name}-whole-prompt"
        self.say(f"learning {name} from {subject.folder.name}/*.png, scope {scope}")
        extraction = learn(extractor, subject, beside, scope=scope, steps=self.size.learning_steps)
        return self.registry.push(name, extraction, tags=("demo", subject.noun))

    def _subject(
        self, subject: Subject, concept: Concept, whole: Concept, strips: list[Strip]
    ) -> SubjectResult:
        """Draw a subject at places and on backgrounds that extraction never saw."""
        self.say(f"drawing {concept.ref}")
        trials = subject_trials(subject, self.size.subject_trials)
        composition = self.registry.resolve(concept.ref)
        plain = draw(self.generator, trials)
        shut = draw(self.generator, trials, composition=composition)
        paper = draw(self.generator, trials, composition=self.registry.resolve(whole.ref))
        without, found = score(self.judge, trials, plain), score(self.judge, trials, shut)
        references = tuple(Image.open(file) for file in sorted(subject.folder.glob("*.png")))
        strips.append(
            Strip(
                f'{concept.ref}   "{trials[0].prompt}" and other places',
                (
                    ("references", references[:SHOWN]),
                    ("base model, no mask", tuple(plain[:SHOWN])),
                    ("the same model, mask shut", tuple(shut[:SHOWN])),
                ),
            )
        )
        table = self.base.layer_table
        parameters = sum(p.numel() for p in self.base.pipeline.unet.parameters())
        return SubjectResult(
            ref=concept.ref,
            density=concept.density,
            neurons=concept.neuron_count,
            bytes=concept.blob_bytes,
            raw_int32_bytes=4 * concept.neuron_count,
            dense_kv_bytes=4 * table.neuron_count,
            unet_bytes=4 * parameters,
            saved=1 - concept.blob_bytes / (4 * table.neuron_count),
            subject_accuracy=found["thing"],
            subject_accuracy_without=without["thing"],
            text_accuracy=(found["place"] + found["background"]) / 2,
            text_accuracy_without=(without["place"] + without["background"]) / 2,
            whole_prompt_accuracy=score(self.judge, trials, paper)["thing"],
        )

    def _pairs(
        self, concepts: dict[str, list[Concept]], strips: list[Strip]
    ) -> Sequence[PairResult]:
        """Every pair in both scopes."""
        results = []
        shown: list[tuple[str, tuple[Image.Image, ...]]] = []
        for first, second in combinations(range(len(SUBJECTS)), 2):
            trials = group_trials([SUBJECTS[first], SUBJECTS[second]], self.size.pair_trials)
            for scope, kept in concepts.items():
                refs = (kept[first].ref, kept[second].ref)
                composition = self.registry.resolve(*refs)
                pictures = draw(self.generator, trials, composition=composition)
                both = score(self.judge, trials, pictures)["all"]
                results.append(PairResult(refs, scope, both, composition.overlaps[0].jaccard))
                if scope == "subject":
                    names = f"{SUBJECTS[first].name} + {SUBJECTS[second].name}"
                    shown.append((names, tuple(pictures[:4])))
            self.say(f"pair {SUBJECTS[first].name} + {SUBJECTS[second].name}")
        for start in range(0, len(shown), 3):
            strips.append(Strip("pairs, one unchanged model", tuple(shown[start : start + 3])))
        return results
