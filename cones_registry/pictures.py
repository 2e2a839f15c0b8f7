"""Pictures from files that others made: the one place where the package opens them.

A file is bytes from anywhere. It is opened in one of a few formats, with bounds on its size; it is
turned as its EXIF data says, brought to sRGB by its colour profile, laid on white and made RGB of 8
bits a channel. Whatever the image library raises on the way becomes an error of this package.
"""

from __future__ import annotations

import io
import logging
import warnings
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import numpy as np
from PIL import Image, UnidentifiedImageError

from cones_registry.errors import ConesError, CorruptDataError, LimitExceededError

FORMATS: Final = ("PNG", "JPEG", "WEBP", "TIFF", "GIF", "BMP", "AVIF", "JPEG2000", "PPM", "TGA")
"""What is opened, by Pillow's names. Pillow knows some forty more, of which some start programs
(EPS), and some have decoders that hardly anybody has looked at."""
MAX_PIXELS: Final = 2**26
"""Pixels of one picture (8192 × 8192); above it a file is refused before it is unpacked."""

_ORIENTATION: Final = 0x0112  # Exif tag
_TURNS: Final = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_PNG: Final = b"\x89PNG\r\n\x1a\n"
_TEXT_BYTES: Final = 2**19  # of one text inside a PNG file; Pillow refuses files above 2**20
_TEXTS_BYTES: Final = 2**24  # of all of them
_PROFILE_BYTES: Final = 2**25  # of a colour profile, unpacked
_LOGGER = logging.getLogger(__name__)


@contextmanager
def opened(
    data: bytes, name: str, *, formats: Sequence[str] = FORMATS, unpack: bool = True
) -> Iterator[Image.Image]:
    """The picture in ``data``, unpacked, as the image library gives it; closed at the end.

    name: how errors call it. formats: which of ``FORMATS`` are read. unpack: False for what stands
    beside the pixels alone; whether a PNG file is whole then follows from its checksums.

    Raises:
        CorruptDataError: no picture in one of ``formats``, or one that cannot be unpacked.
        LimitExceededError: more than ``MAX_PIXELS``.
    """
    with _translated(name):
        data, profile = _lightened(data)
        image = Image.open(io.BytesIO(data), formats=_installed(formats))
        try:
            _check_size(image, name)
            if unpack or image.format != "PNG":
                image.load()
            else:
                _check_chunks(data)
            if profile is not None:
                image.info["icc_profile"] = profile
        except BaseException:
            image.close()
            raise
    with image:
        yield image


def read_picture(data: bytes, name: str) -> Image.Image:
    """The picture in ``data``: upright, sRGB, on white, RGB of 8 bits. Raises as ``opened``."""
    with opened(data, name) as image:
        picture = _plain(image, name)
        count = _picture_count(image)
        if count > 1:
            _LOGGER.warning("%s has %d pictures; the first is used", name, count)
        return picture


def _picture_count(image: Image.Image) -> int:
    """Pictures in the file of ``image``, which is of no use afterwards: all of them are looked at.

    What phones put beside a photo (MPO) and what is damaged behind the first does not count.
    """
    if image.format == "MPO":
        return 1
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return int(getattr(image, "n_frames", 1))
    except Exception:  # as in ``_translated``
        return 1


def plain_picture(image: Image.Image, name: str) -> Image.Image:
    """An image that another program opened, as ``read_picture`` gives one. Raises as ``opened``."""
    _check_size(image, name)
    with _translated(name):
        image.load()
    return _plain(image, name)


@contextmanager
def _translated(name: str) -> Iterator[None]:
    """What Pillow and its decoders raise becomes an error that names the picture."""
    try:
        with warnings.catch_warnings():
            # Pillow warns below its own bound and about odd metadata; what counts is checked here.
            warnings.simplefilter("ignore")
            yield
    except ConesError:
        raise
    except (Image.DecompressionBombError, MemoryError) as error:
        raise LimitExceededError(f"{name} is too large: {error}. Save it smaller") from error
    except UnidentifiedImageError as error:
        raise CorruptDataError(
            f"{name} is not a picture in a format that is read here "
            f"({', '.join(FORMATS)}). Save it as PNG or JPEG"
        ) from error
    except Exception as error:  # decoders raise whatever comes of a damaged file
        reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        raise CorruptDataError(f"{name} cannot be read: {reason}. Save it again") from error


def _installed(formats: Sequence[str]) -> list[str]:
    Image.init()
    return [name for name in formats if name in Image.OPEN]


def _check_size(image: Image.Image, name: str) -> None:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise LimitExceededError(
            f"{name} has {width} × {height} pixels; at most {MAX_PIXELS} are read. Save it smaller"
        )
    if width < 1 or height < 1:
        raise CorruptDataError(f"{name} has {width} × {height} pixels. Save it again")


def _lightened(data: bytes) -> tuple[bytes, bytes | None]:
    """A PNG file without its long texts and its profile; and the profile, None without one.

    Editors keep histories and whole workflows in texts, and profiles of measured displays have
    several megabytes; Pillow refuses a picture for either. A text that is packed may be of any
    length. Files of other formats are given back as they are.
    """
    if not data.startswith(_PNG):
        return data, None
    kept, place, texts, profile = [_PNG], len(_PNG), 0, None
    while place + 12 <= len(data):
        stop = place + 12 + int.from_bytes(data[place : place + 4], "big")
        kind, chunk = data[place + 4 : place + 8], data[place:stop]
        place = stop
        if kind in (b"tEXt", b"zTXt", b"iTXt"):
            texts += len(chunk)
            _, _, rest = chunk[8:].partition(b"\0")
            packed = kind == b"zTXt" or (kind == b"iTXt" and rest[:1] != b"\0")
            if packed or len(chunk) > _TEXT_BYTES or texts > _TEXTS_BYTES:
                continue
        if kind == b"iCCP":
            _, _, rest = chunk[8:-4].partition(b"\0")
            try:
                profile = zlib.decompressobj().decompress(rest[1:], _PROFILE_BYTES)
            except zlib.error:
                profile = rest[1:]  # which is none, as the log will say
            continue
        kept.append(chunk)
        if kind == b"IEND":
            break
    return b"".join(kept), profile


def _check_chunks(data: bytes) -> None:
    """Raise ValueError unless a PNG file has all its chunks, each with the checksum that fits.

    That takes about a hundredth of the time of unpacking it.
    """
    view, place, kind = memoryview(data), len(_PNG), b""
    while kind != b"IEND":
        stop = place + 12 + int.from_bytes(view[place : place + 4], "big")
        kind = bytes(view[place + 4 : place + 8])
        if stop > len(view) or len(kind) < 4:
            raise ValueError("its end is missing")
        if zlib.crc32(view[place + 4 : stop - 4]) != int.from_bytes(view[stop - 4 : stop], "big"):
            raise ValueError(f"the checksum of its {kind.decode('latin-1')} does not fit")
        place = stop


def _plain(image: Image.Image, name: str) -> Image.Image:
    with _translated(name):
        profile = image.info.get("icc_profile")
        image = _upright(image)
        if image.mode.startswith("I;16") or image.mode in ("I", "F"):
            image = _eight_bits(image, name)
        alpha = None
        if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
            image = image.convert("RGBA")
            alpha = image.getchannel("A")
            image = image.convert("RGB")
        colours = _in_srgb(image, profile, name)
        if alpha is None:
            return colours
        white = Image.new("RGBA", colours.size, (255, 255, 255, 255))
        colours.putalpha(alpha)
        return Image.alpha_composite(white, colours).convert("RGB")


def _upright(image: Image.Image) -> Image.Image:
    """Turned as its EXIF data says; data that cannot be read says nothing.

    (``ImageOps.exif_transpose`` writes the data again, which fails for what some phones write.)
    """
    try:
        orientation = image.getexif().get(_ORIENTATION)
    except Exception:  # as odd as the data is
        return image
    turn = _TURNS.get(orientation) if isinstance(orientation, int) else None
    if turn is None:
        return image
    turned = image.transpose(turn)
    turned.info = dict(image.info)  # a colour that is transparent
    return turned


def _eight_bits(image: Image.Image, name: str) -> Image.Image:
    """A picture of 16- or 32-bit or float values, its range brought to 0 … 255."""
    values = np.asarray(image.convert("F"), dtype=np.float64)  # [height, width]
    if not np.isfinite(values).all():
        count = int((~np.isfinite(values)).sum())
        raise CorruptDataError(
            f"{name} has {count} pixels that are NaN or infinite. Save it with whole numbers"
        )
    low, high = float(values.min()), float(values.max())
    if image.mode == "F":  # from 0 to 1 by convention, or to 255, or whatever a scanner says
        top = next((usual for usual in (1.0, 255.0) if high <= usual), high)
    elif image.mode == "I" and high <= 255:
        top = 255.0
    else:
        top = max(high, 65535.0)
    bottom = min(0.0, low)
    scaled = (values - bottom) * (255.0 / max(top - bottom, 1e-12))
    return Image.fromarray(np.clip(scaled, 0.0, 255.0).astype(np.uint8))


def _in_srgb(image: Image.Image, profile: object, name: str) -> Image.Image:
    """RGB of ``image``, its colours brought to sRGB by its profile.

    A profile that cannot be read, or is made for another kind of colours, counts as none; the log
    says so.
    """
    if image.mode == "LAB":
        from PIL import ImageCms

        laboratory = ImageCms.createProfile("LAB")
        return _converted(image, laboratory, 0)
    if image.mode not in ("RGB", "L", "CMYK"):
        image = image.convert("RGB")
    if not isinstance(profile, bytes) or not profile:
        return image.convert("RGB")
    try:
        return _by_profile(image, profile)
    except Exception as error:  # lcms and its wrapper raise various ones
        reason = " ".join(str(error).split()).rstrip(".")
        _LOGGER.warning("%s: its colour profile is passed over: %s", name, reason)
        return image.convert("RGB")


def _by_profile(image: Image.Image, profile: bytes) -> Image.Image:
    from PIL import ImageCms

    source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    space = source.profile.xcolor_space.strip()
    if space == "RGB" and image.mode == "L":
        image = image.convert("RGB")
    elif space == "GRAY" and image.mode == "RGB":
        channels = image.split()
        if any(np.any(np.asarray(channels[0]) != np.asarray(each)) for each in channels[1:]):
            raise ValueError("it is for grey pictures, and this one has colours")
        image = channels[0]
    if {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}.get(space) != image.mode:
        raise ValueError(f"it is for {space} colours, the picture has {image.mode}")
    intent = ImageCms.getDefaultIntent(source)
    if image.mode == "RGB" and _is_srgb(lambda samples: _converted(samples, source, intent)):
        return image  # as it is, bit for bit
    return _converted(image, source, intent)


def _converted(image: Image.Image, source: Any, intent: int) -> Image.Image:
    """``image`` from the colours of the profile ``source`` to sRGB, as RGB."""
    from PIL import ImageCms

    target = ImageCms.createProfile("sRGB")
    made = ImageCms.profileToProfile(
        image, source, target, renderingIntent=ImageCms.Intent(intent), outputMode="RGB"
    )
    if made is None:  # for the type checker: only a conversion in place gives nothing
        raise ValueError("no picture came of it")
    return made


def _is_srgb(convert: Callable[[Image.Image], Image.Image]) -> bool:
    """Whether a conversion leaves colours where they are, but for rounding."""
    steps = np.linspace(0, 255, 9).astype(np.uint8)
    grid = np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(27, 27, 3)
    moved = np.asarray(convert(Image.fromarray(grid))).astype(int) - grid.astype(int)
    return int(np.abs(moved).max()) <= 2
