"""Concepts named in prompts: what is read, and at which rows their masks act."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cones_registry.attention import plan_rows
from cones_registry.base_model import BaseModel
from cones_registry.errors import (
    ConesError,
    ConflictError,
    LimitExceededError,
    NotFoundError,
    UsageError,
)
from cones_registry.generation import Generator, Reading, Request, read_request, recipe_of
from cones_registry.generation.parts import branches
from cones_registry.generation.prompt import find_names
from cones_registry.mask import ConceptMask
from cones_registry.registry import Registry

MakeMask = Callable[..., ConceptMask]


@pytest.fixture(scope="module")
def base(tiny_pipeline_folder: Path) -> BaseModel:
    return BaseModel.load(tiny_pipeline_folder, device="cpu")


@pytest.fixture(scope="module")
def registry(base: BaseModel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    """Two users took the same token; a dog of the default owner; a style; one without words."""
    folder = tmp_path_factory.mktemp("named")
    concepts = [
        ("alice/dog", "subject", "sks", "dog"),
        ("bob/dog", "subject", "sks", "dog"),
        ("bob/star", "subject", "sks", "star"),
        ("carol/bear", "subject", "V1", "teddy bear"),
        ("local/cross", "subject", "V2", "cross"),
        ("alice/green", "prompt", None, None),
        ("alice/blue", "prompt", "v", "blue"),
        ("alice/mute", "subject", None, None),
    ]
    with Registry.create(folder / "registry", cache=folder / "cache") as registry:
        for seed, (ref, scope, token, noun) in enumerate(concepts):
            generator = np.random.default_rng(seed)
            members = {
                layer.name: np.flatnonzero(generator.random(layer.neuron_count) < 0.1)
                for layer in base.layer_table.layers
            }
            mask = ConceptMask.from_indices(
                base.layer_table, {name: found.astype(np.int32) for name, found in members.items()}
            )
            ranks = (np.arange(len(mask)) % 16).astype(np.uint8)
            registry.push(
                ref, mask, base=base, scope=scope, token=token, class_noun=noun, scores=ranks
            )
        registry.alias("bob/star", "prod")
        yield registry


def read(prompt: str, registry: Registry | None, **more: Any) -> Request:
    return read_request(Request(prompt, **more), registry)


def text(prompt: str, registry: Registry | None) -> str:
    return read(prompt, registry).text


def acting(request: Request, base: BaseModel, *, negative: bool = False) -> dict[str, list[int]]:
    """Ref -> rows of the prompt on which its mask acts; checked against the edits of a batch."""
    found = branches(request, base, rows=24, mask_unconditional=True, include_padding=False)
    entry = found.unconditional if negative else found.conditional
    composition: Any = request.composition
    of_mask = {part.mask.digest: "+".join(part.refs) for part in composition.parts}
    rows: dict[str, list[int]] = {}
    for part in entry.parts:
        where = torch.ones(24, dtype=torch.bool) if part.rows is None else part.rows
        rows[of_mask[part.mask.digest]] = where.nonzero()[:, 0].tolist()
    edited = [edit.rows for edit in plan_rows([entry], 24) if edit.rows is not None]
    union = torch.stack(edited).any(0)[0].nonzero()[:, 0].tolist() if edited else []
    assert union == sorted({row for each in rows.values() for row in each})
    return rows


def test_a_name_becomes_the_concepts_words_and_its_mask_acts_there(
    base: BaseModel, registry: Registry
) -> None:
    request = read("a photo of <alice/dog> on the wall", registry)
    assert request.text == "a photo of sks dog on the wall"
    assert request.prompt == "a photo of <alice/dog> on the wall"
    assert acting(request, base) == {"alice/dog:1": [4, 5]}


def test_two_concepts_of_one_token_and_noun_act_each_at_its_own_rows(
    base: BaseModel, registry: Registry
) -> None:
    with pytest.raises(ConflictError):
        registry.resolve("alice/dog", "bob/dog")
    request = read("<bob/dog> left <alice/dog> right <bob/star:prod>", registry)
    assert request.text == "sks dog left sks dog right sks star"
    assert acting(request, base) == {
        "bob/dog:1": [1, 2],
        "alice/dog:1": [4, 5],
        "bob/star:1": [7, 8],
    }


def test_one_concept_may_stand_twice_and_with_different_weights(
    base: BaseModel, registry: Registry
) -> None:
    request = read("<alice/dog> and <alice/dog> and <alice/dog*0.5>", registry)
    assert request.text == "sks dog and sks dog and sks dog"
    assert acting(request, base) == {"alice/dog:1": [1, 2, 4, 5], "alice/dog:1*0.5": [7, 8]}
    composition: Any = request.composition
    whole, half = (len(part.mask) for part in sorted(composition.parts, key=lambda p: -len(p.mask)))
    assert half == pytest.approx(whole / 2, rel=0.01)


def test_the_same_words_elsewhere_are_not_the_concept(base: BaseModel, registry: Registry) -> None:
    request = read("sks dog and <alice/dog> and a sks", registry)
    assert acting(request, base) == {"alice/dog:1": [4, 5]}


def test_concepts_given_by_ref_are_searched_beside_those_that_are_named(
    base: BaseModel, registry: Registry
) -> None:
    given = registry.resolve("bob/dog")
    request = read("a sks dog and <alice/dog>", registry, composition=given)
    assert acting(request, base) == {"bob/dog:1": [2, 3], "alice/dog:1": [5, 6]}
    both = read("a sks dog and <alice/dog>", registry, composition=registry.resolve("alice/dog"))
    assert acting(both, base) == {"alice/dog:1": [5, 6, 2, 3]} or acting(both, base) == {
        "alice/dog:1": [2, 3, 5, 6]
    }
    with pytest.raises(NotFoundError, match=r"only where other concepts are named.*<bob/dog:1>"):
        acting(read("a <alice/dog>", registry, composition=given), base)


def test_several_pieces_a_word_and_words_a_noun(base: BaseModel, registry: Registry) -> None:
    request = read("the <carol/bear>, red", registry)
    assert request.text == "the V1 teddy bear, red"
    assert acting(request, base) == {"carol/bear:1": [2, 3, 4, 5]}


def test_a_concept_of_the_whole_prompt_may_be_named(base: BaseModel, registry: Registry) -> None:
    everywhere = list(range(24))
    request = read("a dog <alice/green> on wall", registry)
    assert request.text == "a dog on wall"
    assert acting(request, base) == {"alice/green:1": everywhere}
    request = read("a <alice/dog> in <alice/blue>", registry)
    assert request.text == "a sks dog in v blue"
    assert acting(request, base) == {"alice/blue:1": everywhere, "alice/dog:1": [2, 3]}
    with pytest.raises(UsageError, match=r"weights 0\.5 and 1"):
        read("<alice/green> <alice/green*0.5>", registry)


def test_the_negative_prompt_names_concepts_too(base: BaseModel, registry: Registry) -> None:
    request = read("a <alice/dog>", registry, negative_prompt="red <bob/dog> on wall")
    assert request.negative_text == "red sks dog on wall"
    assert acting(request, base, negative=True)["bob/dog:1"] == [2, 3]
    assert "alice/dog:1" not in acting(request, base, negative=True)
    assert acting(request, base)["alice/dog:1"] == [2, 3]
    with pytest.raises(UsageError, match=r"negative prompt names alice/green:1.*whole prompts"):
        read("a dog", registry, negative_prompt="<alice/green>")
    with pytest.raises(NotFoundError, match="at column 5 of the negative prompt"):
        read("a dog", registry, negative_prompt="red <alice/nobody>")


def test_without_an_owner_it_is_the_default_owners(base: BaseModel, registry: Registry) -> None:
    request = read("<cross> and <cross:1> on wall", registry)
    assert request.text == "V2 cross and V2 cross on wall"
    assert acting(request, base) == {"local/cross:1": [1, 2, 3, 5, 6, 7]}


@pytest.mark.parametrize(
    "prompt",
    [
        "a dog <lora:x:1> on wall",
        "<lora:folder/detail:0.8>, dog",
        "<lyco:style/ink>",
        "<hypernet:alice/dog:1>",
        "i <3 dogs",
        "a < b > c",
        "x<y and y>x",
        "a -> b <- c <= d",
        "<|endoftext|> </s> <br/> </b>",
        "<Dog> <a dog> <a/ b",
        "(>_<) <<>> <",
        "1<2/3, a photo",
        "x<alice/y and",
        "<https://example.org/dog>",
        "<cat:0.8:1>",
    ],
)
def test_what_is_no_name_is_left_alone(registry: Registry, prompt: str) -> None:
    request = read(prompt, registry)
    assert request.text == prompt
    assert request.reading is not None and not request.reading.prompt.unknown
    assert request.composition is None


def test_an_escaped_name_is_plain_text(registry: Registry) -> None:
    assert text(r"the text \<alice/dog> on wall", registry) == "the text <alice/dog> on wall"
    assert text(r"the text \<alice/dog>", None) == "the text <alice/dog>"
    assert text(r"\<cross> <cross>", registry) == "<cross> V2 cross"
    assert text(r"a \ b \n", registry) == r"a \ b \n"


def test_words_in_brackets_that_the_tokenizer_has_are_left_and_others_are_told(
    base: BaseModel, registry: Registry
) -> None:
    learnt = copy.copy(base)
    learnt._pipeline = copy.copy(base.pipeline)
    tokenizer = copy.deepcopy(base.tokenizers[0])
    tokenizer.add_tokens(["<cat-toy>"])
    learnt._pipeline.__dict__["tokenizer"] = tokenizer
    requests = [Request("a <cat-toy> on wall")]
    Generator(learnt, registry=registry).stream(requests, steps=1)
    with pytest.raises(NotFoundError, match=r"'<cat-toy>' at column 3.*<owner/name>.*\\<"):
        Generator(base, registry=registry).stream(requests, steps=1)
    # Without a registry nothing says that words in brackets might be concepts.
    Generator(base).stream([Request("a <cat-toy> <b>bold</b>")], steps=1)


@pytest.mark.parametrize(
    ("prompt", "error", "message"),
    [
        ("a <alice/cat> here", NotFoundError, r"<alice/cat> at column 3 of the prompt.*alice/cat"),
        ("a <alice/dog:9>", NotFoundError, r"at column 3"),
        ("a <alice/dog:0.7>", NotFoundError, r"a weight is written <alice/dog\*0.7>"),
        (
            "red <alice/dog on wall",
            UsageError,
            "'<alice/dog' at column 5 of the prompt has no",
        ),
        ("red <alice/dog", UsageError, "column 5"),
        ("red <alice/dog >", UsageError, "column 5.*without spaces"),
        ("a <cross on the wall", UsageError, "'<cross' at column 3"),
        ("a <Alice/dog>", UsageError, "column 3.*capital letter 'A'"),
        ("a <alice/Dog>", UsageError, r"column 3.*capital letter 'D'.*\\<"),
        ("a <alice/dog*2>", UsageError, "column 3.*weight"),
        ("a <alice/dog*>", UsageError, "column 3.*weight"),
        ("a <alice/dog:prod:1>", UsageError, "column 3"),
        ("a <alice/mute>", UsageError, "alice/mute:1 at column 3 of the prompt.*no token"),
    ],
)
def test_a_name_that_is_none_says_its_column_and_what_to_write(
    registry: Registry, prompt: str, error: type[ConesError], message: str
) -> None:
    with pytest.raises(error, match=message):
        read(prompt, registry)


def test_words_beyond_what_the_text_encoder_reads_say_where_the_name_stands(
    base: BaseModel, registry: Registry
) -> None:
    prompt = "a " * 21 + "<alice/dog>"
    with pytest.raises(NotFoundError, match="'<alice/dog>' at column 43 of the prompt is cut off"):
        Generator(base, registry=registry).stream([Request(prompt)], steps=1)


def test_names_need_a_registry_and_go_with_compositions_of_one(
    base: BaseModel, registry: Registry
) -> None:
    with pytest.raises(UsageError, match=r"<alice/dog> at column 3.*registry=registry"):
        Generator(base).stream([Request("a <alice/dog>")], steps=1)
    mask = registry.pull("alice/dog")
    with pytest.raises(UsageError, match="either a mask or concepts"):
        read("a <alice/dog>", registry, mask=mask)
    with pytest.raises(LimitExceededError):
        read(
            " ".join(f"<{each.ref}>" for each in registry.find(scope="subject") if each.token)
            + " <alice/green> <alice/blue>",
            _Strict(registry),
        )


class _Strict:
    """The registry with a lower limit."""

    def __init__(self, registry: Registry) -> None:
        self.get = registry.get
        self._registry = registry

    def resolve(self, *refs: str, named: Any) -> Any:
        return self._registry.resolve(*refs, named=named, max_density=0.2)


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("一个<alice/dog>狗", "一个 sks dog 狗"),
        ("red<alice/dog>s", "red sks dog s"),
        ("(<alice/dog>), <alice/dog>!", "(sks dog), sks dog!"),
        ("<alice/dog><bob/star>", "sks dog sks star"),
        ("<alice/dog>'s wall", "sks dog's wall"),
        ("<alice/green>a dog", "a dog"),
        ("a dog <alice/green>", "a dog "),
        ("<alice/green> a dog", "a dog"),
    ],
)
def test_words_are_put_in_with_spaces_where_letters_touch_them(
    base: BaseModel, registry: Registry, prompt: str, expected: str
) -> None:
    request = read(prompt, registry)
    assert request.text == expected
    assert acting(request, base)
    for place in (request.reading or pytest.fail()).prompt.places:
        assert request.text[place.phrase.start : place.phrase.token_end] == "sks"


def test_a_request_is_read_once_and_keeps_its_versions(
    base: BaseModel, registry: Registry, random_mask: MakeMask
) -> None:
    request = read(r"a <bob/star:prod> \<3", registry)
    reading = request.reading
    assert isinstance(reading, Reading)
    assert reading.prompt.pinned == r"a <bob/star:1> \<3"
    assert read_request(request, None) is request
    assert text(reading.prompt.pinned, registry) == request.text == "a sks star <3"


def test_the_recipe_keeps_the_prompt_as_written_and_as_read(
    base: BaseModel, registry: Registry
) -> None:
    request = read("a <bob/star:prod>", registry, negative_prompt="a <alice/dog*0.5>")
    composition: Any = request.composition
    recipe = recipe_of(request, base, concepts=composition.members)
    assert recipe["prompt"] == "a <bob/star:prod>"
    assert recipe["read"] == {
        "prompt": "a sks star",
        "negative_prompt": "a sks dog",
        "exact_prompt": "a <bob/star:1>",
        "exact_negative_prompt": "a <alice/dog:1*0.5>",
    }
    assert [each["ref"] for each in recipe["concepts"]] == ["alice/dog:1*0.5", "bob/star:1"]
    assert recipe_of(read("a dog", registry), base)["read"] is None


def test_a_named_concept_is_drawn_as_by_its_token(base: BaseModel, registry: Registry) -> None:
    generator = Generator(base, registry=registry)
    dog = registry.resolve("alice/dog")
    by_name, by_token, plain = generator.generate(
        [
            Request("a <alice/dog> on wall", seed=1),
            Request("a sks dog on wall", seed=1, composition=dog),
            Request("a sks dog on wall", seed=1),
        ],
        steps=2,
    )
    assert np.array_equal(np.asarray(by_name), np.asarray(by_token))
    assert not np.array_equal(np.asarray(by_name), np.asarray(plain))


def test_names_are_found_in_time_that_follows_the_prompt() -> None:
    assert find_names("<" * 100_000) == ()
    assert len(find_names("<a/b>" * 10_000)) == 10_000
