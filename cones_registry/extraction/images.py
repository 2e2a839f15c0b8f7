"""Reference pictures: any size and format, read with bounds, each with its digest and caption."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias

from PIL import Image

from cones_registry import pictures as picture_files
from cones_registry.digest import Digest, quote, sha256_bytes
from cones_registry.errors import (
    ConesError,
    CorruptDataError,
    LimitExceededError,
    NotFoundError,
    UsageError,
)
from cones_registry.extraction.captions import MAX_CAPTION, Caption

MAX_FILE_BYTES = 2**28
MAX_PICTURES = 1000
# Of photos that Pillow does not read: named as left out, where other files are passed over.
_CAMERA_SUFFIXES: Final = frozenset(
    {".arw", ".cr2", ".cr3", ".dng", ".heic", ".heif", ".jxl", ".nef", ".orf", ".raf", ".rw2"}
)
# Documents and films, which a folder of photos may hold beside them.
_NO_PHOTOS: Final = frozenset({".h5", ".hdf", ".mpeg", ".mpg", ".pdf", ".ps"})
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
    read, or is too large, is left out and named in ``skipped`` and in the log. A file that is
    named itself must be readable. ``dog1.txt`` beside ``dog1.png`` is its caption (see
    ``Caption.parse``).

    Raises:
        NotFoundError: no such file or folder, or no picture in it.
        CorruptDataError: a file that is no picture, or a folder with none that can be read.
        LimitExceededError: more than MAX_PICTURES, or a picture of more than MAX_FILE_BYTES or
            ``pictures.MAX_PIXELS``.
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


def photo_suffixes() -> set[str]:
    """Endings by which a folder's photos are known, those that cannot be read included."""
    return (set(Image.registered_extensions()) | _CAMERA_SUFFIXES) - _NO_PHOTOS


def _read_folder(folder: Path) -> PictureSet:
    known = photo_suffixes()
    try:
        files = _bounded(
            sorted(
                path
                for path in folder.iterdir()
                if path.suffix.lower() in known
                and not path.name.startswith(".")
                and (path.is_file() or path.is_symlink())
            )
        )
    except OSError as error:
        raise CorruptDataError(f"cannot read folder {folder}: {error.strerror}") from error
    if not files:
        raise NotFoundError(f"no picture in folder {folder}. Put PNG, JPEG or WebP files there")
    pictures, skipped = [], []
    for file in files:
        try:
            pictures.append(_read_file(Path(str(file))))
        except (CorruptDataError, LimitExceededError, NotFoundError) as error:
            _LOGGER.warning("left out: %s", error)
            skipped.append(error)
    if not pictures:
        kind: type[ConesError] = CorruptDataError
        if all(isinstance(error, LimitExceededError) for error in skipped):
            kind = LimitExceededError
        raise kind(
            f"none of the {len(files)} pictures in {folder} can be read: "
            f"{'; '.join(map(str, skipped))}"
        )
    return PictureSet(tuple(pictures), tuple(map(str, skipped)))


def _read_file(path: Path) -> Picture:
    if path.is_symlink() and not path.exists():
        raise NotFoundError(f"{path} is a link to {path.readlink()}, which is not there")
    if not path.is_file():
        raise NotFoundError(f"no picture at {path}. Give a folder of pictures or picture files")
    if path.suffix.lower() in _CAMERA_SUFFIXES:
        raise CorruptDataError(
            f"{path} is in a camera's own format, which is not read here. Export it as JPEG or PNG"
        )
    try:
        size = path.stat().st_size
        if size > MAX_FILE_BYTES:
            raise LimitExceededError(
                f"{path} has {size} bytes; at most {MAX_FILE_BYTES} are read. Save it smaller"
            )
        data = path.read_bytes()
    except OSError as error:
        raise CorruptDataError(f"{path} cannot be read: {error.strerror}") from error
    image = picture_files.read_picture(data, str(path))
    return Picture(image, path.name, sha256_bytes(data), _side_car(path))


def _from_image(image: Image.Image, name: str) -> Picture:
    plain = picture_files.plain_picture(image, name)
    header = f"{image.mode} {image.width} {image.height}\n".encode()
    return Picture(plain, name, sha256_bytes(header + image.tobytes()))


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
