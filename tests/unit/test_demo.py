"""The demo: its world, its judge, its subjects, its base model, and the whole way in small."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cones_registry import BaseModel, Registry
from cones_registry.demo import world
from cones_registry.demo.demonstration import DemoSize, run
from cones_registry.demo.judge import Judge, accuracy
from cones_registry.demo.measure import group_trials, subject_trials
from cones_registry.demo.subjects import SUBJECTS
from cones_registry.demo.world import PLACES, Scene, Thing
from cones_registry.errors import ConflictError


def scenes(count: int) -> list[Scene]:
    generator = np.random.default_rng(5)
    pool = [*world.things(), *world.HELD_OUT]
    return [world.random_scene(generator, 1 + at % 4, pool) for at in range(count)]


def render(asked: list[Scene]) -> list[Image.Image]:
    return [Image.fromarray(p) for p in world.render(asked, np.random.default_rng(6))]


@pytest.fixture(scope="module")
def base() -> BaseModel:
    return BaseModel.load("demo", device="cpu")


def test_captions_use_the_closed_vocabulary_alone() -> None:
    assert {word for scene in scenes(200) for word in scene.caption().split()} <= set(world.WORDS)


def test_the_base_is_never_shown_a_subject() -> None:
    assert not set(world.HELD_OUT) & set(world.things())
    assert {subject.thing for subject in SUBJECTS} == set(world.HELD_OUT)


def test_rendering_is_decided_by_its_generator() -> None:
    first, again = (world.render(scenes(8), np.random.default_rng(1)) for _ in range(2))
    assert first.shape == (8, 32, 32, 3)
    assert np.array_equal(first, again)
    assert not np.array_equal(first, world.render(scenes(8), np.random.default_rng(2)))


def test_a_placeholder_stands_for_the_description() -> None:
    scene = Scene("gray", (("left", Thing("cross", "red")), ("right", Thing("circle", "blue"))))
    assert scene.caption(names={1: "sks circle"}) == (
        "at left a red cross and at right a sks circle on gray"
    )


def test_the_judge_reads_renders_it_never_saw() -> None:
    asked = scenes(200)
    shares = accuracy(asked, Judge.load().read(render(asked)))
    assert min(shares.values()) >= 0.98, shares


def test_accuracy_tells_a_wrong_place_from_a_wrong_thing() -> None:
    thing, other = Thing("cross", "red"), Thing("cross", "blue")
    asked = [Scene("gray", (("left", thing),))] * 2
    seen = [Scene("gray", (("right", thing),)), Scene("pink", (("left", other),))]
    shares = accuracy(asked, seen)
    assert shares == {
        "shape": 0.5,
        "colour": 0.0,
        "texture": 0.5,
        "thing": 0.0,
        "place": 0.5,
        "background": 0.5,
        "all": 0.0,
    }


@pytest.mark.parametrize("subject", SUBJECTS, ids=lambda subject: subject.name)
def test_reference_pictures_show_their_subject_where_the_caption_says(subject) -> None:
    files = sorted(subject.folder.glob("*.png"))
    assert len(files) == len(PLACES)
    for file, seen in zip(files, Judge.load().read([Image.open(f) for f in files]), strict=True):
        assert seen.things == ((file.stem, subject.thing),)
        caption = file.with_suffix(".txt").read_text(encoding="utf-8").strip()
        assert caption == f"at {file.stem} a {{}} | on {seen.background}"


@pytest.mark.parametrize("subject", SUBJECTS, ids=lambda subject: subject.name)
def test_measured_prompts_were_not_learnt_from(subject) -> None:
    trials = subject_trials(subject, 20)
    learnt = {
        file.read_text(encoding="utf-8").replace(" |", "").strip().format(subject.phrase)
        for file in subject.folder.glob("*.txt")
    }
    assert not {trial.prompt for trial in trials} & learnt
    assert len({trial.prompt for trial in trials}) == 15


def test_subjects_of_a_group_stand_in_every_order() -> None:
    trials = group_trials(SUBJECTS[:2], 16)
    first = {trial.prompt.split(" and ")[0].split()[3] for trial in trials}
    assert first == {SUBJECTS[0].token, SUBJECTS[1].token}


def test_the_base_is_a_small_stable_diffusion_folder(base: BaseModel) -> None:
    folder = Path(world.__file__).with_name("base")
    assert sum(file.stat().st_size for file in folder.rglob("*")) <= 25_000_000
    assert type(base.pipeline).__name__ == "StableDiffusionPipeline"
    assert base.layer_table.neuron_count >= 200_000
    assert len({layer.rows for layer in base.layer_table.layers}) > 1  # several resolutions


def test_every_word_is_one_token_of_the_base(base: BaseModel) -> None:
    tokenizer = base.tokenizers[0]
    assert all(len(tokenizer.tokenize(word)) == 1 for word in world.WORDS)
    longest = max(scenes(400), key=lambda scene: len(scene.caption()))
    assert len(tokenizer(longest.caption()).input_ids) <= tokenizer.model_max_length


def test_the_demo_learns_keeps_combines_and_draws(tmp_path: Path) -> None:
    size = DemoSize(base_trials=2, subject_trials=2, pair_trials=1, companions=1, learning_steps=4)
    lines: list[str] = []
    report = run(tmp_path / "out", size=size, say=lines.append)
    assert lines
    written = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    assert written == json.loads(json.dumps(report.to_json()))
    assert set(written["base"]) == {"one_object", "two_objects"}
    assert [each["ref"] for each in written["subjects"]] == [
        f"demo/{subject.name}:1" for subject in SUBJECTS
    ]
    assert {pair["scope"] for pair in written["pairs"]} == {"subject", "prompt"}
    assert len(written["pairs"]) == 12
    for each in written["subjects"]:
        assert 0 < each["bytes"] < each["raw_int32_bytes"] < each["dense_kv_bytes"]
    with Image.open(tmp_path / "out" / "contact-sheet.png") as sheet:
        assert sheet.width > 900 and sheet.height > 800
    found = Registry.open(tmp_path / "out" / "registry", read_only=True).find(tag="demo")
    assert len(found) == 8
    with pytest.raises(ConflictError, match="exists already"):
        run(tmp_path / "out", size=size)
