"""Reference pictures: formats, orientation, transparency, bounds, names in errors."""

from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cones_registry import pictures as module
from cones_registry.digest import sha256_bytes
from cones_registry.errors import CorruptDataError, LimitExceededError, NotFoundError, UsageError
from cones_registry.extraction.captions import Caption
from cones_registry.extraction.images import read_pictures


def red(width: int = 8, height: int = 6) -> Image.Image:
    return Image.new("RGB", (width, height), (200, 0, 0))


def test_a_folder_is_read_in_order_of_name_with_side_cars(tmp_path: Path) -> None:
    red().save(tmp_path / "b.png")
    red().save(tmp_path / "a.webp")
    (tmp_path / "b.txt").write_text("at left a {}|on white")
    (tmp_path / "notes.md").write_text("not a picture")
    found = read_pictures(tmp_path)
    assert [picture.name for picture in found.pictures] == ["a.webp", "b.png"]
    assert [picture.caption for picture in found.pictures] == [
        None,
        Caption("at left a {}", "on white", "left"),
    ]
    assert found.pictures[1].digest == sha256_bytes((tmp_path / "b.png").read_bytes())


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGBA", "CMYK", "I;16", "F", "I"])
def test_every_mode_becomes_rgb(mode: str) -> None:
    (picture,) = read_pictures(Image.new(mode, (5, 4))).pictures
    assert picture.image.mode == "RGB"
    assert picture.image.size == (5, 4)


def test_a_16_bit_picture_keeps_its_brightness() -> None:
    grey = Image.fromarray(np.full((4, 4), 32768, np.uint16))
    assert read_pictures(grey).pictures[0].image.getpixel((0, 0)) == pytest.approx(
        (127,) * 3, abs=1
    )


def test_transparent_pixels_are_white() -> None:
    (picture,) = read_pictures(Image.new("RGBA", (4, 4), (9, 9, 9, 0))).pictures
    assert picture.image.getpixel((0, 0)) == (255, 255, 255)


def test_a_photo_is_turned_as_its_exif_data_says(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    red(8, 6).save(tmp_path / "turned.jpg", exif=exif)
    assert read_pictures(tmp_path).pictures[0].image.size == (6, 8)


def test_an_unreadable_file_of_a_folder_is_left_out_and_named(tmp_path: Path) -> None:
    red().save(tmp_path / "good.png")
    (tmp_path / "bad.png").write_bytes(b"no picture")
    buffer = BytesIO()
    red(64, 64).save(buffer, "PNG")
    (tmp_path / "torn.png").write_bytes(buffer.getvalue()[:60])
    found = read_pictures(tmp_path)
    assert [picture.name for picture in found.pictures] == ["good.png"]
    assert [Path(text.split()[0]).name for text in found.skipped] == ["bad.png", "torn.png"]


def test_a_folder_without_a_readable_picture_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no picture"):
        read_pictures(tmp_path)
    (tmp_path / "bad.png").write_bytes(b"no picture")
    with pytest.raises(CorruptDataError, match=r"bad\.png"):
        read_pictures(tmp_path)


def test_a_named_file_must_be_there_and_readable(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="missing"):
        read_pictures([tmp_path / "missing.png"])
    (tmp_path / "bad.png").write_bytes(b"no picture")
    with pytest.raises(CorruptDataError, match=r"bad\.png"):
        read_pictures(tmp_path / "bad.png")


def test_no_image_and_no_picture_are_usage_errors() -> None:
    with pytest.raises(UsageError, match="no image"):
        read_pictures([])
    with pytest.raises(UsageError, match="path or a PIL image"):
        read_pictures([3])  # type: ignore[list-item]


def test_a_picture_that_unpacks_to_too_much_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    red(40, 40).save(tmp_path / "large.png")
    monkeypatch.setattr(module, "MAX_PIXELS", 1000)
    with pytest.raises(LimitExceededError, match=r"large\.png"):
        read_pictures(tmp_path)


def test_pillows_own_bomb_check_is_a_limit_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    red(40, 40).save(tmp_path / "large.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(LimitExceededError, match=r"large\.png"):
        read_pictures(tmp_path)


def test_files_that_other_programs_would_draw_are_not_read(tmp_path: Path) -> None:
    red().save(tmp_path / "picture.eps")
    with pytest.raises(CorruptDataError):
        read_pictures(tmp_path / "picture.eps")


def test_a_damaged_side_car_is_named(tmp_path: Path) -> None:
    red().save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(CorruptDataError, match=r"a\.txt"):
        read_pictures(tmp_path)
    (tmp_path / "a.txt").write_text("")
    with pytest.raises(UsageError, match=r"a\.txt"):
        read_pictures(tmp_path)


def test_equal_pixels_have_equal_digests() -> None:
    first, second, other = read_pictures([red(), red(), red(6, 8)]).pictures
    assert first.digest == second.digest != other.digest
    assert (first.name, other.name) == ("image 1", "image 3")
