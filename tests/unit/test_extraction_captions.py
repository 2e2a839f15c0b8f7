"""Captions: parts, halves, joining."""

import pytest

from cones_registry.errors import UsageError
from cones_registry.extraction.captions import Caption, can_join, joined_text


def test_a_caption_is_read_in_parts() -> None:
    caption = Caption.parse("at left  a {} | on white\n")
    assert caption == Caption("at left a {}", "on white", "left")
    assert caption.text("sks circle") == "at left a sks circle on white"


@pytest.mark.parametrize(
    ("phrase", "half"),
    [
        ("a {} on the right", "right"),
        ("at top a {}", "top"),
        ("a {} on a beach", None),
        ("a {} on top of a table", None),
        ("at left a {} and at right a dog", None),
        ("a leftover {}", None),
    ],
)
def test_the_half_is_read_off_the_phrase(phrase: str, half: str | None) -> None:
    assert Caption.parse(phrase).half == half


@pytest.mark.parametrize("text", ["", "  ", "|on white", "x" * 2000])
def test_a_caption_that_says_nothing_or_too_much_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="caption"):
        Caption.parse(text)


def test_only_opposite_halves_on_equal_backgrounds_are_joined() -> None:
    left = Caption.parse("at left a {}|on white")
    assert can_join(left, Caption.parse("at right a blue square|on white"))
    assert not can_join(left, Caption.parse("at right a blue square|on black"))
    assert not can_join(left, Caption.parse("at top a blue square|on white"))
    assert not can_join(left, Caption.parse("a blue square|on white"))
    assert can_join(Caption.parse("a photo of a {}"), Caption.parse("a cat"))


def test_joined_captions_name_the_things_in_the_given_order_and_the_rest_last() -> None:
    left = Caption.parse("at left a {}|on white")
    right = Caption.parse("at right a blue square|on white")
    assert joined_text(left, right, "sks circle") == (
        "at left a sks circle and at right a blue square on white"
    )
    assert joined_text(right, left, "sks circle") == (
        "at right a blue square and at left a sks circle on white"
    )


def test_ordinary_photos_stand_next_to_each_other() -> None:
    dog, cat = Caption.parse("a photo of a {}"), Caption.parse("a photo of a cat")
    assert joined_text(dog, cat, "sks dog") == "a photo of a sks dog next to a cat"
    assert joined_text(cat, dog, "sks dog") == "a photo of a cat next to a sks dog"
