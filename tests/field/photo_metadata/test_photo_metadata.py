"""EXIF data turns a photo, whatever else stands in it."""

import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cones_registry.extraction.images import read_pictures


def entry(tag: int, kind: int, count: int, value: int) -> bytes:
    return struct.pack("<HHLL", tag, kind, count, value)


def exif(*others: bytes, orientation: int = 6, tail: bytes = b"") -> bytes:
    """EXIF data with an orientation and ``others``, whose values may stand in ``tail``."""
    entries = sorted([entry(0x0112, 3, 1, orientation), *others])
    head = struct.pack("<2sHLH", b"II", 42, 8, len(entries))
    return b"Exif\0\0" + head + b"".join(entries) + struct.pack("<L", 0) + tail


TAIL = 8 + 2 + 2 * 12 + 4  # where a tail begins when there is one other entry
ODD = {
    "signed-resolution": exif(entry(0x011A, 10, 1, TAIL), tail=struct.pack("<ll", -1, 1)),
    "signed-over-zero": exif(entry(0x9204, 10, 1, TAIL), tail=struct.pack("<ll", -2, 0)),
    "negative-and-unsigned": exif(entry(0x011A, 5, 1, TAIL), tail=struct.pack("<LL", 2**32 - 1, 0)),
    "two-resolutions": exif(entry(0x011A, 5, 2, TAIL), tail=struct.pack("<LLLL", 72, 1, 72, 1)),
    "wrong-type": exif(entry(0x8769, 2, 4, 0x41414141)),
    "past-the-end": exif(entry(0x010F, 2, 60000, 50000)),
    "endless-folder": exif(entry(0x8769, 4, 1, 8)),
    "gps-as-a-number": exif(entry(0x8825, 5, 1, TAIL), tail=struct.pack("<LL", 22, 10)),
    "maker-note": exif(entry(0x927C, 7, 4, 0xFFFFFFFF)),
}


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_a_photo_with_odd_exif_data_is_turned_and_used(
    tmp_path: Path, suffix: str, odd: str
) -> None:
    file = tmp_path / f"phone.{suffix}"
    Image.new("RGB", (64, 48), "white").save(file, exif=ODD[odd])
    Image.new("RGB", (64, 48), "red").save(tmp_path / "sound.png")
    found = read_pictures(tmp_path)
    assert not found.skipped
    assert [picture.image.size for picture in found.pictures] == [(48, 64), (64, 48)]


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif", "avif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_format_is_turned_once(tmp_path: Path, suffix: str, orientation: int) -> None:
    corner = np.zeros((32, 48, 3), np.uint8)
    corner[:16, :24] = 255  # light at the upper left
    data = Image.Exif()
    data[0x0112] = orientation
    file = tmp_path / f"photo.{suffix}"
    Image.fromarray(corner).save(file, exif=data, quality=95)
    seen = np.asarray(read_pictures(file).pictures[0].image)
    assert seen.shape == ((32, 48, 3) if orientation < 5 else (48, 32, 3))
    light = [bool(seen[y, x].mean() > 128) for y in (4, -5) for x in (4, -5)]
    expected = {1: 0, 2: 1, 3: 3, 4: 2, 5: 0, 6: 1, 7: 3, 8: 2}[orientation]
    assert light == [place == expected for place in range(4)]


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_orientation_that_is_none_turns_nothing(tmp_path: Path, orientation: int) -> None:
    file = tmp_path / "photo.jpg"
    Image.new("RGB", (64, 48)).save(file, exif=exif(orientation=orientation))
    assert read_pictures(file).pictures[0].image.size == (64, 48)


@pytest.mark.parametrize(
    "data", [b"Exif\0\0", b"Exif\0\0II*\0", b"Exif\0\0" + b"\xff" * 40, b"junk"]
)
def test_exif_data_that_cannot_be_read_says_nothing(tmp_path: Path, data: bytes) -> None:
    file = tmp_path / "photo.jpg"
    Image.new("RGB", (64, 48), "white").save(file, exif=data)
    assert read_pictures(file).pictures[0].image.size == (64, 48)


def test_a_phone_with_two_pictures_in_one_file_gives_the_first(tmp_path: Path) -> None:
    first, second = Image.new("RGB", (64, 48), "white"), Image.new("RGB", (16, 12), "black")
    first.save(tmp_path / "phone.jpg", "MPO", save_all=True, append_images=[second])
    (picture,) = read_pictures(tmp_path).pictures
    assert picture.image.size == (64, 48)
    assert picture.image.getpixel((0, 0)) == (255, 255, 255)
