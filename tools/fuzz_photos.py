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
import sys
import tempfile
import zlib
from pathlib import Path

import atheris

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
            if kind in ("GIF", "WEBP", "TIFF", "AVIF") and mode == "RGB":
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
    data = bytearray(SEEDS[provider.ConsumeIntInRange(0, len(SEEDS) - 1)])
    for _ in range(provider.ConsumeIntInRange(0, 6)):
        kind = provider.ConsumeIntInRange(0, 3)
        place = provider.ConsumeIntInRange(0, max(len(data) - 1, 0))
        if kind == 0 and data:
            data[place] ^= 1 << provider.ConsumeIntInRange(0, 7)
        elif kind == 1:
            new = provider.ConsumeBytes(provider.ConsumeIntInRange(1, 8))
            data[place : place + len(new)] = new
        elif kind == 2:
            del data[place : place + provider.ConsumeIntInRange(1, 64)]
        else:
            data[place:place] = provider.ConsumeBytes(provider.ConsumeIntInRange(1, 32))
    return with_checksums(bytes(data)) if provider.ConsumeBool() else bytes(data)


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
    seconds = "300"
    arguments = sys.argv[1:]
    if arguments and arguments[0].isdigit():
        seconds = arguments.pop(0)
    logging.disable()  # of profiles and films that are passed over
    for seed in SEEDS:
        pictures.read_picture(seed, NAME)
    corpus = Path(tempfile.mkdtemp(prefix="fuzz-photos-"))
    for number in range(256):
        (corpus / f"{number}").write_bytes(random.Random(number).randbytes(64))
    limits = [f"-max_total_time={seconds}", "-timeout=10", "-rss_limit_mb=2000"]
    options = ["-max_len=256", "-len_control=0", *limits]
    atheris.Setup([sys.argv[0], str(corpus), *options, *arguments], try_one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
