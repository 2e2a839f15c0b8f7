"""The demo world's own embedders: what `cones evaluate --preset demo` measures with."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image

from cones_registry.demo import dual_encoder, judge, world
from cones_registry.demo.dual_encoder import DualEncoder
from cones_registry.demo.judge import Judge
from cones_registry.demo.world import Scene, Thing
from cones_registry.digest import quote
from cones_registry.errors import UsageError
from cones_registry.evaluation.embedders import Vectors
from cones_registry.evaluation.gallery import ShownSubject
from cones_registry.evaluation.presets import PRESETS
from cones_registry.evaluation.scoring import Measure


def demo_measure() -> Measure:
    """The preset ``demo``: dual encoder for alignment, classifier for presence."""
    reader = WorldReader(Judge.load())
    encoder = DualEncoder.load()
    return Measure(
        PRESETS["demo"],
        WorldEmbedder(encoder),
        image=WorldLikeness(encoder),
        presence=reader,
        details=reader,
    )


class WorldEmbedder:
    """The dual encoder under the protocol of embedders."""

    def __init__(self, encoder: DualEncoder) -> None:
        self._encoder = encoder
        weights = dual_encoder.WEIGHTS.read_bytes()
        self.facts: Mapping[str, Any] = {
            "model": "demo dual encoder",
            "weights": f"sha256:{hashlib.sha256(weights).hexdigest()}",
        }

    def pictures(self, pictures: Sequence[Image.Image]) -> Vectors:
        """Unit vectors, float32 [n, 128]."""
        return self._encoder.pictures(pictures)

    def texts(self, texts: Sequence[str]) -> Vectors:
        """Unit vectors, float32 [n, 128]."""
        return self._encoder.texts(texts)


class WorldLikeness(WorldEmbedder):
    """The dual encoder's space of pictures alone, for image alignment."""

    def pictures(self, pictures: Sequence[Image.Image]) -> Vectors:
        """Unit vectors, float32 [n, 128]."""
        return self._encoder.likenesses(pictures)


class WorldReader:
    """The classifier: presence is 1 where a subject is seen right in everything, anywhere."""

    meaning = (
        "1 where the demo's classifier sees the subject right in shape, both colours and texture, "
        "else 0"
    )

    def __init__(self, judge: Judge) -> None:
        self._judge = judge

    def presence(
        self,
        pictures: Sequence[Image.Image],
        asked: Sequence[Sequence[ShownSubject]],
    ) -> list[list[float]]:
        """See the class; a subject's thing is read off its description.

        Raises UsageError for a subject without one.
        """
        found = []
        for scene, subjects in zip(self._judge.read(pictures), asked, strict=True):
            seen = [thing for _, thing in scene.things]
            found.append([float(_described(subject) in seen) for subject in subjects])
        return found

    def details(
        self, pictures: Sequence[Image.Image], described: Sequence[str]
    ) -> list[dict[str, float]]:
        """Shares of the things asked for that are right where they should stand, by attribute."""
        scenes = self._judge.read(pictures)
        return [
            judge.accuracy([parse_scene(text)], [scene])
            for text, scene in zip(described, scenes, strict=True)
        ]


def _described(subject: ShownSubject) -> Thing:
    if not subject.description:
        raise UsageError(
            f"subject {quote(subject.name)} has no description, which is what the preset 'demo' "
            'looks for in pictures. Give it one in the plan ("description": "yellow dotted blue '
            'circle") and generate again, or use another preset'
        )
    return parse_thing(subject.description)


def parse_thing(text: str) -> Thing:
    """Inverse of ``Thing.words``; UsageError for words that describe no thing of the world."""
    words = text.split()
    if words and words[0] in ("a", "an"):
        del words[0]
    ornamented = len(words) == 4 and words[1] in world.TEXTURES[1:] and words[0] in world.COLOURS
    if len(words) in (2, 4) and words[-1] in world.SHAPES and words[-2] in world.COLOURS:
        if len(words) == 2:
            return Thing(words[1], words[0])
        if ornamented:
            return Thing(words[3], words[2], words[1], words[0])
    raise UsageError(
        f"{quote(text)} describes nothing in the demo world. Expected words such as "
        "'blue dotted yellow circle'; for other subjects use another preset"
    )


def parse_scene(caption: str) -> Scene:
    """Inverse of ``Scene.caption``; UsageError for another sentence."""
    body, _, ground = caption.rpartition(" on ")
    things = []
    for phrase in body.split(" and "):
        words = phrase.split(maxsplit=2)
        if len(words) != 3 or words[0] != "at" or words[1] not in world.PLACES:
            raise UsageError(
                f"{quote(caption)} is no caption of the demo world: 'at left a red circle on white'"
            )
        things.append((words[1], parse_thing(words[2])))
    if ground not in world.BACKGROUNDS:
        raise UsageError(f"{quote(caption)} names no background of the demo world")
    return Scene(ground, tuple(things))
