"""Scoring: galleries in three layouts, real CLIP and DINO models with random weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cones_registry.errors import CorruptDataError, NotFoundError, UsageError
from cones_registry.evaluation.gallery import Gallery, Sample, ShownSubject, read_gallery
from cones_registry.evaluation.presets import PRESETS
from cones_registry.evaluation.scores import read_scores
from cones_registry.evaluation.scoring import Measure, score_gallery
from cones_registry.evaluation.transformer import ClipEmbedder, DinoEmbedder

COLOURS = ("red", "green", "blue", "orange")


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Two references of a dog, and CustomConcept101's layout with two samples."""
    for place, names in (("photos", ("0.png", "1.png")), ("run/samples", ("0.png", "1.png"))):
        folder = tmp_path / place
        folder.mkdir(parents=True)
        for number, name in enumerate(names):
            generator = np.random.default_rng([number, len(place)])
            pixels = generator.integers(0, 255, (20, 30, 3), np.uint8)
            Image.fromarray(pixels).save(folder / name)
    prompts = {"0": "a red dog", "1": "a dog on the wall"}
    (tmp_path / "run" / "prompts.json").write_text(json.dumps(prompts))
    return tmp_path


@pytest.fixture(scope="session")
def clip(clip_folder: Path) -> ClipEmbedder:
    return ClipEmbedder(clip_folder)


def test_customconcept101s_layout_is_scored_as_it_lies(pictures: Path, clip: ClipEmbedder) -> None:
    gallery = read_gallery(pictures / "run", references={"dog": pictures / "photos"})
    assert [(s.text, s.subjects) for s in gallery.samples] == [
        ("a red dog", ("dog",)),
        ("a dog on the wall", ("dog",)),
    ]
    plain = score_gallery(gallery, Measure(PRESETS["clip"], clip))
    images = [Image.open(sample.file) for sample in gallery.samples]
    vectors, texts = clip.pictures(images), clip.texts(["a red dog", "a dog on the wall"])
    cosines = (vectors * texts).sum(1)
    assert [each.text for each in plain.pictures] == pytest.approx(cosines.tolist(), abs=1e-5)
    shown = clip.pictures([Image.open(pictures / "photos" / f"{n}.png") for n in (0, 1)])
    wanted = (vectors @ shown.T).mean(1)
    assert [each.image[0] for each in plain.pictures] == pytest.approx(wanted.tolist(), abs=1e-5)
    # The whole picture is one of the windows.
    assert all(each.presence[0] >= each.image[0] - 1e-5 for each in plain.pictures)

    scaled = score_gallery(gallery, Measure(PRESETS["customconcept101"], clip))
    assert [each.text for each in scaled.pictures] == pytest.approx(
        (2.5 * np.maximum(cosines, 0)).tolist(), abs=1e-5
    )

    plain.write(pictures / "run" / "scores.json")
    assert read_scores(pictures / "run") == plain


def test_a_real_picture_is_never_compared_with_itself(pictures: Path, clip: ClipEmbedder) -> None:
    files = [pictures / "photos" / f"{n}.png" for n in (0, 1)]
    subject = ShownSubject("dog", pictures / "photos")
    gallery = Gallery("real", tuple(Sample(f, "a dog", ("dog",)) for f in files), {"dog": subject})
    scores = score_gallery(gallery, Measure(PRESETS["clip"], clip))
    one, other = clip.pictures([Image.open(file) for file in files])
    assert [each.image[0] for each in scores.pictures] == pytest.approx([float(one @ other)] * 2)
    files[1].unlink()
    with pytest.raises(UsageError, match="compared with itself"):
        score_gallery(
            Gallery("real", gallery.samples[:1], gallery.subjects), Measure(PRESETS["clip"], clip)
        )


def test_a_gallery_is_read_as_it_was_written(pictures: Path) -> None:
    subject = ShownSubject("dog", pictures / "photos", "dog", "old dog")
    sample = Sample(pictures / "run" / "samples" / "0.png", "a dog", ("dog",), "a old dog")
    made = Gallery("cones", (sample,), {"dog": subject}, "sha256:0", "demo", 7, 3.5, {"steps": 2})
    made.write(pictures / "run")
    found = read_gallery(pictures / "run")
    assert found.samples[0].file.resolve() == sample.file
    assert found.subjects["dog"].references.resolve() == subject.references
    assert found.bytes_per_concept == 3.5 and found.settings == {"steps": 2}
    assert read_gallery(pictures / "run", method="again").method == "again"


def test_folders_that_do_not_say_what_was_asked_are_refused(pictures: Path) -> None:
    with pytest.raises(NotFoundError, match="no folder"):
        read_gallery(pictures / "none")
    (pictures / "run" / "prompts.json").write_text('{"0": "a red dog"}')
    with pytest.raises(CorruptDataError, match=r"no prompt for 1\.png"):
        read_gallery(pictures / "run")
    (pictures / "run" / "prompts.json").unlink()
    with pytest.raises(UsageError, match=r"asked to show.*prompts\.json"):
        read_gallery(pictures / "run")
    (pictures / "empty").mkdir()
    with pytest.raises(NotFoundError, match="no pictures"):
        read_gallery(pictures / "empty")
    (pictures / "run" / "gallery.json").write_text('{"format": "cones gallery 1"}')
    with pytest.raises(CorruptDataError, match="is no gallery"):
        read_gallery(pictures / "run")


def test_the_papers_preset_refuses_another_backbone(clip: ClipEmbedder) -> None:
    from cones_registry.evaluation.presets import require_backbone

    require_backbone(PRESETS["clip"], clip.backbone, "tiny")
    with pytest.raises(UsageError, match="CLIP ViT-L/14"):
        require_backbone(PRESETS["paper"], clip.backbone, "tiny")


def test_dino_gives_a_second_image_alignment(
    pictures: Path, clip: ClipEmbedder, dino_folder: Path
) -> None:
    gallery = read_gallery(pictures / "run", references={"dog": pictures / "photos"})
    dino = DinoEmbedder(dino_folder)
    scores = score_gallery(gallery, Measure(PRESETS["clip"], clip, dino=dino))
    assert all(-1 <= each.details["dino"] <= 1 for each in scores.pictures)
    assert scores.facts["dino"]["weights"] == dino.facts["weights"]


@pytest.mark.parametrize("make", [ClipEmbedder, DinoEmbedder])
def test_a_folder_that_is_no_such_model_is_refused(
    make: Callable[[Path], Any], tmp_path: Path, clip_folder: Path
) -> None:
    with pytest.raises(NotFoundError, match=r"config\.json"):
        make(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises((UsageError, CorruptDataError)):
        make(tmp_path)
