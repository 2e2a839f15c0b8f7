"""CLIP and DINO as embedders, from any transformers folder."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from cones_registry.base_model.model import device_of
from cones_registry.errors import CorruptDataError, NotFoundError, UsageError
from cones_registry.evaluation.embedders import Vectors
from cones_registry.evaluation.presets import Backbone

_CHUNK = 32


class ClipEmbedder:
    """A CLIP model: pictures and texts to unit vectors of one space.

    Pictures go through the folder's own image processor, texts are cut at the model's length.
    """

    def __init__(self, folder: str | Path, *, device: str = "auto") -> None:
        """Raises NotFoundError, UsageError (no CLIP) or CorruptDataError (unreadable)."""
        from transformers import AutoTokenizer, CLIPModel

        self.folder = _folder(folder)
        config = _config(self.folder, "clip")
        self._device = device_of(device)
        self._model = _loaded(CLIPModel, self.folder, self._device)
        self._tokenizer = AutoTokenizer.from_pretrained(str(self.folder), local_files_only=True)
        self._processor = _processor(self.folder)
        vision = config.vision_config
        self.backbone = Backbone(
            "CLIP",
            vision.hidden_size,
            vision.patch_size,
            vision.num_hidden_layers,
            config.projection_dim,
        )
        self._length = config.text_config.max_position_embeddings
        self.facts = _facts(self.folder, self.backbone, self._processor)

    @torch.no_grad()
    def pictures(self, pictures: Sequence[Image.Image]) -> Vectors:
        """Unit vectors, float32 [n, d]."""
        parts = []
        for pixels in _pixels(self._processor, pictures, self._device):
            states = self._model.vision_model(pixel_values=pixels).pooler_output
            parts.append(self._model.visual_projection(states))
        return _unit(parts, self.backbone.projection or 0)

    @torch.no_grad()
    def texts(self, texts: Sequence[str]) -> Vectors:
        """Unit vectors, float32 [n, d]."""
        parts = []
        for start in range(0, len(texts), _CHUNK):
            tokens = self._tokenizer(
                list(texts[start : start + _CHUNK]),
                padding=True,
                truncation=True,
                max_length=self._length,
                return_tensors="pt",
            ).to(self._device)
            states = self._model.text_model(
                input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]
            ).pooler_output
            parts.append(self._model.text_projection(states))
        return _unit(parts, self.backbone.projection or 0)


class DinoEmbedder:
    """A DINO vision transformer (any of transformers' picture models): pictures to unit vectors.

    The vector is the last state of the class token, as in DreamBooth's DINO score.
    """

    def __init__(self, folder: str | Path, *, device: str = "auto") -> None:
        """Raises NotFoundError, UsageError (no picture model) or CorruptDataError (unreadable)."""
        from transformers import AutoModel

        self.folder = _folder(folder)
        config = _config(self.folder, None)
        self._device = device_of(device)
        self._model = _loaded(AutoModel, self.folder, self._device)
        if getattr(self._model, "main_input_name", "") != "pixel_values":
            raise UsageError(
                f"{self.folder} is a {config.model_type} model, which reads no picture"
            )
        self._processor = _processor(self.folder)
        self.backbone = Backbone(
            "DINO", config.hidden_size, config.patch_size, config.num_hidden_layers
        )
        self.facts = _facts(self.folder, self.backbone, self._processor)

    @torch.no_grad()
    def pictures(self, pictures: Sequence[Image.Image]) -> Vectors:
        """Unit vectors, float32 [n, d]."""
        parts = [
            self._model(pixel_values=pixels).last_hidden_state[:, 0]
            for pixels in _pixels(self._processor, pictures, self._device)
        ]
        return _unit(parts, self.backbone.width)


def _folder(folder: str | Path) -> Path:
    path = Path(folder).expanduser()
    if not (path / "config.json").exists():
        raise NotFoundError(
            f"no model at {path}. Expected a folder of transformers with config.json and "
            "model.safetensors"
        )
    return path


def _config(folder: Path, kind: str | None) -> Any:
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(str(folder), local_files_only=True)
    except (OSError, ValueError) as error:
        raise CorruptDataError(f"cannot read {folder / 'config.json'}: {error}") from error
    if kind is not None and config.model_type != kind:
        raise UsageError(f"{folder} is a {config.model_type} model, expected {kind}")
    return config


def _loaded(kind: Any, folder: Path, device: torch.device) -> Any:
    try:
        model = kind.from_pretrained(str(folder), local_files_only=True, use_safetensors=True)
    except (OSError, ValueError, RuntimeError) as error:
        raise CorruptDataError(f"cannot load the model in {folder}: {error}") from error
    return model.eval().requires_grad_(False).to(device)


def _processor(folder: Path) -> Any:
    from transformers import AutoImageProcessor

    try:
        return AutoImageProcessor.from_pretrained(str(folder), local_files_only=True)
    except (OSError, ValueError) as error:
        raise NotFoundError(
            f"{folder} has no image processor: {error}. Copy preprocessor_config.json too"
        ) from error


def _facts(folder: Path, backbone: Backbone, processor: Any) -> Mapping[str, Any]:
    digest = hashlib.sha256()
    for file in sorted(folder.glob("*.safetensors")):
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    settings = processor.to_dict()
    return {
        "model": folder.name,
        "weights": f"sha256:{digest.hexdigest()}",
        "width": backbone.width,
        "patch": backbone.patch,
        "layers": backbone.layers,
        "resize": {
            key: settings[key] for key in ("size", "crop_size", "resample") if key in settings
        },
    }


def _pixels(processor: Any, pictures: Sequence[Image.Image], device: torch.device) -> Any:
    for start in range(0, len(pictures), _CHUNK):
        chunk = [picture.convert("RGB") for picture in pictures[start : start + _CHUNK]]
        yield processor(images=chunk, return_tensors="pt")["pixel_values"].to(device)


def _unit(parts: Sequence[torch.Tensor], width: int) -> Vectors:
    if not parts:
        return np.empty((0, width), np.float32)
    joined = torch.cat(list(parts)).float()
    return np.asarray((joined / joined.norm(dim=-1, keepdim=True)).cpu().numpy(), np.float32)
