"""Joint tuning: the members of a composition get factors, learnt on all its subjects."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import Image

from cones_registry import cli
from cones_registry.codec import decode, encode
from cones_registry.errors import BaseModelMismatchError, UsageError
from cones_registry.extraction import (
    ExtractionSettings,
    Extractor,
    SubjectImages,
    TuneSettings,
    Tuning,
)
from cones_registry.factors import TWO_BIT_LEVELS
from cones_registry.generation import Generator, Request, read_recipe
from cones_registry.registry import Registry

if TYPE_CHECKING:
    from cones_registry.base_model import BaseModel
    from cones_registry.mask import ConceptMask

WORDS = {"dog": ("sks", "dog"), "cross": ("v", "cross")}
PROMPT = "a photo of a sks dog and a v cross"


@pytest.fixture
def pictures(tmp_path: Path) -> dict[str, Path]:
    """A folder of two captioned pictures for each subject."""
    folders = {}
    for number, name in enumerate(WORDS):
        folders[name] = tmp_path / name
        folders[name].mkdir()
        for at in range(2):
            pixels = np.random.default_rng([number, at]).integers(0, 255, (16, 16, 3), np.uint8)
            Image.fromarray(pixels).save(folders[name] / f"{at}.png")
            (folders[name] / f"{at}.txt").write_text("a photo of a {}")
    return folders


@pytest.fixture
def registry(
    tmp_path: Path, tiny_base: "BaseModel", random_mask: Callable[..., "ConceptMask"]
) -> Registry:
    """Two concepts in each scope: dog and cross, dog-prompt and cross-prompt."""
    registry = Registry.create(tmp_path / "concepts", cache=tmp_path / "registry-cache")
    for seed, (name, (token, noun)) in enumerate(WORDS.items()):
        mask = random_mask(tiny_base.layer_table, seed=seed, density=0.1)
        words = {"base": tiny_base, "token": token, "class_noun": noun}
        registry.push(name, mask, scope="subject", **words)
        registry.push(f"{name}-prompt", mask, scope="prompt", **words)
    return registry


@pytest.fixture
def tune(
    tiny_base: "BaseModel", registry: Registry, pictures: dict[str, Path], tmp_path: Path
) -> Callable[..., Tuning]:
    """``tune("dog", "cross", …)`` with few steps."""

    def run(*names: str, steps: int = 3, **options: Any) -> Tuning:
        composition = registry.resolve(*names)
        images = {
            member.ref: pictures[member.concept.name.removesuffix("-prompt")]
            for member in composition.members
        }
        few = {
            "tuning": TuneSettings(batch_size=4, learning_rate=0.1),
            "settings": ExtractionSettings(prior_count=2, prior_steps=1),
        }
        extractor = Extractor(tiny_base, cache_folder=tmp_path / "cache")
        return extractor.tune(composition, images, steps, progress=None, **(few | options))

    return run


@pytest.mark.parametrize("scope", ["subject", "prompt"])
def test_members_stay_and_get_factors(
    tune: Callable[..., Tuning], registry: Registry, tiny_base: "BaseModel", scope: str
) -> None:
    before = {name: value.clone() for name, value in tiny_base.denoiser.state_dict().items()}
    names = ("dog", "cross") if scope == "subject" else ("dog-prompt", "cross-prompt")
    composition = registry.resolve(*names)
    tuned = tune(*names)
    assert len(tuned.parts) == len(composition.parts) == (2 if scope == "subject" else 1)
    for part, own in zip(tuned.parts, composition.parts, strict=True):
        assert np.array_equal(part.mask.words, own.mask.words)
        assert part.mask.precision == "float16"
        assert part.mask.factors is not None and np.any(part.mask.factors != 0)
        assert (part.scope, part.token, part.class_noun) == (own.scope, own.token, own.class_noun)
        assert part.provenance.parents == composition.refs
        assert part.provenance.parameters["collage_examples"] > 0
    after = tiny_base.denoiser.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_tuning_lowers_the_loss_it_learns(tune: Callable[..., Tuning]) -> None:
    steady = TuneSettings(batch_size=8, learning_rate=0.05)
    curve = [entry["loss"] for entry in tune("dog", "cross", steps=40, tuning=steady).history]
    assert np.mean(curve[-8:]) < np.mean(curve[:8])


def test_what_is_drawn_with_the_tuning_is_drawn_with_what_was_pushed_of_it(
    tune: Callable[..., Tuning],
    registry: Registry,
    tiny_base: "BaseModel",
    tiny_pipeline_folder: Path,
    tmp_path: Path,
) -> None:
    tuned = tune("dog", "cross")
    assert (
        registry.resolve("dog", "cross", tuned=True).refs == registry.resolve("dog", "cross").refs
    )
    pushed = registry.push_many(tuned.pushes("pair"))
    assert [concept.ref for concept in pushed] == [
        f"local/pair-{part.token}:1" for part in tuned.parts
    ]
    stored = registry.resolve("cross", "dog", tuned=True)
    assert set(stored.refs) == {concept.ref for concept in pushed}
    assert registry.get(pushed[0]).provenance.parents == registry.resolve("dog", "cross").refs  # type: ignore[union-attr]

    requests = [Request(PROMPT, composition=each, seed=2) for each in (tuned, stored)]
    plain = Request(PROMPT, composition=registry.resolve("dog", "cross"), seed=2)
    first, second, other = (
        np.asarray(picture)
        for picture in Generator(tiny_base).generate([*requests, plain], steps=2)
    )
    assert np.array_equal(first, second)
    assert not np.array_equal(first, other)

    # Named in a prompt they are tuned too; what was not tuned together is drawn as it is.
    out = tmp_path / "both.png"
    draw = ["-r", registry.url, "generate", PROMPT.replace("sks dog", "<dog>"), "--seed", "2"]
    draw += ["--steps", "2", "--base", str(tiny_pipeline_folder), "--out", str(out), "--tuned"]
    assert cli.run([*draw[:3], draw[3].replace("v cross", "<local/cross>"), *draw[4:]]) == 0
    assert np.array_equal(np.asarray(Image.open(out)), first)
    assert {each["ref"] for each in read_recipe(out)["concepts"]} == set(stored.refs)
    assert cli.run(draw) == 0
    assert [each["ref"] for each in read_recipe(out)["concepts"]] == ["local/dog:1"]


def test_tuned_masks_stand_for_exactly_the_set_they_were_tuned_for(
    tune: Callable[..., Tuning],
    registry: Registry,
    tiny_base: "BaseModel",
    random_mask: Callable[..., "ConceptMask"],
    capsys: pytest.CaptureFixture[str],
) -> None:
    registry.push_many(tune("dog", "cross").pushes("pair"))
    assert registry.resolve("dog", tuned=True).refs == ("local/dog:1",)
    assert "local/pair-sks:1" not in registry.resolve("dog", "cross").refs  # only where asked for
    resolved = ["resolve", "dog", "cross", "--json", "-r", registry.url]
    assert cli.run(resolved) == 0
    assert "pair-sks" not in capsys.readouterr().out
    assert cli.run([*resolved, "--tuned"]) == 0
    assert "pair-sks" in capsys.readouterr().out
    # A part that is gone, or a new version of a member, and the set is another one.
    registry.remove("pair-v")
    assert registry.resolve("dog", "cross", tuned=True).refs == ("local/cross:1", "local/dog:1")
    registry.restore("pair-v:1")
    assert "local/pair-v:1" in registry.resolve("dog", "cross", tuned=True).refs
    mask = random_mask(tiny_base.layer_table, seed=9)
    registry.push("dog", mask, base=tiny_base, scope="subject", token="sks", class_noun="dog")
    assert registry.resolve("dog", "cross", tuned=True).refs == ("local/cross:1", "local/dog:2")
    # The newest run is taken.
    registry.push_many(tune("dog", "cross").pushes("again"))
    registry.push_many(tune("dog", "cross", seed=1).pushes("newest"))
    assert set(registry.resolve("dog", "cross", tuned=True).refs) == {
        "local/newest-sks:1",
        "local/newest-v:1",
    }


def test_equal_seeds_give_equal_factors(tune: Callable[..., Tuning]) -> None:
    first, second, other = (tune("dog", "cross", seed=seed).parts[0].mask for seed in (1, 1, 2))
    assert first == second
    assert first != other


def test_pictures_must_be_of_the_composition(
    tiny_base: "BaseModel",
    registry: Registry,
    pictures: dict[str, Path],
    random_mask: Callable[..., "ConceptMask"],
    tmp_path: Path,
) -> None:
    extractor = Extractor(tiny_base)
    both = registry.resolve("dog", "cross")
    with pytest.raises(UsageError, match="local/cross:1"):
        extractor.tune(both, {"local/dog:1": pictures["dog"]})
    registry.push("wordless", random_mask(tiny_base.layer_table), base=tiny_base, scope="prompt")
    wordless = registry.resolve("wordless")
    with pytest.raises(UsageError, match="SubjectImages"):
        extractor.tune(wordless, {"local/wordless:1": pictures["dog"]})
    few = {"settings": ExtractionSettings(prior_count=1, prior_steps=1), "progress": None}
    own = {"local/wordless:1": SubjectImages(pictures["dog"], "sks", "dog")}
    assert len(Extractor(tiny_base, cache_folder=tmp_path).tune(wordless, own, 1, **few).parts) == 1
    registry.push(
        "elsewhere", random_mask(tiny_base.layer_table), base="sha256:" + "0" * 64, scope="prompt"
    )
    with pytest.raises(BaseModelMismatchError, match="Load the base model"):
        extractor.tune(registry.resolve("elsewhere"), {"local/elsewhere:1": pictures["dog"]})


@pytest.mark.parametrize(
    "wrong",
    [
        {"steps": 0},
        {"batch_size": 0},
        {"learning_rate": 0.0},
        {"precision": "nope"},
        {"precision": "binary"},
    ],
)
def test_what_no_tuning_can_do_is_refused_before_its_first_step(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="expected"):
        TuneSettings(**wrong)


@pytest.mark.parametrize("rows", ["token", "padding"])
def test_the_rows_of_a_tuned_mask_are_its_concepts_own(
    tune: Callable[..., Tuning], rows: Any
) -> None:
    with pytest.raises(UsageError, match="rows of its own concept"):
        tune("dog", "cross", settings=ExtractionSettings(rows=rows))
    few = ExtractionSettings(prior_count=2, prior_steps=1)
    (part,) = tune("dog", steps=1, settings=few).parts
    assert "rows" not in part.provenance.parameters


def test_two_bits_hold_what_was_learnt_for_them(tune: Callable[..., Tuning]) -> None:
    coarse = TuneSettings(batch_size=4, learning_rate=0.5, precision="2bit")
    for part in tune("dog", "cross", steps=4, tuning=coarse).parts:
        assert part.mask.precision == "2bit"
        assert part.mask.factors is not None
        assert set(np.unique(part.mask.factors)) <= set(TWO_BIT_LEVELS)
        assert decode(encode(part.mask)) == part.mask


def test_parts_are_named_by_their_tokens_in_letters_that_a_name_may_have(
    tune: Callable[..., Tuning], registry: Registry
) -> None:
    tuned = tune("dog", "cross", steps=1)
    for tokens, names in (
        (("V", "sks"), ["pair-v", "pair-sks"]),
        (("V*", "<v>"), ["pair-v", "pair-v-2"]),
        (("é", "*"), ["pair-1", "pair-2"]),
        (("v-3", "v", "V"), ["pair-v-3", "pair-v", "pair-v-3-3"]),
    ):
        parts = (*tuned.parts, tuned.parts[0])
        named = tuple(
            replace(each, token=token) for token, each in zip(tokens, parts, strict=False)
        )
        assert [each["ref"] for each in replace(tuned, parts=named).pushes("pair")] == names
    capital = tuple(replace(part, token=f"{part.token}".upper()) for part in tuned.parts)
    pushed = registry.push_many(replace(tuned, parts=capital).pushes("a/both"))
    assert {concept.name for concept in pushed} == {"both-sks", "both-v"}
