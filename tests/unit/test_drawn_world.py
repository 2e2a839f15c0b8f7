"""The drawn world: captions, pictures, drawings and their licences, the judge."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from cones_registry.demo.drawn_world import judge, pictures, scenes
from cones_registry.demo.drawn_world.judge import accuracy
from cones_registry.demo.drawn_world.scenes import Scene, Telling, Thing


def some_scenes(count: int, pool: tuple[Thing, ...] = scenes.THINGS) -> list[Scene]:
    generator = np.random.default_rng(5)
    return [scenes.random_scene(generator, 1 + at % 4, pool) for at in range(count)]


def some_captions(count: int) -> list[str]:
    generator = np.random.default_rng(6)
    return [
        scenes.caption(scene, scenes.random_telling(generator, len(scene.things)))
        for scene in some_scenes(count)
    ]


def test_captions_use_the_closed_vocabulary_alone() -> None:
    said = {word for text in some_captions(400) for word in text.replace(",", "").split()}
    assert said <= set(scenes.WORDS)
    assert set(scenes.WORDS) - said == set(scenes.RARE_WORDS)


def test_a_caption_names_things_in_their_order_and_places_before_them() -> None:
    scene = Scene(
        "grass",
        (("right", Thing("cat", "soft", "red")), ("left", Thing("tree", "flat", "natural"))),
    )
    assert (
        scenes.caption(scene) == "on the right a soft red cat and on the left a flat tree on grass"
    )
    bare = Telling.bare(2, places=False)
    assert scenes.caption(scene, bare) == "a cat and a tree on grass"
    assert scenes.caption(scene, bare, names={0: "sks cat"}) == "a sks cat and a tree on grass"


def test_bare_nouns_are_common_for_every_number_of_things() -> None:
    generator = np.random.default_rng(7)
    for count in (1, 2, 3, 4):
        tellings = [scenes.random_telling(generator, count) for _ in range(300)]
        bare = [not any(telling.drawings) and not any(telling.tints) for telling in tellings]
        named = [telling.places for telling in tellings]
        assert np.mean(bare) > 0.3
        assert 0.6 < np.mean(named) < 0.9


def test_held_out_things_are_never_in_the_training_pool() -> None:
    assert not set(scenes.HELD_OUT) & set(scenes.THINGS)
    assert set(scenes.HELD_OUT) | set(scenes.THINGS) == set(scenes.EVERY_THING)
    shown = {thing for scene in some_scenes(2000) for _, thing in scene.things}
    assert not set(scenes.HELD_OUT) & shown


def test_every_part_of_a_held_out_thing_is_seen_in_other_things() -> None:
    for held in scenes.HELD_OUT:
        seen = [thing for thing in scenes.THINGS if thing.noun == held.noun]
        assert held.tint in {thing.tint for thing in seen}
        assert held.drawing in {thing.drawing for thing in seen}


def test_rendering_is_decided_by_its_generator() -> None:
    for scene in some_scenes(12):
        first, again = (pictures.render(scene, np.random.default_rng(1)) for _ in range(2))
        assert first.shape == (64, 64, 3)
        assert first.dtype == np.uint8
        assert np.array_equal(first, again)


def test_every_thing_looks_different_from_every_other() -> None:
    sprites = np.stack([pictures.sprite(thing) for thing in scenes.EVERY_THING])
    flat = sprites.reshape(len(sprites), -1)
    square = (flat**2).sum(1)
    distance = square[:, None] + square[None] - 2 * flat @ flat.T
    np.fill_diagonal(distance, np.inf)
    assert distance.min() > 1


def test_things_stand_apart_and_inside_the_picture() -> None:
    for names in (("left", "right"), scenes.CORNERS):
        corners = [scenes.PLACES[name][:2] for name in names]
        assert len({(x // 32, y // 32) for x, y in corners}) == len(names)
    assert all(0 <= x <= 32 and 0 <= y <= 32 for x, y, _ in scenes.PLACES.values())


def test_the_notice_names_every_set_of_drawings_with_its_licence() -> None:
    notice = pictures.SHEET.with_name("NOTICE").read_text(encoding="utf-8")
    for word, name in scenes.DRAWINGS.items():
        assert f'"{word}": {name}' in notice
        assert f"@iconify-json/{name}" in notice
    assert all(licence in notice for licence in ("Apache License", "MIT License", "CC BY 4.0"))
    assert pictures.SHEET.stat().st_size < 200_000


def test_accuracy_asks_only_for_what_was_said() -> None:
    asked = Scene(
        "snow", (("left", Thing("cat", "soft", "red")), ("right", Thing("car", "flat", "blue")))
    )
    seen = Scene(
        "night", (("left", Thing("cat", "flat", "red")), ("right", Thing("car", "flat", "green")))
    )
    full = accuracy([asked], [Telling.full(2)], [seen])
    assert (full.noun, full.tint, full.drawing, full.thing) == (1.0, 0.5, 0.5, 0.0)
    assert (full.place, full.background, full.whole) == (1.0, 0.0, 0.0)
    bare = accuracy([asked], [Telling((False,) * 2, (False,) * 2, background=False)], [seen])
    assert (bare.noun, bare.thing, bare.whole) == (1.0, 1.0, 1.0)


def test_without_places_a_thing_may_stand_anywhere() -> None:
    asked = Scene(
        "snow", (("left", Thing("cat", "soft", "red")), ("right", Thing("car", "flat", "red")))
    )
    turned = Scene("snow", (("left", asked.things[1][1]), ("right", asked.things[0][1])))
    assert accuracy([asked], [Telling.full(2)], [turned]).noun == 0.0
    assert accuracy([asked], [Telling.full(2, places=False)], [turned]).whole == 1.0
    double = Scene("snow", (("left", asked.things[1][1]), ("right", asked.things[1][1])))
    assert accuracy([asked], [Telling.bare(2, places=False)], [double]).noun == 0.5


@pytest.mark.skipif(not judge.WEIGHTS.exists(), reason="the judge is not trained yet")
def test_the_judge_reads_renders_it_never_saw() -> None:
    generator = np.random.default_rng(8)
    asked = some_scenes(64, scenes.EVERY_THING)
    shown = [Image.fromarray(pictures.render(scene, generator)) for scene in asked]
    tellings = [Telling.full(len(scene.things)) for scene in asked]
    found = accuracy(asked, tellings, judge.Judge.load().read(shown))
    assert found.noun > 0.99
    assert found.tint > 0.97
    assert found.drawing > 0.97
    assert found.place > 0.97
    assert found.background > 0.97
