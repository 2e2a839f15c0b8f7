"""Hostile photos, made by atheris: refused or read; no crash, no hang, no large allocation.

`tools/fuzz photos [seconds]` runs it; further arguments go to libFuzzer. Every input starts from a
sound picture (each format that is read, with EXIF data, a colour profile, texts, a palette, several
frames) and edits it. What is checked:

* `read_picture` gives an upright RGB picture of at most `MAX_PIXELS`, or raises CorruptDataError or
  LimitExceededError that names the file;
* no more memory is taken than such a picture needs;
* no input takes longer than ten seconds.
"""

from __future__ import annotations

import io
import logging
import random
import zlib

import atheris
import fuzzing

with atheris.instrument_imports(include=["cones_registry.pictures", "PIL"]):
    from PIL import Image, ImageCms, PngImagePlugin

    from cones_registry import pictures

from cones_registry.errors import CorruptDataError, LimitExceededError

pictures.MAX_PIXELS = 2**20  # so that what is unpacked stays small enough to be quick
NAME = "the photo"


def seeds() -> list[bytes]:
    """Sound pictures of every format, a few hundred bytes to some kilobytes each."""
    noise = random.Random(0)
    colours = Image.new("RGB", (24, 16))
    colours.putdata([tuple(noise.randbytes(3)) for _ in range(24 * 16)])
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x011A] = 72.0
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    texts = PngImagePlugin.PngInfo()
    texts.add_text("note", "x" * 50)
    texts.add_itxt("cones", "{}", zip=True)
    made = []
    for kind in pictures.FORMATS:
        for mode in ("RGB", "L", "P", "RGBA", "CMYK", "I;16", "F", "1"):
            picture = colours.convert("L").convert(mode) if mode in ("I;16", "F", "1") else colours
            options: dict[str, object] = {"exif": exif, "icc_profile": profile}
            if kind == "PNG":
                options["pnginfo"] = texts
            # (Films in AVIF are left out: Pillow 13's encoder crashes on some of them.)
            if kind in ("GIF", "WEBP", "TIFF") and mode == "RGB":
                options |= {"save_all": True, "append_images": [colours.rotate(90)]}
            buffer = io.BytesIO()
            try:
                picture.convert(mode).save(buffer, kind, **options)
            except (OSError, ValueError, KeyError, TypeError):
                continue  # a format that has no such mode
            made.append(buffer.getvalue())
    return made


SEEDS = seeds()


def make_file(provider: atheris.FuzzedDataProvider) -> bytes:
    """A sound picture, edited in some places; the checksums of a PNG file may be made right."""
    data = fuzzing.edited(SEEDS, provider)
    return with_checksums(data) if provider.ConsumeBool() else data


def with_checksums(data: bytes) -> bytes:
    """A PNG file whose chunks have the checksums that fit: whoever makes files can make them."""
    if not data.startswith(b"\x89PNG\r\n\x1a\n"):
        return data
    parts, place = [data[:8]], 8
    while place + 12 <= len(data):
        size = int.from_bytes(data[place : place + 4], "big")
        content = data[place + 4 : place + 8 + size]
        parts += [data[place : place + 4], content, zlib.crc32(content).to_bytes(4, "big")]
        place += 12 + size
    return b"".join(parts)


def try_one(raw: bytes) -> None:
    """One input of the fuzzer; raises what must not happen."""
    data = make_file(atheris.FuzzedDataProvider(raw))
    try:
        picture = pictures.read_picture(data, NAME)
    except (CorruptDataError, LimitExceededError) as error:
        if NAME not in str(error):
            raise RuntimeError(f"an error that does not name the file: {error}") from error
        return
    if picture.mode != "RGB" or not 0 < picture.width * picture.height <= pictures.MAX_PIXELS:
        raise RuntimeError(f"{picture.mode} of {picture.size}")


def main() -> None:
    logging.disable()  # of profiles and films that are passed over
    for seed in SEEDS:
        pictures.read_picture(seed, NAME)
    fuzzing.fuzz(try_one, megabytes=2000)


if __name__ == "__main__":
    main()
