"""Reference pictures: any size and format, read with bounds, each with its digest and caption."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TypeAlias

from PIL import Image, ImageOps, UnidentifiedImageError

from cones_registry.digest import Digest, quote, sha256_bytes
from cones_registry.errors import CorruptDataError, LimitExceededError, NotFoundError, UsageError
from cones_registry.extraction.captions import MAX_CAPTION, Caption

MAX_PIXELS = 2**26
"""Pixels of one picture (8192 × 8192); above it a file is refused before it is unpacked."""
MAX_FILE_BYTES = 2**28
MAX_PICTURES = 1000
_UNSAFE_FORMATS = frozenset({"EPS", "PDF", "WMF", "EMF"})  # drawn by other programs, not read
_LOGGER = logging.getLogger(__name__)

Source: TypeAlias = str | Path | Image.Image
Sources: TypeAlias = Source | Sequence[Source]


@dataclass(frozen=True)
class Picture:
    """A picture that was read: upright RGB, no alpha.

    name: file name, or "image 1" for the first picture that came without a file.
    digest: sha256 of the file's bytes; of mode, size and pixels where there was no file.
    caption: the side-car caption, None without one.
    """

    image: Image.Image
    name: str
    digest: Digest
    caption: Caption | None = None


@dataclass(frozen=True)
class PictureSet:
    """What was read, in order, and why some files of a folder were not."""

    pictures: tuple[Picture, ...]
    skipped: tuple[str, ...] = ()


def read_pictures(images: Sources) -> PictureSet:
    """Read a folder, a file, a PIL image, or a sequence of files and PIL images.

    A folder gives its picture files in order of name, without its subfolders; one that cannot be
    read is left out and named in ``skipped`` and in the log. A file that is named itself must be
    readable. ``dog1.txt`` beside ``dog1.png`` is its caption (see ``Caption.parse``).

    Raises:
        NotFoundError: no such file or folder, or no picture in it.
        CorruptDataError: a file that is no picture, or a folder with none that can be read.
        LimitExceededError: more than MAX_PICTURES, MAX_PIXELS or MAX_FILE_BYTES.
        UsageError: no image at all, or something that is none.
    """
    if isinstance(images, str | Path):
        path = Path(images).expanduser()
        if path.is_dir():
            return _read_folder(path)
        return PictureSet((_read_file(path),))
    if isinstance(images, Image.Image):
        images = [images]
    sources = _bounded(images)
    if not sources:
        raise UsageError("no image was given. Expected one to some pictures of the subject")
    pictures = []
    for number, source in enumerate(sources, start=1):
        if isinstance(source, Image.Image):
            pictures.append(_from_image(source, f"image {number}"))
        elif isinstance(source, str | Path):
            pictures.append(_read_file(Path(source).expanduser()))
        else:
            raise UsageError(
                f"image {number} is {quote(type(source).__name__)}; expected a path or a PIL image"
            )
    return PictureSet(tuple(pictures))


def _bounded(images: Iterable[Source]) -> list[Source]:
    sources = list(images)
    if len(sources) > MAX_PICTURES:
        raise LimitExceededError(
            f"{len(sources)} pictures; at most {MAX_PICTURES} are read. A subject needs three to "
            "five: name those"
        )
    return sources


def _read_folder(folder: Path) -> PictureSet:
    known = Image.registered_extensions()
    files = _bounded(
        sorted(
            path
            for path in folder.iterdir()
            if path.suffix.lower() in known and path.is_file() and not path.name.startswith(".")
        )
    )
    if not files:
        raise NotFoundError(f"no picture in folder {folder}. Put PNG, JPEG or WebP files there")
    pictures, skipped = [], []
    for file in files:
        try:
            pictures.append(_read_file(Path(str(file))))
        except CorruptDataError as error:
            _LOGGER.warning("left out: %s", error)
            skipped.append(str(error))
    if not pictures:
        raise CorruptDataError(
            f"none of the {len(files)} pictures in {folder} can be read: {'; '.join(skipped)}"
        )
    return PictureSet(tuple(pictures), tuple(skipped))


def _read_file(path: Path) -> Picture:
    if not path.is_file():
        raise NotFoundError(f"no picture at {path}. Give a folder of pictures or picture files")
    if path.stat().st_size > MAX_FILE_BYTES:
        raise LimitExceededError(
            f"{path} has {path.stat().st_size} bytes; at most {MAX_FILE_BYTES} are read. "
            "Save it smaller"
        )
    data = path.read_bytes()
    image = _decode(data, path)
    return Picture(image, path.name, sha256_bytes(data), _side_car(path))


def _decode(data: bytes, path: Path) -> Image.Image:
    Image.init()
    formats = [name for name in Image.OPEN if name not in _UNSAFE_FORMATS]
    try:
        with warnings.catch_warnings():
            # Pillow warns below its own bound and about odd metadata; the check here is stricter.
            warnings.simplefilter("ignore")
            with Image.open(BytesIO(data), formats=formats) as image:
                _check_size(image, str(path))
                image.load()
                return _upright_rgb(image)
    except (Image.DecompressionBombError, MemoryError) as error:
        raise LimitExceededError(f"{path} is too large: {error}. Save it smaller") from error
    except LimitExceededError:
        raise
    except UnidentifiedImageError as error:
        raise CorruptDataError(f"{path} is not a picture in a format that is read here") from error
    except (OSError, ValueError, SyntaxError, EOFError, TypeError, IndexError, KeyError) as error:
        # What Pillow's decoders raise on damaged files.
        raise CorruptDataError(f"{path} cannot be read: {error}. Save it again") from error


def _check_size(image: Image.Image, name: str) -> None:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise LimitExceededError(
            f"{name} has {width} × {height} pixels; at most {MAX_PIXELS} are read. Save it smaller"
        )
    if width < 1 or height < 1:
        raise CorruptDataError(f"{name} has {width} × {height} pixels. Save it again")


def _from_image(image: Image.Image, name: str) -> Picture:
    _check_size(image, name)
    header = f"{image.mode} {image.width} {image.height}\n".encode()
    digest = sha256_bytes(header + image.tobytes())
    return Picture(_upright_rgb(image), name, digest)


def _upright_rgb(image: Image.Image) -> Image.Image:
    """Turned as its EXIF data says, alpha on white, 8 bits a channel."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        image = _eight_bits(image)
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def _eight_bits(image: Image.Image) -> Image.Image:
    """A picture of 16- or 32-bit or float values, its range brought to 0 … 255."""
    low, high = image.convert("F").getextrema()
    top = 65535.0 if image.mode.startswith("I") else float(high)  # type: ignore[arg-type]
    if image.mode == "I" and float(high) <= 255:  # type: ignore[arg-type]
        top = 255.0
    bottom = min(0.0, float(low))  # type: ignore[arg-type]
    scale = 255.0 / max(top - bottom, 1e-12)
    return image.convert("F").point(lambda value: value * scale - bottom * scale).convert("L")


def _side_car(path: Path) -> Caption | None:
    file = path.with_suffix(".txt")
    if not file.is_file():
        return None
    if file.stat().st_size > 4 * MAX_CAPTION + 4:
        raise LimitExceededError(
            f"caption file {file} has {file.stat().st_size} bytes; a caption is one line of at "
            f"most {MAX_CAPTION} characters"
        )
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise CorruptDataError(f"caption file {file} is not UTF-8 text. Save it again") from error
    try:
        return Caption.parse(text)
    except UsageError as error:
        raise UsageError(f"caption file {file}: {error}") from None
