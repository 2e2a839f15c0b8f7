"""Which weight files of a model folder are loaded, and whether they can be: headers alone are read.

Each part of a pipeline (U-Net, text encoder, autoencoder …) has a folder of its own. In it stands
one whole file, or an index that names shards; either may carry a *variant* (``fp16``) in its name.
diffusers takes the index where there is one, transformers the whole file.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from cones_registry.errors import CorruptDataError, NotFoundError, UsageError

FLOATS: Final = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_WHOLE_NUMBERS: Final = frozenset({"BOOL", "I64", "I32", "I16", "I8", "U8", "U16", "U32", "U64"})
_DIFFUSERS: Final = "diffusion_pytorch_model"
_TRANSFORMERS: Final = "model"
_POINTER: Final = b"version https://git-lfs.github.com/spec"
_POINTER_BYTES: Final = 1024  # a pointer of git-lfs is shorter than this


def weight_files(part: Path, variant: str | None) -> tuple[Path, ...]:
    """The safetensors files that are loaded for ``part`` in ``variant``; empty if there are none.

    part: the folder of one part of the pipeline. variant: ``"fp16"`` and the like, or None.
    Raises NotFoundError for a shard that the index names and that is not there, CorruptDataError
    for an index that cannot be read.
    """
    index = _index(part, variant)
    if index is not None:
        return tuple(part / name for name in sorted(set(_shards(index).values())))
    for stem in (_DIFFUSERS, _TRANSFORMERS):
        whole = part / f"{stem}{_dotted(variant)}.safetensors"
        if whole.is_file():
            return (whole,)
    return ()


def _index(part: Path, variant: str | None) -> Path | None:
    """The index whose shards are loaded, None where a whole file is (or nothing)."""
    for stem in (_DIFFUSERS, _TRANSFORMERS):
        whole = part / f"{stem}{_dotted(variant)}.safetensors"
        indices = (
            part / f"{stem}.safetensors.index{_dotted(variant)}.json",
            part / f"{stem}.safetensors{_dotted(variant)}.index.json",  # of older releases
        )
        index = next((file for file in indices if file.is_file()), None)
        if index is not None and (stem == _DIFFUSERS or not whole.is_file()):
            return index
        if whole.is_file():
            return None
    return None


def variants(part: Path) -> list[str | None]:
    """The variants that the weight files of ``part`` come in; None stands for the plain files."""
    found: set[str] = set()
    for file in part.glob("*.safetensors"):
        pieces = file.name.split(".")
        stem = pieces[0].split("-0")[0]
        if stem in (_DIFFUSERS, _TRANSFORMERS) and len(pieces) <= 3:
            found.add(pieces[1].split("-0")[0] if len(pieces) == 3 else "")
    return [name or None for name in sorted(found)]


def check_whole(files: Iterable[Path], *, folder: Path) -> None:
    """Raise for files that are there by name alone.

    Raises:
        NotFoundError: a link whose target is gone, or a pointer that git-lfs left for the file.
        CorruptDataError: an empty file.
    """
    for file in files:
        if file.is_symlink() and not file.exists():
            raise NotFoundError(
                f"{file} is a link to {file.readlink()}, which is not there: the download was "
                f"interrupted, or its cache was cleared. Download {folder} again"
            )
        if not file.is_file():
            continue
        size = file.stat().st_size
        if size == 0:
            raise CorruptDataError(f"{file} is empty. Copy the folder again")
        if size < _POINTER_BYTES and file.read_bytes().startswith(_POINTER):
            raise NotFoundError(
                f"{file} is a pointer of git-lfs, not the file itself. Fetch the files: git lfs "
                f"install, then git lfs pull in {folder}"
            )


def check_headers(part: Path, variant: str | None) -> None:
    """Raise for weights that cannot be read here, by the headers of ``weight_files``.

    Raises UsageError for 8-bit floats and other quantised weights, CorruptDataError for a header
    that does not fit its file, or a shard that lacks what its index says.
    """
    quantised = _json(part / "config.json").get("quantization_config")
    if isinstance(quantised, Mapping):
        method = quantised.get("quant_method", "some method")
        raise UsageError(
            f"{part} is quantised ({method}), and masks need the weights themselves. Give the "
            "float16, bfloat16 or float32 release of this model"
        )
    files = weight_files(part, variant)
    headers = {file.name: header_dtypes(file) for file in files}
    _check_once(part, headers)
    for file, dtypes in headers.items():
        for name, dtype in dtypes.items():
            # Whole numbers are tables of positions and the like; as weights they are quantised.
            quantised = dtype in _WHOLE_NUMBERS and name.endswith((".weight", ".bias"))
            if quantised or not (dtype in FLOATS or dtype in _WHOLE_NUMBERS):
                raise UsageError(
                    f"weight {name!r} in {part / file} is of type {dtype}. Expected float32, "
                    "float16 or bfloat16: give such a release of this model, or convert it once"
                )
    index = _index(part, variant)
    for name, file in ({} if index is None else _shards(index)).items():
        if name not in headers[file]:
            raise CorruptDataError(
                f"{part / file} has no weight {name!r}, which its index says it holds. Copy the "
                "folder again, entirely"
            )


def _check_once(part: Path, headers: Mapping[str, Mapping[str, str]]) -> None:
    """Raise CorruptDataError for a weight that two shards hold with other values.

    Which of them counts is a matter of luck.
    """
    from safetensors import safe_open

    places: dict[str, str] = {}
    for file, dtypes in headers.items():
        for name in dtypes:
            first = places.setdefault(name, file)
            if first == file:
                continue
            with (
                safe_open(part / first, framework="pt", device="cpu") as one,
                safe_open(part / file, framework="pt", device="cpu") as other,
            ):
                if one.get_tensor(name).equal(other.get_tensor(name)):
                    continue
            raise CorruptDataError(
                f"{part / first} and {file} beside it both hold weight {name!r}, with other "
                "values. Copy the folder again, entirely"
            )


def header_dtypes(file: Path) -> dict[str, str]:
    """Name -> stored type (``"F16"`` …) of every tensor in a safetensors file."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt", device="cpu") as handle:
            return {name: handle.get_slice(name).get_dtype() for name in sorted(handle.keys())}
    except (SafetensorError, OSError) as error:
        raise CorruptDataError(
            f"cannot read the weights in {file}: {error}. Copy the folder again"
        ) from error


def _shards(index: Path) -> dict[str, str]:
    """Weight -> name of the shard that holds it."""
    table = _json(index).get("weight_map")
    if not isinstance(table, Mapping) or not all(isinstance(each, str) for each in table.values()):
        raise CorruptDataError(f"{index} names no shards. Copy the folder again")
    for weight, name in table.items():
        if Path(name).name != name:
            raise CorruptDataError(f"{index} names a shard outside its folder: {name!r}")
        if not (index.parent / name).is_file():
            raise NotFoundError(
                f"{index.parent / name} is not there, but {index.name} says it holds {weight!r}. "
                "Copy the folder again, entirely"
            )
    return dict(table)


def _json(file: Path) -> Mapping[str, object]:
    if not file.is_file():
        return {}
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        raise CorruptDataError(f"cannot read {file}: {error}. Copy the folder again") from error
    if not isinstance(content, Mapping):
        raise CorruptDataError(f"{file} is not a JSON object. Copy the folder again")
    return content


def _dotted(variant: str | None) -> str:
    return f".{variant}" if variant else ""
