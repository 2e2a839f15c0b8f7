"""Presets: everything that decides a score, pinned under one name and printed with every table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

from cones_registry.digest import quote
from cones_registry.errors import UsageError
from cones_registry.evaluation.fields import needed, optional


@dataclass(frozen=True)
class Backbone:
    """The shape by which a vision transformer is known; weights have their digest in the facts."""

    name: str
    width: int
    patch: int
    layers: int
    projection: int | None = None


VIT_L_14: Final = Backbone("CLIP ViT-L/14", 1024, 14, 24, 768)
VIT_B_32: Final = Backbone("CLIP ViT-B/32", 768, 32, 12, 512)


@dataclass(frozen=True)
class Preset:
    """How a number of the table comes about.

    backbone: required of the embedder; None: any, its facts are printed.
    text_scale, floor: text alignment is scale · cosine, or scale · max(cosine, 0).
    resize: how pictures reach the embedder. aggregation: from vectors to a cell.
    """

    name: str
    backbone: Backbone | None
    text_scale: float
    floor: bool
    resize: str
    aggregation: str
    source: str

    def to_json(self) -> dict[str, Any]:
        """A JSON object with one key an attribute."""
        return asdict(self)


_CLIP_RESIZE = "shortest side to 224, bicubic, centre crop 224"
_AGGREGATION = (
    "text: prompt with class nouns for subjects; image: mean cosine to all references of a "
    "subject, mean over the subjects asked for; cell: mean over pictures"
)

PRESETS: Final[Mapping[str, Preset]] = {
    preset.name: preset
    for preset in (
        Preset(
            "paper",
            VIT_L_14,
            1.0,
            False,
            _CLIP_RESIZE,
            _AGGREGATION,
            "Cones, arXiv 2303.05125: plain cosine, CLIP ViT-L/14",
        ),
        Preset(
            "customconcept101",
            VIT_B_32,
            2.5,
            True,
            _CLIP_RESIZE,
            _AGGREGATION,
            "CustomConcept101 (arXiv 2212.04488): CLIPScore, 2.5 x max(cosine, 0), CLIP ViT-B/32",
        ),
        Preset(
            "clip", None, 1.0, False, _CLIP_RESIZE, _AGGREGATION, "plain cosine, any CLIP model"
        ),
        Preset(
            "demo",
            None,
            1.0,
            False,
            "none: 32 x 32",
            _AGGREGATION,
            "the demo world's dual encoder and classifier, both trained on its renderer alone",
        ),
    )
}


def preset(name: str) -> Preset:
    """The preset of this name; UsageError if there is none."""
    if name not in PRESETS:
        raise UsageError(f"unknown preset {quote(name)}. Expected one of {', '.join(PRESETS)}")
    return PRESETS[name]


def check_preset(content: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what ``Preset.to_json`` made; UsageError for a field that it could not have made."""
    for name in ("name", "resize", "aggregation", "source"):
        needed(content, name, str)
    needed(content, "text_scale", float)
    needed(content, "floor", bool)
    backbone = optional(content, "backbone", dict)
    if backbone is not None:
        needed(backbone, "name", str)
    return content


def require_backbone(chosen: Preset, found: Backbone, source: str) -> None:
    """Raise UsageError unless a preset's scores may be made with this model."""
    wanted = chosen.backbone
    if wanted is not None and (
        (wanted.width, wanted.patch, wanted.layers, wanted.projection)
        != (found.width, found.patch, found.layers, found.projection)
    ):
        raise UsageError(
            f"{source} is a vision transformer of width {found.width}, patch {found.patch} and "
            f"{found.layers} layers; preset {chosen.name!r} means {wanted.name} (width "
            f"{wanted.width}, patch {wanted.patch}, {wanted.layers} layers). Give that model, or "
            "--preset clip, whose table says which model it was"
        )
