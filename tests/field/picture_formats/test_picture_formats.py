"""A few formats are opened; a file that is no picture in one of them is left out by name."""

import io
import logging
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image, ImageFile, PngImagePlugin

from cones_registry import pictures
from cones_registry.errors import CorruptDataError, LimitExceededError, NotFoundError
from cones_registry.extraction.images import read_pictures
from cones_registry.generation import read_recipe


def sound(folder: Path) -> None:
    Image.new("RGB", (16, 12), "red").save(folder / "sound.png")


def left_out(folder: Path, name: str) -> str:
    """Why ``name`` is left out, where the sound picture beside it is used."""
    sound(folder)
    found = read_pictures(folder)
    assert [picture.name for picture in found.pictures] == ["sound.png"]
    (reason,) = found.skipped
    assert str(folder / name) in reason
    return reason


def encoded(kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 255, (24, 32, 3), dtype=np.uint8)
    Image.fromarray(noise).save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF", "GIF", "BMP", "AVIF", "JPEG2000"])
def test_what_people_have_is_opened(tmp_path: Path, kind: str) -> None:
    (tmp_path / "a.png").write_bytes(encoded(kind))  # whatever its name says
    assert read_pictures(tmp_path).pictures[0].image.size == (32, 24)


@pytest.mark.parametrize("kind", ["DDS", "SPIDER", "ICO", "PCX", "SGI", "EPS"])
@pytest.mark.parametrize("name", ["odd.dds", "odd.png"])
def test_what_nobody_means_is_left_out_by_name(tmp_path: Path, kind: str, name: str) -> None:
    buffer = io.BytesIO()
    mode = "F" if kind == "SPIDER" else "RGB"
    Image.new(mode, (32, 32)).save(buffer, kind)
    (tmp_path / name).write_bytes(buffer.getvalue())
    assert "not a picture in a format that is read here" in left_out(tmp_path, name)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF", "GIF", "BMP", "AVIF", "JPEG2000"])
@pytest.mark.parametrize("part", [0.0, 0.1, 0.5, 0.9])
def test_a_file_that_was_cut_is_left_out_by_name(tmp_path: Path, kind: str, part: float) -> None:
    data = encoded(kind)
    (tmp_path / "cut.png").write_bytes(data[: int(len(data) * part)])
    left_out(tmp_path, "cut.png")


@pytest.mark.parametrize("error", [struct.error, AssertionError, NotImplementedError, RuntimeError])
def test_whatever_a_decoder_raises_is_told_of_the_file(
    tmp_path: Path, error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "odd.webp").write_bytes(encoded("WEBP"))
    real = ImageFile.ImageFile.load

    def load(self: Image.Image) -> object:
        if self.format == "WEBP":
            raise error("of the decoder's own")
        return real(self)  # type: ignore[arg-type]

    monkeypatch.setattr(ImageFile.ImageFile, "load", load)
    from PIL import WebPImagePlugin

    monkeypatch.setattr(WebPImagePlugin.WebPImageFile, "load", load)
    assert "of the decoder's own" in left_out(tmp_path, "odd.webp")


@pytest.mark.parametrize("name", ["photo.heic", "photo.HEIF", "photo.dng", "photo.jxl"])
def test_a_cameras_own_format_is_named_with_a_way_out(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"\0\0\0\x18ftypheic")
    assert "Export it as JPEG or PNG" in left_out(tmp_path, name)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_one_pixel_that_is_no_number_leaves_the_picture_out(tmp_path: Path, bad: float) -> None:
    values = np.full((8, 8), 0.5, np.float32)
    values[3, 3] = bad
    Image.fromarray(values).save(tmp_path / "float.tif")
    assert "1 pixels that are NaN or infinite" in left_out(tmp_path, "float.tif")


def test_a_float_picture_keeps_its_order_of_brightness(tmp_path: Path) -> None:
    values = np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)
    Image.fromarray(values).save(tmp_path / "float.tif")
    seen = np.asarray(read_pictures(tmp_path).pictures[0].image)[..., 0].ravel()
    assert seen[0] == 0
    assert seen[-1] == 255
    assert np.all(np.diff(seen.astype(int)) >= 0)


def test_a_dark_float_picture_stays_dark(tmp_path: Path) -> None:
    Image.fromarray(np.full((12, 16), 0.25, np.float32)).save(tmp_path / "dark.tif")
    (picture,) = read_pictures(tmp_path).pictures
    assert abs(picture.image.getpixel((0, 0))[0] - 64) <= 1


def test_whole_numbers_of_32_bits_are_not_cut_off(tmp_path: Path) -> None:
    values = np.linspace(0, 200_000, 64).astype(np.int32).reshape(8, 8)
    Image.fromarray(values).save(tmp_path / "deep.tif")
    seen = np.asarray(read_pictures(tmp_path).pictures[0].image)[..., 0]
    assert 100 < int(seen[4, 0]) < 160


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("kind", ["text", "itxt"])
def test_a_png_with_a_long_text_is_used(tmp_path: Path, packed: bool, kind: str) -> None:
    chunks = PngImagePlugin.PngInfo()
    text = "workflow " * 200_000
    add = chunks.add_text if kind == "text" else chunks.add_itxt
    add("workflow", text, zip=packed)
    Image.new("RGB", (16, 12), "blue").save(tmp_path / "made.png", pnginfo=chunks)
    (picture,) = read_pictures(tmp_path).pictures
    assert picture.image.getpixel((0, 0)) == (0, 0, 255)


def test_a_png_with_very_many_texts_is_used(tmp_path: Path) -> None:
    chunks = PngImagePlugin.PngInfo()
    for number in range(80):
        chunks.add_text(f"note {number}", "x" * 900_000)
    Image.new("RGB", (16, 12), "blue").save(tmp_path / "made.png", pnginfo=chunks)
    assert len(read_pictures(tmp_path).pictures) == 1


def test_a_long_text_hides_no_recipe(tmp_path: Path) -> None:
    chunks = PngImagePlugin.PngInfo()
    chunks.add_itxt("cones", '{"format": "cones recipe 1"}')
    chunks.add_text("workflow", "x" * 2_000_000)
    Image.new("RGB", (16, 12)).save(tmp_path / "made.png", pnginfo=chunks)
    assert read_recipe(tmp_path / "made.png") == {"format": "cones recipe 1"}


@pytest.mark.parametrize("name", ["a.eps", "a.png"])
def test_no_program_is_started_for_a_file(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(*_: object, **__: object) -> None:
        raise AssertionError("Ghostscript was started")

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", start)
    file = tmp_path / name
    Image.new("RGB", (16, 12)).save(file, "EPS")
    with pytest.raises(CorruptDataError, match="format that is read here"):
        read_recipe(file)
    left_out(tmp_path, name)


@pytest.mark.parametrize("name", ["a.jpg", "a.gif"])
def test_show_says_of_a_picture_without_recipe_that_it_has_none(tmp_path: Path, name: str) -> None:
    Image.new("RGB", (16, 12)).save(tmp_path / name)
    with pytest.raises(NotFoundError, match="carries no recipe"):
        read_recipe(tmp_path / name)


def test_a_bomb_beside_photos_is_left_out_by_name(tmp_path: Path) -> None:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content))
            + kind
            + content
            + struct.pack(">I", zlib.crc32(kind + content))
        )

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 99))
    (tmp_path / "bomb.png").write_bytes(bomb + chunk(b"IEND", b""))
    left_out(tmp_path, "bomb.png")
    (tmp_path / "sound.png").unlink()
    with pytest.raises(LimitExceededError, match=r"bomb\.png"):
        read_pictures(tmp_path)


def test_the_first_picture_of_a_film_is_used_and_the_rest_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    frames = [Image.new("RGB", (16, 12), colour) for colour in ("red", "green", "blue")]
    frames[0].save(tmp_path / "film.webp", save_all=True, append_images=frames[1:], lossless=True)
    with caplog.at_level(logging.WARNING):
        (picture,) = read_pictures(tmp_path).pictures
    assert picture.image.getpixel((0, 0)) == (255, 0, 0)
    assert "film.webp has 3 pictures; the first is used" in caplog.text


def test_a_damaged_second_page_leaves_the_first_as_it_is(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    pages = [Image.new("RGB", (16, 12), "red"), Image.new("RGB", (4, 4), "blue")]
    pages[0].save(buffer, "TIFF", save_all=True, append_images=pages[1:])
    data = bytearray(buffer.getvalue())
    (first,) = struct.unpack_from("<L", data, 4)
    (count,) = struct.unpack_from("<H", data, first)
    (second,) = struct.unpack_from("<L", data, first + 2 + 12 * count)
    struct.pack_into("<H", data, second + 2, 0x00FF)  # its first tag no longer is the width
    (tmp_path / "scan.tif").write_bytes(data)
    (picture,) = read_pictures(tmp_path).pictures
    assert picture.image.size == (16, 12)
    assert picture.image.getpixel((3, 3)) == (255, 0, 0)


def test_a_link_to_nothing_or_to_itself_is_left_out_by_name(tmp_path: Path) -> None:
    (tmp_path / "loop.png").symlink_to("loop.png")
    assert "is a link to" in left_out(tmp_path, "loop.png")
    (tmp_path / "loop.png").unlink()
    (tmp_path / "lost.jpg").symlink_to("/nowhere/photo.jpg")
    assert "is a link to" in left_out(tmp_path, "lost.jpg")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_left_out_by_name(tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(encoded("PNG"))
    (tmp_path / "secret.png").chmod(0)
    assert "Permission denied" in left_out(tmp_path, "secret.png")


def test_folders_and_hidden_files_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / "more.png").mkdir()
    (tmp_path / "._sound.png").write_bytes(b"\0\5\x16\7")
    sound(tmp_path)
    found = read_pictures(tmp_path)
    assert [picture.name for picture in found.pictures] == ["sound.png"]
    assert not found.skipped


def test_a_folder_of_ten_thousand_files_is_refused_at_once(tmp_path: Path) -> None:
    for number in range(10_000):
        (tmp_path / f"{number}.png").touch()
    with pytest.raises(LimitExceededError, match="10000 pictures; at most 1000"):
        read_pictures(tmp_path)


def test_the_formats_are_ones_that_pillow_knows() -> None:
    Image.init()
    assert set(pictures.FORMATS) <= set(Image.OPEN)
