"""What a text encoder does not read of a prompt is quoted, once."""

import json
import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from cones_registry.base_model import BaseModel
from cones_registry.batch import Compositions, LocalEngine, run_batch
from cones_registry.generation import Generator, Request
from cones_registry.mask import ConceptMask
from cones_registry.registry import Registry

LONG = " ".join(["red dog"] * 11) + " square star"  # 24 words; 22 fit beside two special tokens


def test_the_end_that_is_not_read_is_quoted_once(
    tiny_base: BaseModel, caplog: pytest.LogCaptureFixture
) -> None:
    generator = Generator(tiny_base)
    with caplog.at_level(logging.WARNING):
        generator.generate([Request(LONG, seed=1), Request(LONG, seed=2)], steps=1)
        generator.generate([Request(LONG, seed=3)], steps=1)
    told = [record.getMessage() for record in caplog.records if "does not read" in record.message]
    assert len(told) == 1
    assert told[0].endswith("'square star'")


def test_a_prompt_that_just_fits_is_read_whole(tiny_base: BaseModel) -> None:
    generator = Generator(tiny_base)
    assert generator.unread(Request(" ".join(["dog"] * 22))) == ""
    assert generator.unread(Request(" ".join(["dog"] * 22) + " cross")) == "cross"
    assert generator.unread(Request("")) == ""


@pytest.mark.parametrize("family", ["stable-diffusion-xl", "pixart"])
def test_every_family_says_what_it_does_not_read(
    family_folder: Callable[[str], Path], family: str
) -> None:
    base = BaseModel.load(family_folder(family), device="cpu")
    prompt = " ".join(["dog"] * 400) + " square"
    unread = Generator(base).unread(Request(prompt))
    assert unread.endswith("square")
    assert prompt.endswith(unread)


def test_a_negative_prompt_is_looked_at_too(
    tiny_base: BaseModel, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        Generator(tiny_base).generate([Request("a dog", negative_prompt=LONG)], steps=1)
    told = [record.getMessage() for record in caplog.records if "does not read" in record.message]
    assert len(told) == 1
    assert "negative prompt" in told[0] and told[0].endswith("'square star'")


def test_an_encoder_that_reads_less_than_its_neighbour_decides(
    family_folder: Callable[[str], Path],
) -> None:
    """Rows of SDXL's encoders lie side by side: what one leaves out is half a word."""
    base = BaseModel.load(family_folder("stable-diffusion-xl"), device="cpu")
    first, second = base.tokenizers
    prompt = " ".join(["dog"] * (first.model_max_length - 3))
    assert Generator(base).unread(Request(prompt)) == ""
    second.add_tokens(["dog dog"])  # fewer tokens for the same words
    first.add_tokens(["do", "g"])  # more
    unread = Generator(base).unread(Request(prompt))
    assert unread and prompt.endswith(unread)


def test_each_encoder_of_stable_diffusion_3_has_its_own_length(
    family_folder: Callable[[str], Path],
) -> None:
    """T5 reads 256 tokens, whatever rows CLIP fills before them."""
    base = BaseModel.load(family_folder("stable-diffusion-3"), device="cpu")
    generator = Generator(base)
    assert generator.unread(Request(" ".join(["dog"] * 100))) == ""
    assert generator.unread(Request(" ".join(["dog"] * 300) + " square")).endswith("square")


def test_what_is_read_of_a_named_concept_counts(tiny_base: BaseModel, tmp_path: Path) -> None:
    with Registry.create(tmp_path / "registry", cache=tmp_path / "cache") as registry:
        mask = ConceptMask.empty(tiny_base.layer_table)
        words = {"token": "sks", "class_noun": "dog dog dog dog"}
        registry.push("alice/dog", mask, base=tiny_base, scope="subject", **words)
        generator = Generator(tiny_base, registry=registry)
        fits = "<alice/dog> " + " ".join(["dog"] * 17)
        assert generator.unread(Request(fits)) == ""
        assert generator.unread(Request(fits + " cross")) == "cross"


def test_a_batch_names_the_line_once(tiny_pipeline_folder: Path, tmp_path: Path) -> None:
    lines = [
        {"prompt": "a dog", "steps": 1},
        {"prompt": LONG, "negative_prompt": LONG, "steps": 1, "count": 3},
    ]
    report = run_batch(
        "\n".join(map(json.dumps, lines)),
        tmp_path / "out",
        engine=LocalEngine(Compositions(None)),
        base=str(tiny_pipeline_folder),
        compositions=Compositions(None),
        device="cpu",
    )
    assert report.succeeded
    (note,) = report.notes
    assert note.line == 2
    assert note.text.count("'square star'") == 2
    kept = json.loads((tmp_path / "out/report.json").read_text())
    assert kept["notes"] == [{"line": 2, "text": note.text}]
