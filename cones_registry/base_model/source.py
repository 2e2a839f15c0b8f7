"""Where a base model comes from: a folder checked before anything heavy is loaded."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cones_registry.base_model.defaults import FILE as DEFAULTS_FILE
from cones_registry.errors import (
    CorruptDataError,
    NotFoundError,
    StoreUnavailableError,
    UsageError,
)
from cones_registry.layers import LayerTable, fingerprint

DEMO_FOLDER = Path(__file__).parent.parent / "demo" / "base"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+(@[\w./-]+)?")
_DENOISERS = ("unet", "transformer")
_PICKLED = (".bin", ".ckpt", ".pt", ".pth")
_SETTINGS = (".json", ".model", ".txt")
# A hub id is looked up once per process: the same name means the same weights for its whole life.
_DOWNLOADED: dict[str, Path] = {}


@dataclass(frozen=True)
class ModelFolder:
    """A diffusers pipeline folder whose weights are all safetensors.

    variant: ``"fp16"`` and the like if the weight files carry one, else None.
    stamp: name, size and modification time of every file that is loaded: other content, other
        stamp.
    published_source: ``"demo"`` or the hub id it is, None for a folder.
    """

    path: Path
    denoiser: str
    variant: str | None
    stamp: tuple[tuple[str, int, int], ...]
    published_source: str | None = None

    def weight_files(self, component: str) -> list[Path]:
        """The safetensors files of one component, in order of name."""
        return _of_variant(sorted((self.path / component).glob("*.safetensors")), self.variant)


def open_source(source: str | Path) -> ModelFolder:
    """Resolve ``"demo"``, a folder, or a hub id (``owner/name[@revision]``) to a checked folder.

    Raises:
        NotFoundError: no such folder, no such model on the hub.
        UsageError: not the folder of a diffusers pipeline.
        CorruptDataError: weights that are not safetensors.
        StoreUnavailableError: the hub cannot be reached.
    """
    path, published = _locate(source)
    return replace(_check_folder(path), published_source=published)


def _locate(source: str | Path) -> tuple[Path, str | None]:
    """The folder, and the source's name where that means the same on every machine."""
    if source == "demo":
        if not DEMO_FOLDER.is_dir():
            raise NotFoundError(
                f"the demo base model is not in this installation ({DEMO_FOLDER} is missing). "
                "Install the package with its data, or train it with tools/train_demo_base.py"
            )
        return DEMO_FOLDER, "demo"
    path = Path(source).expanduser()
    if path.exists():
        return path.resolve(), None
    if isinstance(source, str) and _HUB_ID.fullmatch(source):
        return _download(source), source
    raise NotFoundError(
        f"no base model at {str(source)!r}: no such folder. Give 'demo', the folder of a diffusers "
        "pipeline, or a hub id such as 'CompVis/stable-diffusion-v1-4'"
    )


def _download(source: str) -> Path:
    """Local snapshot of a hub model, safetensors only."""
    if source in _DOWNLOADED:
        return _DOWNLOADED[source]
    from diffusers import DiffusionPipeline
    from huggingface_hub.errors import HFValidationError

    name, _, revision = source.partition("@")
    try:
        folder = DiffusionPipeline.download(name, revision=revision or None, use_safetensors=True)
    except HFValidationError as error:
        raise NotFoundError(
            f"{source!r} is neither a folder here nor a name the hub allows: {error}"
        ) from error
    except OSError as error:
        text = str(error)
        if "safetensors" in text:
            raise CorruptDataError(
                f"hub model {source!r} offers no safetensors weights. Convert it once where you "
                "trust its files, and give the converted folder"
            ) from error
        if "not a valid model identifier" in text or "404" in text:
            raise NotFoundError(
                f"{source!r} is neither a folder here nor a model on the hub. A private model "
                "needs a token: hf auth login"
            ) from error
        raise StoreUnavailableError(
            f"cannot download base model {source!r}: {text.splitlines()[0]}. {source!r} is no "
            "folder here either; check the network, or give the path of a downloaded copy"
        ) from error
    _DOWNLOADED[source] = Path(folder)
    return _DOWNLOADED[source]


def _check_folder(path: Path) -> ModelFolder:
    if not path.is_dir():
        raise UsageError(
            f"{path} is a file, expected the folder of a diffusers pipeline. Convert it once: "
            f"StableDiffusionPipeline.from_single_file({path.name!r}).save_pretrained('my-base')"
        )
    index = path / "model_index.json"
    if not index.is_file():
        raise UsageError(
            f"{path} is not the folder of a diffusers pipeline: it has no model_index.json. "
            "Give the folder that save_pretrained() wrote (the one above unet/)"
        )
    components = _components(index)
    denoiser = next((name for name in _DENOISERS if name in components), None)
    if denoiser is None:
        raise UsageError(
            f"{path} has neither a unet nor a transformer, only {', '.join(components)}. "
            "Expected a text-to-image pipeline"
        )
    weights: list[Path] = []
    for component in components:
        folder = path / component
        if not folder.is_dir():
            # Some libraries make up an empty part then, which fails much later.
            raise NotFoundError(
                f"{folder} does not exist, but {index.name} names it. Copy the folder again, "
                "entirely"
            )
        found = sorted(folder.glob("*.safetensors"))
        if not found:
            _reject_pickled(path, folder, needed=component == denoiser)
        weights.extend(found)
    variant = _variant((path / denoiser).glob("*.safetensors"))
    stamp = tuple(
        (file.relative_to(path).as_posix(), file.stat().st_size, file.stat().st_mtime_ns)
        for file in [
            *(index, *path.glob(DEFAULTS_FILE), *_of_variant(weights, variant)),
            *(file for name in components for file in _settings_files(path / name)),
        ]
    )
    return ModelFolder(path, denoiser, variant, stamp)


def _settings_files(component: Path) -> list[Path]:
    """Configurations, vocabularies and merges: small files that decide what is drawn."""
    return sorted(file for file in component.glob("*") if file.suffix in _SETTINGS)


def _components(index: Path) -> list[str]:
    try:
        content = json.loads(index.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise CorruptDataError(f"cannot read {index}: {error}. Copy the folder again") from error
    if not isinstance(content, dict):
        raise CorruptDataError(f"{index} is not a JSON object. Copy the folder again")
    return [
        name
        for name, value in content.items()
        if isinstance(value, list) and len(value) == 2 and value[0] is not None
    ]


def _reject_pickled(path: Path, folder: Path, *, needed: bool) -> None:
    pickled = sorted(file.name for file in folder.glob("*") if file.suffix in _PICKLED)
    if pickled:
        raise CorruptDataError(
            f"{folder} has its weights as {pickled[0]} only; pickled weights can run code and are "
            "not loaded. If you trust them, convert once: DiffusionPipeline.from_pretrained("
            f"{str(path)!r}, use_safetensors=False).save_pretrained('my-base')"
        )
    if needed:
        raise NotFoundError(f"{folder} has no safetensors weights. Copy the folder again, entirely")


def _variant(files: Iterator[Path]) -> str | None:
    """None if some weight file carries no variant, else the first variant by name."""
    variants = sorted({_variant_of(file) or "" for file in files})
    return variants[0] or None


def _variant_of(file: Path) -> str | None:
    """``diffusion_pytorch_model.fp16[-00001-of-00002].safetensors`` -> ``fp16``."""
    parts = re.sub(r"-\d{5}-of-\d{5}", "", file.name).split(".")
    return parts[1] if len(parts) == 3 else None


def _of_variant(files: list[Path], variant: str | None) -> list[Path]:
    return [file for file in files if _variant_of(file) == variant] or files


def folder_fingerprint(folder: ModelFolder, table: LayerTable) -> str:
    """Fingerprint of the K/V weights as published: read from the files, before any cast.

    Loading in bfloat16 would round the values; the files hold them as they were released.
    Raises CorruptDataError if a layer is missing in the files or a file cannot be read.
    """
    import torch
    from safetensors import SafetensorError, safe_open

    places: dict[str, Any] = {}
    try:
        for file in folder.weight_files(folder.denoiser):
            handle: Any = safe_open(file, framework="pt", device="cpu")
            places.update(dict.fromkeys(handle.keys(), handle))

        def read(name: str) -> npt.NDArray[Any]:
            if name not in places:
                raise CorruptDataError(
                    f"{folder.path / folder.denoiser} has no weight {name!r}. Copy the folder again"
                )
            tensor = places[name].get_tensor(name)
            if tensor.dtype == torch.bfloat16:
                tensor = tensor.float()
            return np.asarray(tensor.numpy())

        return fingerprint(table, read)
    except (SafetensorError, OSError) as error:
        raise CorruptDataError(
            f"cannot read the weights in {folder.path / folder.denoiser}: {error}. "
            "Copy the folder again"
        ) from error


def stored_dtype(folder: ModelFolder) -> str:
    """What the denoiser's weights are stored in: "float32", "float16" or "bfloat16"."""
    from safetensors import safe_open

    names = {"F16": "float16", "BF16": "bfloat16"}
    for file in folder.weight_files(folder.denoiser):
        with safe_open(file, framework="pt", device="cpu") as handle:
            for key in handle.keys():  # noqa: SIM118 - the handle is no mapping
                return names.get(handle.get_slice(key).get_dtype(), "float32")
    return "float32"
