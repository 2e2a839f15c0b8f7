"""A picture that the base model's safety checker blacks out is a failure."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cones_registry.base_model import BaseModel
from cones_registry.batch import Compositions, LocalEngine, run_batch
from cones_registry.generation import FailedPicturesError, Generator, Request

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


@pytest.fixture
def checked(folder: Path, edit: Callable[..., None]) -> Callable[[float], Path]:
    """``checked(threshold)``: a base model whose checker fires (-1.5) or never does (1.5)."""

    def make(threshold: float) -> Path:
        from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker
        from transformers import CLIPConfig, CLIPImageProcessor

        tiny: dict[str, Any] = {
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "projection_dim": 8,
        }
        checker = StableDiffusionSafetyChecker(
            CLIPConfig(
                projection_dim=8,
                vision_config=tiny | {"image_size": 32, "patch_size": 16},
                text_config=tiny | {"vocab_size": 10},
            )
        )
        checker.concept_embeds_weights.data.fill_(threshold)
        checker.special_care_embeds_weights.data.fill_(threshold)
        checker.save_pretrained(folder / "safety_checker")
        CLIPImageProcessor(
            size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
        ).save_pretrained(folder / "feature_extractor")
        edit(
            folder / "model_index.json",
            safety_checker=["stable_diffusion", "StableDiffusionSafetyChecker"],
            feature_extractor=["transformers", "CLIPImageProcessor"],
        )
        return folder

    return make


def test_a_checker_that_fires_makes_failures(checked: Callable[[float], Path]) -> None:
    base = BaseModel.load(checked(-1.5), device="cpu")
    requests = [Request("a dog"), Request("a square")]
    with pytest.raises(FailedPicturesError, match="safety checker took it for unsafe") as caught:
        Generator(base).generate(requests, steps=1)
    assert caught.value.pictures == [None, None]


def test_a_checker_that_does_not_fire_changes_nothing(checked: Callable[[float], Path]) -> None:
    base = BaseModel.load(checked(1.5), device="cpu")
    (picture,) = Generator(base).generate([Request("a dog")], steps=1)
    assert picture.getcolors(1) is None


def test_of_three_pictures_the_one_that_is_blacked_out_fails(
    checked: Callable[[float], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    base = BaseModel.load(checked(1.5), device="cpu")
    checker = type(base.pipeline.safety_checker)
    found = checker.forward

    def second(self: Any, clip_input: Any, images: Any) -> Any:
        images, _ = found(self, clip_input, images)
        images[1] = 0
        return images, [False, True, False]

    monkeypatch.setattr(checker, "forward", second)
    requests = [Request(prompt) for prompt in ("a dog", "a square", "a star")]
    with pytest.raises(FailedPicturesError) as caught:
        Generator(base).generate(requests, steps=1)
    assert [picture is None for picture in caught.value.pictures] == [False, True, False]
    assert list(caught.value.reasons) == [1]


def test_a_batch_reports_what_was_blacked_out(
    checked: Callable[[float], Path], tmp_path: Path
) -> None:
    report = run_batch(
        json.dumps({"prompt": "a dog", "steps": 1, "count": 2}),
        tmp_path / "out",
        engine=LocalEngine(Compositions(None)),
        base=str(checked(-1.5)),
        compositions=Compositions(None),
        device="cpu",
    )
    assert (report.made, len(report.failures)) == (0, 2)
    assert all("safety checker" in failure.reason for failure in report.failures)
    assert not list((tmp_path / "out").glob("pictures/*"))
