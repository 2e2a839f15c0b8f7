"""The demo world's embedders: they read its words, and tell right pictures from wrong ones."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from cones_registry.demo import world
from cones_registry.demo.dual_encoder import WEIGHTS, DualEncoder
from cones_registry.demo.embedders import demo_measure, parse_scene, parse_thing
from cones_registry.demo.world import Scene, Thing
from cones_registry.errors import UsageError
from cones_registry.evaluation.embedders import DetailReader, PresenceReader, TextEmbedder
from cones_registry.evaluation.gallery import ShownSubject


def drawn(scenes: list[Scene], seed: int = 0) -> list[Image.Image]:
    return [Image.fromarray(p) for p in world.render(scenes, np.random.default_rng(seed))]


def test_what_the_world_says_is_read_back() -> None:
    for thing in (*world.things(), *world.HELD_OUT):
        assert parse_thing(thing.words()) == thing
    generator = np.random.default_rng(1)
    for count in (1, 2, 3, 4):
        scene = world.random_scene(generator, count, world.things())
        assert parse_scene(scene.caption()) == scene


@pytest.mark.parametrize(
    "text", ["", "dog", "red dog", "blue spotted red circle", "at left circle"]
)
def test_what_the_world_cannot_mean_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_thing(text)
    with pytest.raises(UsageError):
        parse_scene(text)


def test_the_dual_encoder_prefers_the_caption_that_is_true() -> None:
    generator = np.random.default_rng(5)
    scenes = [world.random_scene(generator, 1 + n % 3, world.things()) for n in range(60)]
    encoder = DualEncoder.load()
    cosines = encoder.pictures(drawn(scenes)) @ encoder.texts([s.caption() for s in scenes]).T
    assert (cosines.argmax(1) == np.arange(60)).mean() > 0.9


def test_likeness_finds_a_thing_among_others_and_on_another_background() -> None:
    subject = Thing("circle", "blue", "dotted", "yellow")
    near = [
        Thing("circle", "yellow", "dotted", "blue"),
        Thing("square", "blue", "dotted", "yellow"),
    ]
    other = Thing("cross", "red")
    references = drawn([Scene("white", (("left", subject),)), Scene("black", (("top", subject),))])
    scenes = [
        Scene("gray", (("right", thing), ("left", other)))
        for thing in (subject, *near)
        for _ in range(8)
    ]
    encoder = DualEncoder.load()
    likeness = (encoder.likenesses(drawn(scenes)) @ encoder.likenesses(references).T).mean(1)
    there, colours, shape = likeness.reshape(3, 8).mean(1)
    assert there > colours and there > shape


def test_presence_is_seen_anywhere_and_details_only_in_place() -> None:
    measure = demo_measure()
    assert isinstance(measure.clip, TextEmbedder)
    reader = measure.presence
    assert isinstance(reader, PresenceReader) and isinstance(reader, DetailReader)
    scene = Scene("white", (("left", world.HELD_OUT[0]), ("right", world.HELD_OUT[1])))
    moved = Scene("white", (("left", world.HELD_OUT[1]), ("right", world.HELD_OUT[0])))
    subjects = [
        ShownSubject(str(number), WEIGHTS.parent, description=thing.words())
        for number, thing in enumerate(world.HELD_OUT[:3])
    ]
    assert reader.presence(drawn([scene]), [subjects]) == [[1.0, 1.0, 0.0]]
    right, wrong = reader.details(drawn([scene, moved]), [scene.caption()] * 2)
    assert right["all"] == 1.0 and wrong["all"] == 0.0 and wrong["place"] == 1.0


def test_a_subject_without_a_description_cannot_be_seen() -> None:
    reader = demo_measure().presence
    assert isinstance(reader, PresenceReader)
    asked = [[ShownSubject("buoy", WEIGHTS.parent, "circle")]]
    with pytest.raises(UsageError, match=r"'buoy' has no description.*in the plan"):
        reader.presence(drawn([Scene("white", (("left", world.HELD_OUT[0]),))]), asked)


def test_the_encoder_fits_beside_the_base_model() -> None:
    assert WEIGHTS.stat().st_size < 2_000_000
