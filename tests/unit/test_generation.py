"""Drawing: the stock pipeline without masks, shut() with them, any mix in one batch."""

import threading
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from PIL.Image import Image

from cones_registry.attention import shut
from cones_registry.base_model import BaseModel
from cones_registry.errors import (
    BaseModelMismatchError,
    MissingExtraError,
    NotFoundError,
    UsageError,
)
from cones_registry.generation import SCHEDULERS, Generator, Request
from cones_registry.layers import LayerTable
from cones_registry.mask import ConceptMask

MakeMask = Callable[..., ConceptMask]
PROMPT = "a photo of sks dog on the wall"


@dataclass(frozen=True)
class Part:
    mask: ConceptMask
    scope: str = "subject"
    token: str | None = "sks"
    class_noun: str | None = "dog"
    refs: tuple[str, ...] = ("local/dog:1",)


@dataclass(frozen=True)
class Composition:
    base: str
    table: LayerTable
    parts: tuple[Part, ...]


def composition(base: BaseModel, *parts: Part) -> Composition:
    return Composition(base.fingerprint, base.layer_table, parts)


def stock(
    base: BaseModel, requests: Sequence[Request], steps: int = 3, **settings: Any
) -> list[Image]:
    negatives = [request.negative_prompt for request in requests]
    images: list[Image] = base.pipeline(
        [request.prompt for request in requests],
        negative_prompt=negatives if any(negatives) else None,
        num_inference_steps=steps,
        generator=[torch.Generator().manual_seed(request.seed) for request in requests],
        **settings,
    ).images
    return images


def pixels(images: Sequence[Image]) -> np.ndarray:
    return np.stack([np.asarray(image, dtype=np.int16) for image in images])


def assert_same(first: Sequence[Image], second: Sequence[Image], levels: int = 1) -> None:
    assert np.abs(pixels(first) - pixels(second)).max() <= levels


def assert_differ(first: Sequence[Image], second: Sequence[Image]) -> None:
    assert np.abs(pixels(first) - pixels(second)).max() > 2


@pytest.mark.parametrize("guidance_scale", [1.0, 4.0])
@pytest.mark.parametrize("scheduler", [None, "dpm", "euler-ancestral", "pndm"])
def test_without_mask_the_pictures_are_the_stock_pipelines_bit_for_bit(
    tiny_base: BaseModel, guidance_scale: float, scheduler: str | None
) -> None:
    requests = [
        Request("a red circle", seed=3),
        Request("a blue star", seed=4, mask=ConceptMask.empty(tiny_base.layer_table)),
        Request("a dog", seed=5, negative_prompt="the wall"),
    ]
    own = tiny_base.pipeline.scheduler
    drawn = Generator(tiny_base).generate(
        requests, steps=4, guidance_scale=guidance_scale, scheduler=scheduler
    )
    try:
        if scheduler:
            import diffusers

            kind = getattr(diffusers, SCHEDULERS[scheduler])
            tiny_base.pipeline.scheduler = kind.from_config(own.config)
        expected = stock(tiny_base, requests, steps=4, guidance_scale=guidance_scale)
    finally:
        tiny_base.pipeline.scheduler = own
    assert np.array_equal(pixels(drawn), pixels(expected))


@pytest.mark.parametrize("guidance_scale", [1.0, 4.0])
def test_whole_prompt_masks_of_a_mixed_batch_agree_with_shut(
    tiny_base: BaseModel, random_mask: MakeMask, guidance_scale: float
) -> None:
    table = tiny_base.layer_table
    requests = [
        Request(PROMPT, seed=1),
        Request(PROMPT, seed=1, mask=random_mask(table, seed=1)),
        Request("a red circle", seed=2, mask=random_mask(table, seed=2, density=0.05)),
        Request(PROMPT, seed=7, negative_prompt="blue", mask=random_mask(table, seed=3)),
        Request(
            PROMPT,
            seed=1,
            composition=composition(tiny_base, Part(random_mask(table, seed=1), scope="prompt")),
        ),
    ]
    settings = {"steps": 3, "guidance_scale": guidance_scale}
    drawn = Generator(tiny_base).generate(requests, **settings)
    for request, image in zip(requests[1:4], drawn[1:4], strict=True):
        assert request.mask is not None
        with shut(tiny_base.denoiser, request.mask):
            assert_same([image], stock(tiny_base, [request], **settings))
        assert_differ([image], stock(tiny_base, [request], **settings))
    assert_same([drawn[1]], [drawn[4]], levels=0)


def test_a_request_is_drawn_the_same_wherever_it_stands(
    tiny_base: BaseModel, random_mask: MakeMask
) -> None:
    table = tiny_base.layer_table
    requests = [
        Request(PROMPT, seed=number, mask=random_mask(table, seed=number)) for number in range(3)
    ] + [Request(PROMPT, seed=9, composition=composition(tiny_base, Part(random_mask(table))))]
    generator = Generator(tiny_base)
    together = generator.generate(requests, steps=3, guidance_scale=3)
    backwards = generator.generate(requests[::-1], steps=3, guidance_scale=3)
    in_twos = generator.generate(requests, steps=3, guidance_scale=3, batch_size=2)
    alone = [generator.generate([each], steps=3, guidance_scale=3)[0] for each in requests]
    assert_same(together, backwards[::-1])
    assert_same(together, in_twos)
    assert_same(together, alone)


def test_base_weights_are_untouched(tiny_base: BaseModel, random_mask: MakeMask) -> None:
    before = {name: value.clone() for name, value in tiny_base.denoiser.state_dict().items()}
    mask = random_mask(tiny_base.layer_table)
    Generator(tiny_base).generate([Request(PROMPT, mask=mask)], steps=2, guidance_scale=2)
    after = tiny_base.denoiser.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_unconditional_branch_is_masked_by_default_and_plain_on_request(
    tiny_base: BaseModel, random_mask: MakeMask
) -> None:
    request = Request(PROMPT, mask=random_mask(tiny_base.layer_table))
    generator = Generator(tiny_base)
    settings: dict[str, Any] = {"steps": 3, "guidance_scale": 4.0}
    masked = generator.generate([request], **settings)
    plain = generator.generate([request], mask_unconditional=False, **settings)
    assert_differ(masked, plain)
    off = generator.generate([request], steps=3, guidance_scale=1, mask_unconditional=False)
    assert_same(off, generator.generate([request], steps=3, guidance_scale=1), levels=0)


def served_rows(
    base: BaseModel, requests: Sequence[Request], monkeypatch: pytest.MonkeyPatch, **settings: Any
) -> list[Any]:
    """K and V of each batch of one call: layer name -> [B, T, out]."""
    import cones_registry.generation.view as view

    made: list[Any] = []

    class Noted(view.RowEdits):
        def __init__(self, *args: Any, **named: Any) -> None:
            super().__init__(*args, **named)
            made.append(self)

    with monkeypatch.context() as patch:
        patch.setattr(view, "RowEdits", Noted)
        Generator(base).generate(requests, **settings)
    return [each.kept for each in made]


def test_subject_scope_changes_the_subjects_rows_and_no_other_bit(
    tiny_base: BaseModel, random_mask: MakeMask, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = tiny_base.layer_table
    part = Part(random_mask(table, seed=1))
    other = Part(random_mask(table, seed=2), token="V1", class_noun="star")
    prompt = "sks dog and V1 star and a dog"  # rows: start sks dog and v 1 star and a dog
    settings: dict[str, Any] = {"steps": 2, "guidance_scale": 3.0}
    plain = served_rows(tiny_base, [Request(prompt)] * 2, monkeypatch, **settings)
    requests = [Request(prompt, composition=composition(tiny_base, part, other)), Request(prompt)]
    masked = served_rows(tiny_base, requests, monkeypatch, **settings)
    assert len(masked) == 1, "K and V are computed once, not at every step"
    changed = torch.zeros(4, 24, dtype=torch.bool)
    changed[2, [1, 2, 4, 5, 6]] = True
    for name, got in masked[0].items():
        assert torch.equal(got[~changed], plain[0][name][~changed])
        assert bool((got[changed] != plain[0][name][changed]).any(dim=1).all())


def test_negative_prompt_that_names_the_subject_is_masked_there(
    tiny_base: BaseModel, random_mask: MakeMask, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = Part(random_mask(tiny_base.layer_table))
    settings: dict[str, Any] = {"steps": 1, "guidance_scale": 3.0}
    asked = {"negative_prompt": "red sks dog"}
    plain = served_rows(tiny_base, [Request(PROMPT, **asked)], monkeypatch, **settings)
    request = Request(PROMPT, composition=composition(tiny_base, part), **asked)
    masked = served_rows(tiny_base, [request], monkeypatch, **settings)
    name = tiny_base.layer_table.names[0]
    differs = (masked[0][name] != plain[0][name]).any(dim=-1)
    assert differs.nonzero().tolist() == [[0, 2], [0, 3], [1, 4], [1, 5]]


def test_scopes_mix_in_one_composition_and_one_batch(
    tiny_base: BaseModel, random_mask: MakeMask
) -> None:
    table = tiny_base.layer_table
    style = Part(random_mask(table, seed=1), scope="prompt", token=None, class_noun=None)
    subject = Part(random_mask(table, seed=2))
    mixes = [(style,), (subject,), (style, subject), ()]
    requests = [Request(PROMPT, composition=composition(tiny_base, *mix)) for mix in mixes]
    drawn = Generator(tiny_base).generate(requests, steps=3, guidance_scale=3)
    for first in range(4):
        for second in range(first):
            assert_differ([drawn[first]], [drawn[second]])
    assert_same(drawn[3:], stock(tiny_base, [Request(PROMPT)], guidance_scale=3))


def test_padding_rows_count_only_when_asked_for(
    tiny_base: BaseModel, random_mask: MakeMask
) -> None:
    request = Request(
        PROMPT, composition=composition(tiny_base, Part(random_mask(tiny_base.layer_table)))
    )
    generator = Generator(tiny_base)
    settings: dict[str, Any] = {"steps": 3, "guidance_scale": 3.0}
    assert_differ(
        generator.generate([request], **settings),
        generator.generate([request], include_padding=True, **settings),
    )


def test_threads_with_different_masks_get_what_each_alone_gets(
    tiny_base: BaseModel, random_mask: MakeMask
) -> None:
    table = tiny_base.layer_table
    jobs = [
        [Request(PROMPT, seed=1, mask=random_mask(table, seed=1))],
        [
            Request(
                "a red sks dog",
                seed=2,
                composition=composition(tiny_base, Part(random_mask(table, seed=2))),
            )
        ],
        [Request("a longer prompt of the blue star on the left", seed=3)],
    ]
    generator = Generator(tiny_base)
    settings: dict[str, Any] = {"steps": 6, "guidance_scale": 3.0}
    alone = [generator.generate(job, **settings) for job in jobs]
    drawn: dict[int, list[list[Image]]] = {number: [] for number in range(len(jobs))}
    failures: list[BaseException] = []
    start = threading.Barrier(len(jobs))

    def work(number: int) -> None:
        try:
            start.wait()
            for _ in range(4):
                drawn[number].append(generator.generate(jobs[number], **settings))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(len(jobs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    for number, images in drawn.items():
        for image in images:
            assert_same(image, alone[number], levels=0)


def test_pictures_stream_batch_by_batch_in_order(tiny_base: BaseModel) -> None:
    requests = [Request("a red circle", seed=number) for number in range(5)]
    generator = Generator(tiny_base)
    steps_done: list[int] = []

    def count(pipeline: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        steps_done.append(step)
        return {}

    stream = generator.stream(requests, steps=2, guidance_scale=1, batch_size=2, on_step=count)
    first = [next(stream), next(stream)]
    assert steps_done == [0, 1]
    everything = first + list(stream)
    assert len(steps_done) == 6
    assert_same(everything, generator.generate(requests, steps=2, guidance_scale=1))


def test_inference_mode_changes_nothing(tiny_base: BaseModel, random_mask: MakeMask) -> None:
    request = Request(PROMPT, mask=random_mask(tiny_base.layer_table))
    generator = Generator(tiny_base)
    with torch.inference_mode():
        inside = generator.generate([request], steps=2, guidance_scale=3)
    assert_same(inside, generator.generate([request], steps=2, guidance_scale=3), levels=0)


def test_no_requests_no_pictures(tiny_base: BaseModel) -> None:
    assert Generator(tiny_base).generate([]) == []


def test_mask_of_another_layer_table_is_refused_before_any_work(
    tiny_base: BaseModel, random_mask: MakeMask
) -> None:
    other = random_mask(LayerTable.from_shapes({"x.attn2.to_k.weight": (4, 4)}))
    with pytest.raises(BaseModelMismatchError, match="Load the base model"):
        Generator(tiny_base).generate([Request(PROMPT), Request(PROMPT, mask=other)])
    with pytest.raises(BaseModelMismatchError):
        Generator(tiny_base).generate(
            [
                Request(
                    PROMPT,
                    composition=Composition(tiny_base.fingerprint, other.table, (Part(other),)),
                )
            ]
        )


def test_composition_of_another_fingerprint_is_refused_though_the_shapes_agree(
    tiny_base: BaseModel, random_mask: MakeMask
) -> None:
    table = tiny_base.layer_table
    part = Part(random_mask(table))
    with pytest.raises(BaseModelMismatchError, match="shapes agree, the weights do not"):
        Generator(tiny_base).generate(
            [Request(PROMPT, composition=Composition("sha256:" + "0" * 64, table, (part,)))]
        )
    by_table = Composition(table.digest, table, (part,))
    assert Generator(tiny_base).generate([Request(PROMPT, composition=by_table)], steps=1)


def test_prompt_without_the_subject_is_refused_before_any_work(
    tiny_base: BaseModel, random_mask: MakeMask
) -> None:
    part = Part(random_mask(tiny_base.layer_table))
    with pytest.raises(NotFoundError, match=r"'sks' is not in the prompt 'a dog'"):
        Generator(tiny_base).stream([Request("a dog", composition=composition(tiny_base, part))])


@pytest.mark.parametrize(
    "wrong",
    [
        {"steps": 0},
        {"guidance_scale": -1},
        {"batch_size": 0},
        {"height": 0},
        {"scheduler": "fast"},
        {"scheduler": 3},
        {"latents": None},
        {"steps": 2.5},
        {"steps": True},
        {"steps": "20"},
        {"guidance_scale": "high"},
        {"guidance_scale": float("nan")},
        {"batch_size": 1.5},
        {"guidance": 1},
        {"foo": 1},
        {"num_inference_steps": 4},
        {"callback_on_step_end": print},
        {"kwargs": {}},
    ],
)
def test_wrong_settings_are_refused_before_any_work(
    tiny_base: BaseModel, wrong: dict[str, Any]
) -> None:
    with pytest.raises(UsageError):
        Generator(tiny_base).stream([Request(PROMPT)], **wrong)


def test_an_unknown_setting_names_those_that_are_known(tiny_base: BaseModel) -> None:
    generator = Generator(tiny_base)
    with pytest.raises(UsageError, match=r"unknown argument 'clipskip'.*clip_skip, eta") as caught:
        generator.stream([Request(PROMPT)], clipskip=1)
    assert "num_inference_steps" not in str(caught.value)
    with pytest.raises(UsageError, match="Say steps instead"):
        generator.stream([Request(PROMPT)], num_inference_steps=4)
    assert generator.generate([Request(PROMPT)], steps=1, guidance_rescale=0.5, eta=0.5)


@pytest.mark.parametrize("name", [None, *SCHEDULERS])
def test_more_steps_than_the_model_was_trained_with_are_refused(
    tiny_base: BaseModel, name: str | None
) -> None:
    if name == "lms":
        pytest.importorskip("scipy")
    generator = Generator(tiny_base)
    generator.stream([Request(PROMPT)], steps=999, scheduler=name)
    with pytest.raises(UsageError, match=r"steps=1001.*at most 1000"):
        generator.stream([Request(PROMPT)], steps=1001, scheduler=name)


@pytest.mark.filterwarnings("ignore:__array_wrap__:DeprecationWarning")  # of diffusers' own
@pytest.mark.parametrize(
    ("prediction", "unable"),
    [
        ("epsilon", set()),
        ("v_prediction", set()),
        ("sample", {"euler-ancestral", "pndm"}),
    ],
)
def test_a_scheduler_that_cannot_use_the_prediction_is_refused_and_all_others_draw(
    tiny_base: BaseModel, prediction: str, unable: set[str]
) -> None:
    stock = tiny_base.pipeline
    scheduler = type(stock.scheduler).from_config(
        stock.scheduler.config, prediction_type=prediction
    )
    pipeline = copy(stock)
    pipeline.__dict__["scheduler"] = scheduler
    generator = Generator(BaseModel(pipeline, source="own", fingerprint=tiny_base.fingerprint))
    noise = torch.get_rng_state()
    refused = set()
    for name in SCHEDULERS:
        try:
            pictures = generator.stream([Request(PROMPT)], steps=4, scheduler=name)
        except UsageError as error:
            assert f"predicts '{prediction}'" in str(error)
            assert "Schedulers that can: ddim, ddpm" in str(error)
            refused.add(name)
        except MissingExtraError as error:
            assert name == "lms" and "scipy" in str(error)
        else:
            assert list(pictures)
    assert refused == unable
    assert torch.equal(torch.get_rng_state(), noise)


def test_a_scheduler_that_needs_more_steps_is_refused_with_its_reason(
    tiny_base: BaseModel,
) -> None:
    with pytest.raises(UsageError, match="PNDMScheduler cannot draw in 3 steps"):
        Generator(tiny_base).stream([Request(PROMPT)], steps=3, scheduler="pndm")


@pytest.mark.parametrize(
    "wrong",
    [
        {"seed": -1},
        {"seed": 2**63},
        {"seed": 1.5},
        {"negative_prompt": 3},
        {"negative_prompt": "\ud800"},
    ],
)
def test_wrong_request_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        Request(PROMPT, **wrong)


def test_mask_and_composition_together_are_refused(
    tiny_base: BaseModel, random_mask: MakeMask
) -> None:
    mask = random_mask(tiny_base.layer_table)
    with pytest.raises(UsageError, match="not both"):
        Request(PROMPT, mask=mask, composition=composition(tiny_base))


def test_steps_and_guidance_left_out_are_the_base_models_own(tiny_base: BaseModel) -> None:
    from cones_registry.base_model import GenerationDefaults

    own = BaseModel(
        tiny_base.pipeline,
        source="own",
        fingerprint=tiny_base.fingerprint,
        defaults=GenerationDefaults(steps=2, guidance_scale=3.0),
    )
    request = Request("a red circle", seed=1)
    expected = Generator(tiny_base).generate([request], steps=2, guidance_scale=3.0)
    assert_same(Generator(own).generate([request]), expected, levels=0)
