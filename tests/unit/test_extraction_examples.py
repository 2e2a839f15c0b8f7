"""Collages, noise schedules and what a base model must be to learn from."""

import math
from typing import TYPE_CHECKING, Any

import pytest
import torch
from PIL import Image

from cones_registry.errors import UsageError
from cones_registry.extraction import Companion, base_companions
from cones_registry.extraction.captions import Caption
from cones_registry.extraction.conditioning import check_token, encode_texts, require_learnable
from cones_registry.extraction.examples import Deck, collages, join, plain_examples
from cones_registry.extraction.images import Picture
from cones_registry.extraction.noise import NoiseSchedule

if TYPE_CHECKING:
    from cones_registry.base_model import BaseModel

RED, BLUE = (200, 0, 0), (0, 0, 200)


def picture(colour: tuple[int, int, int], caption: str | None) -> Picture:
    image = Image.new("RGB", (32, 32), colour)
    return Picture(image, "p", "sha256:" + "0" * 64, Caption.parse(caption) if caption else None)


@pytest.mark.parametrize(
    ("half", "own", "others"),
    [
        ("left", (3, 8), (12, 8)),
        ("right", (12, 8), (3, 8)),
        ("top", (8, 3), (8, 12)),
        ("bottom", (8, 12), (8, 3)),
    ],
)
def test_a_collage_takes_the_subjects_half_from_its_picture(
    half: str, own: tuple[int, int], others: tuple[int, int]
) -> None:
    caption = Caption.parse(f"at {half} a {{}}")
    joined = join(Image.new("RGB", (30, 20), RED), Image.new("RGB", (9, 9), BLUE), caption, 16)
    assert joined.size == (16, 16)
    assert joined.getpixel(own) == RED
    assert joined.getpixel(others) == BLUE


@pytest.mark.parametrize("swap", [False, True])
@pytest.mark.parametrize("size", [16, 17])
def test_ordinary_photos_are_set_side_by_side(swap: bool, size: int) -> None:
    one, other = Image.new("RGB", (30, 20), RED), Image.new("RGB", (9, 9), BLUE)
    joined = join(one, other, Caption("a {}"), size, swap=swap)
    sides = [[joined.getpixel((x, y)) for y in range(size)] for x in (2, size - 2)]
    expected = [[BLUE] * size, [RED] * size] if swap else [[RED] * size, [BLUE] * size]
    assert sides == expected


def test_collages_name_the_subject_second_twice_as_often_and_join_only_what_agrees() -> None:
    found = collages(
        [picture(RED, "at left a {}|on white"), picture(RED, "a {}|on black")],
        [picture(BLUE, "at right a square|on white"), picture(BLUE, "at right a star|on black")],
        [Caption("a {}")],
        "sks dog",
        16,
        limit=10,
        generator=torch.Generator().manual_seed(0),
    )
    assert [example.prompts for example in found] == [
        ("at left a sks dog and at right a square on white",
         "at right a square and at left a sks dog on white",
         "at right a square and at left a sks dog on white"),
    ]  # fmt: skip


def test_pictures_without_a_caption_are_learnt_with_every_template() -> None:
    templates = [Caption("a photo of a {}"), Caption("the {}")]
    found = plain_examples([picture(RED, None)], templates, "sks dog", 16, flip=True)
    assert [example.prompts for example in found] == [("a photo of a sks dog", "the sks dog")] * 2


def test_a_caption_with_a_half_is_never_mirrored() -> None:
    assert len(plain_examples([picture(RED, "at left a {}")], [], "sks dog", 16, flip=True)) == 1


def test_a_companion_does_not_show_the_subject() -> None:
    with pytest.raises(UsageError, match="place for the subject"):
        Companion(Image.new("RGB", (4, 4)), "at left a {}")


def test_companions_are_drawn_by_the_stock_pipeline(tiny_base: "BaseModel") -> None:
    prompts = ["a red dog|on wall", "a blue star|on wall", "a blue star|on wall"]
    found = base_companions(tiny_base, prompts, seed=3, steps=2, batch_size=2)
    assert [companion.caption for companion in found] == prompts
    alone = tiny_base.pipeline(
        "a blue star on wall",
        num_inference_steps=2,
        guidance_scale=2.0,
        generator=torch.Generator("cpu").manual_seed(4),
    ).images[0]
    difference = torch.tensor(list(found[1].image.tobytes())).float() - torch.tensor(
        list(alone.tobytes())
    )
    assert difference.abs().max() <= 1
    assert found[1].image.tobytes() != found[2].image.tobytes()


def test_a_deck_deals_every_card_equally_often() -> None:
    deck, generator = Deck(3, 8), torch.Generator().manual_seed(0)
    dealt = torch.cat([deck.deal(4, generator) for _ in range(5)])
    assert torch.bincount(dealt).tolist() == [0, 0, 0, 4, 4, 4, 4, 4]


def _schedule(prediction: str, **settings: Any) -> NoiseSchedule:
    from diffusers import DDIMScheduler

    return NoiseSchedule.of(DDIMScheduler(prediction_type=prediction, **settings))


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_targets_are_those_of_diffusers(prediction: str) -> None:
    from diffusers import DDPMScheduler

    clean, noise = torch.randn(2, 3, 4, 5, 5).unbind()
    times = torch.tensor([0, 500, 999])
    stock = DDPMScheduler(prediction_type=prediction)
    schedule = NoiseSchedule.of(stock)
    assert torch.allclose(schedule.noisy(clean, noise, times), stock.add_noise(clean, noise, times))
    expected = {"epsilon": noise, "sample": clean}.get(prediction)
    if expected is None:
        expected = stock.get_velocity(clean, noise, times)
    assert torch.allclose(schedule.target(clean, noise, times), expected)


def test_high_noise_keeps_its_weight_even_without_any_signal() -> None:
    schedule = _schedule("sample", rescale_betas_zero_snr=True)
    weights = schedule.weights(torch.tensor([0, 999]))
    assert weights[0] == 2
    assert 1 <= weights[1] < 1.01


def test_timesteps_come_one_from_each_part_of_the_range() -> None:
    schedule = _schedule("epsilon")
    times = schedule.stratified(10, torch.Generator().manual_seed(0))
    assert sorted(int(time) // 100 for time in times) == list(range(10))
    biased = schedule.stratified(1000, torch.Generator().manual_seed(0), towards_noise=1.0)
    assert 650 < biased.float().mean() < 680


def test_flow_matching_goes_straight_from_picture_to_noise() -> None:
    from diffusers import FlowMatchEulerDiscreteScheduler

    schedule = NoiseSchedule.of(FlowMatchEulerDiscreteScheduler(shift=3.0))
    clean, noise = torch.randn(4, 16, 8), torch.randn(4, 16, 8)  # packed latents
    timesteps = torch.tensor([0.0, 250.0, 500.0, 1000.0])
    noisy = schedule.noisy(clean, noise, timesteps)
    torch.testing.assert_close(noisy[1], 0.75 * clean[1] + 0.25 * noise[1])
    assert torch.equal(noisy[0], clean[0])
    assert torch.equal(noisy[3], noise[3])
    torch.testing.assert_close(
        noisy + (1 - timesteps / 1000)[:, None, None] * schedule.target(clean, noise, timesteps),
        noise,
    )
    # Logit-normal levels, their median 1/2 shifted to 3/4.
    drawn = schedule.stratified(2001, torch.Generator().manual_seed(0))
    assert abs(float(drawn.median()) - 750) < 5
    quarter = 1 / (1 + math.exp(0.6745))
    shifted = 3000 * quarter / (1 + 2 * quarter)
    assert abs(float(drawn.quantile(0.25)) - shifted) < 5


def test_a_token_is_one_entry_of_the_tokenizer(tiny_base: "BaseModel") -> None:
    check_token(tiny_base, "sks")
    for token in ("snorf", "V*", "<|endoftext|>", "two words", " sks", ""):
        with pytest.raises(UsageError, match="such as 'sks'"):
            check_token(tiny_base, token)


def test_a_unet_can_be_learnt_from(tiny_base: "BaseModel") -> None:
    require_learnable(tiny_base)


def test_rows_of_the_subject_are_found_and_the_text_is_the_pipelines(
    tiny_base: "BaseModel",
) -> None:
    prompts = ["a photo of a sks dog", "a photo of a dog"]
    texts = encode_texts(tiny_base, prompts, token="sks", class_noun="dog")
    assert texts.rows.nonzero().tolist() == [[0, 5], [0, 6]]
    expected = tiny_base.pipeline.encode_prompt(prompts, tiny_base.device, 1, False)[0]
    assert torch.equal(texts.embeddings, expected)
