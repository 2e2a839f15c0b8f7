"""Where a base model comes from: a folder checked before anything heavy is loaded."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cones_registry.base_model.defaults import FILE as DEFAULTS_FILE
from cones_registry.base_model.purpose import check_purpose
from cones_registry.base_model.weight_files import (
    FLOATS,
    check_headers,
    check_whole,
    header_dtypes,
    variants,
    weight_files,
)
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
LIBRARIES = ("diffusers", "transformers")
_NEEDED = ("tokenizer", "text_encoder", "vae", "scheduler")
_PICKLED = (".bin", ".ckpt", ".pt", ".pth")
_SETTINGS = (".json", ".model", ".txt")
# A hub id is looked up once per process: the same name means the same weights for its whole life.
_DOWNLOADED: dict[str, Path] = {}


@dataclass(frozen=True)
class Part:
    """One part of a pipeline, as ``model_index.json`` names it.

    name: of its folder, ``"unet"``. library, class_name: what it is loaded with, ``"diffusers"``
        and ``"UNet2DConditionModel"``.
    variant: ``"fp16"`` and the like where the files that are loaded carry one, else None.
    files: the safetensors files that are loaded; empty for a tokenizer or a scheduler.
    """

    name: str
    library: str
    class_name: str
    variant: str | None = None
    files: tuple[Path, ...] = ()


@dataclass(frozen=True)
class ModelFolder:
    """A diffusers pipeline folder whose weights are all safetensors.

    pipeline: name of the pipeline's class. denoiser: ``"unet"`` or ``"transformer"``.
    stamp: name, size and modification time of every file that is loaded: other content, other
        stamp.
    published_source: ``"demo"`` or the hub id it is, None for a folder.
    """

    path: Path
    pipeline: str
    denoiser: str
    parts: tuple[Part, ...]
    stamp: tuple[tuple[str, int, int], ...]
    published_source: str | None = None

    def weight_files(self, component: str) -> tuple[Path, ...]:
        """The safetensors files that are loaded for one component."""
        return next((part.files for part in self.parts if part.name == component), ())


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
    check_whole([index], folder=path)
    if not index.is_file():
        raise UsageError(
            f"{path} is not the folder of a diffusers pipeline: {_what_else(path)}. "
            "Give the folder that save_pretrained() wrote (the one above unet/)"
        )
    pipeline, parts = _read_index(path, index)
    denoiser = next((name for name in _DENOISERS if name in parts), None)
    if denoiser is None:
        raise UsageError(
            f"{path} has neither a unet nor a transformer, only {', '.join(parts)}. "
            "Expected a text-to-image pipeline"
        )
    for name in parts:
        folder = path / name
        if not folder.is_dir():
            # Some libraries make up an empty part then, which fails much later.
            check_whole([folder], folder=path)
            raise NotFoundError(
                f"{folder} does not exist, but {index.name} names it. Copy the folder again, "
                "entirely"
            )
        check_whole(sorted(folder.iterdir()), folder=path)
    usual = _variant(path / denoiser)
    found = tuple(
        _with_files(path, each, usual, needed=each.name == denoiser) for each in parts.values()
    )
    check_purpose(path, pipeline, parts)
    stamp = tuple(
        (file.relative_to(path).as_posix(), file.stat().st_size, file.stat().st_mtime_ns)
        for file in [
            *(index, *path.glob(DEFAULTS_FILE), *(file for part in found for file in part.files)),
            *(file for name in parts for file in _settings_files(path / name)),
        ]
    )
    return ModelFolder(path, pipeline, denoiser, found, stamp)


def _with_files(path: Path, part: Part, usual: str | None, *, needed: bool) -> Part:
    """``part`` with the files that are loaded for it: of the folder's usual variant, if it can be.

    needed: there must be some.
    """
    folder = path / part.name
    offered = variants(folder)
    variant = usual if usual in offered or not offered else offered[0]
    files = weight_files(folder, variant)
    if not files:
        _reject_pickled(path, folder, needed=needed)
    check_headers(folder, variant)
    return replace(part, variant=variant, files=files)


def _variant(denoiser: Path) -> str | None:
    """None if the plain files are there, else the first variant by name."""
    return next(iter(variants(denoiser)), None)


def _what_else(path: Path) -> str:
    """What a folder without model_index.json holds, as far as its files tell."""
    names = {file.name for file in path.iterdir()}
    if "adapter_config.json" in names or any("lora" in name.lower() for name in names):
        return "it holds a LoRA, which is put on top of a base model"
    snapshots = path / "snapshots" if "snapshots" in names else path
    found = sorted(each.parent.name for each in snapshots.glob("*/model_index.json"))
    if found:
        return f"the folder of a pipeline stands in it, {snapshots / found[-1]}"
    if "config.json" in names:
        return "it has no model_index.json, only the config.json of one part of a pipeline"
    single = sorted(name for name in names if name.endswith((".safetensors", ".ckpt")))
    if single:
        return (
            f"it has no model_index.json, only {single[0]}, which StableDiffusionPipeline."
            "from_single_file(...).save_pretrained('my-base') converts if it is a whole model"
        )
    return "it has no model_index.json"


def _settings_files(component: Path) -> list[Path]:
    """Configurations, vocabularies and merges: small files that decide what is drawn."""
    return sorted(file for file in component.glob("*") if file.suffix in _SETTINGS)


def _read_index(path: Path, index: Path) -> tuple[str, dict[str, Part]]:
    """Name of the pipeline's class, and its parts by name; refuses code of the folder's own."""
    try:
        content = json.loads(index.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        raise CorruptDataError(f"cannot read {index}: {error}. Copy the folder again") from error
    if not isinstance(content, dict):
        raise CorruptDataError(f"{index} is not a JSON object. Copy the folder again")
    pipeline = content.get("_class_name")
    if isinstance(pipeline, list):
        raise _own_code(path, "its pipeline", pipeline)
    if not isinstance(pipeline, str):
        raise CorruptDataError(f"{index} does not name its pipeline. Copy the folder again")
    parts = {}
    for name, value in content.items():
        if name in _NEEDED and value == [None, None]:
            raise CorruptDataError(
                f"{index} leaves {name!r} empty, and no picture is drawn without. Copy the folder "
                "again, or take the published model that this one was made from"
            )
        if not isinstance(value, list) or len(value) != 2 or value[0] is None:
            continue
        if Path(name).name != name or not all(isinstance(each, str) for each in value):
            raise CorruptDataError(
                f"{index} names a part {name!r}: {value!r}. Copy the folder again"
            )
        library, class_name = value
        if not _is_known_library(library):
            raise _own_code(path, name, value)
        parts[name] = Part(name, library, class_name)
    return pipeline, parts


def _is_known_library(name: str) -> bool:
    """Whether a part's classes come from diffusers or transformers, and from nowhere else."""
    if name in LIBRARIES:
        return True
    if not name.isidentifier():
        return False
    try:
        return find_spec(f"diffusers.pipelines.{name}") is not None
    except ModuleNotFoundError:
        return False


def _own_code(path: Path, what: str, value: list[Any]) -> UsageError:
    return UsageError(
        f"{path} says that {what} is {'.'.join(map(str, value))}, which is neither in diffusers "
        "nor in transformers. Code that comes with a model is never run here: give a model that "
        "does without"
    )


def _reject_pickled(path: Path, folder: Path, *, needed: bool) -> None:
    pickled = sorted(file.name for file in folder.glob("*") if file.suffix in _PICKLED)
    if pickled:
        raise CorruptDataError(
            f"{folder} has its weights as {pickled[0]} only; pickled weights can run code and are "
            "not loaded. If you trust them, convert once: DiffusionPipeline.from_pretrained("
            f"{str(path)!r}, use_safetensors=False).save_pretrained('my-base')"
        )
    if needed:
        started = next((file for place in _downloads(path) for file in _incomplete(place)), None)
        told = f": the download was interrupted ({started.name} is left of it)" if started else ""
        raise NotFoundError(
            f"{folder} has no safetensors weights{told}. "
            + ("Download it again" if told else "Copy the folder again, entirely")
        )


def _downloads(path: Path) -> tuple[Path, ...]:
    """Where the hub's programs keep what they have not downloaded to the end."""
    return (path, path / ".cache" / "huggingface" / "download", path.parent.parent / "blobs")


def _incomplete(place: Path) -> list[Path]:
    pattern = "**/*.incomplete" if place.name != "blobs" else "*.incomplete"
    return sorted(place.glob(pattern))


def folder_fingerprint(folder: ModelFolder, table: LayerTable, denoiser: Any = None) -> str:
    """Fingerprint of the K/V weights as published: read from the files, before any cast.

    Loading in bfloat16 would round the values; the files hold them as they were released.
    denoiser: the model that was loaded from these files, to be compared with them.
    Raises CorruptDataError if a layer is missing in the files, if a file cannot be read, or if
    ``denoiser`` has other values: its library has read other files then.
    """
    import torch
    from safetensors import SafetensorError, safe_open

    loaded = {} if denoiser is None else dict(denoiser.named_parameters())
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
            other = loaded.get(name)
            if other is not None and not torch.equal(tensor.to(other.dtype), other):
                raise CorruptDataError(
                    f"{folder.path / folder.denoiser} holds {name!r} more than once, with other "
                    "values. Remove the weight files that do not belong to it"
                )
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
    for file in folder.weight_files(folder.denoiser):
        for stored in header_dtypes(file).values():
            if stored in FLOATS:
                return "float32" if stored == "F64" else FLOATS[stored]
    return "float32"
