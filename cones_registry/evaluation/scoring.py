"""Scoring: a gallery and embedders in, a number for every picture out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from cones_registry.digest import Digest
from cones_registry.errors import CorruptDataError, UsageError
from cones_registry.evaluation.embedders import (
    DetailReader,
    PictureEmbedder,
    PresenceReader,
    TextEmbedder,
    Vectors,
    WindowPresence,
)
from cones_registry.evaluation.gallery import Gallery, Sample, ShownSubject
from cones_registry.evaluation.presets import Preset
from cones_registry.evaluation.scores import PictureScore, Scores
from cones_registry.extraction.images import read_pictures

CHUNK = 64  # pictures in memory at a time


@dataclass(frozen=True)
class Measure:
    """A preset with the embedders that keep to it.

    clip: text alignment, and image alignment unless ``image`` is given.
    dino: a second image alignment, among the details.
    presence: a classifier; None: the best window by ``clip``. details: of a known world.
    """

    preset: Preset
    clip: TextEmbedder
    image: PictureEmbedder | None = None
    dino: PictureEmbedder | None = None
    presence: PresenceReader | None = None
    details: DetailReader | None = None


@dataclass(frozen=True)
class _References:
    """Vectors of a subject's real pictures, and the digests of their files."""

    vectors: Vectors
    digests: tuple[Digest, ...]

    def without(self, digest: Digest) -> Vectors:
        """All but the picture itself: real pictures are scored against the others."""
        kept = [at for at, each in enumerate(self.digests) if each != digest]
        if not kept:
            raise UsageError(
                "a subject's only reference picture cannot be compared with itself. Give another"
            )
        return self.vectors[kept]


def score_gallery(
    gallery: Gallery,
    measure: Measure,
    *,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Scores:
    """Text alignment, image alignment and presence of every picture.

    on_progress: given pictures done and all pictures.
    Raises NotFoundError or CorruptDataError for pictures that cannot be read.
    """
    embedder = measure.image or measure.clip
    references = {name: _references(embedder, each) for name, each in gallery.subjects.items()}
    second = {}
    if measure.dino is not None:
        second = {
            name: _references(measure.dino, subject) for name, subject in gallery.subjects.items()
        }
    presence = measure.presence or WindowPresence(
        embedder, {name: each.vectors for name, each in references.items()}
    )
    found: list[PictureScore] = []
    for start in range(0, len(gallery.samples), CHUNK):
        samples = gallery.samples[start : start + CHUNK]
        found += _chunk(samples, gallery, measure, references, second, presence)
        on_progress(len(found), len(gallery.samples))
    facts = {"clip": dict(measure.clip.facts)}
    if measure.dino is not None:
        facts["dino"] = dict(measure.dino.facts)
    return Scores(
        gallery.method,
        measure.preset.to_json(),
        facts,
        presence.meaning,
        tuple(found),
        gallery.base,
        gallery.base_source,
        gallery.base_neurons,
        gallery.bytes_per_concept,
        gallery.settings,
    )


def _chunk(
    samples: Sequence[Sample],
    gallery: Gallery,
    measure: Measure,
    references: Mapping[str, _References],
    second: Mapping[str, _References],
    presence: PresenceReader,
) -> list[PictureScore]:
    read = [read_pictures([sample.file]).pictures[0] for sample in samples]
    pictures = [each.image for each in read]
    digests = [each.digest for each in read]
    vectors = measure.clip.pictures(pictures)
    texts = measure.clip.texts([sample.text for sample in samples])
    cosines = (vectors * texts).sum(1)
    if not bool(np.isfinite(cosines).all()):
        raise CorruptDataError("the embedder gives numbers that are not finite. Copy it again")
    if measure.preset.floor:
        cosines = np.maximum(cosines, 0)
    likeness = vectors if measure.image is None else measure.image.pictures(pictures)
    image = _alignment(likeness, samples, digests, references)
    asked = [[gallery.subjects[name] for name in sample.subjects] for sample in samples]
    present = presence.presence(pictures, asked)
    details: list[dict[str, float]] = [{} for _ in samples]
    if measure.details is not None and all(sample.described for sample in samples):
        details = measure.details.details(pictures, [sample.described for sample in samples])
    if measure.dino is not None:
        dino = _alignment(measure.dino.pictures(pictures), samples, digests, second)
        for more, values in zip(details, dino, strict=True):
            if values:
                more["dino"] = float(np.mean(values))
    return [
        PictureScore(
            sample.file.name,
            sample.subjects,
            float(measure.preset.text_scale * cosine),
            alignment,
            tuple(shown),
            more,
        )
        for sample, cosine, alignment, shown, more in zip(
            samples, cosines, image, present, details, strict=True
        )
    ]


def _references(embedder: PictureEmbedder, subject: ShownSubject) -> _References:
    read = read_pictures(subject.references).pictures
    images: list[Image.Image] = [each.image for each in read]
    return _References(embedder.pictures(images), tuple(each.digest for each in read))


def _alignment(
    vectors: Vectors,
    samples: Sequence[Sample],
    digests: Sequence[Digest],
    references: Mapping[str, _References],
) -> list[tuple[float, ...]]:
    """For each picture its mean cosine to the references of each subject asked for."""
    return [
        tuple(float((references[name].without(own) @ vector).mean()) for name in sample.subjects)
        for sample, vector, own in zip(samples, vectors, digests, strict=True)
    ]
