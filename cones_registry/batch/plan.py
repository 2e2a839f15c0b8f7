"""What a run will draw: refs pinned to versions, pictures in chunks that share their settings."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from cones_registry.base_model import GenerationDefaults
from cones_registry.batch.job import Job
from cones_registry.generation import Reading, read_prompts
from cones_registry.generation.prompt import find_names
from cones_registry.record import Concept
from cones_registry.weighting import format_weighted


@dataclass(frozen=True)
class Chosen:
    """A concept that acts on a picture. weight: share of its neurons that is shut, (0, 1]."""

    concept: Concept
    weight: float = 1.0

    @property
    def ref(self) -> str:
        """Exact ref, ``owner/name:version``, with ``*weight`` where it is not 1."""
        return format_weighted(self.concept.ref, self.weight)


@dataclass(frozen=True)
class Picture:
    """One picture to draw. name: its file's stem, ``000012-003`` for the third of line 12.

    concepts: given by ref. named: in its prompts; reading: where.
    """

    name: str
    line: int
    number: int
    prompt: str
    negative_prompt: str
    seed: int
    concepts: tuple[Chosen, ...]
    named: tuple[Chosen, ...] = ()
    reading: Reading | None = None

    @property
    def chosen(self) -> tuple[Chosen, ...]:
        """All concepts that act on it, given by ref or named in a prompt, each once."""
        return tuple({each.ref: each for each in (*self.concepts, *self.named)}.values())

    @property
    def refs(self) -> tuple[str, ...]:
        """Exact refs of the concepts, with their weights."""
        return tuple(chosen.ref for chosen in self.chosen)


@dataclass(frozen=True)
class Settings:
    """What the pictures of one chunk share, because one call of a pipeline has it once.

    size, scheduler: None is the base model's own.
    """

    steps: int
    guidance: float
    size: tuple[int, int] | None
    scheduler: str | None
    mask_unconditional: bool


@dataclass(frozen=True)
class Chunk:
    """Pictures drawn in one batch, always the same ones together.

    On most devices the last bits of a picture depend on how many are drawn at once, so a resumed
    run draws the same chunks and gets the same bytes.
    """

    number: int
    settings: Settings
    pictures: tuple[Picture, ...]


def read_job(
    job: Job, concept_of: Callable[[str], Concept | None]
) -> tuple[Reading, tuple[Chosen, ...]]:
    """A job's prompts as read, and the concepts that they name.

    concept_of: what a ref stands for in this run, as ``generation.prompt.read_prompt`` takes it.
    Raises UsageError for names that are none, with their column.
    """
    beside = [(concept_of(ref), weight) for ref, weight in job.weighted]
    given = [format_weighted(each.ref, weight) for each, weight in beside if each is not None]
    reading = read_prompts(job.prompt, job.negative_prompt, concept_of, given)
    chosen = {}
    for text in (job.prompt, job.negative_prompt):
        for name in find_names(text):
            concept = concept_of(name.ref)
            if concept is not None:
                each = Chosen(concept, name.weight)
                chosen[each.ref] = each
    return reading, tuple(chosen.values())


def make_chunks(
    jobs: Iterable[Job],
    pins: Mapping[str, Concept],
    batch_size: int,
    defaults: GenerationDefaults,
) -> tuple[Chunk, ...]:
    """All pictures of ``jobs`` in chunks of at most ``batch_size``.

    pins: ref as written, without a weight -> the concept it stands for in this run. defaults: steps
    and guidance of jobs that name none.
    Grouped by what must be equal (``Settings``), never by concept; within a group in the order of
    the file. The same jobs always give the same chunks.
    """
    groups: dict[Settings, list[Picture]] = {}
    for job in jobs:
        settings = Settings(
            defaults.steps if job.steps is None else job.steps,
            defaults.guidance_scale if job.guidance is None else job.guidance,
            job.size,
            job.scheduler,
            job.mask_unconditional,
        )
        concepts = tuple(Chosen(pins[ref], weight) for ref, weight in job.weighted)
        reading, named = read_job(job, pins.get)
        groups.setdefault(settings, []).extend(
            Picture(
                f"{job.line:06d}-{number + 1:03d}",
                job.line,
                number + 1,
                job.prompt,
                job.negative_prompt,
                job.seed + number,
                concepts,
                named,
                reading,
            )
            for number in range(job.count)
        )
    chunks: list[Chunk] = []
    for settings, pictures in groups.items():
        for start in range(0, len(pictures), batch_size):
            chosen = tuple(pictures[start : start + batch_size])
            chunks.append(Chunk(len(chunks), settings, chosen))
    return tuple(chunks)
