"""A picture is brought to sRGB by its profile; without one, its numbers are sRGB."""

import io
import logging
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from cones_registry.extraction.images import read_pictures

TRUE = (30, 160, 60)
P3 = ((0.51512, 0.2412, -0.00105), (0.29198, 0.69225, 0.04189), (0.1571, 0.06657, 0.78407))
ADOBE = ((0.60974, 0.31111, 0.01947), (0.20528, 0.62567, 0.06087), (0.14919, 0.06322, 0.74457))


def fixed(*numbers: float) -> bytes:
    return b"".join(struct.pack(">i", round(number * 65536)) for number in numbers)


def icc(space: bytes, kind: bytes, pcs: bytes, tags: dict[bytes, bytes]) -> bytes:
    """A profile of version 2 from the bytes of its tags."""
    text = b"desc\0\0\0\0" + struct.pack(">I", 5) + b"test\0" + b"\0" * 78
    whole = {
        b"desc": text,
        b"cprt": b"text\0\0\0\0none\0",
        b"wtpt": b"XYZ \0\0\0\0" + fixed(0.9642, 1.0, 0.8249),
    } | tags
    table, body = struct.pack(">I", len(whole)), b""
    start = 128 + 4 + 12 * len(whole)
    for name, content in whole.items():
        table += name + struct.pack(">II", start + len(body), len(content))
        body += content + b"\0" * (-len(content) % 4)
    head = struct.pack(
        ">I4sI4s4s4s", 128 + len(table) + len(body), b"\0" * 4, 2**25, kind, space, pcs
    )
    head += b"\0" * 12 + b"acsp" + b"\0" * 24 + struct.pack(">I", 0) + fixed(0.9642, 1.0, 0.8249)
    return head.ljust(128, b"\0") + table + body


def gamma(value: float) -> bytes:
    return b"curv\0\0\0\0" + struct.pack(">IH", 1, round(value * 256)) + b"\0\0"


def display(primaries: tuple[tuple[float, ...], ...]) -> bytes:
    tags = {
        name: b"XYZ \0\0\0\0" + fixed(*xyz)
        for name, xyz in zip((b"rXYZ", b"gXYZ", b"bXYZ"), primaries, strict=True)
    }
    curves = dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), gamma(2.2))
    return icc(b"RGB ", b"mntr", b"XYZ ", tags | curves)


def press() -> bytes:
    """CMYK, by a table of its sixteen corners: inks that are a little muddy."""
    corners = [(c, m, y, k) for c in (0, 1) for m in (0, 1) for y in (0, 1) for k in (0, 1)]
    seen = np.array(
        [
            [int(230 * (1 - 0.8 * ink) * (1 - 0.9 * k)) for ink in (c, m, y)]
            for c, m, y, k in corners
        ],
        dtype=np.uint8,
    )[None]
    to_lab = ImageCms.profileToProfile(
        Image.fromarray(seen),
        ImageCms.createProfile("sRGB"),
        ImageCms.createProfile("LAB"),
        outputMode="LAB",
    )
    assert to_lab is not None
    grid = np.asarray(to_lab).astype(np.int16)[0]
    grid[:, 1:] = (grid[:, 1:] + 128) % 256  # Pillow's a and b are signed bytes
    ramp = bytes(range(256))
    table = b"mft1\0\0\0\0" + bytes((4, 3, 2, 0)) + fixed(1, 0, 0, 0, 1, 0, 0, 0, 1)
    table += ramp * 4 + grid.astype(np.uint8).tobytes() + ramp * 3
    return icc(b"CMYK", b"prtr", b"Lab ", {b"A2B0": table})


def in_profile(colour: tuple[int, int, int], profile: bytes, mode: str = "RGB") -> Image.Image:
    """A picture that looks like ``colour`` where ``profile`` is honoured."""
    converted = ImageCms.profileToProfile(
        Image.new("RGB", (8, 8), colour),
        ImageCms.createProfile("sRGB"),
        ImageCms.ImageCmsProfile(io.BytesIO(profile)),
        outputMode=mode,
    )
    assert converted is not None
    return converted


def colour_of(path: Path) -> list[int]:
    pixel = np.asarray(read_pictures(path).pictures[0].image)[4, 4]
    return [int(value) for value in pixel]


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tif", "avif"])
@pytest.mark.parametrize("profile", [display(P3), display(ADOBE)], ids=["P3", "Adobe"])
def test_a_wide_picture_is_seen_as_it_was_meant(
    tmp_path: Path, suffix: str, profile: bytes
) -> None:
    file = tmp_path / f"photo.{suffix}"
    in_profile(TRUE, profile).save(file, icc_profile=profile, quality=100)
    assert colour_of(file) == pytest.approx(TRUE, abs=10)  # some of these files lose colours


@pytest.mark.parametrize("mode", ["RGBA", "P", "PA"])
def test_a_picture_with_a_palette_or_alpha_keeps_its_profile(tmp_path: Path, mode: str) -> None:
    picture = in_profile(TRUE, display(P3))
    if mode == "RGBA":
        picture.putalpha(255)
    elif mode == "P":
        picture = picture.quantize(4)
    else:
        picture = picture.quantize(4)
        picture.info["transparency"] = 3
    picture.save(tmp_path / "photo.png", icc_profile=display(P3))
    assert colour_of(tmp_path / "photo.png") == pytest.approx(TRUE, abs=4)


def test_white_under_a_transparent_pixel_is_white(tmp_path: Path) -> None:
    Image.new("RGBA", (8, 8), (9, 9, 9, 0)).save(tmp_path / "a.png", icc_profile=display(P3))
    assert colour_of(tmp_path / "a.png") == [255, 255, 255]


@pytest.mark.parametrize("mode", ["L", "LA", "I;16"])
def test_a_grey_picture_is_brought_to_srgb(tmp_path: Path, mode: str) -> None:
    linear = icc(b"GRAY", b"mntr", b"XYZ ", {b"kTRC": gamma(1.0)})
    if mode == "I;16":
        picture = Image.fromarray(np.full((8, 8), 128 * 257, np.uint16))
    else:
        picture = Image.new("L", (8, 8), 128).convert(mode)
    picture.save(tmp_path / "grey.png", icc_profile=linear)
    assert colour_of(tmp_path / "grey.png") == pytest.approx((188,) * 3, abs=3)


def test_grey_with_the_profile_of_a_display_is_read_by_it(tmp_path: Path) -> None:
    Image.new("L", (8, 8), 128).save(tmp_path / "grey.png", icc_profile=display(P3))
    assert colour_of(tmp_path / "grey.png") == pytest.approx((128,) * 3, abs=3)


@pytest.mark.parametrize("suffix", ["jpg", "tif"])
def test_inks_are_seen_as_they_are_printed(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"printed.{suffix}"
    Image.new("CMYK", (8, 8), (255, 0, 0, 0)).save(file, icc_profile=press(), quality=100)
    assert colour_of(file) == pytest.approx((46, 230, 230), abs=12)


def test_inks_without_a_profile_are_read_as_before(tmp_path: Path) -> None:
    picture = Image.new("CMYK", (8, 8), (255, 0, 0, 40))
    picture.save(tmp_path / "printed.tif")
    assert colour_of(tmp_path / "printed.tif") == list(picture.convert("RGB").getpixel((0, 0)))


def test_laboratory_colours_are_read(tmp_path: Path) -> None:
    lab = ImageCms.profileToProfile(
        Image.new("RGB", (8, 8), TRUE),
        ImageCms.createProfile("sRGB"),
        ImageCms.createProfile("LAB"),
        outputMode="LAB",
    )
    assert lab is not None
    lab.save(tmp_path / "lab.tif")
    assert colour_of(tmp_path / "lab.tif") == pytest.approx(TRUE, abs=4)


def test_srgb_itself_changes_no_bit(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    own = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    Image.fromarray(noise).save(tmp_path / "a.png", icc_profile=own)
    assert np.array_equal(np.asarray(read_pictures(tmp_path).pictures[0].image), noise)


def test_no_profile_changes_no_bit(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.png")
    assert np.array_equal(np.asarray(read_pictures(tmp_path).pictures[0].image), noise)


@pytest.mark.parametrize(
    "profile",
    [b"no profile", display(P3)[:200], press(), b"\0" * 400],
    ids=["noise", "cut", "of-inks", "zeros"],
)
def test_a_profile_that_is_none_counts_as_none_and_is_told(
    tmp_path: Path, profile: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    Image.new("RGB", (8, 8), TRUE).save(tmp_path / "photo.png", icc_profile=profile)
    with caplog.at_level(logging.WARNING):
        assert colour_of(tmp_path / "photo.png") == list(TRUE)
    assert "photo.png: its colour profile is passed over" in caplog.text


def test_an_image_of_another_program_has_its_profile_too() -> None:
    picture = in_profile(TRUE, display(P3))
    picture.info["icc_profile"] = display(P3)
    seen = read_pictures(picture).pictures[0].image.getpixel((0, 0))
    assert seen == pytest.approx(TRUE, abs=3)


def test_a_profile_of_several_megabytes_is_read(tmp_path: Path) -> None:
    """Measured displays have such ones; the image library refuses a PNG file for them."""
    long = bytearray(display(P3) + bytes(3_000_000))
    long[:4] = len(long).to_bytes(4, "big")
    in_profile(TRUE, display(P3)).save(tmp_path / "measured.png", icc_profile=bytes(long))
    assert colour_of(tmp_path / "measured.png") == pytest.approx(TRUE, abs=4)
