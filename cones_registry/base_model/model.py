"""BaseModel: one pipeline, loaded once, never changed."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch

from cones_registry.base_model.cache import ModelCache
from cones_registry.base_model.defaults import GenerationDefaults, read_defaults
from cones_registry.base_model.loading import TOKENIZERS, load_pipeline
from cones_registry.base_model.pipelines import (
    modules_of,
    pipeline_fingerprint,
    require_pipeline,
)
from cones_registry.base_model.source import (
    ModelFolder,
    folder_fingerprint,
    open_source,
    stored_dtype,
)
from cones_registry.errors import UsageError
from cones_registry.layers import LayerTable

_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class ModelIdentity:
    """Which base model something was made for, without the model.

    Attributes:
        fingerprint: identity of the published values of its K/V weights.
        layer_table: the layers that hold them.
        published_source: ``"demo"`` or a hub id; None if it is not known.
    """

    fingerprint: str
    layer_table: LayerTable
    published_source: str | None = None


class BaseModel:
    """A published text-to-image model that masks index into; nothing here changes it.

    source: what it was loaded from. published_source: ``"demo"`` or the hub id whose weights these
    are, None for a folder: its path says something of one machine and nothing to another.
    device: ``torch.device``. dtype: the denoiser's.
    layer_table: its cross-attention K/V weights. fingerprint: identity of their published values.
    defaults: steps and guidance it is best drawn with.
    lock: held while the tokenizers run; they keep state and are not safe in threads.
    """

    cache: ClassVar[ModelCache[BaseModel]] = ModelCache(own_limit=lambda device: _share_of(device))

    def __init__(
        self,
        pipeline: Any,
        *,
        source: str,
        fingerprint: str,
        defaults: GenerationDefaults | None = None,
        published_source: str | None = None,
    ) -> None:
        """Wrap a loaded diffusers pipeline; most callers want ``BaseModel.load``."""
        if getattr(pipeline, "transformer_2", None) is not None:
            raise UsageError(
                f"{source!r} draws with two transformers in turn, one for high and one for low "
                "noise; a mask belongs to one. Take a model with one (see schema/models.md)"
            )
        self._pipeline = pipeline
        self.source = source
        self.published_source = published_source
        self.fingerprint = fingerprint
        self.defaults = defaults or GenerationDefaults()
        self.layer_table = LayerTable.from_unet(self.denoiser)
        self.lock = threading.RLock()
        self.device: torch.device = self.denoiser.device
        self.dtype: torch.dtype = self.denoiser.dtype

    @classmethod
    def load(
        cls,
        source: str | Path,
        *,
        device: str | torch.device = "auto",
        dtype: str | torch.dtype = "auto",
    ) -> BaseModel:
        """Load ``"demo"``, the folder of a diffusers pipeline, or a hub id.

        source: a hub id is ``owner/name[@revision]``; it is looked up once per process.
        device: ``"auto"`` takes a GPU if there is one. dtype: ``"float32"``, ``"float16"``,
        ``"bfloat16"``, or ``"auto"``: as stored on a GPU, float32 on the CPU.

        Cached by folder, device and dtype: the same arguments give the same object, in every
        thread, with one load, until the size or the time of one of the folder's weight,
        configuration or tokenizer files is another. The models used last stay, up to half of a
        device's memory or to ``BaseModel.cache.limit`` bytes a device.
        (The fingerprint is no cache key: it covers K and V only, not the autoencoder or the text
        encoder.)

        Raises:
            NotFoundError: no such folder or hub model, or a part of it is not there.
            UsageError: not a diffusers pipeline folder; a device or dtype that is not here.
            CorruptDataError: weights unreadable or not safetensors, or parts that do not fit.
            MissingExtraError: a part needs a library that is not installed.
            StoreUnavailableError: the hub cannot be reached.
        """
        place = device_of(device)
        folder = open_source(source)
        kind = _dtype(dtype, folder, place)
        key = (folder.path, folder.stamp, str(place), kind)
        return cls.cache.get(key, str(place), lambda: cls._load(str(source), folder, place, kind))

    @classmethod
    def from_pipeline(cls, pipeline: Any) -> BaseModel:
        """Take a diffusers pipeline that is in memory already; it is not changed.

        Its scheduler, device, dtype and attention processors are used as they are. The fingerprint
        is computed from its weights; of weights in bfloat16, which no longer have the values that
        were published, from the files that they were loaded from, if these are found to be the
        same.

        Args:
            pipeline: a text-to-image pipeline; for ``concepts`` also one that takes pictures and
                has the same U-Net.

        Raises:
            UsageError: no pipeline with a U-Net or a transformer and tokenizers; LoRA layers on
                the K/V weights, or weights that are quantised, fused or offloaded (it says how to
                undo that); bfloat16 weights whose files are not there or hold others.
        """
        require_pipeline(pipeline)
        source = str(pipeline.config.get("_name_or_path") or type(pipeline).__name__)
        return cls(pipeline, source=source, fingerprint=pipeline_fingerprint(pipeline))

    @classmethod
    def _load(
        cls, source: str, folder: ModelFolder, device: torch.device, dtype: torch.dtype
    ) -> BaseModel:
        pipeline = load_pipeline(folder, dtype)
        denoiser = getattr(pipeline, folder.denoiser)
        digest = folder_fingerprint(folder, LayerTable.from_unet(denoiser), denoiser)
        for part in modules_of(pipeline):
            part.requires_grad_(False).eval()
        return cls(
            pipeline.to(device),
            source=source,
            fingerprint=digest,
            defaults=read_defaults(folder.path),
            published_source=folder.published_source,
        )

    @property
    def pipeline(self) -> Any:
        """The diffusers pipeline. Shared: copy it before changing its settings."""
        if self._pipeline is None:
            raise UsageError(f"base model {self.source!r} was unloaded. Load it again")
        return self._pipeline

    @property
    def denoiser(self) -> Any:
        """The pipeline's U-Net, or its transformer."""
        pipeline = self.pipeline
        unet = getattr(pipeline, "unet", None)
        return unet if unet is not None else pipeline.transformer

    @property
    def denoiser_name(self) -> str:
        """``"unet"`` or ``"transformer"``."""
        return "unet" if getattr(self.pipeline, "unet", None) is not None else "transformer"

    @property
    def tokenizers(self) -> tuple[Any, ...]:
        """The pipeline's tokenizers, one for each text encoder."""
        found = (getattr(self.pipeline, name, None) for name in TOKENIZERS)
        return tuple(tokenizer for tokenizer in found if tokenizer is not None)

    @property
    def byte_count(self) -> int:
        """Memory of all parameters and buffers in bytes."""
        if self._pipeline is None:
            return 0
        return sum(
            tensor.numel() * tensor.element_size()
            for part in self._modules()
            for tensor in (*part.parameters(), *part.buffers())
        )

    def unload(self) -> None:
        """Forget the pipeline here and in the cache; its memory goes with its last user."""
        type(self).cache.discard(self)
        self._pipeline = None

    def _modules(self) -> list[torch.nn.Module]:
        return modules_of(self.pipeline)

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """No weight takes a gradient and no dropout is active while the block runs.

        Models that ``load`` made always are so; those of ``from_pipeline`` are put back as they
        were.
        """
        modules = [part for module in self._modules() for part in module.modules()]
        training = [part for part in modules if part.training]
        learning = [each for part in self._modules() for each in part.parameters()]
        learning = [each for each in learning if each.requires_grad]
        for parameter in learning:
            parameter.requires_grad_(False)
        for part in training:
            part.training = False
        try:
            yield
        finally:
            for parameter in learning:
                parameter.requires_grad_(True)
            for part in training:
                part.training = True

    @property
    def identity(self) -> ModelIdentity:
        """What a registry keeps of it."""
        return ModelIdentity(self.fingerprint, self.layer_table, self.published_source)

    def __repr__(self) -> str:
        return (
            f"BaseModel({self.source!r}, fingerprint={self.fingerprint!r}, "
            f"device={str(self.device)!r}, dtype={str(self.dtype)!r})"
        )


def device_of(device: str | torch.device) -> torch.device:
    """The device of this name; ``"auto"`` is a GPU if there is one. UsageError for no device."""
    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda", torch.cuda.current_device())
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        place = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise UsageError(
            f"unknown device {device!r}. Expected 'auto', 'cpu' or 'cuda[:n]'"
        ) from error
    if place.type not in ("cpu", *_accelerators()):
        raise UsageError(
            f"device {str(device)!r} asked for, but torch sees none of that kind here. "
            f"Expected one of {', '.join(['auto', 'cpu', *_accelerators()])}"
        )
    if place.type == "cuda" and (place.index or 0) >= torch.cuda.device_count():
        raise UsageError(
            f"device {str(device)!r} asked for; torch sees {torch.cuda.device_count()} GPUs, "
            "counted from cuda:0"
        )
    return place


def _accelerators() -> list[str]:
    """Kinds of devices beside the CPU that this torch can use on this machine."""
    kinds: dict[str, Callable[[], bool]] = {
        "cuda": torch.cuda.is_available,
        "mps": torch.backends.mps.is_available,
        "xpu": torch.xpu.is_available,
    }
    return [kind for kind, is_available in kinds.items() if is_available()]


def _share_of(device: str) -> int | None:
    """Bytes that cached models may take on a device: half of its memory; None if it is unknown."""
    place = torch.device(device)
    if place.type == "cuda":
        return int(torch.cuda.get_device_properties(place).total_memory) // 2
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    except (AttributeError, ValueError, OSError):  # a system that does not say
        return None


def _dtype(dtype: str | torch.dtype, folder: ModelFolder, device: torch.device) -> torch.dtype:
    if isinstance(dtype, torch.dtype):
        if dtype not in _DTYPES.values():
            raise UsageError(f"dtype {dtype} is not one of {', '.join(_DTYPES)}")
        return dtype
    if dtype == "auto":
        return torch.float32 if device.type == "cpu" else _DTYPES[stored_dtype(folder)]
    if dtype not in _DTYPES:
        raise UsageError(
            f"unknown dtype {dtype!r}. Expected 'auto', {', '.join(map(repr, _DTYPES))}"
        )
    return _DTYPES[dtype]
